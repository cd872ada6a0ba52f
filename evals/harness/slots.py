"""Multiple choice by slots: all choices of a question on one canvas, each with its share of probability.

lm-eval asks for a continuation's log-likelihood, one choice at a time. With `likelihood=slot` the choices of a question
are decided together (`generation.decide`), and lm-eval gets the log of each one's share: its accuracy is then that of
the slots. A share is no likelihood; metrics that divide it by a length, or make a perplexity of it, mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lm_eval.api.instance import Instance

from dgemma_core import Loaded, RequestError
from dgemma_core.constraints.form import form_of_tokens
from dgemma_core.generation.decide import Question, decisions

LEAST = 1e-300
"""A share that float64 holds, so that its log is finite."""


def questions(requests: Sequence[Instance]) -> list[list[int]]:
    """The places of the requests, question by question.

    Raises RequestError for what is no multiple choice behind one context.
    """
    groups: dict[tuple[object, object], list[int]] = {}
    for place, instance in enumerate(requests):
        groups.setdefault((instance.task_name, instance.doc_id), []).append(place)
    for (task, _), places in groups.items():
        contexts = {requests[place].args[0] for place in places}
        texts = {requests[place].args[1] for place in places}
        if len(contexts) > 1 or len(texts) < 2:
            raise RequestError(
                f"likelihood=slot decides among several choices behind one context, which {task or 'this task'} does "
                "not ask for: use likelihood=ar_encoder"
            )
    return list(groups.values())


def log_shares(
    loaded: Loaded,
    asked: Sequence[tuple[Sequence[int], Sequence[str], Sequence[Sequence[int]]]],
    *,
    seeds: Sequence[int],
    passes: int,
    batch: int,
) -> list[list[float]]:
    """Of each question (context, texts of its choices, their tokens), the logs of the choices' shares."""
    forms = [
        Question(tuple(context), form_of_tokens("choice", texts, tokens), seed)
        for (context, texts, tokens), seed in zip(asked, seeds, strict=True)
    ]
    found = decisions(loaded, forms, passes=passes, batch_size=batch)
    return [
        [math.log(max(share, LEAST)) for share in decision.slots["choice"].values()]
        for decision in found
    ]
