"""Nano's twelve families as lm-eval tasks: problems of the test seeds, decided by their verifiers.

Offline: problems are drawn from their seeds when a task is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgemma_core.nano import families

if TYPE_CHECKING:
    from datasets import Dataset


def problems(family: str, count: int | None = None, **_: Any) -> dict[str, Dataset]:
    """The test split of a family: prompt, canonical answer and seed of each problem."""
    from datasets import Dataset

    drawn = families.examples(family, "test", count or len(families.TEST_SEEDS))
    rows = [
        {"family": row.family, "seed": row.seed, "prompt": row.prompt, "answer": row.answer}
        for row in drawn
    ]
    return {"test": Dataset.from_list(rows)}


def verdict(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """solved: 1 where the verifier gives the full score. score: its score, 0 to 1."""
    entry = families.dataset_of(doc["family"])[doc["seed"]]
    score = families.family(doc["family"]).score(entry, results[0])
    return {"solved": float(score >= 1.0), "score": score}
