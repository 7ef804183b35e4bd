"""Structure of the package: layers of imports, use of the configuration, public names."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cerberus_plugin"
# Packages and top-level modules from the lowest layer to the highest; each imports from lower layers only.
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
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
# Packages that take plain tensors or arrays.
FREE_OF_FASTREID = ("attributes", "utils", "pretrained", "metrics", "inference", "own_data", "synthetic",
                    "search.portable", "search.calibration", "search.gallery", "search.web")
FREE_OF_TORCH = ("own_data", "utils.commands", "utils.files", "utils.folders", "utils.images", "utils.moved",
                 "utils.processor", "utils.text", "attributes.attribute_model", "attributes.marginals",
                 "attributes.matching", "attributes.schema", "search.portable", "search.gallery", "search.web")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def package_of(name: str) -> str:
    """The package of a module: search.web for 'search.web.app', engine for 'engine.hooks'."""
    return ".".join(name.split(".")[:2 if name.startswith("search.") else 1])


def imports(path: Path):
    """Absolute names that a module imports, such as 'torch' and 'cerberus_plugin.attributes.GROUPS'."""
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
def test_imports_go_to_lower_layers_only(path):
    own = name_of(path)
    package = package_of(own)
    assert package in LAYER_OF, f"{package} has no layer; add it to LAYERS"
    for name in imports(path):
        inside = name.removeprefix("cerberus_plugin.") if name.startswith("cerberus_plugin.") else None
        if inside:
            other = package_of(inside)
            assert other == package or LAYER_OF[other] < LAYER_OF[package], f"{own} imports {inside}"
        if is_in(package, FREE_OF_FASTREID):
            assert not is_in(name, ("fastreid",)), f"{own} imports {name}"
        if is_in(own, FREE_OF_TORCH):
            assert not is_in(name, ("torch", "torchvision")), f"{own} imports {name}"
            assert inside is None or is_in(inside, FREE_OF_TORCH), f"{own} imports {inside}"


def test_no_two_packages_import_each_other():
    _, dependencies = runpy.run_path(str(ROOT / "tools" / "structure.py"))["dependencies_of"](ROOT)
    assert not {pair for pair in dependencies if pair[::-1] in dependencies}


def test_no_test_module_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imports(path):
            assert not any(part.startswith("test_") or part == "conftest" for part in name.split(".")[:-1]), path


def test_the_configuration_is_read_by_the_outer_packages_only():
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


def test_only_one_module_opens_images():
    """All others call its `read_image`, which limits sizes, converts modes and applies the EXIF orientation."""
    openers = {"imread", "imdecode", "decode_image", "decode_jpeg", "decode_png", "pil_loader", "default_loader"}

    def opens_images(node: ast.AST) -> bool:
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
                    assert not opens_images(node), f"{path}:{node.lineno} opens an image; use read_image"
