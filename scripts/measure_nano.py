"""Measures a model on nano's families: the table and the "alive" figures of its model card.

    python scripts/measure_nano.py [--model nano] [--count 500] [--seeds 3] [--out docs/nano/measured.json]

Diffusion with the checkpoint's own sampler settings, seeds averaged, beside greedy autoregression of the same weights,
on the unseen problems of the test seeds (`--split validation` while developing). Documents, prompts, limits, seeds and
verdicts are those of `dgemma compare`: both give the same accuracies. Prints the table as Markdown, and,
with `--against`, how far both modes' accuracies lie from an earlier measurement's, problem by problem. What has been
measured is kept in the file, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import dgemma_core as dg
from dgemma_core.files.trace import Trace
from dgemma_core.nano.families import TASKS, Example, examples
from dgemma_evals.comparison.answers import answer_all
from dgemma_evals.comparison.questions import load_tasks, quiet_harness
from dgemma_evals.comparison.stats import mean_difference, paired_bootstrap
from dgemma_evals.writers.named import own_writer
from dgemma_evals.writers.own import OwnWriter
from dgemma_lab.charts.order import orders, remelt_counts

TRACED, TIMED = 40, 10
"""Problems of a family whose traces are read, and that are written alone for their time."""


def written(
    writer: OwnWriter, name: str, split: str, count: int, seed: int, limit: int | None
) -> list[dict[str, Any]]:
    """What each problem's text of a family came to."""
    tasks = load_tasks([f"dgemma_nano_{name}"], limit=count, more={"split": split})
    answers = answer_all(writer, tasks, limit=count, seed=seed, max_new_tokens=limit)
    return [
        {
            "solved": answer.score >= 1.0,
            "kept": counts.kept_tokens,
            "steps": counts.denoising_steps,
            "canvases": len(counts.steps_per_canvas),
            "passes": counts.passes,
        }
        for answer, counts in ((answer, answer.written.counts) for answer in answers)
    ]


def milliseconds(
    loaded: dg.Loaded, problems: list[Example], mode: str, limit: int, **options: Any
) -> float:
    """Median milliseconds of a whole text, one at a time."""
    found = []
    for problem in problems:
        start = time.perf_counter()
        dg.generate(loaded, problem.prompt, mode=mode, max_new_tokens=limit, **options)
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


def alive(
    loaded: dg.Loaded, problems: list[Example], limit: int, **options: Any
) -> dict[str, float]:
    """Kendall's τ of settling step and position (EOS tail dropped) and re-melts, means over canvases and texts."""
    taus, melts = [], []
    for i, problem in enumerate(problems):
        events: list[Any] = []
        dg.generate(
            loaded, problem.prompt, seed=i, max_new_tokens=limit, listen=events.append, **options
        )
        trace = Trace.record(
            events, metadata={"eos_token_ids": list(loaded.model.config.eos_token_ids)}
        )
        taus += [order.tau for order in orders(trace)]
        melts.append(int(remelt_counts(trace)[0].sum()))
    known = [tau for tau in taus if not math.isnan(tau)]
    return {
        "tau": float(np.mean(known)) if known else float("nan"),
        "canvases_with_an_order": len(known),
        "canvases": len(taus),
        "remelts": float(np.mean(melts)),
        "texts_with_remelts": float(np.mean([melt > 0 for melt in melts])),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All families, one after the other; the file is written after each."""
    quiet_harness()
    same = {"model": str(arguments.model), "dtype": arguments.dtype, "quantize": arguments.quantize,
            "split": arguments.split, "count": arguments.count, "seeds": arguments.seeds,
            "evaluator": "dgemma compare"}  # fmt: skip
    few = {} if arguments.soft_top_k is None else {"soft_top_k": arguments.soft_top_k}
    same.update(few)
    given = {
        "dtype": arguments.dtype,
        "quantize": arguments.quantize,
        "batch_size": arguments.batch,
    }
    own = own_writer(str(arguments.model), **given, **few)
    causal_writer = own_writer(f"{arguments.model}:ar", **given)
    loaded = own.loaded
    record: dict[str, Any] = {"settings": same, "families": {}}
    if arguments.out.exists():
        kept = json.loads(arguments.out.read_text())
        if kept["settings"] == same:
            record = kept
    rows: dict[str, Any] = record["families"]
    limit = arguments.max_new_tokens
    alone = limit or loaded.generation.max_new_tokens
    for name in tqdm([name for name in arguments.families if name not in rows]):
        problems = examples(name, arguments.split, arguments.count)
        asked = (name, arguments.split, arguments.count)
        runs = [written(own, *asked, seed, limit) for seed in range(arguments.seeds)]
        every = [text for run in runs for text in run]
        means = [statistics.mean(run[i]["solved"] for run in runs) for i in range(len(problems))]
        causal = written(causal_writer, *asked, 0, limit)
        differences = np.array(means) - np.array([text["solved"] for text in causal])
        rows[name] = {
            "diffusion": statistics.mean(means),
            "autoregressive": statistics.mean(text["solved"] for text in causal),
            "difference_error": float(differences.std(ddof=1) / math.sqrt(len(problems))),
            "solved": means,
            "solved_autoregressively": [text["solved"] for text in causal],
            "steps_per_canvas": sum(t["steps"] for t in every) / sum(t["canvases"] for t in every),
            "canvases": statistics.mean(text["canvases"] for text in every),
            "kept": statistics.mean(text["kept"] for text in every),
            "tokens_per_forward": sum(t["kept"] for t in every) / sum(t["steps"] for t in every),
            "tokens_per_pass": sum(t["kept"] for t in every) / sum(t["passes"] for t in every),
            "milliseconds": milliseconds(loaded, problems[:TIMED], "diffusion", alone, **few),
            "autoregressive_milliseconds": milliseconds(
                loaded, problems[:TIMED], "autoregressive", alone
            ),
            **alive(loaded, problems[:TRACED], alone, **few),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        part = arguments.out.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(part, arguments.out)
    return record


def markdown(rows: dict[str, Any]) -> str:
    """The table of the model card."""
    head = ("family", "diffusion", "autoregressive", "steps a canvas", "tokens per forward", "kept tokens",
            "ms, diffusion", "ms, autoregressive", "τ", "re-melts a text")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    names = [name for name in TASKS if name in rows]
    for name in names:
        r = rows[name]
        cells = (
            name, f"{100 * r['diffusion']:.1f} %", f"{100 * r['autoregressive']:.1f} %",
            f"{r['steps_per_canvas']:.1f}", f"{r['tokens_per_forward']:.1f}", f"{r['kept']:.1f}",
            f"{r['milliseconds']:.0f}", f"{r['autoregressive_milliseconds']:.0f}",
            "none" if math.isnan(r["tau"]) else f"{r['tau']:+.2f}", f"{r['remelts']:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    mean = {key: statistics.mean(rows[name][key] for name in names)
            for key in ("diffusion", "autoregressive", "steps_per_canvas")}  # fmt: skip
    lines.append(
        f"| mean | {100 * mean['diffusion']:.1f} % | {100 * mean['autoregressive']:.1f} % "
        f"| {mean['steps_per_canvas']:.1f} | | | | | | |"
    )
    return "\n".join(lines)


def change(rows: dict[str, Any], others: dict[str, Any]) -> str:
    """Points of accuracy more than the other measurement's, both of the same problems, and steps a canvas."""
    said = []
    for mode, key in (("diffusion", "solved"), ("autoregressive", "solved_autoregressively")):
        pairs = [
            (name, *pair)
            for name in rows
            for pair in zip(rows[name][key], others[name][key], strict=True)
        ]
        strata, here, there = zip(*pairs, strict=True)
        found = paired_bootstrap([here, there], mean_difference, strata=strata)
        points = [100 * number for number in (found.estimate, found.low, found.high)]
        said.append("{}: {:+.1f} points (95 % interval {:+.1f} to {:+.1f})".format(mode, *points))
    before, after = (
        statistics.mean(found[name]["steps_per_canvas"] for name in rows)
        for found in (others, rows)
    )
    return "\n".join([*said, f"steps a canvas: {before:.1f} → {after:.1f}"])


def main(given: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--soft-top-k", type=int, help="self-condition on so many tokens alone")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, help="limit of a text; the tasks' own")
    parser.add_argument("--families", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("docs/nano/measured.json"))
    parser.add_argument("--against", type=Path, help="an earlier --out, of the same problems")
    arguments = parser.parse_args(given)
    rows = measure(arguments)["families"]
    print(markdown(rows))
    if arguments.against:
        print(change(rows, json.loads(arguments.against.read_text())["families"]))


if __name__ == "__main__":
    main()
