"""A recipe's learning rates, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dgemma_core.errors import RequestError
from dgemma_core.train import Recipe


def test_learning_rates() -> None:
    recipe = Recipe(steps=110, warmup=10, final_learning_rate=0.1)
    rates = [recipe.rate_at(step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[110] == pytest.approx(0.1)
    assert rates[60] == pytest.approx((1.0 + 0.1) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    late = replace(recipe, decay=40)
    assert [late.rate_at(step) for step in (10, 40, 70)] == [1.0, 1.0, 1.0]
    assert late.rate_at(90) == pytest.approx((1.0 + 0.1) / 2)
    assert late.rate_at(110) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"pool": 0}, "at least 1"),
        ({"micro_batches": 0}, "at least 1"),
        ({"batch_size": 6, "micro_batches": 4}, "6 does not divide into 4"),
        ({"decay": 4}, "at most the 3 steps"),
        ({"decay": -1}, "decay must be at least 0"),
        (
            {"self_conditioning": 1.1},
            "self_conditioning must be a number of at least 0 and at most 1, got 1.1",
        ),
        ({"self_conditioning": -0.1}, "self_conditioning must be"),
        ({"blanks": 1.5}, "blanks must be"),
        ({"drafts": (16, 1)}, "drafts must be at least 2"),
        ({"tail": -1.0}, "tail must be"),
        ({"end_marks": 0}, "end_marks must be at least 1.*, got 0"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Recipe(**{"steps": 3, "warmup": 0, **changes})
