"""The tests marked gpu, on a software device where there is no GPU: none fails, none is skipped."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpu_rehearsal import soft_cuda

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def on_the_device():
    """Run Python on the software device: its arguments -> what it printed; a failure shows all of it."""
    try:
        soft_cuda.build()
    except soft_cuda.Unavailable as error:
        pytest.skip(str(error))
    # A process with its own workers, not one more of those that run this test.
    environment = {key: value for key, value in soft_cuda.environment().items() if not key.startswith("PYTEST_")}
    environment["OMP_NUM_THREADS"] = "1"

    def run(*arguments) -> str:
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-20000:]
        return done.stdout

    return run


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_test_marked_gpu_passes_on_the_software_device(on_the_device, tmp_path, chosen):
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    said = on_the_device("-m", "pytest", "-m", f"gpu and ({chosen})", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs",
                         "--basetemp", tmp_path / "child", *files)
    *_, summary = said.strip().splitlines()
    assert "passed" in summary and "skipped" not in summary, said[-20000:]
