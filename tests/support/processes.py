"""Programs that tests run beside themselves, and how they are stopped."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a program in a process of its own begins with to run as where torch is not installed.
WITHOUT_TORCH = """
import sys
class Hidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "fastreid"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
sys.modules["torch"] = None
"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def command(*arguments) -> subprocess.Popen:
    """The `cerberus` command in a process of its own, which lists what it imports.

    It can be interrupted even where the tests run in the background, whose children ignore interrupts.
    """
    return subprocess.Popen([sys.executable, "-X", "importtime", "-m", "cerberus_plugin.cli", *map(str, arguments)],
                            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))


def imported(process: subprocess.Popen, said: str) -> set[str]:
    """Packages that a finished command has imported; `said` is in what it printed."""
    out, errors = process.communicate(timeout=120)
    assert said in out + errors, errors[-2000:]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in errors.splitlines()
            if line.startswith("import time:")}


def fetch(address: str, **options):
    """Past whatever proxy the environment names."""
    handlers = [urllib.request.ProxyHandler({}), *(urllib.request.HTTPSHandler(**options) for _ in options)]
    return urllib.request.build_opener(*handlers).open(address, timeout=120)


def until(holds) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Killed(BaseException):
    """What ends a run that `kill_at_file` has stopped."""


def kill_at_file(patch: pytest.MonkeyPatch, module, number: int) -> None:
    """Until undone, stop before the file of this number, from 1, gets its name: `module` renames with `os.replace`."""
    whole, calls = module.os.replace, []

    def replace_some(source, target):
        calls.append(target)
        if len(calls) == number:
            patch.setattr(module.os, "unlink", lambda path: None)  # a killed process removes nothing
            raise Killed
        whole(source, target)

    patch.setattr(module.os, "replace", replace_some)
