"""The script that measures slots: its questions have one right answer, its figures are what the shares came to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dgemma_core as dg
from dgemma_core.nano.families import examples, family
from scripts import measure_slots
from scripts.measure_slots import Asked, nano_questions, summary


def test_a_question_has_one_right_choice() -> None:
    loaded = dg.load("nano")
    asked = nano_questions(loaded, "json", 4)
    assert asked
    by_answer = {problem.answer: problem for problem in examples("json", "test", 4)}
    for one in asked:
        assert len(set(one.choices)) == 4
        problem = by_answer[one.choices[one.right]]
        solved = [family("json").solved(problem.entry, text) for text in one.choices]
        assert solved == [i == one.right for i in range(4)]


def test_figures_are_those_of_the_shares() -> None:
    """Two sure answers, one wrong; two unsure ones, both right."""
    asked = [Asked("t", (1,), ("a", "b"), right) for right in (0, 0, 0, 1)]
    shares = [[0.96, 0.04], [0.04, 0.96], [0.62, 0.38], [0.36, 0.64]]
    found = summary(asked, shares)
    assert found["accuracy"] == 0.75
    assert found["mean_confidence"] == pytest.approx((0.96 + 0.96 + 0.62 + 0.64) / 4)
    wanted = (abs(1.92 - 1) + abs(1.26 - 2)) / 4
    assert found["expected_calibration_error"] == pytest.approx(wanted)


@pytest.mark.slow
def test_it_writes_a_row_a_way_of_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--task nano --family spell_backward --count 2 --passes 1 2 --samples 2 --out".split()
    monkeypatch.setattr("sys.argv", ["measure_slots", *words, str(tmp_path)])
    measure_slots.main()
    found = json.loads((tmp_path / "slots.json").read_text())["tasks"]["spell_backward"]
    ways = {"slots, passes=1", "slots, passes=2", "exact likelihood", "bound"}
    assert ways <= found.keys()
    assert all(0 <= found[way]["accuracy"] <= 1 for way in ways)
    assert (
        found["slots, passes=2"]["denoising_steps"]
        == 2 * found["slots, passes=1"]["denoising_steps"]
    )
