"""Families of nano with a grammar that holds all right answers: no accuracy is lost."""

from __future__ import annotations

from itertools import permutations

import pytest

from dgemma_core import Constraint, generate
from dgemma_core.constraints.examples import examined
from dgemma_core.files.checkpoint import Loaded, load
from dgemma_core.nano import families

ROW = "|".join(" ".join(row) for row in permutations("1234"))
FACT = "|".join((
    '"name": "[A-Z][a-z]+"', '"city": "[A-Z][a-z]+( [A-Z][a-z]+)?"', '"age": [1-9][0-9]?', '"job": "[a-z]+"',
    r'"pet": \\{"kind": "[a-z]+", "colour": "[a-z]+"\\}', r'"likes": \\["[a-z]+"(, "[a-z]+"){0,2}\\]',
)).replace("\\\\", "\\")  # fmt: skip
GRAMMARS = {
    "mini_sudoku": "\\n".join([f"({ROW})"] * 4),
    "json": rf"\{{({FACT})(, ({FACT})){{1,4}}\}}",
    "number_sorting": r"\[-?[0-9]+(\.[0-9]+)?(,-?[0-9]+(\.[0-9]+)?)*\]",
}


@pytest.fixture(scope="module")
def nano() -> Loaded:
    return load("nano")


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAMMARS)
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
