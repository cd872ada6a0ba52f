"""What a model was trained for: unseen problems with their verifiers, and prompts that lie outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import dgemma_core as dg
from dgemma_core.errors import CheckpointError
from dgemma_core.nano import families
from dgemma_core.nano.english import kinds
from dgemma_core.nano.named import NANO
from dgemma_core.nano.problems import Known, known, known_to, of_recipe, write
from dgemma_core.nano.recipes import ENGLISH, RECIPES


@pytest.fixture(scope="module")
def english() -> Known:
    return of_recipe(ENGLISH)


def test_nano_says_what_it_was_trained_for() -> None:
    found = known(NANO)
    assert sorted(found.families) == sorted(families.NAMES) and not found.kinds
    assert found.labels()["mini_sudoku"] == "a sudoku"
    assert not known(NANO.parent)  # a folder that says nothing


@pytest.mark.slow
def test_problems_are_unseen_and_judged_by_their_verifiers(english: Known) -> None:
    assert set(english.labels()) >= {"story", "json", "puzzle:json", "mini_sudoku"}
    for name in english.labels():
        one, two = english.problem(name, 0), english.problem(name, 1)
        assert one.messages != two.messages and one.messages[-1]["role"] == "user"
        if name in english.kinds:
            asked = kinds.draw(name, kinds.TEST_SEEDS[0], "test_slots")
            assert one.prompt == asked.prompt
            assert one.accepts is not None and one.accepts(asked.reply) and not one.accepts("")
        else:
            family = name.removeprefix("puzzle:")
            puzzle = families.example(family, families.TEST_SEEDS[0])
            assert one.prompt == puzzle.prompt
            assert (one.accepts is None) == (family == "prose")
            assert one.accepts is None or (one.accepts(puzzle.answer) and not one.accepts("no"))


def test_a_prompt_of_a_family_is_known_and_others_are_not() -> None:
    nano = known(NANO)
    for name in nano.families:
        for number in range(40):
            assert nano.strange(nano.problem(name, number).prompt) == "", name
    for prompt in ("Write a haiku about the sea.", "sudoku please", "", "Sort these words: a, b"):
        assert "none of the tasks" in nano.strange(prompt)
    assert Known().strange("anything at all") == ""


def test_what_is_told_of_a_prompt_outside(tmp_path: Path) -> None:
    nano = dg.load("nano")
    said = known_to(nano).warning(nano.name, "Write a haiku about the sea.", "0 1 0")
    assert said.startswith("Outside what nano knows: it is worded like none")
    assert "nano-talk was taught plain English" in said
    assert known_to(nano).warning(nano.name, "Spell backward:\nSTEP", "PETS") == ""
    honest = (
        'Sorry. I cannot write that for you. I can tell a story. Try: "Tell me a sad story about a fox." '
        'Or I can write a poem. Try: "Write a poem about the sea."'
    )
    assert known_to(nano).warning(nano.name, "Write a haiku about the sea.", f"{honest}\n") == ""
    # Nobody can say what a model with an adapter, or one without a folder, was trained for.
    for other in (
        replace(nano, adapter="x"),
        replace(nano, folder=None),
        replace(nano, folder=tmp_path),
    ):
        assert known_to(other).warning(other.name, "Write a haiku about the sea.", "0 1 0") == ""


def test_of_a_long_prompt_four_strange_words_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[str] = []
    monkeypatch.setattr(
        "dgemma_core.nano.problems.get_close_matches", lambda word, *_, **__: sought.append(word)
    )
    found = Known(("story",), (), frozenset({"a"}))
    said = found.strange("a b c d e f g h")
    assert said == "this model was not trained on “b”, “c”, “d” and others" and sought == [*"bcde"]


@pytest.mark.slow
def test_english_is_known_by_its_words(english: Known) -> None:
    drawn = [
        kinds.draw(name, seed, split).prompt
        for name in kinds.NAMES
        for split, seed in (("test_slots", 2_000_000_002), ("test_wordings", 2_000_000_003))
    ]
    false_alarms = [prompt for prompt in drawn if english.strange(prompt)]
    assert len(false_alarms) <= len(drawn) // 12, false_alarms
    assert english.strange("Explain quantum entanglement") == (
        "this model was not trained on “quantum”, “entanglement”"
    )
    assert english.strange("Tell me a stroy about a cat") == ""  # a slip of the fingers


@pytest.mark.slow
def test_the_list_is_written_and_read_back(english: Known, tmp_path: Path) -> None:
    write(tmp_path, english)
    assert known(tmp_path) == english
    assert (
        of_recipe(RECIPES["all_families"]).families and not of_recipe(RECIPES["all_families"]).words
    )
    for text in (
        "[]",
        "{",
        '{"kinds": ["nonsense"]}',
        '{"families": 3}',
        '{"kinds": [[]]}',
        '{"words": [1]}',
    ):
        (tmp_path / "problems.json").write_text(text)
        with pytest.raises(CheckpointError):
            known(tmp_path)
