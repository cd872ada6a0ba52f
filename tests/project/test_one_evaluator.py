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
        [
            "--subjects",
            FAMILY,
            "--count",
            str(COUNT),
            "--seeds",
            "2",
            "--max-new-tokens",
            "64",
            "--out",
            str(out),
        ]
    )
    card = json.loads(out.read_text())["subjects"][FAMILY]
    plan = Plan(tasks=(f"dgemma_nano_{FAMILY}",), limit=COUNT, seeds=2, max_new_tokens=64)
    sides = [writer("nano", dtype="float32"), writer("nano:ar", dtype="float32")]
    comparison = compare(plan, sides, tmp_path / "compared", quiet=True)
    found = summarise(comparison)
    accuracy = found["against"]["nano:ar"]["accuracy"]
    own_words = card["by_wording"]["own"]
    assert own_words["diffusion"] == pytest.approx(accuracy["first"])
    assert own_words["autoregressive"] == pytest.approx(accuracy["other"])
    table = comparison.table
    own = table[table.side == "nano"].groupby("doc_id").score.mean()
    assert card["solved"][:COUNT] == pytest.approx(own.tolist()) and sum(card["solved"]) > 0
    assert f"| {FAMILY} |" in capsys.readouterr().out
