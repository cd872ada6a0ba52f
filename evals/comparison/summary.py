"""What a comparison's table says, in numbers with their uncertainty.

The first side stands against each other one. Several seeds of a document are averaged first; intervals of accuracy then
resample documents within tasks, and the test flips the signs of documents' mean differences. Tasks come before their
mean, which may hide gains and losses. Intervals of speed ratios resample documents and blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from dgemma_evals.comparison.compare import Comparison, front
from dgemma_evals.comparison.load import traffic_points
from dgemma_evals.comparison.stats import (
    Array,
    Interval,
    holm,
    mean_difference,
    paired_bootstrap,
    quantiles,
    rates_ratio,
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


def summarise(comparison: Comparison) -> Summary:
    """Accuracy, speed and counts of every side, and of the first against each other."""
    table, facts = comparison.table, comparison.facts
    plain = table[~table.swept & (table.examples == table.examples.iloc[0])]
    price = facts.get("price")
    sides = {str(side): _side(part, price) for side, part in plain.groupby("side", sort=False)}
    first, *others = sides
    against = {other: _against(plain, first, other) for other in others}
    summary = {
        "first": first,
        "documents": len(plain[plain.side == first].groupby(["task", "doc_id"])),
        "metric": sorted(set(plain.metric)),
        "sides": sides,
        "against": against,
        "sweep": _sweep(table, first) if table.swept.any() else [],
        "lengths": _lengths(table, price) if table.examples.nunique() > 1 else [],
        "traffic": traffic_points(comparison.traffic, facts),
        "facts": facts,
    }
    answers = [headline(summary, other) for other in others]
    return {
        "answer": " ".join(answers),
        "answers": answers,
        **summary,
        "not_measured": _not_measured(summary),
    }


def _against(plain: pd.DataFrame, first: str, other: str) -> Summary:
    """The first side against another: accuracy, over all and by task, speed, and the time to the first tokens."""
    pair = plain[plain.side.isin([first, other])]
    docs = pair.groupby(["task", "doc_id", "side"], sort=False).score.mean().unstack("side")
    docs = docs.reset_index()
    return {
        "accuracy": _accuracy(docs, first, other),
        "tasks": _tasks(docs, first, other),
        "speed": _speed(pair, first, other),
        "first": _first(pair, first, other),
    }


def _accuracy(docs: pd.DataFrame, first: str, other: str) -> Summary:
    here, there = (docs[side].to_numpy(float) for side in (first, other))
    difference = paired_bootstrap([here, there], mean_difference, strata=list(docs.task))
    return {
        "documents": len(docs),
        "first": float(here.mean()),
        "other": float(there.mean()),
        "difference": asdict(difference),
        "better": int((here > there).sum()),
        "worse": int((here < there).sum()),
        "p": sign_flip(here - there),
    }


def _tasks(docs: pd.DataFrame, first: str, other: str) -> dict[str, Summary]:
    """Each task's accuracy, with p corrected for the number of tasks."""
    found = {
        str(task): _accuracy(part, first, other) for task, part in docs.groupby("task", sort=False)
    }
    corrected = holm([row["p"] for row in found.values()])
    for row, p in zip(found.values(), corrected, strict=True):
        row["p_holm"] = p
    return found


def _speed(pair: pd.DataFrame, first: str, other: str) -> Summary:
    """Ratios of rates over all texts. blocks: how many of them the intervals resample."""
    columns: list[Array] = []
    for side in (first, other):
        part = pair[pair.side == side]
        for name in ("kept_tokens", "seconds"):
            wide = part.pivot_table(index="seed", columns=["task", "doc_id"], values=name)
            columns.append(wide.to_numpy(float))
            strata = [task for task, _ in wide.columns]
    kept, seconds, other_kept, other_seconds = columns
    ones = np.ones_like(kept)
    tokens = rates_ratio(kept, seconds, other_kept, other_seconds, strata=strata)
    answers = rates_ratio(ones, seconds, ones, other_seconds, strata=strata)
    return {
        "blocks": len(kept),
        "tokens_per_second_ratio": asdict(tokens),
        "answers_per_second_ratio": asdict(answers),
        "by_block": [
            float((k.sum() / s.sum()) / (ok.sum() / os.sum()))
            for k, s, ok, os in zip(kept, seconds, other_kept, other_seconds, strict=True)
        ],
    }


def _side(table: pd.DataFrame, price: float | None) -> Summary:
    """Totals of one side: ratios are of sums, so that every token weighs alike."""
    kept, seconds = int(table.kept_tokens.sum()), float(table.seconds.sum())
    rates = table.kept_tokens / table.seconds
    found: Summary = {
        "contestant": str(table.contestant.iloc[0]),
        "texts": len(table),
        "seeds": int(table.seed.nunique()),
        "score": float(table.groupby(["task", "doc_id"]).score.mean().mean()),
        "kept_tokens": kept,
        "kept_tokens_per_text": kept / len(table),
        "prompt_tokens_per_text": _mean(table.prompt_tokens),
        "tokens_per_second": kept / seconds,
        "tokens_per_second_quartiles": quantiles(rates, (0.25, 0.5, 0.75)),
        "latency": dict(zip(("p50", "p90", "p99"), quantiles(table.seconds), strict=True)),
        "first_seconds": quantiles(table.first_seconds.dropna(), (0.5,))[0],
        "stop_reasons": {str(k): int(v) for k, v in table.stop_reason.value_counts().items()},
        "runaways": float((table.stop_reason == "length").mean()),
        "unreadable": None if table.readable.isna().all() else float(1 - table.readable.mean()),
        "truncated_prompts": int((table.cut_tokens > 0).sum()),
        "texts_that_differ_between_blocks": _changed(table),
        "peak_bytes": int(table.peak_bytes.max()),
        "joules_per_token": _mean(table.joules) and float(table.joules.sum()) / kept,
        "cost_per_million_tokens": None if price is None else price / 3600 * seconds / kept * 1e6,
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


def _mean(column: pd.Series[float]) -> float | None:
    """None where it is not known of every text."""
    return None if column.isna().any() else float(column.mean())


def _changed(table: pd.DataFrame) -> int:
    """Documents whose text is not the same in all blocks."""
    return int((table.groupby(["task", "doc_id"]).text.nunique() > 1).sum())


def _first(pair: pd.DataFrame, first: str, other: str) -> Summary:
    """First canvas against first token, and against the same number of tokens, document by document
    (where the other wrote as many)."""
    theirs = {
        (row.task, row.doc_id, row.seed): row for row in pair[pair.side == other].itertuples()
    }
    to_first, to_same = [], []
    for row in pair[pair.side == first].itertuples():
        there = theirs.get((row.task, row.doc_id, row.seed))
        if there is None or row.first_seconds is None or math.isnan(row.first_seconds):
            continue
        if there.first_seconds is not None and not math.isnan(there.first_seconds):
            to_first.append((row.first_seconds, there.first_seconds))
        times = zip(there.milestone_tokens, there.milestone_seconds, strict=True)
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
        "first": float(np.median(first)),
        "other": float(np.median(second)),
        "ratio": float(np.median(first / second)),
    }


def _sweep(table: pd.DataFrame, first: str) -> list[Summary]:
    """Each contestant's accuracy and rates; `fronts` names the fronts that the point lies on."""
    points = []
    table = table[table.examples == table.examples.iloc[0]]
    for (label, swept, side), part in table.groupby(["contestant", "swept", "side"], sort=False):
        docs = part.groupby(["task", "doc_id"], sort=False).score.mean()
        strata = [task for task, _ in docs.index]
        scores = docs.to_numpy(float)
        spread = paired_bootstrap(
            [scores, np.zeros(len(scores))], mean_difference, strata=strata, samples=2000
        )
        found = _side(part, None)
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
        known = [p for p in points if p["side"] == first and p[rate] is not None]
        for index in front([(p[rate], p["accuracy"]["estimate"]) for p in known]):
            known[index]["fronts"].append(rate)
    return points


def _lengths(table: pd.DataFrame, price: float | None) -> list[Summary]:
    """How prompts' length, by the number of examples, changes times and accuracy."""
    rows = []
    groups = table[~table.swept].groupby(["side", "examples"], sort=False)
    for (side, examples), part in groups:
        found = _side(part, price)
        names = ("score", "prompt_tokens_per_text", "first_seconds", "latency", "tokens_per_second")
        rows.append({"side": side, "examples": int(examples)} | {n: found[n] for n in names})
    return rows


def headline(summary: Summary, other: str) -> str:
    """The first side against another in a few words: tasks first, then the mean over them, then speed."""
    found, facts = summary["against"][other], summary["facts"]
    name, sides = summary["first"], summary["sides"]
    accuracy = found["accuracy"]
    difference = Interval(**accuracy["difference"])
    rates = Interval(**found["speed"]["tokens_per_second_ratio"])
    points = 100 * difference.estimate
    waits = [sides[side]["latency"] for side in (name, other)]
    # Both must agree: of few documents a bootstrap interval alone says too much.
    if not difference.decided or accuracy["p"] >= LEVEL:
        verdict = f"is not told apart from {other}"
    else:
        verdict = (
            f"solves {abs(points):.1f} points {'more' if points > 0 else 'fewer'} than {other}"
        )
    blocks = found["speed"]["blocks"]
    tasks = by_task(found["tasks"], name, other)
    tasks = f"{tasks}. " if tasks else ""
    over = f"over documents and {blocks} blocks" if blocks > 1 else "over documents; one block"
    return (
        f"{tasks}On {accuracy['documents']} documents {name} solves "
        f"{100 * accuracy['first']:.1f} % and {other} {100 * accuracy['other']:.1f} %: it {verdict} (difference "
        f"{points:+.1f} points, 95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}; sign-flip p "
        f"= {accuracy['p']:.2g}), and it writes {rates.estimate:.2f} times as many kept tokens a second, end to end "
        f"(95 % interval {rates.low:.2f} to {rates.high:.2f}, {over}); half of its texts take at most "
        f"{waits[0]['p50']:.2g} s and 99 % at most {waits[0]['p99']:.2g} s, of {other}'s {waits[1]['p50']:.2g} and "
        f"{waits[1]['p99']:.2g} s.{_busy(facts)}"
    )


def _busy(facts: Mapping[str, Any]) -> str:
    """A warning where the machine was not idle besides."""
    busy = [block["cores_busy_with_others"] for block in facts["blocks"]]
    most = max((cores for cores in busy if cores is not None), default=0.0)
    if most < 0.1:
        return ""
    return f" Other processes kept up to {most:.1f} cores of the machine busy meanwhile."


def by_task(tasks: Summary, name: str, other: str) -> str:
    """On which of several tasks the first is better or worse, without a full stop; nothing for a single one."""
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
        parts.append(f"{word} on {len(rows)}" + (f" ({listed} points)" if rows else ""))
    rest = len(tasks) - len(decided)
    untold = f"{rest} {'is' if rest == 1 else 'are'} not told apart"
    return f"Of {len(tasks)} tasks, {name} is {' and '.join(parts)} than {other}; {untold}"


def _not_measured(summary: Summary) -> list[str]:
    facts, sides = summary["facts"], summary["facts"]["sides"]
    said = []
    if not summary["traffic"]:
        said.append("Many requests at once: every text was written alone (--batch, --rate).")
    if not facts["energy_from"]:
        said.append("Energy: the machine does not tell it (RAPL, NVML).")
    if facts.get("price") is None:
        said.append("Cost: no price of the machine was stated (--price).")
    if len(facts["blocks"]) < 2:
        said.append("What differs from process to process: there is one block (--seeds).")
    said += [
        "Other machines, threads and dtypes than those named here.",
        "Likelihoods: a comparison is of written answers.",
    ]
    if not facts.get("device_memory"):
        said.append(
            "Peak memory of each side: on a CPU all live in one process, whose peak is given."
        )
    for name, described in sides.items():
        if described.get("mode") == "server":
            said.append(f"Passes, steps and memory of {name}: a client cannot see them.")
    sizes = {s.get("model_num_parameters") for s in sides.values()} - {None}
    if len(sizes) > 1:
        said.append("Equal size: the models have different numbers of parameters.")
    return said
