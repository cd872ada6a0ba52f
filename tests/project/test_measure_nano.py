"""The model card's figures and a comparison's come from one evaluator."""

from __future__ import annotations

import json

import pytest

from dgemma_evals.comparison.compare import compare
from dgemma_evals.comparison.plan import Plan
from dgemma_evals.comparison.summary import summarise
from dgemma_evals.writers.named import writer
from scripts import measure_nano

FAMILY, COUNT = "mini_sudoku", 6


@pytest.mark.slow
def test_the_card_and_a_comparison_say_the_same(tmp_path, capsys):
    out = tmp_path / "measured.json"
    measure_nano.main(
        ["--families", FAMILY, "--count", str(COUNT), "--seeds", "2", "--out", str(out)]
    )
    card = json.loads(out.read_text())["families"][FAMILY]
    plan = Plan(tasks=(f"dgemma_nano_{FAMILY}",), limit=COUNT, seeds=2)
    sides = [writer("nano", dtype="float32"), writer("nano:ar", dtype="float32")]
    comparison = compare(plan, sides, tmp_path / "compared", quiet=True)
    found = summarise(comparison)
    accuracy = found["against"]["nano:ar"]["accuracy"]
    assert card["diffusion"] == pytest.approx(accuracy["first"])
    assert card["autoregressive"] == pytest.approx(accuracy["other"])
    table = comparison.table
    own = table[table.side == "nano"].groupby("doc_id").score.mean()
    assert card["solved"] == pytest.approx(own.tolist()) and sum(card["solved"]) > 0
    assert card["steps_per_canvas"] == pytest.approx(found["sides"]["nano"]["steps_per_canvas"])
    assert f"| {FAMILY} |" in capsys.readouterr().out
