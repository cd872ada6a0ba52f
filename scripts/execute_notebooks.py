"""Runs notebooks and writes them back with the outputs that readers see: `python scripts/execute_notebooks.py [FILE]`.

Charts are kept as PNG, widgets as stills and live runs as they ended (DGEMMA_STATIC=1), so that a page without
JavaScript shows everything. JupyterLab shows the same until a cell is run.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS_A_CELL = 600


def execute(path: Path) -> float:
    """Runs one notebook in place; returns its seconds, start of the kernel included."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
    )
    client.execute()
    seconds = time.perf_counter() - started
    tidy(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leaves out what a reader without a kernel could not see, and what would change from run to run."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)  # of other libraries: ours leave stills alone


def main() -> None:
    os.environ["DGEMMA_STATIC"] = "1"
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}: {execute(path):.1f} s", flush=True)


if __name__ == "__main__":
    main()
