"""Runs notebooks and writes them back with the outputs that readers see: `python -m scripts.execute_notebooks [FILE]`.

Charts are kept as PNG, widgets as stills and live runs as they ended (DGEMMA_STATIC=1), so that a page without
JavaScript shows everything. JupyterLab shows the same until a cell is run. What plays without a kernel is kept for the
site, in docs/site/players.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from scripts.players import taken

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
PLAYERS = ROOT / "docs" / "site" / "players"
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
        extra_arguments=["--IPKernelApp.extra_extensions=scripts.players"],
    )
    client.execute()
    seconds = time.perf_counter() - started
    players = taken(notebook)
    tidy(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    kept = PLAYERS / f"{path.stem}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(players, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
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
    os.environ |= {"DGEMMA_STATIC": "1", "PYTHONPATH": str(ROOT)}  # of the kernels
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}: {execute(path):.1f} s", flush=True)


if __name__ == "__main__":
    main()
