"""--blur-faces: heads are covered, all code that shows images blurs them, and models get unchanged images."""

import ast
import base64
import functools
import io
import re
from math import pi
from pathlib import Path

from cerberus_plugin import cli
from cerberus_plugin.audit import page as audit_page
from cerberus_plugin.experiments.figures import __main__ as figures
from cerberus_plugin.experiments.figures import exhibit, rank_list
from cerberus_plugin.search.gallery.thumbnails import thumbnail
from cerberus_plugin.synthetic.figure import Pen, _Figure
from cerberus_plugin.synthetic.people import generator, make_person, sample_people
from cerberus_plugin.synthetic.scene import HEIGHT, NUM_CAMERAS, WIDTH, make_camera, sample_view
from cerberus_plugin.utils.commands import BLUR_FACES, blurs_faces, faces_blurred
from cerberus_plugin.utils.images import HEAD, blur_head, for_display, read_image

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

PACKAGE = Path(cli.__file__).parent
# Modules that draw or encode images, and how they blur: with `for_display`, or through `TestedModel.seen`.
WRITERS = {"search/gallery/thumbnails.py": "for_display", "audit/page.py": "for_display",
           "experiments/figures/rank_list.py": "for_display", "experiments/figures/attention.py": "run.seen",
           "experiments/figures/alignment.py": "run.seen"}
COMMANDS = {"search", "serve", "audit", "train"}


@pytest.fixture
def noise(tmp_path) -> Path:
    path = tmp_path / "person.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)).save(path)
    return path


@functools.cache
def people() -> list:
    return sample_people(400, 0, "heads")


def chin(number: int, difficulty: float, monkeypatch) -> float | None:
    """Return the lower end of a synthetic person's head as a share of the image height; None outside of the image."""
    labels = people()[number]
    rng = generator("heads", number)
    camera = make_camera(1 + number % NUM_CAMERAS, 0, difficulty)
    view = sample_view(camera, rng, rng.random() * 2 * pi, rng.random())
    foot = (0.5 + view.x) * WIDTH, (0.5 + 0.46 * min(view.size, 1.0) + view.y) * HEIGHT
    canvas = np.zeros((HEIGHT * 2, WIDTH * 2, 4), np.uint8)
    ovals = []
    pen = Pen(canvas, foot[0] * 2, foot[1] * 2, view.size * HEIGHT * 2)
    monkeypatch.setattr(pen, "oval", lambda x, y, rx, ry, colour: ovals.append((y, ry)))
    _Figure(pen, make_person(labels, number, 0, difficulty), view.turn, view.phase, camera.tilt).draw_head()
    y, radius = ovals[0]  # the head itself, without hair and hat
    top, bottom = ((foot[1] * 2 - pen.scale * (y + sign * radius)) / 2 / HEIGHT for sign in (1, -1))
    return bottom if bottom > 0 and top < 1 else None


@pytest.mark.parametrize("difficulty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("loose", [0.0, 0.3])
def test_at_least_99_percent_of_heads_are_in_the_blurred_part(difficulty, loose, monkeypatch):
    """Also in loose boxes, with up to 30 % more height above and below, and of children, whose heads are lower."""
    found = [chin(number, difficulty, monkeypatch) for number in range(400)]
    chins = np.array([share for share in found if share is not None])
    assert len(chins) == 400
    above, below = loose * generator("boxes").random((2, 400))
    chins = (chins + above) / (1 + above + below)
    assert np.mean(chins <= HEAD) >= 0.99
    assert np.mean(chins <= 0.25) < 0.9  # the upper quarter would not be enough


def test_the_blurred_part_depends_only_on_a_few_averages(noise):
    image = read_image(noise)
    blurred, edge = np.asarray(blur_head(image), float), int(np.ceil(HEAD * 128))
    pixels = np.asarray(image).copy()
    for rows in range(0, edge, 1):  # another order of the pixels of each cell, whose averages stay
        pixels[rows] = np.concatenate([part[::-1] for part in np.split(pixels[rows], 4)])
    shuffled = np.asarray(blur_head(Image.fromarray(pixels)), float)
    assert np.abs(shuffled - blurred).max() <= 2  # of rounding
    assert np.array_equal(blurred[edge:], np.asarray(image)[edge:])
    neighbours = np.abs(np.diff(blurred[:edge], axis=1))
    assert neighbours.max() < 16 < np.abs(np.diff(np.asarray(image, float)[:edge], axis=1)).mean()


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (200, 20), (64, 128)])
def test_images_of_any_shape_are_blurred_in_a_copy(size):
    image = Image.new("RGB", size, "white")
    image.putpixel((0, 0), (0, 0, 0))
    assert blur_head(image).size == size
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_blurring_is_off_by_default_and_on_only_in_the_block(noise, monkeypatch):
    monkeypatch.delenv(BLUR_FACES, raising=False)
    image = read_image(noise)
    assert for_display(image) is image
    with faces_blurred():
        assert for_display(image) != image
        with faces_blurred(False):
            assert blurs_faces()
    assert not blurs_faces()
    monkeypatch.setenv(BLUR_FACES, "1")
    with faces_blurred(False):
        assert blurs_faces()
    monkeypatch.setenv(BLUR_FACES, "perhaps")
    with pytest.raises(ValueError, match=f"{BLUR_FACES} is 'perhaps'"):
        blurs_faces()


def encodes(node: ast.AST) -> bool:
    """Return whether a call draws or encodes an image."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    formats = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    return node.func.attr in ("imshow", "figimage", "imsave") or node.func.attr == "save" and bool(
        {"JPEG", "PNG", "WEBP"} & set(formats))


def test_all_modules_that_show_images_are_listed_and_blur_them():
    """`synthetic` is excluded, because its people do not exist; attention and alignment use `TestedModel.seen`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("synthetic/") and any(map(encodes, ast.walk(ast.parse(path.read_text())))):
            found.add(name)
    assert found == set(WRITERS)
    for name, how in WRITERS.items():
        assert f"{how}(" in (PACKAGE / name).read_text(), name
    assert "for_display(" in (PACKAGE / "experiments/figures/exhibit.py").read_text()


def test_only_commands_that_show_images_have_the_option():
    required = {"search": ["gallery"], "serve": ["gallery"], "audit": ["crops", "--out", "x"],
                "train": ["crops", "--out", "x"]}
    for command in cli.COMMANDS:
        name = command.__name__.rpartition(".")[2]
        assert ("add_blur_faces(" in Path(command.__file__).read_text()) == (name in COMMANDS), name
    for name in COMMANDS:
        assert cli.parse([name, *required[name], "--blur-faces"]).blur_faces
        assert not cli.parse([name, *required[name]]).blur_faces
    assert figures.parser().parse_args(["sheets", "run", "--output", "x", "--blur-faces"]).blur_faces
    with pytest.raises(SystemExit):
        rank_list.main(["--blur-faces", "--help"])


def is_blurred(pixels: np.ndarray) -> bool:
    """Return whether the upper part of the noise image is smooth and the rest is not."""
    steps = np.abs(np.diff(pixels.astype(float), axis=1)).mean(axis=(1, 2))
    edge = int(HEAD * len(steps))
    assert steps[edge + 2:].mean() > 10
    return steps[:edge - 2].max() < 8


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))))


def shown_on_an_axis(path: Path) -> np.ndarray:
    axis = Figure().subplots()
    rank_list.show_picture(axis, path)
    return np.asarray(axis.images[0].get_array())


SHOWN = {"thumbnails of search and serve": lambda path: np.asarray(Image.open(io.BytesIO(thumbnail(read_image(path))))),
         "audit": lambda path: decoded(audit_page.thumbnail(str(path))),
         "sheets and the report of a run": shown_on_an_axis}


@pytest.mark.parametrize("writer", SHOWN)
def test_each_writer_blurs_if_it_is_enabled(noise, writer):
    assert not is_blurred(SHOWN[writer](noise))
    with faces_blurred():
        assert is_blurred(SHOWN[writer](noise))


def test_figures_show_blurred_pixels_and_the_model_gets_the_image(run, noise):
    from cerberus_plugin import CerberusPredictor

    predictor = CerberusPredictor(run.cfg.OUTPUT_DIR, device="cpu")
    tested = exhibit.TestedModel(predictor, "Market1501Attributes")
    plain, embedding = tested.seen([str(noise)]), predictor.embed([str(noise)])
    with faces_blurred():
        blurred = tested.seen([str(noise)])
        assert (predictor.embed([str(noise)]) == embedding).all()
    height = plain.shape[1]
    edge = int(np.ceil(HEAD * height))
    assert (plain[:, edge:] == blurred[:, edge:]).all() and (plain[:, :edge] != blurred[:, :edge]).any()


def test_a_search_writes_a_page_with_blurred_heads(run, noise, tmp_path):
    index = str(tmp_path / "index")
    cli.main(["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(noise.parent), "--out", index])
    pages = {}
    for options in ((), ("--blur-faces",)):
        path = tmp_path / f"page{len(options)}.html"
        cli.main(["search", index, "--image", str(noise), "--run", run.cfg.OUTPUT_DIR, "--html", str(path), *options])
        images = re.findall(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", path.read_text())
        pages[options] = [is_blurred(decoded(image)) for image in images], re.findall(r"\d\.\d{3}", path.read_text())
    assert pages[()][0] == [False, False] and pages[("--blur-faces",)][0] == [True, True]  # the query and the hit
    assert pages[()][1] == pages[("--blur-faces",)][1]  # scores
    assert not blurs_faces()
