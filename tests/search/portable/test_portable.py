"""Attribute tables and image reading without torch: equal to the implementations with torch, safe for any input."""

import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

from cerberus_plugin.attributes import DUKEMTMC, GROUPS, MARKET1501, SIDTable
from cerberus_plugin.attributes.marginals import LOWEST
from cerberus_plugin.inference import PrototypeReader, blocks
from cerberus_plugin.modeling.sid_prototypes import SIDPrototypes
from cerberus_plugin.search.export.onnx import Graph
from cerberus_plugin.search.gallery.thumbnails import thumbnail
from cerberus_plugin.search.portable import Answer, AttributeModel
from cerberus_plugin.utils.images import INTERPOLATIONS, Limits, Unreadable, read_image, read_size, to_array, to_rgb

import cv2
import numpy as np
import pytest
import torch
from fastreid.data.data_utils import read_image as host_image
from fastreid.data.transforms import build_transforms
from PIL import Image
from support.data import random_labels
from support.processes import WITHOUT_TORCH
from support.training import read_config

D = 16
ROOT = Path(__file__).parents[3]


def reader_and_vocabulary(schema, space: str = "product", **reading) -> tuple[PrototypeReader, AttributeModel]:
    """Create a reader with torch, and attribute tables without, from random prototypes of 8 people."""
    torch.manual_seed(0)
    table = SIDTable.build(schema, random_labels(schema, 8), space=space)
    prototypes = SIDPrototypes(table.sizes, schema.group_bits, num_classes=1, dim=D)
    prototypes.fill(table, torch.zeros(1, 5, dtype=torch.int64), tuple(torch.zeros(k) for k in table.sizes))
    reader = PrototypeReader(table, [prototypes.rows[g].detach() for g in GROUPS], prototypes.synthesise, **reading)
    return reader, reader.attribute_model(prototypes.synthesis)


def random_embeddings(count: int = 200) -> torch.Tensor:
    return blocks(torch.randn(count, 5 * D, generator=torch.Generator().manual_seed(1))).flatten(1)


@pytest.fixture(scope="module")
def market_pair():
    return reader_and_vocabulary(MARKET1501)


@pytest.mark.parametrize("force_colour", [False, True])
@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC], ids=lambda schema: schema.name)
def test_predictions_and_probabilities_are_those_of_the_reader_with_torch(schema, force_colour):
    reader, vocabulary = reader_and_vocabulary(schema, force_colour=force_colour)
    embeddings = random_embeddings()
    colours = np.array([column.is_colour for column in schema.columns])
    classes = vocabulary.nearest(embeddings.numpy())
    assert (classes - colours == reader.recognise(embeddings).numpy()).all()
    assert (classes[:, colours] > 0).all() == force_colour
    best, probability = reader.confidences(embeddings)
    for m, shares in enumerate(vocabulary.probabilities(embeddings.numpy())):
        assert (shares.argmax(axis=1) - colours[m] == best[:, m].numpy()).all()
        assert shares.max(axis=1) == pytest.approx(probability[:, m].numpy(), abs=1e-6)
        assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temperatures", [{}, {"gender": 0.5, "upper colour": 2.0}], ids=["plain", "calibrated"])
@pytest.mark.parametrize("force_colour", [False, True])
@pytest.mark.parametrize("reading", ["nearest", "probability"])
def test_the_exported_graph_has_the_predictions_and_probabilities_of_the_reader(
        reading, force_colour, temperatures):
    reader, vocabulary = (each.calibrated(temperatures) for each in reader_and_vocabulary(
        MARKET1501, "observed", reading=reading, force_colour=force_colour, tau=0.7))
    embeddings = random_embeddings()
    same, shares, answers, searched = Graph(torch.nn.Identity(), vocabulary)(embeddings)
    colours = torch.tensor([column.is_colour for column in MARKET1501.columns], dtype=torch.int64)
    assert same is embeddings and torch.equal(answers - colours, reader.recognise(embeddings))
    assert torch.allclose(searched, torch.cat(reader.log_probabilities(embeddings), dim=1), atol=1e-4)
    assert searched.min() == LOWEST  # of values that no semantic ID has
    best, sure = reader.confidences(embeddings)
    for own, found, probability in zip(shares.split([h.shape[1] for h in reader.marginals.held], dim=1),
                                       (best + colours).T, sure.T):
        assert torch.equal(own.argmax(dim=1), found) and torch.allclose(own.amax(dim=1), probability, atol=1e-5)


def test_predictions_have_the_values_of_the_schema(market_pair):
    reader, vocabulary = market_pair
    embeddings = random_embeddings(20)
    for row, sure, found in zip(*reader.confidences(embeddings), vocabulary.recognise(embeddings.numpy())):
        assert [answer.value for answer in found.values()] == [
            column.classes[k] if k >= 0 else "none" for column, k in zip(MARKET1501.columns, row.tolist())]
        assert [answer.probability for answer in found.values()] == pytest.approx(sure.tolist(), abs=1e-6)
        assert not any(answer.abstained or answer.calibrated for answer in found.values())
    assert list(found) == [column.name for column in MARKET1501.columns]
    assert [column.group for column in vocabulary.columns] == list(MARKET1501.column_groups)


@pytest.mark.parametrize("space", ["product", "observed"])  # observed: most prototypes are synthesised
@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC], ids=lambda schema: schema.name)
def test_complete_and_partial_descriptions_have_the_scores_of_the_reader_with_torch(schema, space):
    reader, vocabulary = reader_and_vocabulary(schema, space)
    embeddings = random_embeddings()
    rng = np.random.default_rng(0)
    for labels in random_labels(schema, 30, seed=7):
        words = schema.describe(labels)
        some = rng.permutation(list(words))[:rng.integers(1, len(words) + 1)]
        words = {name: words[name] for name in some}
        expected = reader.search(schema.parse(words)[None], embeddings)[0].numpy()
        described = vocabulary.describe(words)  # (5, D)
        scores = embeddings.numpy() @ described.flatten() / (described != 0).any(axis=1).sum()
        assert scores == pytest.approx(expected, abs=1e-6)


def test_descriptions_are_parsed_as_by_the_schema(market_pair):
    _, vocabulary = market_pair
    for words in ({}, {"upper colour": "none"}, {"upper colour": "red and blue", "age": "old"},
                  {"backpack": "no", "clothes": "pants"}):
        assert vocabulary.parse(words).tolist() == MARKET1501.parse(words).tolist()
    assert (vocabulary.describe({"hat": "yes"}) != 0).any(axis=1).tolist() == [True, False, False, False, False]
    with pytest.raises(ValueError, match="unknown attribute 'uper colour' of market1501; did you mean 'upper colour'"):
        vocabulary.describe({"uper colour": "red"})
    with pytest.raises(ValueError, match="'upper colour' cannot be 'rad'; did you mean 'red'. Allowed: none, black"):
        vocabulary.describe({"upper colour": "rad"})
    for name, value in (("upper colour", "none and red"), ("gender", "female and male"), ("gender", "none"),
                        ("gender", 1)):
        with pytest.raises(ValueError, match=f"'{name}' cannot be '{value}'"):
            vocabulary.describe({name: value})


def test_a_vocabulary_is_converted_to_json_without_loss(market_pair):
    _, vocabulary = market_pair
    vocabulary = vocabulary.calibrated({"age": 1.7, "hat": 0.4}, {"age": 0.75, "hat": math.inf})
    copy = AttributeModel.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    for name in ("schema", "columns", "temperatures", "withhold_below"):
        assert getattr(copy, name) == getattr(vocabulary, name)
    embeddings = random_embeddings().numpy()
    for one, other in zip(copy.probabilities(embeddings), vocabulary.probabilities(embeddings)):
        assert (one == other).all()
    unseen = {"upper colour": "red and blue"}
    assert (copy.describe(unseen) == vocabulary.describe(unseen)).all()


def test_without_prior_a_temperature_divides_only_the_scale_of_its_column():
    _, vocabulary = reader_and_vocabulary(MARKET1501, tau=0)
    cooler, _ = reader_and_vocabulary(MARKET1501, cosine_scale=16.0 / 4, tau=0)
    embeddings = random_embeddings()
    calibrated = vocabulary.calibrated({"age": 4.0}).probabilities(embeddings.numpy())
    probability = cooler.confidences(embeddings)[1].numpy()
    for m, (column, shares, before) in enumerate(zip(vocabulary.columns, calibrated,
                                                     vocabulary.probabilities(embeddings.numpy()))):
        if column.name == "age":
            assert shares.max(axis=1) == pytest.approx(probability[:, m], abs=1e-6)
        else:
            assert (shares == before).all()
    for wrong in ({"ages": 1.0}, {"age": 0.0}, {"age": math.inf}):
        with pytest.raises(ValueError, match="is not a column of market1501|expected a positive number"):
            vocabulary.calibrated(wrong)


def test_predictions_below_the_calibrated_threshold_are_uncertain(market_pair):
    embeddings = random_embeddings().numpy()
    _, vocabulary = market_pair
    answers = vocabulary.calibrated({"age": 1.0, "hat": 1.0}, {"age": 0.5, "hat": math.inf}).recognise(embeddings)
    before = vocabulary.recognise(embeddings)
    ages = [row["age"] for row in answers]
    assert [age.abstained for age in ages] == [row["age"].probability < 0.5 for row in before]
    assert {True, False} == {age.abstained for age in ages}
    assert all(row["hat"].abstained and str(row["hat"]) == "uncertain" for row in answers)
    assert all(row["gender"] == was["gender"] and not row["gender"].calibrated for row, was in zip(answers, before))
    with pytest.raises(ValueError, match="withhold_below names hat, expected .* for calibrated columns: age"):
        vocabulary.calibrated({"age": 1.0}, {"hat": 0.5})


def test_the_text_of_an_answer():
    assert str(Answer("red", 0.93)) == "red (93%)" and str(Answer("red", 0.4, abstained=True)) == "uncertain"
    assert str(Answer("red", 0.93, calibrated=False)) == "red (93%, not calibrated)"


@pytest.mark.parametrize("part", ["labels", "prototypes", "residuals", "mean_bits"])
def test_a_damaged_vocabulary_is_rejected(market_pair, part):
    record = market_pair[1].to_dict()
    group = record["groups"][1]
    if part == "labels":
        group["labels"] = [row[1:] for row in group["labels"]]
    else:
        group[part] = record["groups"][2][part]
    with pytest.raises(ValueError, match=f"attribute model of market1501: {part} of group 'upper' do not fit"):
        AttributeModel.from_dict(record)


@pytest.mark.parametrize(("key", "value"), [("reading", "by ear"), ("tau", -1.0), ("unseen_prior", 0.0),
                                            ("tau", math.nan), ("scale", 0.0), ("scale", math.inf), ("scale", None),
                                            ("counts", -1)])
def test_invalid_parameters_of_probabilities_are_rejected(market_pair, key, value):
    record = market_pair[1].to_dict()
    if key == "scale":
        record["scales"] = {"hat": 1.0} if value is None else record["scales"] | {"hat": value}
    elif key in record:
        record[key] = value
    else:
        group = record["groups"][1]
        group[key] = [value] * len(group["counts"]) if key == "counts" else value
    with pytest.raises(ValueError, match=f"attribute model of market1501: .*{key}.*export the model again"):
        AttributeModel.from_dict(record)


def picture(kind: str = "PNG", size: tuple[int, int] = (12, 20), mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this size."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return picture()[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + picture()[33:]


@pytest.mark.parametrize("data, reason", [
    (b"", "is empty"),
    (b"no picture at all", r"is not an image of a supported format \(JPEG, PNG, BMP, WEBP\)"),
    (picture("GIF"), "is not an image of a supported format"),
    (picture("TIFF"), "is not an image of a supported format"),
    (picture("JPEG")[:-60], "is broken or truncated"),
    (picture("PNG")[:-300], "is broken or truncated"),
    (picture("PNG")[:20], "is not an image of a supported format|is broken"),
    (picture("BMP")[:30], "is broken"),
    (picture("WEBP", lossless=True)[:-300], "is broken"),
    (claiming(20_000, 5_000), r"has more than 50000000 pixels \(20000 x 5000\)"),
    (claiming(60_000, 60_000), "has more than 50000000 pixels"),  # Pillow itself rejects these
    (picture(size=(3, 20)), r"is smaller than 4 x 4 pixels \(3 x 20\)"),
    (picture() + bytes(32 * 2**20), "is a file of more than 33554432 bytes"),
], ids=["empty", "text", "gif", "tiff", "cut jpeg", "cut png", "cut header", "cut bmp", "cut webp", "many pixels",
        "very many pixels", "small", "many bytes"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_images_are_rejected_with_the_reason(tmp_path, data, reason):
    path = tmp_path / "crop.jpg"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=reason) as refused:
        read_image(path)
    assert refused.value.path == str(path) and str(refused.value) == f"{path}: {refused.value.reason}"
    with pytest.raises(Unreadable, match=f"^crop 7: ({reason})"):
        read_image(data, name="crop 7")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def scans(count: int) -> bytes:
    """A progressive JPEG with this number of scans; the last scan is repeated."""
    data = picture("JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_with_too_many_scans_is_rejected_before_it_is_decoded():
    assert read_image(scans(100)).size == (12, 20)
    for hidden in (b"", b"\xff", b"\xff\x00", b"\xff\xfe\x00\x04\xff\xd9"):  # fill bytes, a comment
        data = scans(101)
        last = data.rfind(b"\xff\xda")
        with pytest.raises(Unreadable, match="has too many scans, more than 100; save it again"):
            read_image(data[:last] + hidden + data[last:])
    comment = b"\xff\xfe\x00\x02"
    plain = picture("JPEG")
    assert read_image(plain[:2] + comment * 9_000 + plain[2:]).size == (12, 20)
    with pytest.raises(Unreadable, match="has too many segments, more than 10000; save it again"):
        read_image(plain[:2] + comment * 10_000 + plain[2:])


def test_scan_markers_inside_other_segments_do_not_count():
    plain = picture("JPEG")
    within = b"\xff\xe1" + (2 + 20_000).to_bytes(2, "big") + b"\xff\xda" * 10_000  # in an application segment
    for data in (plain[:2] + within + plain[2:], plain + b"\xff\xda" * 101):  # after the end, as in motion photos
        assert (np.asarray(read_image(data)) == np.asarray(read_image(plain))).all()


def test_pipes_and_folders_are_rejected_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(Unreadable, match="is not a file"):
            read_image(name)
    with pytest.raises(Unreadable, match="nowhere.jpg: not found"):
        read_image(tmp_path / "nowhere.jpg")
    (tmp_path / "secret.jpg").write_bytes(picture())
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(Unreadable, match=r"cannot be opened \(Permission denied\)") as refused:
        read_image(tmp_path / "secret.jpg")
    assert refused.value.passing


def test_a_lack_of_memory_is_a_temporary_error(monkeypatch):
    def no_memory(*_, **options):
        raise MemoryError

    with pytest.raises(Unreadable, match="is broken") as broken:
        read_image(picture()[:200])
    assert not broken.value.passing
    for step in ("PIL.Image.open", "PIL.ImageFile.ImageFile.load", "PIL.ImageOps.exif_transpose",
                 "PIL.Image.Image.convert"):
        data = picture(mode="L")
        with monkeypatch.context() as patch, pytest.raises(Unreadable, match="needs more memory than there is") as lack:
            patch.setattr(step, no_memory)
            read_image(data)
        assert lack.value.passing and pickle.loads(pickle.dumps(lack.value)).passing


def test_limits_can_be_given(tmp_path):
    assert read_image(picture(size=(2, 2)), Limits(min_side=1)).size == (2, 2)
    with pytest.raises(Unreadable, match=r"has more than 100 pixels \(12 x 20\)"):
        read_image(picture(), Limits(max_pixels=100))


@pytest.mark.parametrize("kind, mode", [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"),
                                        ("PNG", "LA"), ("BMP", "RGB"), ("WEBP", "RGBA")])
@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_are_those_that_fastreid_reads(tmp_path, kind, mode, turn, interpolation):
    exif = Image.Exif()
    exif[0x0112] = turn  # orientation
    path = tmp_path / "crop"
    path.write_bytes(picture(kind, mode=mode, **({} if kind == "BMP" else {"exif": exif})))
    image, expected = read_image(path), host_image(str(path), format="RGB")
    assert (np.asarray(image) == np.asarray(expected)).all()
    assert image.size == ((20, 12) if turn == 6 and kind != "BMP" else (12, 20))
    transform = build_transforms(read_config("INPUT.INTERPOLATION", interpolation), is_train=False)
    assert (to_array([image], (48, 24), interpolation)[0] == transform(expected).numpy()).all()


def sixteen_bits(shape: tuple[int, ...]) -> np.ndarray:
    """Random values in 0..65535, uint16."""
    return np.random.default_rng(0).permutation(2**16)[:np.prod(shape)].reshape(shape).astype(np.uint16)


def test_16_bit_grey_images_keep_the_upper_byte():
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    image = read_image(cv2.imencode(".png", ramp)[1].tobytes())
    assert (np.asarray(image) == (ramp >> 8)[..., None]).all() and np.asarray(image).mean() == 127.5
    for mode in ("I", "I;16", "I;16B"):  # modes in different versions of Pillow
        stored = Image.fromarray(ramp.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]))
        assert stored.mode == mode and (np.asarray(to_rgb(stored)) == np.asarray(image)).all()
        assert (to_array([stored], (64, 64)) == to_array([image], (64, 64))).all()
        assert thumbnail(stored) == thumbnail(image)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_images_keep_the_upper_byte(channels):
    pixels = sixteen_bits((20, 12, channels))
    image = read_image(cv2.imencode(".png", pixels)[1].tobytes())
    assert (np.asarray(image) == pixels[..., 2::-1] >> 8).all()  # OpenCV uses the order BGR


@pytest.mark.parametrize(("values", "reason"), [
    (np.full((8, 8), 0.5, np.float32), "floating-point pixels"),
    (np.array([[0, 70_000]] * 8, np.int32), "values from 0 to 70000, expected 0 to 65535"),
    (np.array([[-1, 255]] * 8, np.int32), "values from -1 to 255, expected 0 to 65535")])
def test_pixels_with_an_unknown_range_are_rejected(values, reason):
    for use in (to_rgb, thumbnail, lambda image: to_array([image], (8, 8))):
        with pytest.raises(ValueError, match=reason):
            use(Image.fromarray(values))


@pytest.mark.filterwarnings("error")
def test_transparency_is_dropped_without_a_warning():
    palette = Image.open(io.BytesIO(picture())).quantize(16)
    for transparent in (3, bytes(range(16))):
        buffer = io.BytesIO()
        palette.save(buffer, "PNG", transparency=transparent)
        assert (np.asarray(read_image(buffer.getvalue())) == np.asarray(palette.convert("RGB"))).all()


def test_the_size_is_read_from_the_header(tmp_path):
    path = tmp_path / "crop.png"
    path.write_bytes(picture()[:-300])
    assert read_size(path) == (12, 20)
    for data, reason in ((claiming(20_000, 10_000), "has more than 50000000 pixels"), (b"text", "supported format")):
        path.write_bytes(data)
        with pytest.raises(Unreadable, match=reason):
            read_size(path)
    with pytest.raises(Unreadable, match="nowhere.jpg: not found"):
        read_size(tmp_path / "nowhere.jpg")


def test_a_broken_exif_block_is_ignored(monkeypatch):
    def broken(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    assert read_image(picture()).size == (12, 20)


def test_the_portable_package_is_imported_without_torch_and_other_imports_report_that_torch_is_missing():
    code = WITHOUT_TORCH + """
import cerberus_plugin.search.portable
assert cerberus_plugin.search.portable.ExportedEncoder and "onnxruntime" not in sys.modules
try:
    from cerberus_plugin import CerberusPredictor
except ImportError as error:
    print(error)
try:
    cerberus_plugin.anything
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "cerberus_plugin.CerberusPredictor needs torch, which is not installed: pip install torch" in done.stdout
    assert "has no attribute 'anything'" in done.stdout
