"""Checkpoints: atomic writes, the best score after a resume, and errors for unusable files."""

import errno
import os
import types

from cerberus_plugin import host

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine import hooks
from fastreid.modeling.backbones.build import build_backbone
from fastreid.utils.checkpoint import Checkpointer
from torch import nn


def saved(folder, epoch=0, metric=80.0, name="model_0000"):
    """Return a checkpointer and write one complete checkpoint to its folder."""
    checkpointer = Checkpointer(nn.Linear(200, 200), str(folder))
    checkpointer.save(name, epoch=epoch, metric=metric)
    return checkpointer


def assert_resumes_from(folder, epoch):
    assert sorted(path.name for path in folder.glob("*.tmp")) == []
    assert Checkpointer(nn.Linear(200, 200), str(folder)).resume_or_load("", resume=True)["epoch"] == epoch


def half_of_a_file(then):
    """Return a replacement of torch.save that writes some bytes and then calls `then`."""

    def save(data, file):
        file.write(b"half of a checkpoint")
        file.flush()
        then()

    return save


def disk_full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["model_0000", "model_0001"])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, name):
    checkpointer = saved(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_of_a_file(disk_full))
        with pytest.raises(OSError, match=rf"No space left.*previous checkpoint.*intact.*{name}.pth") as caught:
            checkpointer.save(name, epoch=1, metric=0.0)
    assert caught.value.errno == errno.ENOSPC
    assert_resumes_from(tmp_path, epoch=0)


def test_an_error_about_another_file_names_that_file(tmp_path, monkeypatch):
    def missing():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "weights.bin")

    checkpointer = saved(tmp_path)
    monkeypatch.setattr(torch, "save", half_of_a_file(missing))
    with pytest.raises(FileNotFoundError, match="No such file or directory: 'weights.bin'"):
        checkpointer.save("model_0001", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=0)


def test_the_advice_does_not_depend_on_the_spelling_of_the_path(tmp_path, monkeypatch):
    checkpointer = saved(f"{tmp_path}//")
    monkeypatch.setattr(torch, "save", half_of_a_file(disk_full))
    with pytest.raises(OSError, match="No space left.*run again with --resume"):
        checkpointer.save("model_0001", epoch=1, metric=0.0)


def test_a_disk_error_inside_torchs_zip_writer_is_reported_as_a_disk_error(tmp_path):
    resource = pytest.importorskip("resource")
    checkpointer = saved(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the weights take 160 kB
    try:
        with pytest.raises(OSError, match="File too large.*intact.*model_0001.pth"):
            checkpointer.save("model_0001", epoch=1, metric=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_resumes_from(tmp_path, epoch=0)


def test_an_interrupt_while_writing_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    checkpointer = saved(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_of_a_file(interrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save("model_0000", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_writing_keeps_the_previous_checkpoint(tmp_path):
    checkpointer = saved(tmp_path)
    child = os.fork()
    if child == 0:
        torch.save = half_of_a_file(lambda: os._exit(9))
        checkpointer.save("model_0000", epoch=1, metric=0.0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    host.checkpoints.remove_partial_files(str(tmp_path))
    checkpointer.save("model_0000", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=1)


def test_last_checkpoint_names_the_old_file_when_it_cannot_be_replaced(tmp_path, monkeypatch):
    checkpointer = saved(tmp_path)
    replace = os.replace

    def failing(source, target):
        if str(target).endswith("last_checkpoint"):
            disk_full()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(host.checkpoints.os, "replace", failing)
        with pytest.raises(OSError, match="last_checkpoint"):
            checkpointer.save("model_0001", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=0)


def test_an_error_that_is_not_a_disk_error_keeps_its_type(tmp_path, monkeypatch):
    def out_of_memory():
        raise RuntimeError("out of memory")

    checkpointer = saved(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_of_a_file(out_of_memory))
        with pytest.raises(RuntimeError, match="^out of memory$"):
            checkpointer.save("model_0000", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=0)


def periodic_checkpointer(checkpointer, start_iter):
    hook = hooks.PeriodicCheckpointer(checkpointer, period=1)
    hook.trainer = types.SimpleNamespace(cfg=get_cfg(), max_epoch=10, start_iter=start_iter)
    hook.before_train()
    return hook


def stored_metric(folder):
    return torch.load(folder / "model_best.pth")["metric"]


def test_a_resumed_run_does_not_overwrite_a_better_model_best(tmp_path):
    hook = periodic_checkpointer(saved(tmp_path, name="model_best", metric=80.0), start_iter=100)
    hook.step(4, metric=70.0)
    assert stored_metric(tmp_path) == 80.0
    hook.step(5, metric=90.0)
    assert stored_metric(tmp_path) == 90.0


def test_a_new_run_in_an_old_folder_ignores_the_stored_best_score(tmp_path):
    hook = periodic_checkpointer(saved(tmp_path, name="model_best", metric=80.0), start_iter=0)
    hook.step(4, metric=70.0)
    assert stored_metric(tmp_path) == 70.0


def test_a_resumed_run_without_a_readable_best_score_starts_at_minus_one(tmp_path, log):
    checkpointer = saved(tmp_path)
    assert periodic_checkpointer(checkpointer, start_iter=100).best_metric == -1
    (tmp_path / "model_best.pth").write_bytes(b"half of a checkpoint")
    assert periodic_checkpointer(checkpointer, start_iter=100).best_metric == -1
    assert f"{tmp_path / 'model_best.pth'}: the score cannot be read" in log.text


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("force", [False, True])
def test_code_in_a_weight_file_is_not_executed(tmp_path, monkeypatch, force):
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth: cannot be read as weights"):
        Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "model.pth"))
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth: cannot be read as weights"):
        build_backbone(cfg)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "model.pth", weights_only=False)
    assert (tmp_path / "sprung").exists(), "the file executes code if it is loaded unsafely"


def test_backbone_weights_given_as_a_checkpoint_are_rejected_by_name(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"resnet.pth: .*'model' .* missing, got \['conv1.weight'\].*PRETRAIN_PATH"):
        Checkpointer(nn.Linear(1, 1)).load(str(path))
