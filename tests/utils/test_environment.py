"""Description of the machine, versions and free memory."""

from cerberus_plugin.utils.environment import free_bytes, hardware, versions

import pytest
import torch


def test_the_hardware_is_described():
    described = hardware()
    assert described["cores"] >= 1 and isinstance(described["processor"], str)
    assert ("gpu" in described) == torch.cuda.is_available()


def test_the_hardware_of_a_run_on_the_cpu_has_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    names = {"cuda": "NVIDIA H100", "cuda:1": "NVIDIA A100"}
    monkeypatch.setattr("torch.cuda.get_device_name", names.get)
    assert "gpu" not in hardware("cpu")
    assert [hardware(device)["gpu"] for device in names] == list(names.values())


def test_versions_include_python_torch_and_fastreid():
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "fastreid"} <= set(versions())


def test_memory_that_torch_has_reserved_and_does_not_use_counts_as_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert free_bytes("cuda") == 1400
    assert 0 < free_bytes("cpu") < 2**50
