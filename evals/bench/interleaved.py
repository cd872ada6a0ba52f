"""`dgemma bench`: how fast this project is, as ratios against public implementations in one run.

Notable:
- one process per implementation, all alive at once and asked in turn (A B C A B C …), after a warm-up each; what is
  reported are medians, ranges, and ratios of medians;
- before anything is timed, every implementation proves the same logits on the same weights;
- same weights, prompts, steps, dtype, threads and allocator: whether tcmalloc is preloaded matters as much as the code.

A result is a JSON file with the environment and every single time; page.py draws the page from these files.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgemma_evals.bench.processes import ENOUGH, Measured, Setting, Worker, workers


def interleaved(
    found: Sequence[tuple[Worker, Measured]],
    setting: Setting,
    do: str,
    progress: str,
    arguments: Callable[[int], dict[str, Any]],
) -> list[Measured]:
    """`rounds` rounds of every worker in turn, after one to warm up; a round's figure is the median of its answer.

    arguments(turn): the command's, of that round.
    """
    from tqdm.auto import tqdm

    with tqdm(total=(setting.rounds + 1) * len(found), desc=progress, leave=False) as bar:
        for turn in range(setting.rounds + 1):
            for worker, measured in found:
                answer = worker.ask(do, **arguments(turn))
                if turn:
                    measured.rounds.append(statistics.median(answer["result"]))
                    measured.others.append(answer["others"])
                measured.peak_bytes = answer["peak_bytes"]
                bar.update()
    return [measured for _, measured in found]


def steps(
    folder: Path, names: Sequence[str], setting: Setting, *, prompt: list[int], canvas: list[int],
    count: int, batch: int = 1,
) -> list[Measured]:  # fmt: skip
    """Seconds a denoising step, the median of `count` fixed steps a round."""
    with workers(folder, names, setting, prompt, canvas) as found:
        return interleaved(
            found, setting, "steps",
            f"step, {setting.dtype}, {setting.allocator}",
            lambda turn: {"prompts": [prompt] * batch, "count": count, "seed": setting.seed + turn},
        )  # fmt: skip


def tokens(
    folder: Path, names: Sequence[str], setting: Setting, *, prompt: list[int], count: int
) -> list[Measured]:
    """Seconds a greedy autoregressive token, the median of `count` a round."""
    with workers(folder, names, setting, prompt, []) as found:
        return interleaved(
            found, setting, "tokens",
            f"token, {setting.dtype}, {setting.allocator}",
            lambda _: {"prompt": prompt, "count": count},
        )  # fmt: skip


def writing(
    folder: Path, names: Sequence[str], setting: Setting, *, prompts: list[list[int]], batch: int,
    limit: int, judge: Any,
) -> list[Measured]:  # fmt: skip
    """Kept tokens a second over real prompts with natural ends, and the share of texts that `judge(i, ids)` accepts.

    Everybody gets all prompts at once and may write `batch` of them at a time.
    """
    from tqdm.auto import tqdm

    with workers(folder, names, setting, prompts[0], [0]) as found:
        for measured in (measured for _, measured in found):
            measured.extra = {"solved": 0, "texts": 0, "kept_tokens": 0}
        job = {"batch": batch, "limit": limit}
        with tqdm(total=setting.rounds * len(found), desc=f"batch {batch}", leave=False) as bar:
            for worker, _ in found:
                worker.ask("write", prompts=prompts[:batch], seed=setting.seed, **job)
            for turn in range(setting.rounds):
                for worker, measured in found:
                    answer = worker.ask("write", prompts=prompts, seed=setting.seed + turn, **job)
                    count = 0
                    for i, ids in enumerate(answer["result"]):
                        count += len(ids)
                        measured.extra["solved"] += int(judge(i, ids))
                        measured.extra["texts"] += 1
                    measured.peak_bytes = answer["peak_bytes"]
                    measured.extra["kept_tokens"] += count
                    measured.rounds.append(count / answer["seconds"])
                    measured.others.append(answer["others"])
                    bar.update()
        return [measured for _, measured in found]


def row(
    table: str, setting: Setting, measured: Sequence[Measured], *, unit: str, **facts: Any
) -> dict[str, Any]:
    """A table row as JSON: all times, medians, and the ratio to the fastest public implementation."""
    better = max if unit.endswith("/s") else min
    own = measured[0]
    public = [m for m in measured if not m.name.startswith("dgemma")]
    ratio = None
    if public:
        best = better(public, key=lambda m: m.median)
        ratio = own.median / best.median if better is max else best.median / own.median
    return {
        "table": table,
        "unit": unit,
        **facts,
        "setting": asdict(setting),
        "ratio_to_fastest_peer": ratio,
        "enough_rounds": all(len(m.rounds) >= ENOUGH for m in measured),
        "cores_busy_with_others": max(
            (cores for m in measured for cores in m.others if cores is not None), default=None
        ),
        "implementations": [{**asdict(m), "median": m.median} for m in measured],
    }
