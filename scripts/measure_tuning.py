"""Measures what tuning teaches nano: tasks it has never seen, before and after, by both modes of the same weights.

    python scripts/make_tuning_data.py --out runs/data
    python scripts/measure_tuning.py --data runs/data --out results/tuning [--minutes 15] [--part tasks ranks …]

tasks: each task by LoRA of rank 16 with all examples (10,000), with accuracy on the unseen problems before and after,
and what the model forgets of its own twelve families, as paired differences with 95 % intervals, both modes each time.
ranks: the first task by rank 4, 16, 64 and by all weights. examples: the first task with 100 to 10,000 examples and the
same number of steps. Every run is kept in --runs, its figures in DIR/tuning.json as soon as they are known: the same
command goes on with a stopped measurement, and a run's minutes count over all its sittings.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from make_tuning_data import TASKS as UNSEEN
from make_tuning_data import score

import dgemma_core as dg
from dgemma_core.nano.families import TASKS, examples, family
from dgemma_core.train.tuning_run import Tuned, tune
from dgemma_evals.comparison.stats import mean_difference, paired_bootstrap, share
from dgemma_evals.machine import environment
from dgemma_evals.page import markdown_table
from dgemma_evals.saving import resumed, write_json

MODES = ("diffusion", "autoregressive")
RANKS, EXAMPLES = (4, 64), (100, 300, 1_000, 3_000)
"""Besides those of the task's own run: rank 16, and all examples."""


def rows(file: Path, count: int | None = None) -> list[dict[str, Any]]:
    """Records of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]


def tuned(
    data: Sequence[Mapping[str, Any]], folder: Path, *, minutes: float, **settings: Any
) -> tuple[Tuned, float]:
    """A run of nano in a folder, begun or gone on with, and its seconds: at most `minutes` over all sittings."""
    progress = folder / "run" / "progress.json"

    def seconds() -> float:
        return float(json.loads(progress.read_text())["seconds"]) if progress.exists() else 0.0

    done = tune(
        "nano", data, folder,
        minutes=max(0.0, minutes - seconds() / 60), resume=progress.exists(), tell=print,
        accumulate=2, **settings,
    )  # fmt: skip
    return done, seconds()


def solved(loaded: dg.Loaded, name: str, problems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By mode, which problems of a task a model solves, and the steps of a canvas."""
    found: dict[str, Any] = {}
    prompts = [record["prompt"] for record in problems]
    for mode in MODES:
        texts = dg.generate(loaded, prompts, mode=mode, batch_size=16, max_new_tokens=64)
        verdicts = [score(name, r, t.text) for r, t in zip(problems, texts, strict=True)]
        found[mode] = verdicts
        if mode == "diffusion":
            found["steps_per_canvas"] = sum(t.denoising_steps for t in texts) / sum(
                t.canvases for t in texts
            )
    return found


def own_families(loaded: dg.Loaded, count: int) -> dict[str, dict[str, list[bool]]]:
    """By mode and family, which of nano's own test problems a model solves."""
    found: dict[str, dict[str, list[bool]]] = {mode: {} for mode in MODES}
    for name in TASKS:
        problems = examples(name, "test", count)
        for mode in MODES:
            texts = dg.generate(
                loaded, [p.prompt for p in problems], mode=mode, batch_size=16, max_new_tokens=192
            )
            found[mode][name] = [
                bool(family(name).solved(p.entry, t.text))
                for p, t in zip(problems, texts, strict=True)
            ]
    return found


def forgotten(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """By mode, the change of accuracy on nano's families, in points, with its interval."""
    found = {}
    for mode in MODES:
        pairs = [
            (name, b, a)
            for name in before[mode]
            for b, a in zip(before[mode][name], after[mode][name], strict=True)
        ]
        strata, was, now = zip(*pairs, strict=True)
        change = paired_bootstrap([now, was], mean_difference, strata=strata)
        found[mode] = [100 * value for value in (change.estimate, change.low, change.high)]
    return found


def accuracy(verdicts: Sequence[bool]) -> list[float]:
    """Percent solved, with its exact interval."""
    found = share(sum(verdicts), len(verdicts))
    return [100 * value for value in (found.estimate, found.low, found.high)]


class Measurement:
    """One file of figures, and the runs that they come from."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.file = arguments.out / "tuning.json"
        same = {"count": arguments.count, "own": arguments.own, "steps": arguments.steps,
                "batch": arguments.batch_size, "minutes": arguments.minutes}  # fmt: skip
        record = {"settings": same, "environment": environment(), "runs": {}}
        self.record = resumed(self.file, record)
        self.nano = dg.load("nano")

    def save(self) -> None:
        """Writes what is known."""
        write_json(self.file, self.record)

    def before(self, name: str) -> dict[str, Any]:
        """What nano does on a task."""
        known = self.record.setdefault("before", {})
        if name not in known:
            problems = rows(self.arguments.data / f"{name}.test.jsonl", self.arguments.count)
            known[name] = solved(self.nano, name, problems)
            self.save()
        return dict(known[name])

    def own(self) -> dict[str, Any]:
        """What nano does on its own families."""
        if "own" not in self.record:
            self.record["own"] = own_families(self.nano, self.arguments.own)
            self.save()
        return dict(self.record["own"])

    def run(self, label: str, name: str, count: int | None = None, **settings: Any) -> None:
        """Tunes nano on a task and measures it."""
        if label in self.record["runs"]:
            return
        arguments = self.arguments
        train = rows(arguments.data / f"{name}.jsonl", count)
        problems = rows(arguments.data / f"{name}.test.jsonl", arguments.count)
        folder = arguments.runs / label
        done, seconds = tuned(
            train, folder, minutes=arguments.minutes,
            max_steps=arguments.steps, batch_size=arguments.batch_size, **settings,
        )  # fmt: skip
        full = bool(settings.get("full"))
        learnt = dg.load(str(folder)) if full else dg.load("nano", adapter=folder)
        after, before = solved(learnt, name, problems), self.before(name)
        self.record["runs"][label] = {
            "task": name,
            "examples": len(train),
            "settings": settings,
            "steps": done.steps,
            "seconds": seconds,
            "before": {mode: accuracy(before[mode]) for mode in MODES},
            "after": {mode: accuracy(after[mode]) for mode in MODES},
            "steps_per_canvas": [before["steps_per_canvas"], after["steps_per_canvas"]],
            "forgotten": forgotten(self.own(), own_families(learnt, arguments.own)),
        }
        self.save()


def markdown(runs: Mapping[str, Any]) -> str:
    """A table of all runs."""
    head = ("run", "examples", "steps", "minutes", "diffusion", "autoregressive", "steps a canvas",
            "own families, diffusion", "own families, autoregressive")  # fmt: skip
    lines = []
    for label, run in runs.items():
        change = [
            f"{run['before'][mode][0]:.1f} → {run['after'][mode][0]:.1f} %"
            f" ({run['after'][mode][1]:.1f}–{run['after'][mode][2]:.1f})"
            for mode in MODES
        ]
        lost = [
            f"{run['forgotten'][mode][0]:+.1f} ({run['forgotten'][mode][1]:+.1f} to"
            f" {run['forgotten'][mode][2]:+.1f})"
            for mode in MODES
        ]
        steps = " → ".join(f"{value:.1f}" for value in run["steps_per_canvas"])
        lines.append((label, f"{run['examples']:,}", f"{run['steps']:,}", f"{run['seconds'] / 60:.1f}",
                     *change, steps, *lost))  # fmt: skip
    return markdown_table(head, lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--out", type=Path, default=Path("results/tuning"))
    parser.add_argument("--runs", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, each run")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--count", type=int, default=500, help="unseen problems of a task")
    parser.add_argument("--own", type=int, default=100, help="problems of each of nano's families")
    parser.add_argument("--tasks", nargs="+", choices=UNSEEN, default=list(UNSEEN))
    parts = ("tasks", "ranks", "examples")
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    measured = Measurement(arguments)
    first = arguments.tasks[0]
    for name in arguments.tasks if "tasks" in arguments.part else (first,):
        measured.run(name, name)
    for rank in RANKS if "ranks" in arguments.part else ():
        measured.run(f"{first}, rank {rank}", first, rank=rank)
    if "ranks" in arguments.part:
        measured.run(f"{first}, all weights", first, full=True)
    for count in EXAMPLES if "examples" in arguments.part else ():
        measured.run(f"{first}, {count} examples", first, count)
    print(markdown(measured.record["runs"]))
    times = [run["seconds"] for run in measured.record["runs"].values()]
    if times:
        print(f"median {statistics.median(times) / 60:.1f} minutes a run")


if __name__ == "__main__":
    main()
