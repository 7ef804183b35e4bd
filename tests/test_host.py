"""What the host adaptations promise, shown on the host's own classes."""

import collections
import contextlib
import copy
import errno
import importlib
import itertools
import logging
import os
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path

from cerberus_plugin import host

import numpy as np
import pytest
import torch
from torch import nn

# The host can be imported only after its adaptations.
# isort: split
import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
from fastreid.config import get_cfg
from fastreid.data.samplers import BalancedIdentitySampler, NaiveIdentitySampler
from fastreid.engine import hooks, train_loop
from fastreid.evaluation import ReidEvaluator, rank_cylib
from fastreid.modeling.meta_arch.baseline import Baseline
from fastreid.modeling.meta_arch.mgn import MGN
from fastreid.utils import comm
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.compute_dist import build_dist
from fastreid.utils.events import EventStorage

ROOT = Path(__file__).parents[1]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_torch_2 = pytest.mark.skipif(int(torch.__version__.split(".")[0]) < 2, reason="torch 1 keeps gradients itself")
quiet_autocast = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def log(caplog):
    """The records of the package's logger, also where the host's setup_logger has cut propagation."""
    logger = logging.getLogger("fastreid.cerberus.host")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


# ---------------------------------------------------------------- importing


def test_import_leaves_no_stand_ins_behind():
    assert "torch._six" not in sys.modules
    assert not hasattr(collections, "Mapping")


def test_version_is_the_distribution_not_the_package_attribute():
    assert host.version() == importlib.metadata.version("fastreid")


def test_import_without_fastreid_says_how_to_install_it():
    code = "import sys; sys.modules['fastreid'] = None; import cerberus_plugin.host"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith('ImportError: FastReID is not installed: pip install --no-deps "fastreid==1.4.0"')


def test_missing_fastreid_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastreid", None)
    with pytest.raises(ImportError, match="--no-deps because it pins torch 1.13.1"):
        host.imports.require_fastreid()


def test_a_torchvision_that_does_not_fit_a_cuda_torch_is_not_papered_over(monkeypatch):
    def failing(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(host.imports.importlib, "import_module", failing)
    with pytest.raises(RuntimeError, match="torchvision::nms does not exist"):
        host.imports.import_torchvision()


def test_torchvision_is_whole_after_import():
    import torchvision

    assert torchvision.extension is sys.modules["torchvision.extension"]
    assert torch.ops.torchvision.nms is not None


def test_adapting_twice_wraps_once():
    host.adapt()
    adapted = fastreid.solver.build_optimizer
    assert host.original(host.original(adapted)) is host.original(adapted)
    assert host.original(adapted).__code__.co_filename.endswith(os.path.join("solver", "build.py"))


# ---------------------------------------------------------------- training


class Line(nn.Module):
    """y = Wx + b with two loss terms; `poison` is added to the second."""

    def __init__(self, poison=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 2)
        self.heads = nn.Linear(2, 1)
        self.poison = poison

    def forward(self, batch):
        y = self.heads(self.body(batch))
        return {"loss_a": (y - 1).square().mean(), "loss_b": y.square().mean() + self.poison}


def solver_cfg(**solver):
    cfg = get_cfg()
    for key, value in {"BASE_LR": 0.1, "HEADS_LR_FACTOR": 0.5, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg


BATCH = torch.arange(12.0).view(4, 3) / 12


def train(model, optimizer, params, trainer_class=train_loop.SimpleTrainer, steps=3, batch=BATCH, **kwargs):
    trainer = trainer_class(model, itertools.repeat(batch), optimizer, params, **kwargs)
    with EventStorage(0):
        for trainer.iter in range(steps):
            trainer.run_step()


def moved(model):
    """Names of the parameters that are no longer those of a fresh model."""
    fresh = dict(Line().named_parameters())
    return {name for name, value in model.named_parameters() if not torch.equal(value.cpu(), fresh[name])}


EVERY = {"body.weight", "body.bias", "heads.weight", "heads.bias"}


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """Let AMPTrainer past its assertion; GradScaler("cpu") then takes the steps that the CUDA one would."""
    cuda = types.SimpleNamespace(is_available=lambda: True, stream=torch.cuda.stream)
    monkeypatch.setattr(train_loop, "torch", types.SimpleNamespace(cuda=cuda))
    return {"trainer_class": train_loop.AMPTrainer, "grad_scaler": torch.amp.GradScaler("cpu", init_scale=8.0)}


@pytest.mark.parametrize("opt", ["Adam", "SGD"])
def test_every_parameter_moves_and_the_optimiser_holds_state(opt):
    model = Line()
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(OPT=opt), model)
    train(model, optimizer, params)
    assert moved(model) == EVERY
    assert len(optimizer.state) == len(optimizer.param_groups) > 0


@needs_torch_2
def test_without_the_adaptation_no_parameter_moves():
    model = Line()
    optimizer, params = host.original(fastreid.solver.build_optimizer)(solver_cfg(), model)
    train(model, optimizer, params)
    assert moved(model) == set()
    assert len(optimizer.state) == 0


@quiet_autocast
def test_every_parameter_moves_under_amp(amp_on_cpu):
    model = Line()
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model)
    train(model, optimizer, params, **amp_on_cpu)
    assert moved(model) == EVERY
    assert len(optimizer.state) == len(optimizer.param_groups)


@quiet_autocast
@needs_torch_2
def test_without_the_adaptation_amp_stops_at_the_first_step(amp_on_cpu):
    model = Line()
    optimizer, params = host.original(fastreid.solver.build_optimizer)(solver_cfg(), model)
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        train(model, optimizer, params, **amp_on_cpu)


@pytest.mark.gpu
@needs_gpu
@quiet_autocast
def test_every_parameter_moves_under_amp_on_a_gpu():
    model = Line().cuda()
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model)
    train(model, optimizer, params, train_loop.AMPTrainer, steps=20, batch=BATCH.cuda())
    assert moved(model) == EVERY


def test_flat_training_equals_training_one_tensor_at_a_time():
    flat, single = Line(), Line()
    for model, contiguous in ((flat, True), (single, False)):
        optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model, contiguous=contiguous)
        train(model, optimizer, params, steps=5)
    for a, b in zip(flat.parameters(), single.parameters()):
        torch.testing.assert_close(a, b)


def test_gradient_clipping_and_frozen_layers_still_work():
    model = Line()
    cfg = solver_cfg(FREEZE_ITERS=100)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.MODEL.FREEZE_LAYERS = ["body"]
    optimizer, params = fastreid.solver.build_optimizer(cfg, model)
    train(model, optimizer, params)
    assert moved(model) == {"heads.weight", "heads.bias"}


def test_the_optimiser_keeps_the_hosts_checkpoint_format():
    adapted = fastreid.solver.build_optimizer(solver_cfg(), Line())[0]
    plain = host.original(fastreid.solver.build_optimizer)(solver_cfg(), Line())[0]
    plain.load_state_dict(adapted.state_dict())
    assert plain.state_dict().keys() == adapted.state_dict().keys()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copied_optimiser_keeps_its_gradients(copied):
    optimizer = copied(fastreid.solver.build_optimizer(solver_cfg(), Line())[0])
    buffer = optimizer.param_groups[0]["params"][0]
    buffer.grad = torch.ones_like(buffer)
    optimizer.zero_grad(set_to_none=True)
    assert torch.equal(buffer.grad, torch.zeros_like(buffer))


def test_the_plain_default_trainer_gets_the_adapted_optimiser():
    assert fastreid.engine.defaults.build_optimizer is fastreid.solver.build_optimizer
    assert fastreid.solver.build_optimizer is fastreid.solver.build.build_optimizer
    assert host.original(fastreid.solver.build_optimizer) is not fastreid.solver.build_optimizer


def test_a_loss_that_is_not_finite_is_named_with_its_iteration():
    model = Line(poison=float("nan"))
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model)
    with pytest.raises(FloatingPointError, match=r"iteration 0: loss term\(s\) not finite: loss_b; all terms:.*loss_a"):
        train(model, optimizer, params)
    assert moved(model) == set()


# ---------------------------------------------------------------- batches


class Items(torch.utils.data.Dataset):
    """Five items in the host's form; reading `broken` raises as a missing image does."""

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
    thread.join(timeout=30)
    assert not thread.is_alive(), "the loader hangs"
    assert "image 3 is missing" in caught[0]


def test_workers_are_capped_at_the_usable_cores(monkeypatch):
    monkeypatch.setattr(host.data, "usable_cores", lambda: 2)
    assert host_loader(workers=4).num_workers == 2
    assert host_loader(workers=1).num_workers == 1


def test_batches_go_to_the_chosen_device_not_to_any_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = host_loader()
    loader.local_rank = 3
    assert loader._target() == torch.device("cuda", 3)
    host.use_device("cpu")
    assert loader._target() == torch.device("cpu")
    host.use_device("cuda:1")
    assert loader._target() == torch.device("cuda", 1)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda', but torch .* finds no GPU"):
        host.use_device("cuda")


def test_reading_ahead_keeps_the_order_and_loses_nothing(monkeypatch):
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
@needs_gpu
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
def test_too_few_identities_are_refused_instead_of_searched_for_ever(sampler):
    with pytest.raises(ValueError, match="a batch needs 4 identities .* the training set has 3. Lower SOLVER.IMS_PER"):
        sampler(items(3, 4), 8, 2, seed=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("images, instances", [(8, 16), (10, 4), (8, 0)])
def test_a_batch_that_num_instance_does_not_divide_is_refused(sampler, images, instances):
    with pytest.raises(ValueError, match=f"NUM_INSTANCE {instances}, expected one or more times NUM_INSTANCE"):
        sampler(items(40, 4), images, instances, seed=0)


def test_an_identity_serves_each_process_once_with_the_naive_sampler(monkeypatch):
    in_processes(monkeypatch, 2)
    # Three identities, four places: enough only where each has 2 x NUM_INSTANCE images.
    assert len(list(itertools.islice(iter(NaiveIdentitySampler(items(3, 4), 4, 2, seed=0)), 4))) == 4
    with pytest.raises(ValueError, match="a batch needs 4 identities"):
        NaiveIdentitySampler(items(3, 2), 4, 2, seed=0)
    with pytest.raises(ValueError, match="a batch needs 4 identities"):
        BalancedIdentitySampler(items(3, 4), 4, 2, seed=0)


def test_random_affine_of_the_configuration_can_be_built_and_run():
    from fastreid.data.transforms import build_transforms
    from PIL import Image

    cfg = get_cfg()
    cfg.INPUT.AFFINE.ENABLED = True
    cfg.INPUT.SIZE_TRAIN = [16, 8]
    assert build_transforms(cfg)(Image.new("RGB", (8, 16))).shape == (3, 16, 8)


# ---------------------------------------------------------------- checkpoints


def saved(folder, epoch=0, metric=80.0, name="model_0000"):
    """A checkpointer whose folder holds one whole checkpoint."""
    checkpointer = Checkpointer(nn.Linear(200, 200), str(folder))
    checkpointer.save(name, epoch=epoch, metric=metric)
    return checkpointer


def assert_resumes_from(folder, epoch):
    assert sorted(path.name for path in folder.glob("*.tmp")) == []
    assert Checkpointer(nn.Linear(200, 200), str(folder)).resume_or_load("", resume=True)["epoch"] == epoch


def half_of_a_file(then):
    """A torch.save that writes some bytes and then calls `then`."""

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


def test_a_limit_hit_inside_torchs_own_writer_is_reported_as_the_disks(tmp_path):
    resource = pytest.importorskip("resource")
    checkpointer = saved(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the weights alone take 160 kB
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
    # The next save of that name takes the half file's place.
    checkpointer.save("model_0000", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=1)


def test_last_checkpoint_names_the_old_file_when_it_cannot_be_replaced(tmp_path, monkeypatch):
    checkpointer = saved(tmp_path)
    replace = os.replace

    def failing(source, target):
        if target.endswith("last_checkpoint"):
            disk_full()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(host.checkpoints.os, "replace", failing)
        with pytest.raises(OSError, match="last_checkpoint"):
            checkpointer.save("model_0001", epoch=1, metric=0.0)
    assert_resumes_from(tmp_path, epoch=0)


def test_an_error_that_is_not_the_disks_keeps_its_type(tmp_path, monkeypatch):
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


def test_a_resumed_run_keeps_a_better_model_best(tmp_path):
    hook = periodic_checkpointer(saved(tmp_path, name="model_best", metric=80.0), start_iter=100)
    hook.step(4, metric=70.0)
    assert stored_metric(tmp_path) == 80.0
    hook.step(5, metric=90.0)
    assert stored_metric(tmp_path) == 90.0


def test_a_fresh_run_in_an_old_folder_starts_its_own_best(tmp_path):
    hook = periodic_checkpointer(saved(tmp_path, name="model_best", metric=80.0), start_iter=0)
    hook.step(4, metric=70.0)
    assert stored_metric(tmp_path) == 70.0


def test_a_resumed_run_without_a_readable_best_starts_at_the_hosts_value(tmp_path, log):
    checkpointer = saved(tmp_path)
    assert periodic_checkpointer(checkpointer, start_iter=100).best_metric == -1
    (tmp_path / "model_best.pth").write_bytes(b"half of a checkpoint")
    assert periodic_checkpointer(checkpointer, start_iter=100).best_metric == -1
    assert "no score to read" in log.text


def test_backbone_weights_given_as_a_checkpoint_are_named(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"resnet.pth: .*'model' is missing, got \['conv1.weight'\].*PRETRAIN_PATH"):
        Checkpointer(nn.Linear(1, 1)).load(str(path))


# ---------------------------------------------------------------- pretrained weights


def backbone_cfg(path, pretrain=True):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.DEPTH = "18x"
    cfg.MODEL.BACKBONE.PRETRAIN = pretrain
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(path)
    return cfg


def build_backbone(path, pretrain=True):
    from fastreid.modeling.meta_arch import baseline

    return baseline.build_backbone(backbone_cfg(path, pretrain))


def test_a_whole_file_is_counted_whole(tmp_path, log):
    state = build_backbone("", pretrain=False).state_dict()
    torch.save(state, tmp_path / "r18.pth")
    loaded = build_backbone(tmp_path / "r18.pth").state_dict()
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"])
    # 20 convolutions, and 20 BatchNorms of 4 tensors without their counters.
    assert "r18.pth: 100 of 100 tensors matched" in log.text
    assert log.records[-1].levelno == logging.INFO


def test_a_partial_match_is_counted_and_warned_of(tmp_path, log):
    torch.save({"bn1.weight": torch.full((64,), 3.0), "fc.weight": torch.zeros(2)}, tmp_path / "part.pth")
    assert build_backbone(tmp_path / "part.pth").bn1.weight[0] == 3.0
    assert "part.pth: 1 of 100 tensors matched" in log.text
    assert log.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize("content, key", [({"module.bn1.weight": torch.ones(64)}, "module.bn1.weight"),
                                          ({"state_dict": {"bn1.weight": torch.ones(64)}}, "state_dict")])
def test_a_file_that_fills_nothing_is_refused(tmp_path, content, key):
    torch.save(content, tmp_path / "other.pth")
    match = rf"other.pth: 0 of 100 tensors matched .*like \['{key}'\], the model like \['conv1.weight'"
    with pytest.raises(ValueError, match=match):
        build_backbone(tmp_path / "other.pth")
    assert nn.Module.load_state_dict.__name__ == "load_state_dict"
    assert nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_a_path_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.BACKBONE.PRETRAIN_PATH '.*none.pth' is no file. Set"):
        build_backbone(tmp_path / "none.pth")


@pytest.mark.parametrize("offline", [False, True])
def test_pretraining_without_a_path_or_a_download_says_what_to_set(tmp_path, monkeypatch, offline):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=refuse) if offline else None)
    with pytest.raises(ValueError, match="PRETRAIN is True without a PRETRAIN_PATH.*could not be downloaded.*resnet50"):
        build_backbone("")


def test_a_backbone_that_loads_in_its_own_way_is_left_alone(tmp_path, monkeypatch, log):
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "own", lambda cfg: nn.Linear(1, 1))
    cfg = backbone_cfg(tmp_path / "any.pth")
    cfg.MODEL.BACKBONE.NAME = "own"
    (tmp_path / "any.pth").touch()
    fastreid.modeling.build_backbone(cfg)
    assert "own loads weights in a way that cannot be counted" in log.text


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("model", [Baseline, MGN])
@pytest.mark.parametrize("as_dict", [True, False])
def test_normalising_leaves_the_batch_as_it_was(model, as_dict):
    owner = types.SimpleNamespace(pixel_mean=torch.tensor(10.0), pixel_std=torch.tensor(5.0), device="cpu")
    images = torch.full((1, 3, 2, 2), 20.0)
    batch = {"images": images, "targets": 0} if as_dict else images
    for _ in range(2):  # the flip test's second pass must see what the first saw
        assert torch.equal(model.preprocess_image(owner, batch), torch.full((1, 3, 2, 2), 2.0))
    assert torch.equal(images, torch.full((1, 3, 2, 2), 20.0))


def test_an_evaluator_never_runs_make(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "run", run)
    ReidEvaluator(get_cfg(), num_query=1)
    rank_cylib.compile_helper()


@pytest.fixture
def ranking():
    """Restore whatever ranking is installed."""
    installed = fastreid.evaluation.rank.evaluate_rank
    yield
    fastreid.evaluation.rank.evaluate_rank = installed


DISTANCES = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
IDS = (np.array([1, 2]), np.array([1, 2, 2]), np.array([0, 0]), np.array([1, 1, 1]))


def test_a_ranking_replaces_the_hosts_in_every_namespace(monkeypatch, ranking):
    user = types.ModuleType("user_code")
    user.evaluate_rank = fastreid.evaluation.rank.evaluate_rank
    monkeypatch.setitem(sys.modules, "user_code", user)
    host.use_ranking(lambda distmat, *ids, max_rank: ("ours", distmat.shape, len(ids), max_rank))
    assert user.evaluate_rank(DISTANCES, *IDS) == ("ours", (2, 3), 4, 50)
    assert fastreid.evaluation.rank.evaluate_rank(DISTANCES, *IDS, 7, use_cython=False) == ("ours", (2, 3), 4, 7)


def test_the_evaluator_uses_the_installed_ranking(ranking):
    def perfect(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50):
        return np.ones(max_rank), [0.5] * len(q_pids), [0.25] * len(q_pids)

    host.use_ranking(perfect)
    evaluator = ReidEvaluator(get_cfg(), num_query=1)
    ids = {"targets": torch.tensor([1, 1, 2]), "camids": torch.tensor([0, 1, 1])}
    evaluator.process(ids, torch.eye(3))
    assert evaluator.evaluate()["mAP"] == 50.0


def test_the_cuhk03_metric_stays_the_hosts(monkeypatch, ranking):
    monkeypatch.setattr(fastreid.evaluation.rank, "eval_cuhk03", lambda *args: ("host", args[-1]))
    host.use_ranking(lambda *args, **kwargs: "ours")
    rank = fastreid.evaluation.rank.evaluate_rank
    assert rank(DISTANCES, *IDS, use_metric_cuhk03=True, use_cython=False) == ("host", 50)


def test_reranking_runs_with_faiss_on_the_cpu():
    query, gallery = torch.eye(8)[:2], torch.eye(8)
    distances = build_dist(query, gallery, metric="jaccard", k1=4, k2=1)
    assert distances.shape == (2, 8)
    assert distances.argmin(axis=1).tolist() == [0, 1]


# ---------------------------------------------------------------- settings


def test_settings_of_the_host_pass_the_check():
    host.check_config(solver_cfg(MAX_EPOCH=120, IMS_PER_BATCH=64), num_images=12936)


@pytest.mark.parametrize("node, key", [("TEST", "EVAL_PERIOD"), ("SOLVER", "CHECKPOINT_PERIOD")])
def test_a_period_of_zero_is_refused(node, key):
    cfg = solver_cfg(MAX_EPOCH=60)
    cfg[node][key] = 0
    with pytest.raises(ValueError, match=rf"{node}.{key} is 0, expected 1 or more epochs.*MAX_EPOCH \(60\)"):
        host.check_config(cfg)


def test_a_dataset_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 64, expected at most the 63 images"):
        host.check_config(solver_cfg(IMS_PER_BATCH=64), num_images=63)


def test_a_cosine_schedule_without_epochs_is_refused():
    # 2000 iterations of warm-up are 10 epochs of 202 iterations; the 11th is the first of the cosine.
    cosine = {"SCHED": "CosineAnnealingLR", "WARMUP_ITERS": 2000, "IMS_PER_BATCH": 64, "DELAY_EPOCHS": 0}
    host.check_config(solver_cfg(MAX_EPOCH=11, **cosine), num_images=12936)
    with pytest.raises(ValueError, match="MAX_EPOCH is 10, expected more than 10: Cosine.*Raise SOLVER.MAX_EPOCH"):
        host.check_config(solver_cfg(MAX_EPOCH=10, **cosine), num_images=12936)
    with pytest.raises(ValueError, match="MAX_EPOCH is 5, expected more than 6"):
        host.check_config(solver_cfg(MAX_EPOCH=5, **{**cosine, "DELAY_EPOCHS": 6}))


def test_the_progress_line_of_an_iteration_is_printed_once_however_short_the_run(caplog):
    from fastreid.utils.events import CommonMetricPrinter, EventStorage

    printer = CommonMetricPrinter(2)
    with EventStorage(0) as storage, caplog.at_level("INFO", logger="fastreid.utils.events"):
        storage.epoch = 0
        printer.write()
        printer.write()
    assert caplog.text.count("epoch/iter") == 1
