"""What a comparison's table says, in numbers with their uncertainty.

Several seeds of a document are averaged first; intervals then resample documents within tasks, and
the test flips the signs of documents' mean differences. Tasks come before their mean, which may hide
gains and losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from dgemma_evals.comparison.compare import Comparison, front
from dgemma_evals.comparison.stats import (
    Array,
    Interval,
    holm,
    mean_difference,
    paired_bootstrap,
    quantiles,
    ratio_of_rates,
    sign_flip,
)
from dgemma_evals.writers.counting import acceptance, histogram

if TYPE_CHECKING:
    import pandas as pd

Summary = dict[str, Any]

PUBLISHED = {
    "26B diffusion": {"tokens_per_forward": 19.7, "tokens_per_second": 1479},
    "26B autoregressive": {"tokens_per_forward": 1.0, "tokens_per_second": 204},
    "26B multi-token prediction": {"tokens_per_forward": 1.4, "tokens_per_second": 303},
}
"""Second-hand claims for the released pair: tokens/s on one H100 at batch 1, tokens per forward as
N / (steps + canvases − 1). Their accuracy is of other tasks, so they mark rates alone."""

LEVEL = 0.05
"""p below which a difference counts as told apart."""

NOT_MEASURED = (
    "Throughput of many requests at once: every text was written alone (batch 1).",
    "Energy and price.",
    "Other machines, threads and dtypes than those named here.",
    "Likelihoods: a comparison is of written answers.",
)


def summarise(comparison: Comparison) -> Summary:
    """Accuracy, speed and counts of the two sides, and the sweep if there is one."""
    table, facts = comparison.table, comparison.facts
    plain = table[~table.swept]
    docs = _by_document(plain)
    sides = {str(side): _side(part) for side, part in plain.groupby("side", sort=False)}
    return {
        "answer": headline(docs, facts, sides),
        "documents": len(docs),
        "accuracy": _accuracy(docs),
        "tasks": _tasks(docs),
        "speed": _speed(docs),
        "sides": sides,
        "first": _first(plain),
        "sweep": _sweep(table) if table.swept.any() else [],
        "facts": facts,
        "not_measured": list(_not_measured(facts)),
    }


def _by_document(table: pd.DataFrame) -> pd.DataFrame:
    """One row a document: for each side the mean over its seeds."""
    columns = ["score", "kept_tokens", "seconds"]
    means = table.groupby(["task", "doc_id", "side"], sort=False)[columns].mean().unstack("side")
    means.columns = [f"{name}_{side}" for name, side in means.columns]
    return means.reset_index()


def _pair(docs: pd.DataFrame, name: str) -> list[Array]:
    return [docs[f"{name}_{side}"].to_numpy(float) for side in ("model", "baseline")]


def _accuracy(docs: pd.DataFrame) -> Summary:
    first, second = _pair(docs, "score")
    difference = paired_bootstrap([first, second], mean_difference, strata=list(docs.task))
    return {
        "documents": len(docs),
        "model": float(first.mean()),
        "baseline": float(second.mean()),
        "difference": asdict(difference),
        "better": int((first > second).sum()),
        "worse": int((first < second).sum()),
        "p": sign_flip(first - second),
    }


def _tasks(docs: pd.DataFrame) -> dict[str, Summary]:
    """Each task's accuracy, with p corrected for the number of tasks."""
    found = {str(task): _accuracy(part) for task, part in docs.groupby("task", sort=False)}
    corrected = holm([row["p"] for row in found.values()])
    for row, p in zip(found.values(), corrected, strict=True):
        row["p_holm"] = p
    return found


def _speed(docs: pd.DataFrame) -> Summary:
    (kept, other_kept), (seconds, other_seconds) = (
        _pair(docs, "kept_tokens"),
        _pair(docs, "seconds"),
    )
    strata = list(docs.task)
    rates = paired_bootstrap(
        [kept, seconds, other_kept, other_seconds], ratio_of_rates, strata=strata
    )
    ones = np.ones(len(docs))
    answers = paired_bootstrap([ones, seconds, ones, other_seconds], ratio_of_rates, strata=strata)
    return {"tokens_per_second_ratio": asdict(rates), "answers_per_second_ratio": asdict(answers)}


def _side(table: pd.DataFrame) -> Summary:
    """Totals of one side: ratios are of sums, so that every token weighs alike."""
    kept, seconds = int(table.kept_tokens.sum()), float(table.seconds.sum())
    rates = table.kept_tokens / table.seconds
    found: Summary = {
        "contestant": str(table.contestant.iloc[0]),
        "texts": len(table),
        "seeds": int(table.seed.nunique()),
        "kept_tokens": kept,
        "kept_tokens_per_text": kept / len(table),
        "tokens_per_second": kept / seconds,
        "tokens_per_second_quartiles": quantiles(rates, (0.25, 0.5, 0.75)),
        "latency": dict(zip(("p50", "p90", "p99"), quantiles(table.seconds), strict=True)),
        "first_seconds": quantiles(table.first_seconds.dropna(), (0.5,))[0],
        "stop_reasons": {str(k): int(v) for k, v in table.stop_reason.value_counts().items()},
        "peak_bytes": int(table.peak_bytes.max()),
    }
    if table.passes.notna().all():
        passes = float(table.passes.sum())
        forwards = float(table.denoising_steps[table.positions > 0].sum()) or passes
        found |= {
            "passes": int(passes),
            "tokens_per_forward": kept / forwards,
            "tokens_per_pass": kept / passes,
            "milliseconds_per_pass": 1000 * seconds / passes,
        }
    rounds = [int(count) for counts in table.accepted for count in counts]
    if rounds:
        found |= acceptance(rounds)
    steps = [int(count) for counts in table.steps_per_canvas for count in counts]
    if steps:
        found |= {
            "canvases": len(steps),
            "steps_per_canvas": sum(steps) / len(steps),
            "steps_histogram": histogram(steps),
            "converged_canvases": float(table.converged_canvases.sum()) / len(steps),
            "wasted_fraction": 1 - kept / float(table.positions.sum()),
        }
    return found


def _first(table: pd.DataFrame) -> Summary:
    """First canvas against first token, and against the same number of tokens, document by document
    (where the baseline wrote as many)."""
    baseline = {(row.task, row.doc_id): row for row in table[table.side == "baseline"].itertuples()}
    to_first, to_same = [], []
    for row in table[table.side == "model"].itertuples():
        other = baseline.get((row.task, row.doc_id))
        if other is None or row.first_seconds is None or math.isnan(row.first_seconds):
            continue
        if other.first_seconds is not None and not math.isnan(other.first_seconds):
            to_first.append((row.first_seconds, other.first_seconds))
        times = zip(other.milestone_tokens, other.milestone_seconds, strict=True)
        same = next((at for kept, at in times if kept >= row.first_tokens), None)
        if same is not None:
            to_same.append((row.first_seconds, same))
    return {
        "to_first": _medians(to_first),
        "to_same_tokens": _medians(to_same),
    }


def _medians(pairs: list[tuple[float, float]]) -> Summary:
    if not pairs:
        return {"pairs": 0}
    first, second = np.asarray(pairs).T
    return {
        "pairs": len(pairs),
        "model": float(np.median(first)),
        "baseline": float(np.median(second)),
        "ratio": float(np.median(first / second)),
    }


def _sweep(table: pd.DataFrame) -> list[Summary]:
    """Each contestant's accuracy and rates; `fronts` names the fronts that the point lies on."""
    points = []
    for (label, swept, side), part in table.groupby(["contestant", "swept", "side"], sort=False):
        docs = part.groupby(["task", "doc_id"], sort=False).score.mean()
        strata = [task for task, _ in docs.index]
        scores = docs.to_numpy(float)
        spread = paired_bootstrap(
            [scores, np.zeros(len(scores))], mean_difference, strata=strata, samples=2000
        )
        found = _side(part)
        points.append(
            {
                "contestant": label,
                "side": side,
                "swept": bool(swept),
                "settings": str(part.settings.iloc[0]),
                "accuracy": asdict(spread),
                **{
                    name: found.get(name)
                    for name in ("tokens_per_second", "tokens_per_forward", "steps_per_canvas")
                },
                "fronts": [],
            }
        )
    for rate in ("tokens_per_second", "tokens_per_forward"):
        known = [p for p in points if p["side"] == "model" and p[rate] is not None]
        for index in front([(p[rate], p["accuracy"]["estimate"]) for p in known]):
            known[index]["fronts"].append(rate)
    return points


def headline(docs: pd.DataFrame, facts: Summary, sides: Mapping[str, Summary]) -> str:
    """The comparison in a few words: tasks first, then the mean over them, then speed, each with its uncertainty."""
    accuracy, speed, tasks = _accuracy(docs), _speed(docs), _tasks(docs)
    difference = Interval(**accuracy["difference"])
    rates = Interval(**speed["tokens_per_second_ratio"])
    name, other = facts["model"]["name"], facts["baseline"]["name"]
    points = 100 * difference.estimate
    waits = [sides[side]["latency"] for side in ("model", "baseline")]
    # Both must agree: of few documents a bootstrap interval alone says too much.
    if not difference.decided or accuracy["p"] >= LEVEL:
        verdict = f"is not told apart from {other}"
    else:
        verdict = (
            f"solves {abs(points):.1f} points {'more' if points > 0 else 'fewer'} than {other}"
        )
    return (
        f"{_by_task(tasks, name)}On {len(docs)} documents {name} solves {100 * accuracy['model']:.1f} % and {other} "
        f"{100 * accuracy['baseline']:.1f} %: it {verdict} (difference {points:+.1f} points, 95 % "
        f"interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}; sign-flip p = "
        f"{accuracy['p']:.2g}), and it writes {rates.estimate:.2f} times as many "
        f"kept tokens a second, end to end (95 % interval {rates.low:.2f} to {rates.high:.2f}); half of "
        f"its texts take at most {waits[0]['p50']:.2g} s and 99 % at most {waits[0]['p99']:.2g} s, of {other}'s "
        f"{waits[1]['p50']:.2g} and {waits[1]['p99']:.2g} s."
    )


def _by_task(tasks: Summary, name: str) -> str:
    """On which of several tasks the model is better or worse; nothing for a single one."""
    if len(tasks) < 2:
        return ""
    decided = {task: row for task, row in tasks.items() if row["p_holm"] < LEVEL}
    parts = []
    for word, sign in (("better", 1), ("worse", -1)):
        rows = {
            task: 100 * row["difference"]["estimate"]
            for task, row in decided.items()
            if sign * row["difference"]["estimate"] > 0
        }
        listed = ", ".join(
            f"{task.removeprefix('dgemma_nano_')} {points:+.1f}" for task, points in rows.items()
        )
        parts.append(f"{word} on {len(rows)}" + (f" ({listed})" if rows else ""))
    rest = len(tasks) - len(decided)
    return f"Of {len(tasks)} tasks, {name} is {' and '.join(parts)}, points; {rest} are not told apart. "


def _not_measured(facts: Summary) -> list[str]:
    said = list(NOT_MEASURED)
    if not facts.get("device_memory"):
        said.append(
            "Peak memory of each side: on a CPU both live in one process, whose peak is given."
        )
    for side in ("model", "baseline"):
        if facts[side].get("mode") == "server":
            said.append(
                f"Passes, steps and memory of {facts[side]['name']}: a client cannot see them."
            )
    first, second = (facts[side].get("model_num_parameters") for side in ("model", "baseline"))
    if first and second and first != second:
        said.append("Equal size: the two models have different numbers of parameters.")
    return said
