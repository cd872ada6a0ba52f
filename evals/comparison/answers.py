"""Answers to many documents at once, scored: for figures that need no time of each text.

The documents, prompts, limits and seeds are a comparison's, and a text does not depend on its batch, so accuracies are
the comparison's, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm_eval.api.task import Task

from dgemma_evals.comparison.questions import documents, resolved, score
from dgemma_evals.writers.base import Written
from dgemma_evals.writers.own import OwnWriter


@dataclass(frozen=True)
class Answered:
    """A document's answer. score: by the task's first metric."""

    task: str
    doc_id: int
    written: Written
    score: float


def answer_all(
    writer: OwnWriter,
    tasks: Mapping[str, Task],
    *,
    limit: int,
    seed: int,
    max_new_tokens: int | None = None,
    chat: bool = True,
) -> Sequence[Answered]:
    """The first `limit` documents of each task, in their order. seed: as a comparison's block has it."""
    terms = resolved(tasks, max_new_tokens)
    asked = documents(tasks, {writer.name: writer}, limit=limit, chat=chat, terms=terms)
    instances = [question.instances[writer.name] for question in asked]
    texts = dict(writer.stream([writer.job(instance, seed) for instance in instances]))
    found = []
    for name, task in tasks.items():
        places = [i for i, question in enumerate(asked) if question.task == name]
        scores = score(task, [instances[i] for i in places], [texts[i].text for i in places])
        found += [
            Answered(name, asked[i].doc_id, texts[i], value)
            for i, value in zip(places, scores.values, strict=True)
        ]
    return found
