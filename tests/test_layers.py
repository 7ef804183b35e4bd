"""The house rules that a program can check: imports point down only."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cerberus_plugin"
# Rooms and modules of the root from the bottom up; each imports from lower lines only.
LAYERS = (("utils",),
          ("pretrained",),
          ("attributes", "config", "host"),
          ("metrics", "own_data", "search.portable", "synthetic"),
          ("inference",),
          ("data", "modeling", "search.calibration"),
          ("converters", "evaluation", "search.gallery"),
          ("engine", "predictor", "search.web"),
          ("interchange", "search.export"),
          ("experiments", "search"),
          ("workflow",),
          ("audit",),
          ("commands",),
          ("cli",))
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
# Plain tensors, or arrays.
FREE_OF_THE_HOST = ("attributes", "utils", "pretrained", "metrics", "inference", "own_data", "synthetic",
                    "search.portable", "search.calibration", "search.gallery", "search.web")
FREE_OF_TORCH = ("own_data", "utils.commands", "utils.files", "utils.folders", "utils.images", "utils.moved",
                 "utils.processor", "utils.text", "attributes.attribute_model", "attributes.marginals",
                 "attributes.matching", "attributes.schema", "search.portable", "search.gallery", "search.web")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """'search.web.app' is in search.web, 'engine.hooks' in engine."""
    return ".".join(name.split(".")[:2 if name.startswith("search.") else 1])


def imports(path: Path):
    """Names that a module imports, absolute: 'torch', 'cerberus_plugin.attributes.GROUPS'."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def is_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = name_of(path)
    room = room_of(own)
    assert room in LAYER_OF, f"{room} has no layer; give it one in LAYERS"
    for name in imports(path):
        inside = name.removeprefix("cerberus_plugin.") if name.startswith("cerberus_plugin.") else None
        if inside:
            other = room_of(inside)
            assert other == room or LAYER_OF[other] < LAYER_OF[room], f"{own} imports {inside}"
        if is_in(room, FREE_OF_THE_HOST):
            assert not is_in(name, ("fastreid",)), f"{own} imports {name}"
        if is_in(own, FREE_OF_TORCH):
            assert not is_in(name, ("torch", "torchvision")), f"{own} imports {name}"
            assert inside is None or is_in(inside, FREE_OF_TORCH), f"{own} imports {inside}"


def test_no_two_rooms_import_each_other():
    _, arrows = runpy.run_path(str(ROOT / "tools" / "structure.py"))["arrows_of"](ROOT)
    assert not {arrow for arrow in arrows if arrow[::-1] in arrows}


def test_no_test_module_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imports(path):
            assert not any(part.startswith("test_") or part == "conftest" for part in name.split(".")[:-1]), path


def test_the_configuration_is_read_at_the_edges_only():
    readers = ("config", "data.build", "modeling.build", "modeling.backbones", "modeling.timm_backbones", "engine",
               "evaluation", "predictor", "search.export", "experiments", "workflow", "audit.predictions", "host",
               "interchange")
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "from_config":
                named = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
                assert is_in(name_of(path), readers) or "cfg" not in named, f"{path.name}: {node.name} reads cfg"


def test_the_public_names_are_at_most_eight():
    import cerberus_plugin

    assert len(cerberus_plugin.__all__) <= 8
    assert all(hasattr(cerberus_plugin, name) for name in cerberus_plugin.__all__)


def test_one_module_alone_opens_pictures():
    """Others go through its `read_image`, which bounds sizes, converts modes and applies EXIF orientation."""
    openers = {"imread", "imdecode", "decode_image", "decode_jpeg", "decode_png", "pil_loader", "default_loader"}

    def opens_pictures(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in openers or node.attr == "open" and ast.unparse(node.value).split(".")[-1] == "Image"
        if isinstance(node, ast.ImportFrom) and not node.level:
            host = node.module.split(".")[0] == "fastreid"
            return any(alias.name in openers or host and alias.name == "read_image" for alias in node.names)
        return False

    for folder in ("cerberus_plugin", "benchmarks", "projects", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != PACKAGE / "utils" / "images.py":
                for node in ast.walk(ast.parse(path.read_text())):
                    assert not opens_pictures(node), f"{path}:{node.lineno} opens pictures by itself; use read_image"
