"""Other wordings of the families' problems: whole, distinct, and some kept from training."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from dgemma_core.nano import families
from dgemma_core.nano.named import nano_tokenizer
from dgemma_core.nano.recipes import ENGLISH
from dgemma_core.nano.texts import StagedTexts
from dgemma_core.nano.wordings import WORDINGS, reworded


@pytest.mark.parametrize("name", families.TASKS)
def test_every_wording_asks_for_the_same_problem(name: str) -> None:
    wordings = WORDINGS[name]
    assert len(set(wordings)) == len(wordings) == 10
    problem = families.example(name, 11)
    asked = {reworded(problem, Random(i)) for i in range(300)}
    assert len(asked) == 9 and problem.prompt not in asked
    kept = reworded(problem, Random(0), "held_out")
    assert kept not in asked
    last = problem.prompt.split("\n")[-1].removeprefix("Compute ").removeprefix("json ")
    body = last.split(": ", 1)[-1]
    assert all(body in text for text in (*asked, kept))
    assert not any("{" in text for text in (*asked, kept))


@pytest.mark.slow
def test_training_sees_them_beside_the_families_own() -> None:
    """A third of the problems, never in the held-out wording, and always as a function of the number."""
    texts = StagedTexts(ENGLISH.stages, 6000, nano_tokenizer(), seed=1)
    drawn = [texts.example(i) for i in range(1500)]
    problems = [each for each in drawn if isinstance(each, families.Example)]
    own = sum(each.prompt == families.family(each.family).prompt(each.entry) for each in problems)
    assert 0.58 < own / len(problems) < 0.75
    asked = {each.prompt for each in problems}
    for each in problems:
        plain = replace(each, prompt=families.family(each.family).prompt(each.entry))
        assert reworded(plain, Random(0), "held_out") not in asked
    assert texts.example(77) == texts.example(77)
