"""The examples in docstrings (`>>>`) of the package run and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cerberus_plugin"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
# `doctest_optionflags` of pyproject.toml, for pytest --doctest-modules, has the same.
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", [module_name(path) for path in MODULES])
def test_examples_of_the_module_run(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:  # an optional dependency
        if str(error.name).startswith("cerberus_plugin"):
            raise
        pytest.skip(f"{error.name} is not installed")
    failed, tried = doctest.testmod(module, optionflags=FLAGS)
    assert not failed, f"{failed} of {tried} lines of examples of {name} fail, see above"
    found = sum(len(test.examples) for test in doctest.DocTestFinder().find(module))
    assert found == Path(module.__file__).read_text(encoding="utf-8").count(">>> "), "doctest misses an example"
