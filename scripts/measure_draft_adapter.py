"""Measures an adapter of the denoiser alone that is taught to say in one step what the causal mode would choose.

    python scripts/measure_draft_adapter.py [--train 4000] [--minutes 15] [--out results/tuning/drafts.json]

Speculative decoding drafts with the denoiser and keeps what the causal mode agrees with. The data are the causal mode's
own greedy texts for training problems of nano's families. The adapter learns whole canvases and drafts from noise
alone, as a draft of one step begins; the causal mode keeps its bits, so that the written text cannot change. Printed
and written: accepted tokens a round and kept tokens a pass and a second, before and after, on unseen problems, and
whether all token ids equal autoregression's, before and after. Times are interleaved, and worth nothing on a busy
machine. The same command goes on with a stopped measurement: texts and adapter are kept in --run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure_tuning import rows, tuned
from tqdm.auto import tqdm

import dgemma_core as dg
from dgemma_core.nano.families import TASKS, examples, training_example
from dgemma_evals.machine import environment
from dgemma_evals.saving import write_json

RUN = Path("runs/tuning/drafts")


def chosen(
    loaded: dg.Loaded, file: Path, count: int, batch: int, limit: int
) -> list[dict[str, Any]]:
    """Problems, and what the causal mode writes for them, kept in a file; texts cut at the limit are left out."""
    if file.exists():
        return rows(file)
    problems = [training_example(10**12 + i, tuple(TASKS)) for i in range(count)]
    found = []
    for first in tqdm(range(0, count, 256), desc="causal texts", disable=None):
        part = problems[first : first + 256]
        texts = dg.generate(
            loaded, [p.prompt for p in part], mode="autoregressive", batch_size=batch,
            max_new_tokens=limit,
        )  # fmt: skip
        found += [
            {"prompt": p.prompt, "completion": t.text}
            for p, t in zip(part, texts, strict=True)
            if t.stop_reason == "eos" and t.text
        ]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    part.replace(file)
    return found


def written(
    loaded: dg.Loaded, prompts: Sequence[str], mode: str, limit: int
) -> tuple[list[tuple[int, ...]], dict[str, float]]:
    """The ids of all texts, one at a time, and what they took."""
    begun = time.perf_counter()
    texts = [dg.generate(loaded, prompt, mode=mode, max_new_tokens=limit)[0] for prompt in prompts]
    seconds = time.perf_counter() - begun
    kept = sum(t.kept_tokens for t in texts)
    rounds = [accepted for t in texts for accepted in t.accepted]
    figures = {
        "kept": kept,
        "seconds": seconds,
        "tokens_per_second": kept / seconds,
        "tokens_per_pass": kept / sum(t.passes for t in texts),
        "accepted_per_round": statistics.mean(rounds) if rounds else 0.0,
    }
    return [t.ids for t in texts], figures


def main() -> None:
    """Tunes and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--train", type=int, default=4000, help="problems that the causal mode answers"
    )
    parser.add_argument("--test", type=int, default=10, help="unseen problems of each family")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--drafts", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--out", type=Path, default=Path("results/tuning/drafts.json"))
    arguments = parser.parse_args()
    nano, limit = dg.load("nano"), arguments.max_new_tokens
    texts = arguments.run / f"texts-{arguments.train}-{limit}.jsonl"
    done, seconds = tuned(
        chosen(nano, texts, arguments.train, 16, limit), arguments.run, minutes=arguments.minutes,
        modes="denoiser", noise=(1.0, 1.0), self_conditioning=0.0, drafts=tuple(arguments.drafts),
        max_steps=arguments.steps, batch_size=32,
    )  # fmt: skip
    adapted = dg.load("nano", adapter=done.folder)
    prompts = [p.prompt for name in TASKS for p in examples(name, "test", arguments.test)]
    wanted, _ = written(nano, prompts, "autoregressive", limit)
    runs: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for _ in range(arguments.repeats):
        for label, loaded in (("before", nano), ("after", adapted)):
            ids, figures = written(loaded, prompts, "speculative", limit)
            runs[label].append({**figures, "equal": ids == wanted})
    causal, _ = written(adapted, prompts, "autoregressive", limit)
    record = {
        "environment": environment(),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "steps": done.steps,
        "seconds": seconds,
        "causal_ids_equal": causal == wanted,
        **{
            label: {
                "ids_equal": all(run["equal"] for run in of_one),
                **{
                    name: statistics.median(run[name] for run in of_one)
                    for name in ("accepted_per_round", "tokens_per_pass", "tokens_per_second")
                },
            }
            for label, of_one in runs.items()
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, record)
    for label in ("before", "after"):
        print(label, record[label])
    print("the tuned model's causal texts are nano's:", record["causal_ids_equal"])


if __name__ == "__main__":
    main()
