"""Training texts by number: their shares over a run, their splits, and the tokens of a gap."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import cast

import pytest

from dgemma_core.errors import RequestError
from dgemma_core.nano import families
from dgemma_core.nano.english import kinds
from dgemma_core.nano.recipes import ENGLISH, TALK_SETTLED, Stage, StagedTexts, nano_tokenizer
from dgemma_core.nano.texts import as_text

STAGES = (
    Stage(until=0.25, english=1.0, kinds={"greeting": 3, "spell": 1}, families={"json": 1}),
    Stage(until=1, english=0.0, kinds={"greeting": 1}, families={"json": 1, "mini_sudoku": 3}),
)


def test_shares_change_with_the_number() -> None:
    texts = StagedTexts(STAGES, 400, nano_tokenizer())
    first = Counter(texts.example(i).family for i in range(100))
    assert first.keys() == {"greeting", "spell"} and 55 < first["greeting"] < 95
    second = Counter(texts.example(i).family for i in range(100, 500))
    assert second.keys() == {"json", "mini_sudoku"} and 250 < second["mini_sudoku"] < 350
    assert texts.stage(99) is STAGES[0] and texts.stage(100) is texts.stage(10**6) is STAGES[1]


def test_a_text_is_a_function_of_its_number() -> None:
    texts = StagedTexts(STAGES, 400, nano_tokenizer())
    some = [texts(i) for i in range(90, 110)]
    again = StagedTexts(STAGES, 400, nano_tokenizer())
    assert [again(i) for i in reversed(range(90, 110))] == some[::-1]
    other = StagedTexts(STAGES, 400, nano_tokenizer(), seed=1)
    assert [other(i) for i in range(90, 110)] != some


def test_english_is_of_the_training_split() -> None:
    total = ENGLISH.training.steps * ENGLISH.training.batch_size
    texts = StagedTexts(ENGLISH.stages, total, nano_tokenizer(), 3)
    drawn = [texts.example(round(total * i / 600)) for i in range(600)]
    english = [each for each in drawn if not isinstance(each, families.Example)]
    assert 0.5 < len(english) / 600 < 0.7
    assert {each.split for each in english} == {"train"}
    problems = [each for each in drawn if isinstance(each, families.Example)]
    assert {each.family for each in problems} == set(families.TASKS)
    assert all(each.seed in families.TRAIN_SEEDS for each in problems)


def test_the_recipe_draws_every_kind_and_family() -> None:
    for stage in ENGLISH.stages:
        assert stage.kinds.keys() == set(kinds.NAMES)
        assert stage.families.keys() == set(families.TASKS)
    early, *_, late = ENGLISH.stages
    assert early.kinds["story"] < late.kinds["story"]
    for name in ("arithmetic", "unknown"):
        assert early.kinds[name] < late.kinds[name]
    assert early.families["mini_sudoku"] < late.families["mini_sudoku"]


def test_the_tokens_of_a_gap() -> None:
    """The blank's characters lie within its tokens, and one token less on either side would not hold them."""
    tokenizer = nano_tokenizer()
    for seed in range(40):
        drawn = kinds.draw("infill", seed, "train")
        text = as_text(drawn, tokenizer)
        assert text.blank is not None and drawn.blank is not None
        first, last = text.blank
        before = len(tokenizer.decode(text.answer[:first]))
        after = len(tokenizer.decode(text.answer[:last]))
        assert before <= drawn.blank[0] and drawn.blank[1] <= after
        assert len(tokenizer.decode(text.answer[: first + 1])) > drawn.blank[0]
        assert len(tokenizer.decode(text.answer[: last - 1])) < drawn.blank[1]
    chat = kinds.draw("chat", 1, "train")
    assert as_text(chat, tokenizer).prompt == tuple(tokenizer.chat_ids(chat.messages))
    assert as_text(chat, tokenizer).blank is None


def test_canonical_replies_are_right_and_few() -> None:
    """The requests are the same; of the many replies that a grammar has, one for each way to ask is left."""
    (stage,) = TALK_SETTLED.stages
    assert {"story", "poem", "dialogue"}.isdisjoint(stage.canonical)
    replied: dict[bool, dict[str, set[str]]] = {False: {}, True: {}}
    asked: dict[bool, list[tuple[dict[str, str], ...]]] = {}
    for canonical in (False, True):
        asking = stage if canonical else replace(stage, canonical={})
        texts = StagedTexts((asking,), 4000, nano_tokenizer(), 9)
        examples = [cast(kinds.Example, texts.example(i)) for i in range(1500)]
        assert all(kinds.accepts(each, each.reply) for each in examples)
        for i, each in enumerate(examples):
            assert texts.is_open(i, each) == (each.kind not in asking.canonical)
            replied[canonical].setdefault(each.kind, set()).add(each.reply)
        asked[canonical] = [each.messages for each in examples]
    assert asked[True] == asked[False]
    assert replied[True].keys() == replied[False].keys() == stage.kinds.keys()
    for name in ("unknown", "greeting", "identity", "small_talk"):
        assert len(replied[True][name]) < len(replied[False][name]) / 2
    assert replied[True]["story"] == replied[False]["story"]


def test_bad_stages() -> None:
    tokenizer = nano_tokenizer()
    for stages, words in (
        ((), "the last one at 1"),
        (STAGES[:1], "the last one at 1"),
        ((STAGES[1], STAGES[1]), "one after the other"),
        ((replace(STAGES[1], kinds={"gretting": 1}),), "no kind of request 'gretting'"),
        ((replace(STAGES[1], families={"sudoku": 1}),), "no task family 'sudoku'"),
        ((replace(STAGES[1], canonical={"gretting": 1}),), "no kind of request 'gretting'"),
    ):
        with pytest.raises(RequestError, match=words):
            StagedTexts(stages, 10, tokenizer)
