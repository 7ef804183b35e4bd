"""Loaders, samplers and transforms: order and device of batches, and errors that reach the caller."""

import contextlib
import itertools
import threading
import warnings

from cerberus_plugin import add_cerberus_config, host

import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.data.samplers import BalancedIdentitySampler, NaiveIdentitySampler
from fastreid.data.transforms.functional import to_tensor
from fastreid.utils import comm
from PIL import Image


class Items(torch.utils.data.Dataset):
    """Five items in FastReID's format; reading item `broken` raises FileNotFoundError."""

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == self.broken:
            raise FileNotFoundError(f"image {index} is missing")
        return {"images": torch.full((3, 2, 2), float(index)), "targets": index, "img_paths": f"{index}.jpg"}


def host_loader(broken=None, workers=0):
    return fastreid.data.build_reid_test_loader(Items(broken), test_batch_size=2, num_query=1, num_workers=workers)[0]


@pytest.fixture(autouse=True)
def device_not_chosen(monkeypatch):
    monkeypatch.setattr(host.data, "_device", None)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_in_order_on_the_cpu(workers):
    host.use_device("cpu")
    batches = list(host_loader(workers=workers))
    assert [batch["targets"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[1]["img_paths"] == ["2.jpg", "3.jpg"]
    assert batches[1]["images"].device.type == "cpu"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_dataset_reaches_the_caller(workers):
    host.use_device("cpu")
    caught = []

    def read():
        try:
            list(host_loader(broken=3, workers=workers))
        except FileNotFoundError as error:
            caught.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive(), "the loader hangs"
    assert "image 3 is missing" in caught[0]


def test_workers_are_capped_at_the_usable_cores(monkeypatch):
    monkeypatch.setattr(host.data, "usable_cores", lambda: 2)
    assert host_loader(workers=4).num_workers == 2
    assert host_loader(workers=1).num_workers == 1


def test_batches_go_to_the_chosen_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert host.data.batch_device(3) == torch.device("cuda", 3)
    host.use_device("cpu")
    assert host.data.batch_device(3) == torch.device("cpu")
    host.use_device("cuda")
    assert host.data.batch_device(3) == torch.device("cuda", 3) and not current
    host.use_device("cuda:1")
    assert host.data.batch_device(3) == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]  # torch's default GPU


def test_cuda_without_a_gpu_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda', but torch .* finds no GPU"):
        host.use_device("cuda")


def test_prefetching_to_the_device_keeps_every_batch_in_order(monkeypatch):
    class Stream:
        def __init__(self, device=None):
            self.waited = []

        def record_event(self):
            return object()

        def wait_event(self, event):
            self.waited.append(event)

    current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    batches = [{"images": torch.tensor([i]), "img_paths": [str(i)]} for i in range(3)]
    ahead = list(host.data._ahead_on(torch.device("cpu"), batches))
    assert [(batch["images"].item(), batch["img_paths"]) for batch in ahead] == [(0, ["0"]), (1, ["1"]), (2, ["2"])]
    assert len(set(current.waited)) == 3
    assert list(host.data._ahead_on(torch.device("cpu"), [])) == []


@pytest.mark.gpu
def test_batches_arrive_in_order_on_a_gpu():
    batches = list(host_loader(workers=1))
    assert [batch["targets"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(batch["images"].is_cuda for batch in batches)
    assert torch.equal(batches[2]["images"].cpu(), torch.full((1, 3, 2, 2), 4.0))


SAMPLERS = [NaiveIdentitySampler, BalancedIdentitySampler]


def items(identities, images):
    return [(f"{pid}_{n}.jpg", f"market1501_{pid}", n % 3) for pid in range(identities) for n in range(images)]


def in_processes(monkeypatch, world):
    monkeypatch.setattr(comm, "get_world_size", lambda: world)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_enough_identities_fill_a_batch(sampler):
    batch = list(itertools.islice(iter(sampler(items(4, 4), 8, 2, seed=0)), 8))
    assert len(set(batch)) == 8


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_too_few_identities_are_rejected(sampler):
    with pytest.raises(ValueError, match="a batch needs 4 identities .* the training set has 3.*SOLVER.IMS_PER_BATCH"):
        sampler(items(3, 4), 8, 2, seed=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("images, instances", [(8, 16), (10, 4), (8, 0)])
def test_a_batch_size_that_is_no_multiple_of_num_instance_is_rejected(sampler, images, instances):
    with pytest.raises(ValueError, match=f"{images} images for each.*NUM_INSTANCE {instances}, expected a multiple"):
        sampler(items(40, 4), images, instances, seed=0)


def test_the_naive_sampler_uses_an_identity_at_most_once_per_process(monkeypatch):
    in_processes(monkeypatch, 2)
    # Three identities suffice for four only if each has 2 x NUM_INSTANCE images.
    assert len(list(itertools.islice(iter(NaiveIdentitySampler(items(3, 4), 4, 2, seed=0)), 4))) == 4
    with pytest.raises(ValueError, match="a batch needs 4 identities"):
        NaiveIdentitySampler(items(3, 2), 4, 2, seed=0)
    with pytest.raises(ValueError, match="a batch needs 4 identities"):
        BalancedIdentitySampler(items(3, 4), 4, 2, seed=0)


def test_random_affine_can_be_built_from_the_configuration():
    from fastreid.data.transforms import build_transforms
    from PIL import Image

    cfg = get_cfg()
    cfg.INPUT.AFFINE.ENABLED = True
    cfg.INPUT.SIZE_TRAIN = [16, 8]
    assert build_transforms(cfg)(Image.new("RGB", (8, 16))).shape == (3, 16, 8)


def test_reading_pixels_does_not_show_the_warning_about_typed_storage():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for prepare in (lambda: None, host.data.read_pixels_quietly):
            prepare()
            torch.storage._reset_warn_typed_storage_removal()  # torch warns once per process
            to_tensor(Image.new("RGB", (2, 2)))
    assert len(warned) == 1 and "TypedStorage" in str(warned[0].message)


def test_the_keys_of_interpolation_and_erasing_take_effect():
    from fastreid.data.transforms import build_transforms

    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [32, 16]
    cfg.INPUT.REA.ENABLED = True
    gradient = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    by_host = build_transforms(cfg, is_train=False)(gradient)  # a configuration without the plugin's keys
    add_cerberus_config(cfg)
    resize, _, erasing = build_transforms(cfg, is_train=True).transforms
    assert resize.interpolation.value == "bicubic" and (erasing.scale, erasing.ratio) == ((0.02, 0.33), (0.3, 3.3))
    assert torch.equal(build_transforms(cfg, is_train=False)(gradient), by_host)
    cfg.INPUT.INTERPOLATION, cfg.INPUT.REA.SCALE, cfg.INPUT.REA.RATIO = "bilinear", [0.1, 0.4], [0.5, 2.0]
    erasing = build_transforms(cfg, is_train=True).transforms[-1]
    assert (erasing.scale, erasing.ratio) == ((0.1, 0.4), (0.5, 2.0))
    expected = np.asarray(gradient.resize((16, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(build_transforms(cfg, is_train=False)(gradient).numpy(), expected)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("INPUT.INTERPOLATION", "nearest", "INTERPOLATION is 'nearest', expected one of bicubic, bilinear"),
    ("INPUT.REA.SCALE", [0.4, 0.1], r"REA.SCALE is \[0.4, 0.1\], expected two positive numbers, the smaller one first"),
    ("INPUT.REA.RATIO", [0.0, 3.0], r"REA.RATIO is \[0.0, 3.0\], expected two positive")])
def test_invalid_keys_of_transforms_are_rejected(key, value, message):
    from fastreid.data.transforms import build_transforms

    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_list(["INPUT.REA.ENABLED", True, key, value])
    with pytest.raises(ValueError, match=message):
        build_transforms(cfg)
