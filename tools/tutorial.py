"""Run the tutorial notebook from nothing and keep it with its outputs, as projects/Cerberus/tutorial.ipynb.

    python tools/tutorial.py
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "projects" / "Cerberus" / "tutorial.ipynb"


def execute(folder: str | Path, timeout: int = 900) -> nbformat.NotebookNode:
    """The notebook after its run in a folder; the first cell that fails ends it.

    Args:
        timeout: seconds of the longest cell.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    searched = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute(env={**os.environ, "PYTHONPATH": searched})
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from machine to machine: bars and warnings, versions, names of cells."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"{number:02d}", {}
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if output.get("name") != "stderr")
    return notebook


def _joined(outputs) -> list:
    """What was printed in one piece; of figures the picture alone."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
            continue
        if "image/jpeg" in output.get("data", {}):
            output.data.pop("text/plain", None)
        kept.append(output)
    return kept


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notebook = tidy(execute(folder))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
