"""The scripts that measure tuning: minutes over several sittings, and a whole small measurement that goes on."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from dgemma_core.errors import RequestError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("measure_tuning")


def test_minutes_count_over_all_sittings(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, asked = tmp_path / "run" / "progress.json", []

    def stand_in(model: str, data: Any, folder: Path, **given: Any) -> str:
        asked.append((given["minutes"], given["resume"]))
        progress.parent.mkdir(exist_ok=True)
        progress.write_text(json.dumps({"seconds": 360.0 * len(asked)}))
        return "done"

    monkeypatch.setattr(script, "tune", stand_in)
    found = [script.tuned([], tmp_path, minutes=15.0) for _ in range(4)]
    assert asked == [(15.0, False), (9.0, True), (3.0, True), (0.0, True)]
    assert [seconds for _, seconds in found] == [360.0, 720.0, 1080.0, 1440.0]


def test_causal_texts_are_kept(script: Any, tmp_path: Path) -> None:
    drafts = importlib.import_module("measure_draft_adapter")
    file = tmp_path / "texts.jsonl"
    rows = [{"prompt": "a", "completion": "b"}]
    file.write_text(json.dumps(rows[0]) + "\n")
    assert drafts.chosen(None, file, 10, 1, 8) == rows, "no model is asked"


@pytest.mark.slow
def test_a_small_measurement_goes_on(
    script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A task, ranks, all weights, examples; both modes and what is forgotten; nothing is made twice."""
    data = importlib.import_module("make_tuning_data")
    data.write(tmp_path / "data", "spiral_matrix", 8, 2)
    for name, value in {"TASKS": ("chain_sum",), "RANKS": (2,), "EXAMPLES": (4,)}.items():
        monkeypatch.setattr(script, name, value)
    asked = {"data": tmp_path / "data", "out": tmp_path / "out", "runs": tmp_path / "runs",
             "steps": 1, "count": 2, "own": 2, "batch-size": 4, "tasks": "spiral_matrix"}  # fmt: skip
    words = [str(word) for name, value in asked.items() for word in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", ["measure_tuning.py", *words])
    script.main()
    assert "spiral_matrix, all weights" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert {name: run["examples"] for name, run in record["runs"].items()} == {
        "spiral_matrix": 8, "spiral_matrix, rank 2": 8, "spiral_matrix, all weights": 8,
        "spiral_matrix, 4 examples": 4,
    }  # fmt: skip
    for run in record["runs"].values():
        assert run["steps"] == 1 and run["seconds"] > 0
        for mode in script.MODES:
            middle, low, high = run["forgotten"][mode]
            assert low <= middle <= high
            assert all(0 <= value <= 100 for value in (*run["before"][mode], *run["after"][mode]))

    def again(*given: Any, **settings: Any) -> None:
        raise RequestError("it was made before")

    monkeypatch.setattr(script, "tune", again)
    script.main()
    table = capsys.readouterr().out
    assert table.count("\n| spiral_matrix") == 4 and "minutes a run" in table
