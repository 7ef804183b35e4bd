"""Programs that tests run in separate processes, and simulated kills."""

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
# Start of a program that runs as if torch were not installed.
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
    """Start the `cerberus` command in a separate process that lists its imports.

    The process reacts to interrupts even if the tests run in the background, where child processes ignore them.
    """
    return subprocess.Popen([sys.executable, "-X", "importtime", "-m", "cerberus_plugin.cli", *map(str, arguments)],
                            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))


def imported(process: subprocess.Popen, said: str) -> set[str]:
    """Return the packages that a command has imported, after it has ended; check that it printed `said`."""
    out, errors = process.communicate(timeout=120)
    assert said in out + errors, errors[-2000:]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in errors.splitlines()
            if line.startswith("import time:")}


def fetch(address: str, **options):
    """Open an address without the proxy of the environment."""
    handlers = [urllib.request.ProxyHandler({}), *(urllib.request.HTTPSHandler(**options) for _ in options)]
    return urllib.request.build_opener(*handlers).open(address, timeout=120)


def until(holds) -> None:
    """Wait until `holds()` is true, at most two minutes."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Killed(BaseException):
    """Ends a run that simulates a kill."""


def kill_at_file(patch: pytest.MonkeyPatch, module, number: int) -> None:
    """Raise Killed when `module` renames its `number`-th file, counted from 1, with `os.replace`."""
    whole, calls = module.os.replace, []

    def replace_some(source, target):
        calls.append(target)
        if len(calls) == number:
            patch.setattr(module.os, "unlink", lambda path: None)  # a killed process removes nothing
            raise Killed
        whole(source, target)

    patch.setattr(module.os, "replace", replace_some)
