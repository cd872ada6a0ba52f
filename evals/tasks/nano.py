"""Nano's twelve families as lm-eval tasks: problems of the test seeds, decided by their verifiers.

Offline: problems are drawn from their seeds when a task is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dgemma_core.nano import families
from dgemma_evals.tasks.readable import readable

if TYPE_CHECKING:
    from datasets import Dataset


def problems(
    family: str,
    count: int | None = None,
    split: Literal["test", "validation"] = "test",
    **_: Any,
) -> dict[str, Dataset]:
    """Problems of a family, under lm-eval's name "test": prompt, canonical answer and seed of each.

    split: "validation" while developing.
    """
    from datasets import Dataset

    drawn = families.examples(family, split, count or len(families.TEST_SEEDS))
    rows = [
        {"family": row.family, "seed": row.seed, "prompt": row.prompt, "answer": row.answer}
        for row in drawn
    ]
    return {"test": Dataset.from_list(rows)}


def verdict(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """solved: 1 where the verifier gives the full score. score: its score, 0 to 1. readable: 1 where the answer has the
    form that the verifier reads, right or wrong."""
    entry = families.dataset_of(doc["family"])[doc["seed"]]
    score = families.family(doc["family"]).score(entry, results[0])
    form = readable(doc["family"], results[0], doc["answer"])
    return {"solved": float(score >= 1.0), "score": score, "readable": float(form or score >= 1.0)}
