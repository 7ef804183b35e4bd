"""Write the report of all studies and figures in a folder: report.html, which needs no network, and report.md.

    python -m cerberus_plugin.experiments.page runs/paper

The command reads the records that `experiments.reproduce` and `experiments.figures` have written to the folder. If the
runs of a study were tested by different rules, the report shows the reason instead of a table. Write your
interpretation of a study to findings/<study>.txt in the folder, with empty lines between paragraphs; it is shown above
the table.
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
from ...utils.text import counted
from . import plots, tables
from .differences import Differences, differences
from .records import PICTURES, Folder, StudyRecord, flat, read_folder, read_study, slug
from .tables import Table

TITLE = "Cerberus: experiments"
FILES = "report_files"  # plots of report.md
FEW_SEEDS = 3


@dataclass(frozen=True)
class Part:
    """Results of a study on a test dataset."""

    data: str
    table: Table
    claims: list[str]
    picture: str  # path of the plot in the folder, empty if there is none
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """Section of the report about a study."""

    study: StudyRecord
    differences: Differences
    parts: list[Part]
    elsewhere: list[tuple[str, Table]]  # published results on other datasets
    costs: Table | None


def write(output: Path) -> tuple[Path, Path]:
    """Write report.html and report.md, with its plots, from the records in a folder.

    Args:
        output: folder with the records.

    Returns:
        Paths of report.html and report.md.

    Raises:
        ValueError: If the folder has no record.
    """
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
    """Format a study for a terminal: tables without single attributes, comparisons, number of missing runs.

    Args:
        file: record of the study.
    """
    study = read_study(Folder(file.parent), file, json.loads(file.read_text(encoding="utf-8")))
    parts = [f"{study.title}\n{study.question}"]
    if study.refused:
        return f"{parts[0]}\n\nNo table: {study.refused}"
    for data in study.datasets:
        parts.append(f"{data}\n{tables.table(study, data, attributes=False).text()}")
        parts.append("\n".join(f"- {sentence}" for sentence in study.claims.get(data, [])))
    costs, differs = tables.costs(study), differences(study).differs
    parts += [costs.text() if costs else "", "\n- ".join(["Different from the paper:", *differs]) if differs else "",
              study.note, f"missing: {counted(len(study.missing), 'run')}" if study.missing else ""]
    return "\n\n".join(filter(None, parts))


def section(study: StudyRecord) -> Section:
    """Create the tables and plots of a study; none if its runs cannot be compared."""
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
    """List the conclusions from all studies, and their limits."""
    can, cannot = [], []
    for entry in sections:
        study, title = entry.study, entry.study.title
        if study.refused:
            cannot.append(f"{title}: no conclusion, since its runs were tested by different rules (see its section)")
            continue
        can += [f"{title}, {part.data}: {sentence}" for part in entry.parts for sentence in part.claims
                if tells_apart(sentence)]
        # Of the sentences of `spread.claims`, only comparisons contain an interval.
        untold = sum("±" in sentence and not tells_apart(sentence) for part in entry.parts for sentence in part.claims)
        if untold:
            cannot.append(f"{title}: {counted(untold, 'difference')} between variants "
                          f"{'is' if untold == 1 else 'are'} not significant")
        fewest = min((len(variant.runs) for variant in study.variants if variant.runs), default=0)
        if fewest < FEW_SEEDS:
            cannot.append(f"{title}: no order of all variants, since some have only {counted(fewest, 'run')} and "
                          f"{FEW_SEEDS} seeds are needed")
        if study.missing:
            cannot.append(f"{title}: {counted(len(study.missing), 'run')} not finished")
        if entry.differences.differs:
            aspects = ", ".join(sentence.split(":")[0].lower() for sentence in entry.differences.differs)
            cannot.append(f"{title}: no reproduction of the results of the Cerberus paper, since these runs differ "
                          f"from it in {aspects}")
        elif entry.differences.unknown and study.runs:
            cannot.append(f"{title}: unknown whether the results of the Cerberus paper are reproduced, since the "
                          f"runs did not record {', '.join(entry.differences.unknown).lower()}")
    return can, cannot


def markdown(text: object) -> str:
    """Escape text for Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def fenced(text: str) -> str:
    """Format text as a Markdown code block; the fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text.rstrip()}\n{fence}"


def _environment(folder: Folder, escaped: bool) -> Environment:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=escaped, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"md": markdown, "counted": counted, "fenced": fenced, "flat": flat, "md_path": _link,
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
    parser.add_argument("folder", type=Path,
                        help="folder with records, the --output of experiments.reproduce or experiments.figures")
    args = parser.parse_args(arguments)
    print(" and ".join(map(str, write(args.folder))))
