"""Tests marked gpu on the software device, counts of device operations, and compilation of kernels for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_rehearsal import budget, soft_cuda
from gpu_rehearsal.operators import without_cuda_kernel

ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".triton"  # a separate folder, because torch.compile would use an installed Triton


@pytest.fixture(scope="module")
def on_the_device():
    """Return a function that runs Python on the software device with arguments and variables; it returns the output."""
    try:
        soft_cuda.build()
    except soft_cuda.Unavailable as error:
        pytest.skip(str(error))
    # The variables of pytest-xdist would make the process a worker of this test run.
    environment = {key: value for key, value in soft_cuda.environment().items() if not key.startswith("PYTEST_")}
    environment["OMP_NUM_THREADS"] = "1"

    def run(*arguments, **variables) -> str:
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment | variables,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-20000:]
        return done.stdout

    return run


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_test_marked_gpu_passes_with_operators_that_a_gpu_supports(on_the_device, tmp_path, chosen):
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
def test_operations_of_a_step_and_an_evaluation_equal_those_of_the_table(on_the_device, models):
    on_the_device("-m", "gpu_rehearsal.budget", *models)


@pytest.mark.slow
def test_the_kernels_of_a_compiled_step_compile_for_a_gpu(on_the_device):
    if not TRITON.is_dir():
        pytest.skip(f"needs Triton in {TRITON}: see CONTRIBUTING.md")
    on_the_device("-m", "gpu_rehearsal.inductor", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", "512",
                  PYTHONPATH=os.pathsep.join([soft_cuda.environment()["PYTHONPATH"], str(TRITON)]))
