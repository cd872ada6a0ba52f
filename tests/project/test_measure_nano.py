"""The scripts that measure nano: their figures are what the texts came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dgemma_core as dg
from dgemma_core.nano import families
from dgemma_core.nano.english import kinds, unknown
from dgemma_core.nano.recipes import TALK_BRIEF
from scripts import measure_minds, measure_nano, write_replies


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", [script.__name__, *map(str, words)])
    script.main()


@pytest.mark.slow
@pytest.mark.subprocess
def test_families_and_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_nano, "TIMED", 1)
    monkeypatch.setattr(measure_nano, "TRACED", 2)
    out = tmp_path / "deep" / "measured.json"
    words = (
        "--count",
        5,
        "--seeds",
        2,
        "--max-new-tokens",
        24,
        "--subjects",
        "spell_backward",
        "english_greeting",
    )
    run(measure_nano, monkeypatch, *words, "--out", out)
    record = json.loads(out.read_text())
    spelt, greeted = record["subjects"].values()
    problems = families.examples("spell_backward", "test", 5)
    texts = dg.generate(
        dg.load("nano", dtype="float32"), [p.prompt for p in problems], mode="autoregressive", max_new_tokens=24
    )  # fmt: skip
    own = [
        families.family(p.family).solved(p.entry, text.text)
        for p, text in zip(problems, texts, strict=True)
    ]
    assert spelt["solved_autoregressively"][:5] == own and spelt["drafted_texts_differ"] == 0
    assert spelt["by_wording"]["own"]["documents"] == 5
    assert spelt["by_wording"]["wordings"]["documents"] == 1
    assert {part["documents"] for part in greeted["by_wording"].values()} == {2}
    assert spelt["tokens_per_pass"]["autoregressive"] <= 1 < spelt["tokens_per_pass"]["diffusion"]
    assert 0 < spelt["bits_per_byte"] < greeted["bits_per_byte"]
    said = capsys.readouterr().out
    assert "| spell_backward |" in said and "| greeting |" in said
    # Two processes measure the same, and their rows stand in the same order.
    beside = tmp_path / "beside.json"
    run(measure_nano, monkeypatch, *words, "--processes", 2, "--out", beside)
    theirs = json.loads(beside.read_text())["subjects"]
    assert list(theirs) == list(record["subjects"])
    for name, row in theirs.items():
        for field in ("solved", "by_wording", "texts", "different_behind_the_first_line"):
            assert row[field] == record["subjects"][name][field], (name, field)
    capsys.readouterr()
    # What has been measured is kept; against itself nothing changes.
    marked = {**record}
    marked["subjects"]["spell_backward"]["kept"] = 777
    out.write_text(json.dumps(marked))
    run(measure_nano, monkeypatch, *words, "--out", out, "--against", out)
    said = capsys.readouterr().out
    assert "777" in said and "diffusion: +0.0 points" in said


def test_an_honest_reply_is_counted_whatever_its_reason() -> None:
    story = 'I can tell a story. Try: "Tell me a sad story about a fox."'
    poem = 'Or I can write a poem. Try: "Write a poem about the sea."'
    texts = [
        f"Sorry. I cannot translate. {story} {poem}",
        f"I have no clock and no window. {story} {poem}\n",
        "The capital is Paris.",
    ]
    assert measure_nano._honest([{"text": text} for text in texts]) == pytest.approx(2 / 3)


def test_a_gain_is_positive() -> None:
    row = {"steps_per_canvas": 2.0, "solved_autoregressively": [1.0, 1.0]}
    better, worse = {**row, "solved": [1.0, 1.0]}, {**row, "solved": [0.0, 1.0]}
    assert "diffusion: +50.0 points" in measure_nano.change({"json": better}, {"json": worse})


def test_a_hundred_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both modes side by side; the same requests for the same seed."""
    out = tmp_path / "replies.md"
    run(write_replies, monkeypatch, "--count", 3, "--seed", 5, "--out", out)
    text = out.read_text()
    assert text.count("\n## ") == 3 and text.count(" diffusion, ") == 3
    assert "The verifiers accept" in text
    drawn = write_replies.drawn(30, 5, ("greeting", "story"))
    assert drawn == write_replies.drawn(30, 5, ("greeting", "story"))
    assert {each.kind for each in drawn} == {"greeting", "story"}


def test_a_model_is_measured_on_what_it_was_taught() -> None:
    puzzles, english = measure_nano.taught("nano"), measure_nano.taught("nano-talk")
    assert puzzles == list(families.TASKS)
    assert set(english) == {f"english_{name}" for name in TALK_BRIEF.stages[-1].kinds}


def test_replies_are_looked_for_among_what_the_last_run_taught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_nano, "TRAINED", 400)
    drawn = {kinds.training_example(i).reply for i in range(400)}
    taught = measure_nano.taught_replies("nano-talk")
    brief = {reply for reply in taught - drawn if reply.startswith("I am sorry. I do not know")}
    assert drawn < taught and brief == {unknown.brief_reply("world")}
    assert measure_nano.taught_replies("nano") == drawn  # its runs have no English of their own


def test_both_minds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "minds.json"
    run(measure_minds, monkeypatch, "--count", 4, "--bound", 2, "--families", "json", "--out", out)
    rows = json.loads(out.read_text())["families"]["json"]
    assert len(rows) == 4
    for row in rows:
        assert row["either"] == (row["diffusion"] or row["speculative"])
        assert row["by likelihood"] in (row["diffusion"], row["speculative"])
        if row["same"]:
            assert row["by the bound"] == row["by likelihood"] == row["diffusion"]
    assert "by likelihood against speculative" in capsys.readouterr().out
