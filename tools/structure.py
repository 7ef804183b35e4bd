"""Print the structure of the plugin: packages, layers, dependencies and lines: `python tools/structure.py [CHECKOUT]`.

A package is a folder of modules, or a module at the top level. A dependency is a pair of packages where the first
imports from the second, at the top of a module or in a function; imports for type checking only do not count. Layers
are the packages of the longest chain of dependencies.
"""

import ast
import sys
from functools import cache
from pathlib import Path

PACKAGE = "cerberus_plugin"


def package_of(name: str, packages: set[str]) -> str:
    """The innermost package of a dotted name."""
    while name not in packages:
        name = name.rpartition(".")[0]
    return name


def imported(path: Path, root: Path):
    """Dotted names that a module imports from the plugin."""
    parents = path.relative_to(root).parts[:-1]

    def visit(node: ast.AST):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[:len(parents) - node.level + 1] if node.level else ()
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return [name for name in visit(ast.parse(path.read_text())) if name.split(".")[0] == PACKAGE]


def dependencies_of(root: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Packages, and pairs of packages where the first imports from the second."""
    paths = sorted((root / PACKAGE).rglob("*.py"))
    folders = {".".join(path.relative_to(root).parts[:-1]): path.parent for path in paths}
    modules = {".".join(path.relative_to(root).with_suffix("").parts) for path in paths}
    # A folder with nothing but `__init__.py` and other folders, such as `search`, is not a package of its own.
    packages = {name for name, folder in folders.items() if name == PACKAGE or len(list(folder.glob("*.py"))) > 1}
    packages |= {name for name in modules if name.count(".") == 1 and not name.endswith("__init__")}
    dependencies = set()
    for path in paths:
        own = package_of(".".join(path.relative_to(root).with_suffix("").parts), packages)
        for name in imported(path, root):
            other = package_of(name, packages)
            if other not in (own, PACKAGE):  # all may import the version from the top level
                dependencies.add((own, other))
    return packages, dependencies


def layers_of(packages: set[str], dependencies: set[tuple[str, str]]) -> list[str]:
    """The longest chain of dependencies, from the top down."""
    below = {package: sorted(other for one, other in dependencies if one == package) for package in packages}

    @cache
    def reached(package: str) -> frozenset[str]:
        found, waiting = {package}, [package]
        while waiting:
            waiting += [other for other in below[waiting.pop()] if other not in found and not found.add(other)]
        return frozenset(found)

    @cache
    def chain(package: str) -> tuple[str, ...]:
        lower = [other for other in below[package] if package not in reached(other)]
        return (package, *max(map(chain, lower), key=len, default=()))

    return list(max(map(chain, sorted(packages)), key=len))


def lines_of(folder: Path, suffix: str) -> int:
    return sum(len(path.read_text(errors="replace").splitlines()) for path in folder.rglob(f"*{suffix}"))


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    packages, dependencies = dependencies_of(root)
    chain = layers_of(packages, dependencies)
    cycles = sorted(f"{one} <-> {other}" for one, other in dependencies if one < other and (other, one) in dependencies)
    print(f"packages: {len(packages)}")
    print(f"layers: {len(chain)}: {' > '.join(name.removeprefix(PACKAGE + '.') for name in chain)}")
    print(f"dependencies: {len(dependencies)}" + (f", in both directions: {', '.join(cycles)}" if cycles else ""))
    for name, suffix in ((PACKAGE, ".py"), ("tests", ".py"), ("configs", ".yml")):
        print(f"lines of {name}: {lines_of(root / name, suffix)}")


if __name__ == "__main__":
    main()
