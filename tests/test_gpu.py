"""What a user does with a GPU, from training to export; small, and without a GPU on the software device."""

import copy
import json
from pathlib import Path

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.experiments import calibrate
from cerberus_plugin.modeling import precision
from cerberus_plugin.search.export.onnx import export
from cerberus_plugin.search.export.torch_encoder import TorchEncoder
from cerberus_plugin.search.gallery import GalleryIndex, Pace, Query
from cerberus_plugin.utils.distributed import average_batch_statistics, synchronise_batch_norm

import pytest
import torch
import torch.distributed as dist
from fastreid.layers import get_norm
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage
from support.training import RESNET, read_config, trained
from torch.testing._internal.distributed.fake_pg import FakeStore

pytestmark = pytest.mark.gpu

# Of the training set of the shared data; the small maps of a tiny backbone are no use to these models.
LARGER = (*RESNET, "INPUT.SIZE_TRAIN", [128, 32], "INPUT.SIZE_TEST", [128, 32], "DATALOADER.NUM_INSTANCE", 4,
          "DATASETS.NAMES", ["Market1501Attributes"], "DATASETS.TESTS", ["Market1501Attributes"])
HOSTS = (*LARGER, "SOLVER.AMP.ENABLED", True, "MODEL.FREEZE_LAYERS", [], "SOLVER.FREEZE_ITERS", 0,
         "SOLVER.DELAY_EPOCHS", 0, "SOLVER.MAX_EPOCH", 4)  # a gradient scaler may skip the first four steps
# Its branches have bottlenecks; with random weights of this depth a scaler skips more than eight steps.
MGN = (*HOSTS, "SOLVER.AMP.ENABLED", False, "MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", 2048)


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory, market_root):
    """Two epochs of Cerberus on the GPU with an average of the weights; tests only look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(market_root))
        yield trained(read_config("OUTPUT_DIR", str(tmp_path_factory.mktemp("gpu") / "run"), "MODEL.DEVICE", "cuda",
                                  "SOLVER.EMA", 0.9, "TEST.EVAL_PERIOD", 1))


@pytest.fixture
def two_ranks(monkeypatch):
    """This process as the first of two, of which the other sends the same tensors."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())

    def all_gather(output, tensor, *_, **__):
        output.copy_(torch.cat([tensor.flatten(), tensor.flatten()]).view_as(output))

    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", dist.new_group([0, 1]))
    for name in ("all_gather", "gather"):
        monkeypatch.setattr(comm, name, lambda data, *_, **__: [data, copy.deepcopy(data)])
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 1)
    for name in ("all_gather_into_tensor", "all_gather_single"):  # the second since torch 2.13
        monkeypatch.setattr(dist, name, all_gather, raising=False)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_, **__: tensor.mul_(2))
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def predictor(gpu_run):
    return CerberusPredictor(gpu_run.cfg.OUTPUT_DIR, device="cuda")


@pytest.fixture(scope="module")
def crops(market_root) -> Path:
    return market_root / "Market-1501-v15.09.15" / "query"


def take_steps(trainer, count: int) -> None:
    with EventStorage(0) as trainer.storage:
        trainer.epoch = trainer.iter = trainer.start_iter = 0
        trainer.before_train()
        for trainer.iter in range(count):
            trainer.run_step()


def tensors_of(trainer) -> dict[str, torch.Tensor]:
    """Parameters, buffers, moments of the optimiser and the raw weights beside their average, by name."""
    moments = {f"{i} {key}": value for i, state in enumerate(trainer.optimizer.state.values())
               for key, value in state.items() if isinstance(value, torch.Tensor)}
    average = trainer.checkpointer.checkpointables.get("average")
    return {**trainer.model.state_dict(), **moments, **(average.beside if average else {})}


@pytest.mark.parametrize(("file", "options"), [
    ("Market1501/cerberus_plus_demo", ()), ("Market1501/apr_demo", ()), ("Market1501/arn_demo", ()),
    ("PRCC/cssc_R50", LARGER),
    *(pytest.param(f"Market1501/{name}_R50", options, marks=pytest.mark.slow)
      for name, options in (("agw", HOSTS), ("sbs", HOSTS), ("mgn", MGN)))])
def test_a_model_trains_and_is_evaluated(small_config, file, options):
    trainer = trained(small_config("MODEL.DEVICE", "cuda", *options, file=f"configs/{file}.yml"))
    assert all(tensor.is_cuda for tensor in trainer.model.state_dict().values())
    assert trainer.results["mAP"] > 0
    still = [name for name, p in trainer.model.named_parameters()
             if p.requires_grad and p.numel() > 64 and torch.equal(p, trainer.start[name])]
    assert not still


@pytest.mark.slow
@pytest.mark.parametrize(("file", "options"), [
    *((f"Market1501/{name}_R50", RESNET) for name in ("cerberus", "cerberus_plus", "apr", "arn", "ide")),
    ("PRCC/cssc_R50", LARGER), *((f"Market1501/{name}_R50", HOSTS) for name in ("bot", "agw", "sbs")),
    ("Market1501/mgn_R50", MGN)])
def test_a_step_is_traced_without_a_break(small_config, file, options):
    trainer = CerberusTrainer(small_config("MODEL.DEVICE", "cuda", *options, file=f"configs/{file}.yml"))
    precision.compile_model(trainer.model, backend="aot_eager", fullgraph=True)  # a break in the graph would raise
    take_steps(trainer, 1)


def test_an_evaluation_of_the_checkpoint_gives_the_figures_of_the_training(gpu_run, tmp_path):
    cfg = gpu_run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/model_final.pth", str(tmp_path)
    assert evaluate(cfg) == pytest.approx(gpu_run.results, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")], ids="-".join)
def test_a_run_goes_on_with_its_average_on_the_device_that_there_is(small_config, devices):
    def config(device: str, epochs: int):
        return small_config("MODEL.DEVICE", device, "SOLVER.EMA", 0.9, "SOLVER.MAX_EPOCH", epochs)

    first = trained(config(devices[0], 1))
    seed_all_rng(2)
    second = CerberusTrainer(config(devices[1], 2))
    second.resume_or_load(resume=True)
    assert second.start_epoch == 1
    saved = torch.load(Path(first.cfg.OUTPUT_DIR) / "model_final.pth", map_location="cpu")
    expected, got = saved["model"], second.model.state_dict()
    assert all(torch.equal(got[name].cpu(), value) for name, value in expected.items())
    before, after = tensors_of(first), tensors_of(second)
    assert before.keys() == after.keys()
    assert second.train()["mAP"] > 0
    assert {tensor.device.type for tensor in tensors_of(second).values() if tensor.dim()} == {devices[1]}


def test_a_predictor_gives_the_embeddings_of_the_cpu(gpu_run, predictor, crops):
    paths = predictor.images(crops)
    on_cpu = CerberusPredictor(gpu_run.cfg.OUTPUT_DIR, device="cpu")
    similarity = torch.cosine_similarity(predictor.embed(paths).cpu(), on_cpu.embed(paths))
    assert (similarity > 0.999).all()
    assert len(predictor.recognise(paths)) == len(paths)
    assert predictor.search(paths[2], crops, top=1)[0].path == paths[2]
    assert len(predictor.search({"gender": "female"}, crops, top=3)) == 3


def test_a_gallery_that_is_embedded_on_the_gpu_finds_its_own_pictures(predictor, crops, tmp_path):
    encoder = TorchEncoder(predictor)
    index = GalleryIndex.build(tmp_path / "gallery", crops, encoder, pace=Pace(progress=False))
    for path in predictor.images(crops)[:2]:
        assert index.search(Query(index.embed(encoder, path)), 1)[0].path == path


def test_batch_statistics_of_two_gpus_with_the_same_images_are_those_of_one(two_ranks):
    torch.manual_seed(0)
    alone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), get_norm("BN", 8)).cuda()
    shared = synchronise_batch_norm(copy.deepcopy(alone))
    assert isinstance(shared[1], torch.nn.SyncBatchNorm)
    images, wanted = torch.randn(4, 3, 9, 9, device="cuda"), torch.randn(4, 8, 7, 7, device="cuda")
    for model in (alone, shared):
        (model(images) - wanted).square().mean().backward()
    # The other GPU's share of the gradients of scales and biases comes with the average over both.
    for (name, ours), theirs in zip(shared.named_parameters(), alone.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(shared[1].running_mean, alone[1].running_mean)
    torch.testing.assert_close(shared[1].running_var, alone[1].running_var, rtol=1e-2, atol=0)  # n - 1 and 2 n - 1


@pytest.mark.parametrize("synchronised", [False, True])
def test_one_of_two_gpus_trains(small_config, two_ranks, synchronised):
    seed_all_rng(1)
    trainer = CerberusTrainer(small_config("MODEL.DEVICE", "cuda", "MODEL.SYNC_BN", synchronised))
    norms = [module for module in trainer.model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(module, torch.nn.SyncBatchNorm) == synchronised for module in norms)

    def average(state, bucket):
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    trainer.model.register_comm_hook(None, average)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    take_steps(trainer, 2)
    average_batch_statistics(trainer.model)
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    assert not [name for name, p in trainer.model.named_parameters()
                if p.requires_grad and p.numel() > 64 and torch.equal(p, before[name])]


@pytest.mark.gpu(devices=2)
def test_a_run_on_the_second_gpu_leaves_the_first_alone(small_config):
    held = torch.cuda.memory_allocated(0)
    try:
        trainer = trained(small_config("MODEL.DEVICE", "cuda:1"))
        assert torch.cuda.current_device() == 1  # also what is synchronised and named
    finally:
        torch.cuda.set_device(0)
    assert {tensor.device for tensor in trainer.model.state_dict().values()} == {torch.device("cuda", 1)}
    assert trainer.results["mAP"] > 0 and torch.cuda.memory_allocated(0) <= held


@pytest.mark.slow
def test_a_run_is_calibrated(gpu_run, market_root, use_root):
    use_root(market_root)
    calibrate.main([gpu_run.cfg.OUTPUT_DIR, "--accuracy", "0.6", "--confidence", "0.6", "--false-match-rate", "0.3",
                    "--device", "cuda"])
    record = json.loads((Path(gpu_run.cfg.OUTPUT_DIR) / "calibration" / "calibration.json").read_text())
    assert record


@pytest.mark.slow
def test_a_run_is_exported(gpu_run, crops, tmp_path):
    export(gpu_run.cfg.OUTPUT_DIR, tmp_path / "model.onnx", crops)
    assert (tmp_path / "model.onnx").stat().st_size > 0
