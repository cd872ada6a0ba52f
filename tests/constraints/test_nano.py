"""Families of nano with a grammar that holds all right answers: no accuracy is lost."""

from __future__ import annotations

import pytest

from dgemma_core import Constraint, generate
from dgemma_core.constraints.examples import examined
from dgemma_core.files.checkpoint import Loaded, load
from dgemma_core.nano import families
from dgemma_core.nano.grammars import GRAMMARS


@pytest.fixture(scope="module")
def nano() -> Loaded:
    return load("nano")


def test_every_family_has_a_grammar() -> None:
    assert list(GRAMMARS) == list(families.TASKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAMMARS)
def test_right_answers_belong_to_the_grammar_and_others_do_not(nano: Loaded, name: str) -> None:
    problems = families.examples(name, "validation", 60)
    constraint = Constraint.regex(GRAMMARS[name])
    for verdict in examined(constraint, [problem.answer for problem in problems], nano):
        assert verdict.accepted and verdict.spelled, verdict.reason
    wrong = [problem.answer + "\n\n, x" for problem in problems]
    assert not any(verdict.accepted for verdict in examined(constraint, wrong))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mini_sudoku", "json", "number_sorting"))
def test_a_grammar_costs_no_accuracy(nano: Loaded, name: str) -> None:
    constraint = Constraint.regex(GRAMMARS[name])
    family = families.family(name)
    problems = [families.example(name, seed) for seed in list(family.validation_seeds)[:16]]
    for verdict in examined(constraint, [problem.answer for problem in problems], nano):
        assert verdict.accepted and verdict.spelled, verdict.reason
    prompts = [problem.prompt for problem in problems]
    free = generate(nano, prompts)
    bound = generate(nano, prompts, constraint=constraint)
    for verdict in examined(constraint, [text.text for text in bound]):
        assert verdict.accepted, verdict.reason
    solved = [
        sum(family.solved(problem.entry, text.text) for problem, text in zip(problems, texts, strict=True))
        for texts in (free, bound)
    ]  # fmt: skip
    assert solved[1] >= solved[0] - 1
