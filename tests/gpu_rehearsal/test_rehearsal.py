"""The GPU path without a GPU: tests marked gpu on the software device, its budgets, and kernels for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_rehearsal import budget, soft_cuda
from gpu_rehearsal.operators import without_cuda_kernel

ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".triton"  # a folder beside the environment: where Triton is installed, torch.compile uses it


@pytest.fixture(scope="module")
def on_the_device():
    """Run Python on the software device: its arguments, further variables -> what it printed, shown if it fails."""
    try:
        soft_cuda.build()
    except soft_cuda.Unavailable as error:
        pytest.skip(str(error))
    # A process with its own workers, not one more of those that run this test.
    environment = {key: value for key, value in soft_cuda.environment().items() if not key.startswith("PYTEST_")}
    environment["OMP_NUM_THREADS"] = "1"

    def run(*arguments, **variables) -> str:
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment | variables,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-20000:]
        return done.stdout

    return run


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_test_marked_gpu_passes_by_operators_that_a_gpu_has(on_the_device, tmp_path, chosen):
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    said = on_the_device("-m", "pytest", "-m", f"gpu and ({chosen})", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs",
                         "--show-capture=no", "--basetemp", tmp_path / "child", *files,
                         **{soft_cuda.OPERATORS: str(tmp_path / "operators")})
    *_, summary = said.strip().splitlines()
    assert "passed" in summary and "skipped" not in summary, said[-20000:]
    used = {line.partition("\t")[0] for line in (tmp_path / "operators").read_text().splitlines()}
    assert len(used) > 50 and without_cuda_kernel(used) == []


def test_an_operator_without_a_kernel_for_cuda_is_found():
    assert without_cuda_kernel(["aten::add.Tensor", "aten::sort", "aten::linear"]) == []
    assert without_cuda_kernel(["aten::mkldnn_linear", "other::add"]) == ["aten::mkldnn_linear", "other::add"]


@pytest.mark.parametrize("models", [
    ["cerberus"], pytest.param([name for name in budget.MODELS if name != "cerberus"], marks=pytest.mark.slow)])
def test_a_step_and_an_evaluation_ask_no_more_of_the_device_than_the_table_says(on_the_device, models):
    on_the_device("-m", "gpu_rehearsal.budget", *models)


@pytest.mark.slow
def test_the_kernels_of_a_compiled_step_compile_for_a_gpu(on_the_device):
    if not TRITON.is_dir():
        pytest.skip(f"needs Triton in {TRITON}: see CONTRIBUTING.md")
    on_the_device("-m", "gpu_rehearsal.inductor", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", "512",
                  PYTHONPATH=os.pathsep.join([soft_cuda.environment()["PYTHONPATH"], str(TRITON)]))
