"""Several processes compute the same losses, gradients, batch statistics and results as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cerberus_plugin import APSTask, PARTask, ReIDTask, TaskEvaluator, add_cerberus_config
from cerberus_plugin.utils.distributed import (
    average_batch_statistics,
    gather_batch,
    num_processes,
    synchronise_batch_norm,
)

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine import launch
from fastreid.utils import comm
from support.data import batches
from support.readers import OwnReader
from support.training import PLUS, SMALL, model_of, small_batch

COMPOSED = ("MODEL.CERBERUS.PROTOTYPES", "composed", "MODEL.CERBERUS.LAMBDA_SEM", 0.0, "MODEL.CERBERUS.SOFTMAX", 2.0,
            "MODEL.CERBERUS.SOFTMAX_PRIOR", True, "MODEL.CERBERUS.AGREEMENT", 0.2)

ROOT = Path(__file__).parents[2]
PROCESSES = 2


def step_of(model, batch: dict) -> dict:
    terms = model(batch)
    sum(terms.values()).backward()
    return {name: term.detach() for name, term in terms.items()}


def build(options=()):
    """Return a model and a batch in float64, to exclude rounding. The semantic ID of one class is unknown."""
    model = synchronise_batch_norm(model_of(*SMALL, *options)).train()
    batch = small_batch(model, 16)
    if options == COMPOSED:  # one image of each person per share, because the agreement loss compares them
        batch = {name: value.view(8, 2, *value.shape[1:]).transpose(0, 1).flatten(0, 1)
                 for name, value in batch.items()}
    return model.double(), {**batch, "images": batch["images"].double()}


def share(value: torch.Tensor) -> torch.Tensor:
    return value.chunk(num_processes())[comm.get_rank()]


def train_one_step(folder: Path) -> None:
    """One step on this process's share of a batch, of each model; what each process got goes to a file."""
    records = [one_step(options) for options in ((), PLUS, COMPOSED)]
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    norm[0].running_mean.fill_(comm.get_rank())
    norm[0].running_var.fill_(1 + 2 * comm.get_rank())
    average_batch_statistics(norm)
    records[0]["averaged"] = norm[0].running_mean, norm[0].running_var
    records[0]["figures"] = figures()
    torch.save(records, folder / f"{num_processes()}_{comm.get_rank()}.pth")


def one_step(options) -> dict:
    model, batch = build(options)
    parallel = torch.nn.parallel.DistributedDataParallel(model) if num_processes() > 1 else model
    # The unknown label is only in the second share.
    terms = step_of(parallel, {name: share(value) for name, value in batch.items()})
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"terms": terms, "gradients": gradients, "statistics": dict(model.named_buffers())}


def figures() -> dict[str, float]:
    """Return the metrics of an evaluation with this process's share of the batches."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    evaluator = TaskEvaluator(24, [ReIDTask(cfg), PARTask(OwnReader()), APSTask(OwnReader())])
    evaluator.reset()
    own = 6 // num_processes()
    for inputs, outputs in list(batches(96))[comm.get_rank() * own:(comm.get_rank() + 1) * own]:
        evaluator.process(inputs, outputs)
    return {name: float(value) for name, value in evaluator.evaluate().items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the results of one step of each model, for one process with 16 images and for two with 8 each."""
    folder = tmp_path_factory.mktemp("steps")
    for processes in (1, PROCESSES):
        launch(train_one_step, processes, dist_url="auto", args=(folder,))
    return torch.load(folder / "1_0.pth"), [torch.load(folder / f"2_{rank}.pth") for rank in range(PROCESSES)]


@pytest.fixture(params=[0, 1, 2], ids=["paper", "options", "composed"])
def steps(request, written):
    one, two = written
    return one[request.param], [records[request.param] for records in two]


def test_the_unknown_label_is_in_only_one_share():
    model, batch = build()
    known = batch["sids"][:, 1] >= 0
    first, second = known.chunk(PROCESSES)
    assert first.sum() != second.sum()


def test_the_mean_losses_of_two_processes_are_those_of_the_global_batch(steps):
    one, two = steps
    for name, expected in one["terms"].items():
        assert torch.stack([process["terms"][name] for process in two]).mean().item() == pytest.approx(
            expected.item(), rel=1e-9), name


def test_the_gradients_of_two_processes_are_those_of_the_global_batch(steps):
    one, two = steps
    for name, expected in one["gradients"].items():
        for process in two:
            assert torch.allclose(process["gradients"][name], expected, rtol=1e-6, atol=1e-9), name


def test_synchronised_batch_statistics_are_those_of_the_global_batch(steps):
    one, two = steps
    for name, expected in one["statistics"].items():
        for process in two:
            assert torch.allclose(process["statistics"][name].double(), expected.double(), rtol=1e-9), name


def test_batch_statistics_are_averaged_over_processes(written):
    for records in written[1]:
        mean, variance = records[0]["averaged"]
        assert mean.tolist() == [0.5, 0.5] and variance.tolist() == [2, 2]


def test_two_processes_give_the_same_metrics_as_one(written):
    one, (main, other) = written
    assert main[0]["figures"] == pytest.approx(one[0]["figures"], nan_ok=True) and "APS/mAP" in main[0]["figures"]
    assert other[0]["figures"] == {}


def test_a_single_process_does_not_gather_and_keeps_its_batch_normalisation():
    representations, targets = torch.randn(5, 4, 3), torch.arange(4)
    gathered = gather_batch(representations, targets)
    assert gathered[0] is representations and gathered[1] is targets
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    assert type(synchronise_batch_norm(model)[0]) is torch.nn.BatchNorm2d


OPTIONS = {"INPUT.SIZE_TRAIN": "[48,24]", "INPUT.SIZE_TEST": "[48,24]", "SOLVER.IMS_PER_BATCH": 16,
           "SOLVER.WARMUP_ITERS": 0, "TEST.UNTRAINED_FLOOR": False, "SOLVER.MAX_EPOCH": 1, "TEST.EVAL_PERIOD": 1,
           "SOLVER.CHECKPOINT_PERIOD": 1, "INPUT.FLIP.ENABLED": False, "INPUT.REA.ENABLED": False, "LOG_PERIOD": 1,
           "SOLVER.AUTOCAST": "", "TEST.AUTOCAST": "",
           # The balanced sampler draws one global batch; the naive sampler draws each share separately.
           "DATALOADER.SAMPLER_TRAIN": "BalancedIdentitySampler", "MODEL.SYNC_BN": True}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def train(market_root, tmp_path_factory):
    """Return a function that runs train_net.py in separate processes and returns the run folder."""
    def start(before=(), after=(), **options) -> Path:
        folder = tmp_path_factory.mktemp("run")
        given = {**OPTIONS, "OUTPUT_DIR": folder, **options}
        command = [sys.executable, *before, str(ROOT / "projects/Cerberus/train_net.py"), "--config-file",
                   str(ROOT / "configs/Market1501/cerberus_demo.yml"), *after]
        done = subprocess.run([*command, *(str(item) for pair in given.items() for item in pair)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
                              env={**os.environ, "FASTREID_DATASETS": str(market_root), "PYTHONWARNINGS": "ignore"})
        assert done.returncode == 0, done.stdout[-3000:]
        return folder

    return start


@pytest.fixture(scope="module")
def runs(train):
    """Return run folders of the same training with one process, with --num-gpus 2 and with torchrun."""
    return train(), train(after=("--num-gpus", "2", "--dist-url", "auto")), train(before=TORCHRUN)


def losses_of(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.mark.slow
def test_num_gpus_and_torchrun_start_the_same_training(runs):
    _, by_launcher, by_torchrun = runs
    assert losses_of(by_launcher) == losses_of(by_torchrun)
    assert (by_launcher / "results.txt").read_text() == (by_torchrun / "results.txt").read_text()


@pytest.mark.slow
def test_two_processes_train_like_one(runs):
    one, two, _ = runs
    assert len(losses_of(one)) == 2
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-4)
    record = json.loads((two / "results.json").read_text())
    assert record["evaluations"]["Market1501Attributes"]["1"]["mAP"] == record["results"]["Market1501Attributes"]["mAP"]


@pytest.mark.slow
def test_two_processes_evaluate_a_checkpoint_like_one(runs, train):
    _, two, _ = runs
    one = train(after=("--eval-only",), **{"MODEL.WEIGHTS": two / "model_final.pth"})
    assert (one / "evaluation" / "results.txt").read_text() == (two / "results.txt").read_text()


@pytest.mark.slow
def test_two_processes_train_camera_embeddings_like_one(train):
    options = {"MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.BACKBONE.DEPTH": "test_vit",
               "MODEL.BACKBONE.FEAT_DIM": 64, "MODEL.BACKBONE.DROP_PATH_RATIO": 0.0, "MODEL.BACKBONE.SIE_CAMERAS": 4}
    one, two = train(**options), train(after=("--num-gpus", "2", "--dist-url", "auto"), **options)
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-4)
    trained = [torch.load(run / "model_final.pth", weights_only=True)["model"] for run in (one, two)]
    assert torch.equal(*(state["trunk.vit.pos_drop.cameras"] for state in trained))
    assert torch.allclose(*(state["trunk.vit.pos_drop.sie_embed"] for state in trained), atol=1e-4)


def test_several_machines_without_an_address_are_rejected():
    with pytest.raises(ValueError, match="--dist-url is 'auto', expected tcp://ADDRESS:PORT"):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_more_processes_than_gpus_are_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes on this machine .* finds 1 GPU"):
        launch(print, 2, dist_url="auto")


def test_machines_with_different_numbers_of_processes_are_rejected(monkeypatch):
    from cerberus_plugin.host import launching

    monkeypatch.setattr(launching.dist, "get_world_size", lambda: 0)
    monkeypatch.setattr(launching.dist, "all_gather_object", lambda sizes, own: sizes.extend([2, 1]))
    with pytest.raises(ValueError, match=r"machines run \[1, 2\] processes, expected the same number"):
        launching._know_neighbours(2)


def test_processes_that_were_started_for_gpus_do_not_train_on_cpus(monkeypatch, market_root):
    from cerberus_plugin.engine.trainer import setup

    from fastreid.engine import default_argument_parser

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    args = ["--config-file", str(ROOT / "configs/Market1501/cerberus_demo.yml")]
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cpu', but these processes were started for GPUs"):
        setup(default_argument_parser().parse_args(args))
    args += ["MODEL.DEVICE", "cuda:1"]
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:1', but each of 2 processes .* to 'cuda'"):
        setup(default_argument_parser().parse_args(args))
