"""Shared by the benchmarks: clock, tables and JSON files of results."""

import json
import pathlib
import sys

from cerberus_plugin.utils.environment import hardware, versions
from cerberus_plugin.utils.environment import timed as timed
from cerberus_plugin.utils.files import write_text

import torch
from tabulate import tabulate


def table(headers, rows) -> str:
    """A table in GitHub's form, numbers as they are given."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def write(path, record: dict) -> None:
    """A JSON file of the record and of how it came about."""
    account = {"versions": versions(), "hardware": hardware(), "torch_threads": torch.get_num_threads(),
               "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])}
    write_text(str(path), json.dumps(record | account, indent=2) + "\n")


def peak_resident_bytes() -> int:
    """The most memory this process has held; a started process must not be given the peak of its parent."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
