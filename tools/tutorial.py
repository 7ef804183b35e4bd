"""Run the tutorial notebooks in empty folders, store them with their outputs, and write their pages.

    python tools/tutorial.py [own_data tutorial]

docs/tutorial_own_data.md is generated from projects/Cerberus/own_data.ipynb: edit the notebook, not the page.
"""

import base64
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PROJECT, DOCS = ROOT / "projects" / "Cerberus", ROOT / "docs"
NOTEBOOKS = {name: PROJECT / f"{name}.ipynb" for name in ("tutorial", "own_data")}
PAGES = {"own_data": DOCS / "tutorial_own_data.md"}
NOTEBOOK_ONLY = "# Only in the notebook"
COLOUR = re.compile(r"\x1b\[[\d;]*m")
LOG = re.compile(r"^(WARNING )?\[\d\d/\d\d [\d:]{8} fastreid.*\n", flags=re.M)
LANGUAGES = {"": "python", "bash": "bash", "writefile": "yaml"}


def execute(folder: str | Path, name: str = "tutorial", timeout: int = 1800) -> nbformat.NotebookNode:
    """Run a notebook in a folder and return it with its outputs; the first failing cell raises an error.

    Args:
        name: key of `NOTEBOOKS`.   timeout: limit of each cell in seconds.
    """
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    searched = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute(env={**os.environ, "PYTHONPATH": searched})
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove content that differs by machine: progress bars, warnings, FastReID's log, versions, names of cells."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"{number:02d}", {}
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if output.get("name") != "stderr")
    return notebook


def _joined(outputs) -> list:
    """Join consecutive printed outputs; of plots keep the image only."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
            continue
        if "image/jpeg" in output.get("data", {}):
            output.data.pop("text/plain", None)
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = LOG.sub("", COLOUR.sub("", "".join(output.text)))
    return kept


def page_of(name: str, notebook: nbformat.NotebookNode) -> dict[Path, bytes]:
    """The files of a notebook's page: Markdown, and its plots in a folder next to it."""
    page = PAGES[name]
    files: dict[Path, bytes] = {}
    parts = [f"<!-- Written by tools/tutorial.py from {NOTEBOOKS[name].relative_to(ROOT)}: edit the notebook. -->"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\((?!https?:)([^)#]+)", lambda link: "](" + _moved(link[1], page), cell.source))
        elif not cell.source.startswith(NOTEBOOK_ONLY):
            parts.append(_code(cell.source))
            for output in cell.get("outputs", []):
                if "image/jpeg" in output.get("data", {}):
                    picture = page.with_suffix("") / f"{len(files) + 1}.jpg"
                    files[picture] = base64.b64decode(output.data["image/jpeg"])
                    about = cell.source.partition("\n")[0].removeprefix("# ")
                    parts.append(f"![{about}]({picture.relative_to(page.parent).as_posix()})")
                elif cell.source.partition(" ")[0] != "%%writefile":
                    text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
                    parts.append(f"```text\n{text.strip()}\n```")
    return {page: "\n\n".join(parts).encode() + b"\n", **files}


def _code(source: str) -> str:
    magic, _, body = source.partition("\n") if source.startswith("%%") else ("", "", source)
    word, _, path = magic.removeprefix("%%").partition(" ")
    return (f"`{path}`:\n\n" if path else "") + f"```{LANGUAGES[word]}\n{body}\n```"


def _moved(link: str, page: Path) -> str:
    """A link of a notebook, relative to its page."""
    return Path(os.path.relpath(PROJECT / link, page.parent)).as_posix()


def main() -> None:
    for name in sys.argv[1:] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = tidy(execute(folder, name))
        nbformat.write(notebook, NOTEBOOKS[name])
        written = [NOTEBOOKS[name]]
        if name in PAGES:
            shutil.rmtree(PAGES[name].with_suffix(""), ignore_errors=True)
            for path, content in page_of(name, notebook).items():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
                written.append(path)
        for path in written:
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
