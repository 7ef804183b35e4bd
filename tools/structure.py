"""Figures of the package's structure: rooms, floors, arrows and lines. Run `python tools/structure.py [CHECKOUT]`.

A room is a folder of modules, or a module of the root. An arrow is a pair of rooms of which one imports from the other,
within functions too; imports for type checking alone do not count. Floors are the rooms of the longest chain of arrows.
"""

import ast
import sys
from functools import cache
from pathlib import Path

PACKAGE = "cerberus_plugin"


def room_of(name: str, rooms: set[str]) -> str:
    """The innermost room of a dotted name."""
    while name not in rooms:
        name = name.rpartition(".")[0]
    return name


def imported(path: Path, root: Path):
    """Dotted names of the package that a module imports."""
    package = path.relative_to(root).parts[:-1]

    def visit(node: ast.AST):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return [name for name in visit(ast.parse(path.read_text())) if name.split(".")[0] == PACKAGE]


def arrows_of(root: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Rooms, and pairs of rooms of which the first imports from the second."""
    paths = sorted((root / PACKAGE).rglob("*.py"))
    folders = {".".join(path.relative_to(root).parts[:-1]): path.parent for path in paths}
    modules = {".".join(path.relative_to(root).with_suffix("").parts) for path in paths}
    # A folder is a room if it holds more than a docstring: `search` alone is a wing, its folders are rooms.
    rooms = {name for name, folder in folders.items() if name == PACKAGE or len(list(folder.glob("*.py"))) > 1}
    rooms |= {name for name in modules if name.count(".") == 1 and not name.endswith("__init__")}
    arrows = set()
    for path in paths:
        own = room_of(".".join(path.relative_to(root).with_suffix("").parts), rooms)
        for name in imported(path, root):
            other = room_of(name, rooms)
            if other not in (own, PACKAGE):  # everyone may read the version from the root
                arrows.add((own, other))
    return rooms, arrows


def floors_of(rooms: set[str], arrows: set[tuple[str, str]]) -> list[str]:
    """The longest chain of rooms, from the top down."""
    below = {room: sorted(other for one, other in arrows if one == room) for room in rooms}

    @cache
    def reached(room: str) -> frozenset[str]:
        found, waiting = {room}, [room]
        while waiting:
            waiting += [other for other in below[waiting.pop()] if other not in found and not found.add(other)]
        return frozenset(found)

    @cache
    def chain(room: str) -> tuple[str, ...]:
        lower = [other for other in below[room] if room not in reached(other)]
        return (room, *max(map(chain, lower), key=len, default=()))

    return list(max(map(chain, sorted(rooms)), key=len))


def lines_of(folder: Path, suffix: str) -> int:
    return sum(len(path.read_text(errors="replace").splitlines()) for path in folder.rglob(f"*{suffix}"))


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    rooms, arrows = arrows_of(root)
    chain = floors_of(rooms, arrows)
    circles = sorted(f"{one} <-> {other}" for one, other in arrows if one < other and (other, one) in arrows)
    print(f"rooms   {len(rooms)}")
    print(f"floors  {len(chain)}: {' > '.join(name.removeprefix(PACKAGE + '.') for name in chain)}")
    print(f"arrows  {len(arrows)}" + (f", in both directions: {', '.join(circles)}" if circles else ""))
    for name, suffix in ((PACKAGE, ".py"), ("tests", ".py"), ("configs", ".yml")):
        print(f"lines of {name}: {lines_of(root / name, suffix)}")


if __name__ == "__main__":
    main()
