"""The installer behind `make`: what it refuses, and what it says where there is nothing to install from."""

import os
import subprocess
import sys
from pathlib import Path

INSTALL = Path(__file__).parents[1] / "tools" / "install.py"


def install(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(INSTALL), *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=120)


def test_a_folder_that_is_no_environment_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    done = install(tmp_path)
    assert done.returncode == 1 and "is no virtual environment; it would be emptied" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_without_wheels_or_an_index_the_two_commands_that_collect_them_are_shown(tmp_path):
    (tmp_path / "wheels").mkdir()
    done = install(tmp_path / "venv", "--wheels", tmp_path / "wheels", "--torch", "no-such-torch==0", PIP_NO_INDEX="1",
                   PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 1
    assert "pip download -d wheels no-such-torch==0" in done.stderr
    assert "pip download -d wheels --no-deps fastreid==1.4.0" in done.stderr
