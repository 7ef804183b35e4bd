"""Every study and figure of a folder on one page that opens without a network: report.html, and report.md beside it.

    python -m cerberus_plugin.experiments.page runs/paper

Reads the records that `experiments.reproduce` and `experiments.figures` have written there. A study whose runs were
tested by different rules is shown with the reason in place of its table. What people make of a study (why a part does
not help, say) is shown above its table where they have written it into findings/<study>.txt in that folder, paragraphs
apart by an empty line.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...evaluation.spread import tells_apart
from ...utils.files import write_text
from . import plots, tables
from .differences import Differences, differences
from .records import PICTURES, Folder, StudyRecord, flat, read_folder, read_study, slug
from .tables import Table

TITLE = "Cerberus: experiments"
FILES = "report_files"  # pictures of report.md
FEW_SEEDS = 3


@dataclass(frozen=True)
class Part:
    """A study's figures on one test data set."""

    data: str
    table: Table
    claims: list[str]
    picture: str  # path in the folder, empty where there is none
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """What a page says about one study."""

    study: StudyRecord
    differences: Differences
    parts: list[Part]
    elsewhere: list[tuple[str, Table]]  # published figures of data sets that nothing was measured on
    costs: Table | None


def write(output: Path) -> tuple[Path, Path]:
    """Write report.html and report.md of the records in a folder, and the pictures of the latter."""
    output = Path(output)
    folder = read_folder(output)
    sections = [section(study) for study in folder.studies]
    for part in (part for entry in sections for part in entry.parts if part.picture):
        write_text(str(output / part.picture), part.svg)
    context = {"title": TITLE, "folder": folder, "sections": sections,
               "summary": tables.summary(folder.studies), "claims": claims(sections)}
    pages = output / "report.html", output / "report.md"
    for page, template, escaped in zip(pages, ("page.html.j2", "page.md.j2"), (True, False)):
        write_text(str(page), _environment(folder, escaped).get_template(template).render(context))
    return pages


def text(file: Path) -> str:
    """The record of a study as it is printed: its tables without single attributes, claims, and what is missing."""
    study = read_study(Folder(file.parent), file, json.loads(file.read_text(encoding="utf-8")))
    parts = [f"{study.title}\n{study.question}"]
    if study.refused:
        return f"{parts[0]}\n\nNo table: {study.refused}"
    for data in study.datasets:
        parts.append(f"{data}\n{tables.table(study, data, attributes=False).text()}")
        parts.append("\n".join(f"- {sentence}" for sentence in study.claims.get(data, [])))
    costs, differs = tables.costs(study), differences(study).differs
    parts += [costs.text() if costs else "", "\n- ".join(["Other than in the paper:", *differs]) if differs else "",
              study.note, f"missing: {len(study.missing)} runs" if study.missing else ""]
    return "\n\n".join(filter(None, parts))


def section(study: StudyRecord) -> Section:
    """Tables and pictures; none of a study whose runs cannot stand in one table."""
    if study.refused:
        return Section(study, differences(study), [], [], None)
    parts = []
    for data in study.datasets:
        svg, caption = plots.draw(study, data) or ("", "")
        picture = f"{FILES}/{study.anchor}-{slug(data)}.svg" if svg else ""
        parts.append(Part(data, tables.table(study, data), study.claims.get(data, []), picture, svg, caption))
    elsewhere = [(data, tables.table(study, data)) for data in tables.elsewhere(study)]
    return Section(study, differences(study), parts, elsewhere, tables.costs(study))


def claims(sections: Sequence[Section]) -> tuple[list[str], list[str]]:
    """What may be concluded from the whole folder, and what may not."""
    can, cannot = [], []
    for entry in sections:
        study, title = entry.study, entry.study.title
        if study.refused:
            cannot.append(f"{title}: nothing, as its runs were tested by different rules (see there)")
            continue
        can += [f"{title}, {part.data}: {sentence}" for part in entry.parts for sentence in part.claims
                if tells_apart(sentence)]
        untold = sum("not told apart" in sentence for part in entry.parts for sentence in part.claims)
        if untold:
            cannot.append(f"{title}: {untold} comparison(s) in which the runs do not tell variants apart")
        fewest = min((len(variant.runs) for variant in study.variants if variant.runs), default=0)
        if fewest < FEW_SEEDS:
            cannot.append(f"{title}: an order of the variants; some have {fewest} run(s), and {FEW_SEEDS} seeds are "
                          "the fewest that show a spread")
        if study.missing:
            cannot.append(f"{title}: anything about the {len(study.missing)} run(s) that are not finished")
        if entry.differences.differs:
            aspects = ", ".join(sentence.split(":")[0].lower() for sentence in entry.differences.differs)
            cannot.append(f"{title}: whether the paper's figures are reached; these runs differ from the paper in "
                          f"{aspects}")
        elif entry.differences.unknown and study.runs:
            cannot.append(f"{title}: whether the paper's figures are reached; not recorded: "
                          f"{', '.join(entry.differences.unknown).lower()}")
    return can, cannot


def markdown(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def fenced(text: str) -> str:
    """A block of code, in a fence longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text.rstrip()}\n{fence}"


def _environment(folder: Folder, escaped: bool) -> Environment:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=escaped, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"md": markdown, "fenced": fenced, "flat": flat, "md_path": _link,
                            "uri": lambda name: _uri(folder.path / name), "svg": _svg_uri}
    environment.tests |= {"nan": lambda value: value != value}
    return environment


def _uri(path: Path) -> str:
    return f"data:{PICTURES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _link(path: str) -> str:
    return quote(Path(path).as_posix())


def _svg_uri(text: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with records of studies, such as --output of experiments.reproduce")
    args = parser.parse_args(arguments)
    print(" and ".join(map(str, write(args.folder))))
