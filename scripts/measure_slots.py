"""Measures how far the probabilities of slots can be trusted, against the exact likelihood and the bound.

    python scripts/measure_slots.py --out results/slots [--count 100] [--passes 1 2 4] [--task nano hellaswag]

nano: problems of nano's families turned into choices, the right answer and three that an edit makes wrong, as the
family's verifier says. hellaswag: the 100 beginnings of `dgemma_hellaswag_100`, each with four endings. Each question
is scored by slots (`decide`, one row a number of passes), by the exact causal likelihood of text and end, and by the
denoiser's bound; a score's shares are its softmax over the choices. Reported are accuracy, the expected calibration
error of the chosen answer's share in ten bins, the mean share of the right answer's −log, and denoising steps a
question. Figures are written to DIR/slots.json as each task is done.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import dgemma_core as dg
from dgemma_core.constraints.form import form
from dgemma_core.generation.decide import Question, decisions, end_token
from dgemma_core.generation.likelihood import causal_logprobs
from dgemma_core.nano.families import TASKS, examples, family
from dgemma_evals.harness.likelihood import nelbo
from dgemma_evals.machine import environment
from dgemma_evals.saving import write_json
from dgemma_evals.tasks.public import hellaswag

CHOICES, BINS = 4, 10


@dataclass(frozen=True)
class Asked:
    """A question with its choices, the right one's place, and the prompt's tokens."""

    task: str
    ids: tuple[int, ...]
    choices: tuple[str, ...]
    right: int


def edited(text: str, random: Random) -> str:
    """The text with two of its letters or digits exchanged, or one of them replaced by another of the text's."""
    places = [i for i, letter in enumerate(text) if letter.isalnum()]
    letters = list(text)
    if not places:
        return text
    one, other = random.choice(places), random.choice(places)
    letters[one] = text[other]
    if random.random() < 0.5:
        letters[other] = text[one]
    return "".join(letters)


def nano_questions(loaded: dg.Loaded, name: str, count: int) -> list[Asked]:
    """Test problems of a family, as many as have three wrong edits of their answer."""
    found = []
    for problem in examples(name, "test", count):
        random, wrong = Random(problem.seed), set[str]()
        for _ in range(200):
            text = edited(problem.answer, random)
            if text != problem.answer and not family(name).solved(problem.entry, text):
                wrong.add(text)
            if len(wrong) == CHOICES - 1:
                break
        else:
            continue
        choices = [problem.answer, *sorted(wrong)]
        random.shuffle(choices)
        ids = tuple(dg.prompt_ids(loaded, problem.prompt))
        found.append(Asked(name, ids, tuple(choices), choices.index(problem.answer)))
    return found


def hellaswag_questions(loaded: dg.Loaded, count: int) -> list[Asked]:
    """As the task asks them: no chat template, the ending right behind its beginning."""
    return [
        Asked(
            "hellaswag",
            tuple(dg.prompt_ids(loaded, row["query"], raw=True)),
            tuple(row["choices"]),
            row["label"],
        )
        for row in list(hellaswag()["test"])[:count]
    ]


def softmax(scores: Sequence[float]) -> list[float]:
    peak = max(scores)
    weights = [math.exp(score - peak) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def by_slots(
    loaded: dg.Loaded, asked: Sequence[Asked], passes: int, seed: int
) -> tuple[list[list[float]], float]:
    """The shares of each question's choices, and denoising steps a question."""
    assert loaded.tokenizer is not None
    questions = [
        Question(one.ids, form("{x}", {"x": one.choices}, loaded.tokenizer), seed + i)
        for i, one in enumerate(asked)
    ]
    found = decisions(loaded, questions, passes=passes)
    steps = sum(each.denoising_steps for each in found) / len(found)
    return [list(each.slots["x"].values()) for each in found], steps


def by_likelihood(loaded: dg.Loaded, asked: Sequence[Asked]) -> list[list[float]]:
    """The exact one, of text and end."""
    assert loaded.tokenizer is not None
    end, encode = end_token(loaded), loaded.tokenizer.encode
    rows = [(one.ids, (*encode(text), end)) for one in asked for text in one.choices]
    totals = iter([row.total for row in causal_logprobs(loaded.model, rows)])
    return [softmax([next(totals) for _ in one.choices]) for one in asked]


def by_bound(
    loaded: dg.Loaded, asked: Sequence[Asked], samples: int, seed: int
) -> list[list[float]]:
    """The denoiser's bound, end included; the same noise for all choices."""
    assert loaded.tokenizer is not None
    end, encode, found = end_token(loaded), loaded.tokenizer.encode, []
    for i, one in enumerate(asked):
        bounds = [
            nelbo(loaded.model, one.ids, encode(text), end=end, samples=samples, seed=seed + i)
            for text in one.choices
        ]
        found.append(softmax([-bound.nats for bound in bounds]))
    return found


def summary(asked: Sequence[Asked], shares: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Accuracy, expected calibration error of the chosen share, and the right answer's mean −log share in nats."""
    chosen = [max(range(len(own)), key=own.__getitem__) for own in shares]
    sure = np.array([own[i] for own, i in zip(shares, chosen, strict=True)])
    right = np.array([one.right == i for one, i in zip(asked, chosen, strict=True)])
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(float(sure[bins == b].sum()) - float(right[bins == b].sum())) for b in range(BINS)]
    given = [max(own[one.right], 1e-12) for one, own in zip(asked, shares, strict=True)]
    return {
        "accuracy": float(right.mean()),
        "expected_calibration_error": math.fsum(gaps) / len(asked),
        "mean_confidence": float(sure.mean()),
        "nats": -math.fsum(map(math.log, given)) / len(given),
    }


def measure(
    loaded: dg.Loaded, asked: Sequence[Asked], options: argparse.Namespace
) -> dict[str, Any]:
    """A row of figures a way of scoring."""
    found: dict[str, Any] = {"questions": len(asked)}
    for passes in options.passes:
        shares, steps = by_slots(loaded, asked, passes, options.seed)
        found[f"slots, passes={passes}"] = summary(asked, shares) | {"denoising_steps": steps}
    found["exact likelihood"] = summary(asked, by_likelihood(loaded, asked))
    if options.samples:
        bound = by_bound(loaded, asked, options.samples, options.seed)
        found["bound"] = summary(asked, bound) | {"samples": options.samples}
    return found


def main() -> None:
    """Reads the options, measures, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument(
        "--task", nargs="+", choices=("nano", "hellaswag"), default=["nano", "hellaswag"]
    )
    parser.add_argument("--family", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--count", type=int, default=100, help="questions a family or task")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--samples", type=int, default=64, help="of the bound; 0: leave it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    loaded = dg.load(options.model)
    names = [
        *(options.family if "nano" in options.task else []),
        *(t for t in options.task if t != "nano"),
    ]
    found: dict[str, Any] = {}
    for name in names:
        if name == "hellaswag":
            asked = hellaswag_questions(loaded, options.count)
        else:
            asked = nano_questions(loaded, name, options.count)
        if not asked:
            print(f"{name}: no questions")
            continue
        found[name] = measure(loaded, asked, options)
        for way, row in found[name].items():
            print(f"{name}: {way}: {row}", flush=True)
        if options.out is not None:
            given = {key: value for key, value in vars(options).items() if key != "out"}
            content = {"options": given, "environment": environment(), "tasks": found}
            write_json(options.out / "slots.json", content)


if __name__ == "__main__":
    main()
