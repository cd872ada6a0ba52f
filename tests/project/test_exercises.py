"""The answers that a notebook folds away are the code of its hidden cells, which run with the notebook."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FOLDED = re.compile(r"<details>.*?```python\n(.*?)\n```.*?</details>", re.DOTALL)


@pytest.mark.parametrize("name", ["08_drafts_and_verdicts"])
def test_folded_answers_run(name: str) -> None:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    folded = [answer for source in sources for answer in FOLDED.findall(source)]
    hidden = [
        source
        for cell, source in zip(cells, sources, strict=True)
        if cell["metadata"].get("jupyter", {}).get("source_hidden")
    ]
    assert len(folded) >= 2 and folded == hidden
