"""The script that measures speculation: rules from arguments, agreement by hand, and a whole small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgemma_core import RequestError
from dgemma_core.events import DraftEvent
from dgemma_core.generation.drafting import AdaptiveDraft, FixedDraft
from dgemma_core.generation.settings import SpeculativeSettings
from scripts import measure_speculation as script


def test_rules_from_arguments() -> None:
    assert script.parse_rule("adaptive") == AdaptiveDraft()
    assert script.parse_rule("fixed:positions=16,steps=2") == FixedDraft(positions=16, steps=2)
    assert script.parse_rule("fixed:least_probability=0.5").plan([], 8).least_probability == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bold", "choose one of fixed, adaptive"),
        ("fixed:size=3", "fixed has steps, least_probability, ahead, positions$"),
        ("fixed:positions", "expected OPTION=NUMBER"),
        ("fixed:positions=many", "expected OPTION=NUMBER"),
        ("fixed:positions=1", "at least 2"),
    ],
)
def test_a_wrong_rule_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        script.parse_rule(text)


def test_agreement_is_of_positions_that_the_text_has() -> None:
    draft = DraftEvent("r", 0, 1, (11, 12, 9, 14, 9), (1.0,) * 5, 1, 3, 1, 13, 0.0)
    assert script.agreement(draft, [10, 11, 12, 13, 14]) == (2, 3)
    assert script.agreement(draft, [10, 11]) == (0, 0)


@pytest.mark.slow
def test_a_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every text equals the causal mode's; times and tables name every rule; passes add up."""
    out = tmp_path / "speculation" / "measured.json"
    arguments = ["--draft", "adaptive", "--draft", "fixed:positions=8", "--families", "chain_sum",
                 "json", "--count", "2", "--timed", "1", "--repeats", "2", "--batches", "1",
                 "--batch", "2", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["measure_speculation.py", *arguments])
    script.main()
    record = json.loads(out.read_text())
    assert list(record["families"]) == ["chain_sum", "json"]
    for row in record["families"].values():
        for draft in row["drafts"].values():
            assert draft["equal_texts"] == row["documents"] == 2 and draft["different"] == []
            assert draft["solved"] == row["autoregressive"]["solved"]
            agreed, of = draft["first_draft_agrees"]
            assert 0 <= agreed <= of and of > 0
            assert sum(draft["accepted_histogram"].values()) == draft["rounds"]
            # the prompt's pass, then one a round, and one where no draft was there to verify
            least = row["documents"] + draft["rounds"]
            assert least <= draft["passes"] <= least + draft["rounds"]
        assert 0.5 < row["autoregressive"]["tokens_per_pass"] <= 1
    (speed,) = record["speed"]
    assert list(speed["ways"]) == ["diffusion", "autoregressive", "adaptive", "fixed:positions=8"]
    assert all(len(way["kept_tokens"]) == 2 for way in speed["ways"].values())
    said = capsys.readouterr().out
    assert "| adaptive | 4 of 4 |" in said and "| fixed:positions=8 | 4 of 4 |" in said
    assert script.best(speed, ["adaptive", "fixed:positions=8"]) in said

    def never(*_: object) -> None:
        raise AssertionError("all of it is in the file")

    monkeypatch.setattr(script, "written", never)
    monkeypatch.setattr(script, "measure_speed", never)
    script.main()
    assert capsys.readouterr().out == said


def test_the_best_rule_and_by_how_much() -> None:
    """Kept tokens a second of process time, over autoregression's in the same repeat."""

    def way(*seconds: float) -> dict[str, list[float]]:
        return {"kept_tokens": [100] * len(seconds), "process_seconds": list(seconds)}

    ways = {"autoregressive": way(4.0, 8.0), "a": way(2.0, 4.0), "b": way(2.5, 2.0), "c": way(4, 8)}
    speed = {"batch": 8, "ways": ways}
    assert script.best(speed, ["c", "a", "b"]) == (
        "Batch 8: b is best, 2.80 × autoregression by process time; a is next, and behind in 1 of 2 repeats "
        "(0.80 to 2.00 ×)."
    )
    assert script.best(speed, ["a"]) == "Batch 8: a is best, 2.00 × autoregression by process time."


def test_every_candidate_is_a_rule_and_the_first_is_the_default() -> None:
    rules = [script.parse_rule(text) for text in script.CANDIDATES]
    assert rules[0] == SpeculativeSettings().draft_rule and len(set(rules)) == len(rules)
