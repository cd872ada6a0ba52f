"""What may come next in a state, in texts that a reader can see."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from dgemma_core import Constraint
from dgemma_core.constraints.onward import SHOWN, onward
from dgemma_core.files.checkpoint import Loaded
from tests.core import tiny


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return tiny.loaded()


def following(loaded: Loaded, pattern: str, written: str = "") -> dict[str, Any]:
    assert loaded.tokenizer is not None
    automaton = Constraint.regex(pattern).compile(loaded)
    state = automaton.after(loaded.tokenizer.encode(written))
    return partial(onward, automaton, loaded.tokenizer.token_string)(state)


def test_few_tokens_are_named_and_the_end_is_said(loaded: Loaded) -> None:
    assert following(loaded, "7") == {"tokens": 1, "texts": ["7"], "end": False}
    assert following(loaded, "7", "7") == {"tokens": 0, "texts": [], "end": True}
    digits = following(loaded, "[0-9][1-3]?", "5")
    assert sorted(digits["texts"]) == ["1", "2", "3"] and digits["end"]


def test_many_tokens_are_ranges_of_their_first_characters(loaded: Loaded) -> None:
    found = following(loaded, "[a-z0-9]+")
    assert found["tokens"] > SHOWN and found["texts"] == ["0–9", "a–z"] and not found["end"]
    anything = following(loaded, "(?s:.)+")
    assert len(anything["texts"]) <= SHOWN + 1 and anything["texts"][-1] == "…"


def test_the_count_is_that_of_the_tokens_that_go_on(loaded: Loaded) -> None:
    assert loaded.tokenizer is not None
    automaton = Constraint.regex("[a-c]{1,3}").compile(loaded)
    found = onward(automaton, loaded.tokenizer.token_string, automaton.start)
    size = loaded.model.config.text.vocab_size
    assert found["tokens"] == sum(automaton.after([token]) >= 0 for token in range(size))
