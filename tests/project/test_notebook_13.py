"""The notebook of the released model: its second half, which needs a model, runs on nano."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "13_the_26b_model.ipynb"


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_cells_that_need_a_model_run_on_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGEMMA_MODEL", "nano")
    monkeypatch.setenv("DGEMMA_STATIC", "0")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    needing = [cell for cell in notebook.cells if "if MODEL:" in cell.source]
    assert len(needing) == 5 and all(cell.outputs for cell in needing)
    assert needing[0].outputs[0].text.startswith("nano: ")
