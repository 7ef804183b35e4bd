"""tools/fuzz.py: mutations are reproducible, and error messages are checked."""

import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "fuzz.py"


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


def test_mutations_depend_on_the_seed_only(tool):
    data, text, record = bytes(range(256)) * 4, "a: 1\nb: [2, 3]\n", {"a": [1, {"b": 2}], "c": "d"}
    for name, valid in (("mutated_bytes", data), ("mutated_text", text), ("mutated_record", record)):
        found = [repr(tool[name](valid, random.Random(seed))) for seed in range(60)]
        assert found == [repr(tool[name](valid, random.Random(seed))) for seed in range(60)]
        assert len(set(found)) > 15 and sum(each != repr(valid) for each in found) > 50, name
    assert record == {"a": [1, {"b": 2}], "c": "d"}


@pytest.mark.parametrize(("message", "found"), [
    ("{}: is damaged; export it again", "rejected"), ("{}: is damaged", "failure"), ("is damaged; use it", "failure")])
def test_a_message_must_name_the_file_and_say_what_to_do(tool, tmp_path, message, found):
    path = tmp_path / "model.onnx"
    assert tool["judge"](ValueError(message.format(path)), path, True)[0] == found


@pytest.mark.slow
def test_mutated_files_of_all_kinds_are_read_or_rejected_with_a_clear_message(tmp_path):
    done = subprocess.run([sys.executable, str(TOOL), "--count", "63", "--seed", "5", "--keep", str(tmp_path)],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "63 mutations, 0 failures" in done.stdout
