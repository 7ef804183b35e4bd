"""Import of checkpoints of torchreid, BoxMOT and `reid` as runs, and export of runs as folders of `reid`."""

import json
import shutil

from cerberus_plugin import CerberusPredictor, CerberusTrainer, cli
from cerberus_plugin.config import add_cerberus_config, flat, with_values
from cerberus_plugin.interchange.architectures import ARCHITECTURES, IN_REID
from cerberus_plugin.search.export.torch_encoder import TorchEncoder
from cerberus_plugin.search.portable import ExportedEncoder

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.modeling.backbones.osnet import OSBlock, OSNet
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from PIL import Image
from safetensors.torch import load_file, save_file
from support.own_data import write_people
from support.training import TINY, model_of
from torch import nn

CHANNELS = {"x0_25": [16, 64, 96, 128], "x1_0": [64, 256, 384, 512]}
IGNORED = dict.fromkeys(("OUTPUT_DIR", "MODEL.WEIGHTS"))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@torch.no_grad()
def roughened(module: nn.Module) -> nn.Module:
    """Set random statistics, so that layers in a wrong order or missing layers change the output."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.3)
    return module.eval()


def fully_connected(size: int) -> nn.Sequential:
    return roughened(nn.Sequential(nn.Linear(size, 512), nn.BatchNorm1d(512), nn.ReLU()))


def osnet(width: str = "x0_25", ibn: bool = False) -> tuple[nn.Module, nn.Module]:
    """Backbone and head of OSNet. FastReID has the names of torchreid."""
    backbone = OSNet([OSBlock] * 3, [2, 2, 2], CHANNELS[width], "BN", IN=ibn)
    return roughened(backbone), fully_connected(CHANNELS[width][-1])


def tensors_of(backbone: nn.Module, fc: nn.Module) -> dict[str, torch.Tensor]:
    return dict(backbone.state_dict()) | {f"fc.{name}": value for name, value in fc.state_dict().items()}


def as_torchreid_saves(tensors: dict, prefix: str = "module.") -> dict:
    classifier = {"classifier.weight": torch.zeros(9, 512), "classifier.bias": torch.zeros(9)}
    return {"state_dict": {prefix + name: value for name, value in (tensors | classifier).items()}, "epoch": 3,
            "rank1": 0.5, "optimizer": {"param_groups": [{"lr": 0.1}]}}


def pixels(paths, size) -> torch.Tensor:
    """Images as torchreid and `reid` read them: resized bilinearly, scaled to 0..1, normalised."""
    images = [np.asarray(Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
              for path in paths]
    scaled = torch.from_numpy(np.stack(images)).float() / 255
    return ((scaled - MEAN) / STD).permute(0, 3, 1, 2)


@torch.no_grad()
def expected(backbone: nn.Module, fc: nn.Module, paths, size=(256, 128)) -> torch.Tensor:
    return fc(F.adaptive_avg_pool2d(backbone(pixels(paths, size)), 1).flatten(1))


@pytest.fixture
def plain_convolutions():
    """Disable oneDNN: it compiles each of OSNet's 188 convolutions for each batch size, slow for small maps."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("crops"), people=4, cameras=2, attributes=False)


@pytest.fixture(scope="module")
def paths(crops):
    return sorted(map(str, (crops / "img").glob("*.png")))[:2]


@pytest.fixture(scope="module")
def model():
    return osnet()


@pytest.fixture(scope="module")
def imported(model, tmp_path_factory):
    """A run imported from a checkpoint of torchreid; read-only."""
    folder = tmp_path_factory.mktemp("imported")
    torch.save(as_torchreid_saves(tensors_of(*model)), folder / "osnet.pth.tar")
    cli.main(["import", str(folder / "osnet.pth.tar"), "--out", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def folder(imported, tmp_path_factory):
    """The run exported for `reid`; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("exported") / "reid"
    cli.main(["export", "--run", str(imported), "--format", "reid", "--output", str(path)])
    return path


def with_preprocessing(folder, target, **options):
    """A copy of a folder of `reid` with other preprocessing options."""
    shutil.copytree(folder, target)
    record = json.loads((target / "reid_config.json").read_text())
    record["preprocessing"] |= options
    (target / "reid_config.json").write_text(json.dumps(record))
    return target


def refusal(*arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    return str(ended.value.code)


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    """The same run for images of 64x32."""
    path = tmp_path_factory.mktemp("small")
    given = with_preprocessing(folder, path / "reid", input_size=[64, 32])
    cli.main(["import", str(given), "--out", str(path / "run")])
    return path / "run"


def test_an_imported_checkpoint_of_torchreid_has_the_same_embeddings(imported, small, model, paths, plain_convolutions):
    cfg = CerberusPredictor(imported).cfg
    assert (cfg.INPUT.SIZE_TEST, cfg.INPUT.INTERPOLATION) == ([256, 128], "bilinear")
    embeddings = CerberusPredictor(small).embed(paths)
    torch.testing.assert_close(embeddings, expected(*model, paths, (64, 32)), rtol=1e-5, atol=1e-6)
    assert (embeddings == 0).any(), "the ReLU must be part of the model"


def test_the_run_indexes_searches_and_is_evaluated(small, crops, paths, tmp_path, capsys, plain_convolutions):
    run = str(small)
    cli.main(["index", "--run", run, "--images", str(crops / "img"), "--out", str(tmp_path / "index")])
    cli.main(["search", str(tmp_path / "index"), "--picture", paths[1], "--run", run])
    assert "1.0" in next(line for line in capsys.readouterr().out.splitlines() if "0_1.png" in line)
    cli.main(["evaluate", run, str(crops)])
    (found,) = json.loads((small / "evaluation/summary.json").read_text())
    assert 0 < found["figures"]["reID mAP"] <= 100


def test_a_run_is_the_same_after_export_to_reid_and_import(folder, imported, model, tmp_path):
    record = json.loads((folder / "reid_config.json").read_text())
    preprocessing = record["preprocessing"]
    assert (record["architecture"], preprocessing["input_size"]) == ("osnet_x0_25", [256, 128])
    assert (preprocessing["interpolation"], preprocessing["resize_mode"]) == ("bilinear", "stretch")
    torch.testing.assert_close(torch.tensor(preprocessing["mean"]), MEAN)
    torch.testing.assert_close(torch.tensor(preprocessing["std"]), STD)
    written, held = load_file(folder / "weights.safetensors"), tensors_of(*model)
    assert {name: value.shape for name, value in written.items()} == {name: held[name].shape for name in held}
    assert all(torch.equal(written[name], held[name]) for name in held)
    cli.main(["import", str(folder), "--out", str(tmp_path / "back")])
    first, second = CerberusPredictor(imported), CerberusPredictor(tmp_path / "back")
    assert flat(first.cfg) | IGNORED == flat(second.cfg) | IGNORED
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())


def test_the_preprocessing_of_a_reid_folder_is_imported(folder, tmp_path):
    given = with_preprocessing(folder, tmp_path / "reid", input_size=[128, 64], interpolation="bicubic", mean=[0.5] * 3,
                          std=[0.25] * 3)
    cli.main(["import", str(given), "--out", str(tmp_path / "run")])
    cfg = CerberusPredictor(tmp_path / "run").cfg
    assert (cfg.INPUT.SIZE_TEST, cfg.INPUT.INTERPOLATION) == ([128, 64], "bicubic")
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([127.5] * 3, [63.75] * 3)


@pytest.mark.parametrize("changed, words", [
    ({"architecture": "timm:resnet50"}, ("timm:resnet50", "osnet_x1_0")),
    ({"preprocessing": {"resize_mode": "letterbox"}}, ("letterbox", "stretch")),
    ({"preprocessing": {"interpolation": "nearest"}}, ("nearest", "bilinear")),
    ({"preprocessing": {"input_size": [256, -1]}}, ("[256, -1]", "2 positive numbers")),
])
def test_a_reid_folder_with_unsupported_options_is_rejected(folder, changed, words, tmp_path):
    given = with_preprocessing(folder, tmp_path / "reid")
    record = json.loads((given / "reid_config.json").read_text())
    (given / "reid_config.json").write_text(json.dumps(record | changed))
    said = refusal("import", given, "--out", tmp_path / "run")
    assert all(word in said for word in ("reid_config.json", *words)), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change, words", [
    (lambda held: held.pop("conv4.1.gate.fc1.bias"), ("lacks 'conv4.1.gate.fc1.bias'", "osnet_x0_25")),
    (lambda held: held.update({"conv6.weight": torch.zeros(1)}), ("conv6.weight", "osnet_x0_25 does not have")),
    (lambda held: held.update({"fc.1.weight": torch.ones(256)}), ("'fc.1.weight' is 256, expected 512",)),
    (lambda held: held.pop("conv1.conv.weight"), ("a supported model", "resnet50_fc512", "config.yaml")),
])
def test_another_model_is_rejected_with_the_expected_tensors(model, change, words, tmp_path):
    held = tensors_of(*model)
    change(held)
    save_file(held, tmp_path / "weights.safetensors")
    said = refusal("import", tmp_path / "weights.safetensors", "--out", tmp_path / "run")
    assert all(word in said for word in (str(tmp_path / "weights.safetensors"), *words)), said
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(imported):
    assert "already contains a run" in refusal("import", imported.parent / "osnet.pth.tar", "--out", imported)


def test_a_model_that_reid_cannot_build_is_rejected_with_a_remedy(run, imported, tmp_path):
    said = refusal("export", "--run", run.cfg.OUTPUT_DIR, "--format", "reid", "--output", tmp_path / "reid")
    assert all(word in said for word in ("META_ARCHITECTURE Cerberus, expected Baseline", "osnet_x1_0", "--images"))
    cut = shutil.copytree(imported, tmp_path / "cut")
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace("CROP:\n    ENABLED: false", "CROP:\n    ENABLED: true"))
    said = refusal("export", "--run", cut, "--format", "reid", "--output", tmp_path / "reid")
    assert "INPUT.CROP.ENABLED True" in said
    assert not (tmp_path / "reid").exists()


@pytest.mark.parametrize("checkpoint, copied", [("model_final.pth", True), ("model_best.pth", False)])
def test_the_model_card_goes_with_the_checkpoint_that_it_describes(imported, checkpoint, copied, tmp_path):
    run, output = shutil.copytree(imported, tmp_path / "run"), tmp_path / "reid"
    (run / "model_card.md").write_text("card")
    (run / "results.json").write_text(json.dumps({"results": {}, "manifest": {"checkpoint": checkpoint}}))
    cli.main(["export", "--run", str(run), "--format", "reid", "--output", str(output)])
    assert (output / "model_card.md").is_file() == copied


def test_the_head_of_torchreid_learns():
    model = model_of(*TINY, "MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "FullyConnectedHead",
                     "MODEL.HEADS.EMBEDDING_DIM", 12, "MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLoss"))
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 48, 24, generator=generator) * 255
    with EventStorage():
        losses = model({"images": images.clone(), "targets": torch.arange(4) // 2})
    sum(losses.values()).backward()
    assert all(part.grad.abs().sum() > 0 for part in model.heads.bottleneck.parameters())
    embeddings = model.eval()({"images": images})
    assert embeddings.shape == (4, 12) and (embeddings >= 0).all()


@pytest.mark.slow
def test_an_imported_run_is_exported_to_onnx_with_bilinear_resizing(small, crops, paths, tmp_path):
    cli.main(["export", "--run", str(small), "--images", str(crops), "--output", str(tmp_path / "osnet.onnx")])
    encoder = ExportedEncoder(tmp_path / "osnet.onnx", providers=["CPUExecutionProvider"])
    assert encoder.interpolation == "bilinear"
    wanted = F.normalize(CerberusPredictor(small).embed(paths)).numpy()
    np.testing.assert_allclose(encoder.encode([Image.open(path) for path in paths]), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_head_of_torchreid_trains_and_its_run_is_exported(small_config, tmp_path):
    options = [each for pair in IN_REID["osnet_x0_25"].options.items() for each in pair]
    cfg = small_config(*options, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, file="configs/Market1501/bot_demo.yml")
    trainer = CerberusTrainer(cfg)
    weight = trainer.model.heads.bottleneck[0].weight
    before = weight.detach().clone()
    trainer.train()
    assert not torch.equal(weight, before)
    cli.main(["export", "--run", cfg.OUTPUT_DIR, "--format", "reid", "--output", str(tmp_path / "reid")])
    written = load_file(tmp_path / "reid/weights.safetensors")
    assert torch.equal(written["fc.0.weight"], weight.detach().flatten(1))


def test_the_head_of_torchreid_needs_a_size():
    with pytest.raises(ValueError, match="MODEL.HEADS.EMBEDDING_DIM is 0"):
        model_of(*TINY, "MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "FullyConnectedHead",
                 "MODEL.HEADS.EMBEDDING_DIM", 0)


def test_names_converted_to_fastreid_and_back_are_unchanged():
    for architecture in ARCHITECTURES:
        for name in architecture.marks:
            assert architecture.from_host(architecture.to_host(name)) == name


@pytest.mark.slow
@pytest.mark.parametrize("name, last_stride", [("resnet50", 2), ("resnet50_fc512", 1)])
def test_the_resnet_of_torchreid_is_that_of_torchvision_with_its_stride_and_head(name, last_stride, paths, tmp_path):
    from torchvision.models import resnet50

    model = resnet50()
    model.layer4[0].conv2.stride = model.layer4[0].downsample[0].stride = (last_stride, last_stride)
    model.fc = fully_connected(2048) if name.endswith("fc512") else nn.Identity()
    roughened(model)
    torch.save(as_torchreid_saves(model.state_dict()), tmp_path / "model.pth.tar")
    cli.main(["import", str(tmp_path / "model.pth.tar"), "--out", str(tmp_path / "run")])
    with torch.no_grad():
        wanted = model(pixels(paths, (256, 128)))
    embeddings = CerberusPredictor(tmp_path / "run").embed(paths)
    torch.testing.assert_close(embeddings, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.slow
def test_osnet_with_instance_normalisation_is_recognised(paths, tmp_path):
    model = osnet("x1_0", ibn=True)
    torch.save(tensors_of(*model), tmp_path / "model.pt")
    cli.main(["import", str(tmp_path / "model.pt"), "--out", str(tmp_path / "run")])
    embeddings = CerberusPredictor(tmp_path / "run").embed(paths)
    torch.testing.assert_close(embeddings, expected(*model, paths), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_plain_fastreid_is_read_with_its_own_normalisation(paths, tmp_path):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    architecture = next(each for each in ARCHITECTURES if each.name == "FastReID's sbs_S50")
    model = roughened(build_model(with_values(cfg, {
        **architecture.options, "MODEL.DEVICE": "cpu", "MODEL.BACKBONE.PRETRAIN": False, "MODEL.HEADS.NUM_CLASSES": 9,
        "MODEL.PIXEL_MEAN": [127.5] * 3})))
    earlier = {"pixel_mean": torch.full((1, 3, 1, 1), 127.5), "pixel_std": model.pixel_std}
    torch.save({"model": model.state_dict() | earlier, "iteration": 3}, tmp_path / "sbs_S50.pth")
    cli.main(["import", str(tmp_path / "sbs_S50.pth"), "--out", str(tmp_path / "run")])
    predictor = CerberusPredictor(tmp_path / "run")
    assert (predictor.cfg.INPUT.SIZE_TEST, predictor.cfg.INPUT.INTERPOLATION) == ([384, 128], "bicubic")
    with torch.no_grad():
        wanted = model({"images": predictor.load_images(paths)})
    torch.testing.assert_close(predictor.embed(paths), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_REID)
def test_the_package_reid_has_the_same_embeddings(name, paths, tmp_path):
    reid = pytest.importorskip("reid", reason="the package reid is not installed")
    theirs = reid.ReIDModel.from_pretrained(architecture=name, device="cpu")
    roughened(theirs._backbone)
    wanted = theirs.extract_embeddings_from_paths(paths)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    cli.main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "run")])
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(CerberusPredictor(tmp_path / "run").embed(paths).numpy(), wanted, rtol=0,
                               atol=1e-5 * scale)
    cli.main(["export", "--run", str(tmp_path / "run"), "--format", "reid", "--output", str(tmp_path / "ours")])
    ours = reid.ReIDModel.from_pretrained(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(ours.extract_embeddings_from_paths(paths), wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
def test_the_package_reid_accepts_a_run_of_cerberus_as_a_module(run, paths):
    reid = pytest.importorskip("reid", reason="the package reid is not installed")
    predictor = CerberusPredictor(run.cfg.OUTPUT_DIR, device="cpu")
    preprocessing = reid.ReIDPreprocessing(input_size=tuple(predictor.cfg.INPUT.SIZE_TEST), mean=(0, 0, 0),
                                           std=(1 / 255,) * 3, interpolation=predictor.cfg.INPUT.INTERPOLATION)
    encoder = TorchEncoder(predictor)
    theirs = reid.ReIDModel.from_pretrained(architecture=encoder.embedder, preprocessing=preprocessing, device="cpu")
    wanted = encoder.encode([Image.open(path) for path in paths])
    np.testing.assert_allclose(theirs.extract_embeddings_from_paths(paths), wanted, rtol=0, atol=1e-5)
