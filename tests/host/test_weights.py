"""Loading of weight files: in several threads, compiled, and of damaged files."""

import threading
from concurrent.futures import ThreadPoolExecutor

from cerberus_plugin.host.pretrained import recorded_loads

import fastreid.modeling.backbones.resnet as resnet
import pytest
import torch
from fastreid.utils.checkpoint import Checkpointer
from torch import nn

THREADS = 3


def test_loading_checkpoints_in_several_threads_does_not_change_torch(tmp_path, monkeypatch):
    inside, plain = threading.Barrier(THREADS), torch.load

    def load(*args, **kwargs):
        inside.wait(20)
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    torch.save({"model": nn.Linear(2, 1).state_dict()}, tmp_path / "model.pth")
    with ThreadPoolExecutor(THREADS) as pool:
        done = [pool.submit(Checkpointer(nn.Linear(2, 1)).load, str(tmp_path / "model.pth")) for _ in range(THREADS)]
        [each.result(20) for each in done]
    assert torch.load is load


def test_each_thread_records_its_own_loads_and_torch_is_restored():
    plain, second_is_inside, first_has_left = nn.Module.load_state_dict, threading.Event(), threading.Event()
    state = nn.Linear(2, 1).state_dict()

    def first():
        with recorded_loads() as loads:
            second_is_inside.wait(0.5)  # times out: the second thread must wait
            nn.Linear(2, 1).load_state_dict(state)
        first_has_left.set()
        return len(loads)

    def second():
        with recorded_loads() as loads:
            second_is_inside.set()
            assert first_has_left.wait(20)
            nn.Linear(2, 1).load_state_dict(state)
            nn.Linear(2, 1).load_state_dict(state)
        return len(loads)

    with ThreadPoolExecutor(THREADS) as pool, recorded_loads() as loads:
        pool.submit(nn.Linear(2, 1).load_state_dict, state).result(20)  # loads of other threads are not recorded
    assert loads == []
    with ThreadPoolExecutor(2) as pool:
        counts = [pool.submit(each) for each in (first, second)]
        assert [each.result(30) for each in counts] == [1, 2]
    assert nn.Module.load_state_dict is plain


def test_the_replacement_of_torch_in_fastreids_modules_can_be_compiled(monkeypatch):
    def double(x):
        return resnet.torch.cat([x, x])

    assert resnet.torch is not torch and resnet.torch.Tensor is torch.Tensor
    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.ones(4))


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: b"no weights", lambda data: data[:len(data) // 2], lambda data: data[:-30],
    lambda data: data[:60] + b"\xff" * 40 + data[100:], lambda data: data.replace(b"model", b"mudel")])
def test_the_error_for_a_damaged_checkpoint_names_the_file_and_a_remedy(tmp_path, damage):
    path = tmp_path / "model.pth"
    torch.save({"model": nn.Linear(20, 10).state_dict()}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="model.pth: .*(Use another checkpoint|MODEL.WEIGHTS takes a checkpoint)"):
        Checkpointer(nn.Linear(20, 10)).load(str(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_rejected(tmp_path, value):
    state = nn.BatchNorm1d(4).state_dict()
    state["running_var"][2] = value
    torch.save({"model": state}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth: 1 of 4 tensors .*NaN.*'running_var'"):
        Checkpointer(nn.BatchNorm1d(4)).load(str(tmp_path / "model.pth"))
