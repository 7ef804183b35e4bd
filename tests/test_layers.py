"""The house rules that a program can check: imports point down only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cerberus_plugin"
LAYERS = {"host": 0, "config": 0, "files": 1, "portable": 1, "attributes": 1, "losses": 2, "metrics": 1, "inference": 2,
          "gathered": 2, "gallery": 2, "calibration": 2, "acceleration": 2, "processes": 2, "machine": 2, "data": 3,
          "modeling": 3, "evaluators": 3, "tasks": 3, "clothes_task": 3, "report": 4, "manifest": 4, "hooks": 4,
          "assembly": 4, "engine": 4, "calibrated": 4, "predictor": 4, "encoding": 4, "export": 4, "visualise": 4,
          "cli": 4, "experiments": 4, "web": 4}
FREE_OF_TORCH = ["files", "portable", "gallery", "web"]
# Plain tensors, or arrays.
FREE_OF_THE_HOST = [name for name, layer in LAYERS.items() if layer in (1, 2)]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    """Names that a module imports, absolute: 'torch', 'cerberus_plugin.attributes'."""
    package = ("cerberus_plugin", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ([f"{module}.{alias.name}" for alias in node.names] if not node.module else [module])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part_of(path)
    assert own in LAYERS, f"{own} has no layer; give it one in LAYERS"
    for name in imports(path):
        if name.startswith("cerberus_plugin."):
            other = name.split(".")[1]
            assert other == own or LAYERS[other] < LAYERS[own] or LAYERS[own] == 4, f"{own} imports {other}"
            assert not (LAYERS[own] == LAYERS[other] == 3 and own != other), f"{own} imports {other}"
        if own in FREE_OF_THE_HOST:
            assert not name.startswith("fastreid"), f"{own} imports {name}"
        if own in FREE_OF_TORCH:
            assert name.split(".")[0] != "torch" and "torchvision" not in name, f"{own} imports {name}"
            other = name.split(".")[1] if name.startswith("cerberus_plugin.") else own
            assert other in FREE_OF_TORCH, f"{own} imports {name}"


def test_the_configuration_is_read_at_the_edges_only():
    readers = {"config", "assembly", "engine", "tasks", "predictor", "encoding", "manifest", "visualise", "host",
               "experiments"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "from_config":
                named = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
                allowed = part_of(path) in readers or node.name == "split_after_conv4_1"
                assert allowed or "cfg" not in named, f"{path.name}: {node.name} reads cfg"


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
        for path in (PACKAGE.parent / folder).rglob("*.py"):
            if path != PACKAGE / "portable" / "images.py":
                for node in ast.walk(ast.parse(path.read_text())):
                    assert not opens_pictures(node), f"{path}:{node.lineno} opens pictures by itself; use read_image"
