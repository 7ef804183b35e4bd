"""`utils.files.write_whole`: a file is always complete, with several writers and after errors."""

import errno
import multiprocessing
import os
import signal
import time

from cerberus_plugin.utils.files import STALE, write_whole

import pytest

SIZE, ROUNDS = 20_000, 60


def write_in_two_steps(path, letter: bytes, rounds: int = 1, pause: float = 0.0) -> None:
    def write(file):
        file.write(letter * SIZE)
        file.flush()
        time.sleep(pause)
        file.write(letter * SIZE)

    for _ in range(rounds):
        write_whole(path, write, sync=False)


def started(*arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=write_in_two_steps, args=arguments)
    process.start()
    return process


def test_several_processes_can_write_a_file_and_readers_see_complete_content(tmp_path):
    path = tmp_path / "record.json"
    write_in_two_steps(path, b"a")
    writers = [started(path, letter, ROUNDS) for letter in (b"a", b"b", b"c")]
    seen = set()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert content == content[:1] * (2 * SIZE)
        seen.add(content[:1])
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert seen <= {b"a", b"b", b"c"} and [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_killed_process_leaves_the_old_file_and_its_temporary_file_is_removed_later(tmp_path):
    path = tmp_path / "record.json"
    write_in_two_steps(path, b"a")
    process = started(path, b"b", 1, 60)
    while not (left := list(tmp_path.glob("record.json.*"))) or not left[0].stat().st_size:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert path.read_bytes() == b"a" * (2 * SIZE)
    write_in_two_steps(path, b"c")
    assert left[0].exists()  # another process may still be writing it
    os.utime(left[0], (0, time.time() - STALE - 1))
    (tmp_path / "record.json.bak").write_text("not a temporary file")
    os.utime(tmp_path / "record.json.bak", (0, 0))
    write_in_two_steps(path, b"d")
    assert path.read_bytes() == b"d" * (2 * SIZE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["record.json", "record.json.bak"]


@pytest.mark.parametrize("before", [True, False], ids=["replaced", "new"])
def test_the_error_for_a_full_disk_names_the_file_and_no_temporary_file_remains(tmp_path, before):
    path = tmp_path / "record.json"
    if before:
        path.write_text("old")

    def write(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the file itself raises it

    with pytest.raises(OSError, match=r"could not be written \(No space left on device\).*record\.json") as raised:
        write_whole(path, write)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"] * before


def test_errors_about_other_files_and_of_the_content_are_not_changed(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "record.json", lambda file: open(tmp_path / "other.json"))
    assert raised.value.filename == str(tmp_path / "other.json")
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "record.json", lambda file: 1 / 0)
    assert list(tmp_path.iterdir()) == []
