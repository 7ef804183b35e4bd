"""Importing the host package: the message without FastReID, and no leftovers in other modules."""

import collections
import importlib
import os
import subprocess
import sys
from pathlib import Path

from cerberus_plugin import host

import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_names_provided_during_the_import_are_removed_afterwards():
    assert "torch._six" not in sys.modules
    assert not hasattr(collections, "Mapping")


def test_version_is_that_of_the_installed_distribution():
    assert host.version() == importlib.metadata.version("fastreid")


def test_import_without_fastreid_names_the_install_command():
    code = "import sys; sys.modules['fastreid'] = None; import cerberus_plugin.host"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith('ImportError: FastReID is not installed: pip install --no-deps "fastreid==1.4.0"')


def test_a_torchvision_that_does_not_match_a_cuda_torch_is_an_error(monkeypatch):
    def failing(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(host.imports.importlib, "import_module", failing)
    with pytest.raises(RuntimeError, match="torchvision::nms does not exist"):
        host.imports.import_torchvision()


def test_torchvision_has_its_operators_after_the_import():
    import torchvision

    assert torchvision.extension is sys.modules["torchvision.extension"]
    assert torch.ops.torchvision.nms is not None


def test_adapting_twice_wraps_each_function_once():
    host.adapt()
    adapted = fastreid.solver.build_optimizer
    assert host.original(host.original(adapted)) is host.original(adapted)
    assert host.original(adapted).__code__.co_filename.endswith(os.path.join("solver", "build.py"))
