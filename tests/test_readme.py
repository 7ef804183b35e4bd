"""The Python examples of the README run, and files, sections and keys named in the documentation exist."""

import ast
import re
import shlex
from pathlib import Path

from cerberus_plugin import cli

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXTEND = (ROOT / "docs/extend/index.md").read_text()
PAGES = [*map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "projects/Cerberus/README.md", "benchmarks/README.md")),
         *sorted((ROOT / "docs").rglob("*.md"))]
# Pages with headings that tools/documentation.py writes; `make docs` checks links to them.
GENERATED = [ROOT / "docs/api" / name for name in ("config.md", "command.md")]


def test_the_readme_is_short():
    assert len(README.splitlines()) < 120


def test_the_python_lines_run_on_a_run_folder(run, market_root, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(run.cfg.OUTPUT_DIR)
    crops = tmp_path / "crops"
    crops.mkdir()
    for n, image in enumerate(sorted((market_root / "Market-1501-v15.09.15/query").glob("*.jpg")), start=1):
        (crops / f"{n:04d}.jpg").write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", README, flags=re.S)[1], names)
    assert len(names["embeddings"]) == 2 and len(names["matches"]) == 5
    assert "upper colour" in names["attributes"][0]


def test_the_python_lines_of_the_first_model_run(run, market_root, tmp_path, monkeypatch):
    (tmp_path / "runs/demo").mkdir(parents=True)
    for path in Path(run.cfg.OUTPUT_DIR).iterdir():
        (tmp_path / "runs/demo" / path.name).symlink_to(path)
    (tmp_path / "runs/demo/data").symlink_to(market_root)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs/first_model.md").read_text(), flags=re.S)[1], names)
    assert len(names["matches"]) == len(names["embeddings"]) == 5
    assert "upper colour" in names["attributes"]


@pytest.mark.parametrize("page", ["README.md", "docs/first_model.md", "docs/synthetic.md", "docs/market_duke.md"])
def test_commands_of_the_pages_are_valid(page):
    for block in re.findall(r"```\n(.*?)```", (ROOT / page).read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("cerberus "):
                assert callable(cli.parse(shlex.split(line, comments=True)[1:]).job), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_and_named_files_and_sections_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        linked = (page.parent / target) if target else page
        if linked.resolve() in GENERATED:
            continue
        headings = re.findall(r"^#+ (.*)", linked.read_text(), flags=re.M)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor
    for config in re.findall(r"configs/(?:Market1501|DukeMTMC|PRCC|LTCC|CelebreID)/\w+\.yml", text):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_named_on_the_pages_exist(page, small_config):
    cfg = small_config()
    for key in set(re.findall(r"\b(?:MODEL|TEST|SOLVER|DATALOADER|DATASETS|INPUT)(?:\.[A-Z_]+)+\b", page.read_text())):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def definitions(path: Path) -> set[str]:
    """Functions, classes, methods as `Class.method`, and assigned names of a module's top level."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def rows_of_files() -> list[tuple[str, str, str]]:
    """Rows of the tables of equations and files, as (equation or part, files, names)."""
    tables = re.findall(r"\|[^\n]*\| file of `cerberus_plugin/` \| name \|\n\|[-|]+\|\n((?:\|[^\n]*\|\n)+)",
                        README + EXTEND)
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for table in tables for row in table.splitlines()]


@pytest.mark.parametrize("row", rows_of_files(), ids=lambda row: row[0])
def test_equations_and_parts_are_in_the_files_of_the_tables(row):
    _, files, names = (re.findall("`(.*?)`", cell) for cell in row)
    assert files and names
    found = set().union(*(definitions(ROOT / "cerberus_plugin" / file) for file in files))
    assert set(names) <= found


def test_the_readme_names_files_for_the_equations_of_the_losses():
    numbers = set()
    for what, _, _ in rows_of_files():
        for first, last in re.findall(r"Eq\. (\d)(?: to (\d))?", what):
            numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers == set(range(2, 9))
