"""Measures whether one set of weights can choose between its own two answers.

    python -m scripts.measure_minds [--model nano] [--count 200] [--bound 16] [--out results/minds/measured.json]

Every problem of nano's families is written by diffusion and by speculative decoding, whose text is autoregression's.
Then the text is kept that the weights find more likely: by the exact likelihood of the causal mode, and, beside it, by
the denoiser's bound on its own. This is a mode of its own and never lossless: it costs both texts and the scoring.
Reported are the documents that each mode solves, that only one of them solves, and that the chosen text solves, with
paired intervals. Problems are of the validation seeds unless `--split test`.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import dgemma_core as dg
from dgemma_core.files.finding import find_folder
from dgemma_core.generation.likelihood import causal_logprobs
from dgemma_core.nano.families import TASKS, Example, examples, family
from dgemma_evals.comparison.stats import mean_difference, paired_bootstrap
from dgemma_evals.harness.likelihood import nelbo
from dgemma_evals.hashes import fingerprint
from dgemma_evals.machine import environment
from dgemma_evals.saving import resumed, write_json

CHOICES = ("diffusion", "speculative", "by likelihood", "by the bound", "either")


def judged(
    loaded: dg.Loaded,
    problem: Example,
    texts: dict[str, dg.Generation],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The verdicts on both texts, and on the one that each score prefers."""
    solved = {
        mode: bool(family(problem.family).solved(problem.entry, text.text))
        for mode, text in texts.items()
    }
    row: dict[str, Any] = {**solved, "either": any(solved.values())}
    prompt, end = dg.prompt_ids(loaded, problem.prompt), loaded.model.config.eos_token_ids[-1]
    ids = {mode: list(text.ids) for mode, text in texts.items()}
    same = ids["diffusion"] == ids["speculative"]
    passes = {mode: text.passes for mode, text in texts.items()}
    row |= {"same": same, "passes": sum(passes.values()) + (0 if same else 2)}
    if same:
        return {**row, "by likelihood": solved["diffusion"], "by the bound": solved["diffusion"]}
    exact = dict(
        zip(
            ids,
            causal_logprobs(loaded.model, [(prompt, each) for each in ids.values()]),
            strict=True,
        )
    )
    row["by likelihood"] = solved[max(ids, key=lambda mode: exact[mode].total)]
    if arguments.bound:
        bounds = {
            mode: nelbo(
                loaded.model, prompt, [i for i in each if i not in loaded.model.config.eos_token_ids],
                end=end, samples=arguments.bound, seed=arguments.seed,
            ).nats
            for mode, each in ids.items()
        }  # fmt: skip
        row["by the bound"] = solved[min(ids, key=lambda mode: bounds[mode])]
    return row


def measured(loaded: dg.Loaded, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each problem of a family."""
    problems = examples(name, arguments.split, arguments.count)
    texts = {
        mode: dg.generate(
            loaded, [problem.prompt for problem in problems], mode=mode, seed=arguments.seed,
            batch_size=arguments.batch, max_new_tokens=arguments.max_new_tokens,
        )
        for mode in ("diffusion", "speculative")
    }  # fmt: skip
    return [
        judged(loaded, problem, {mode: found[i] for mode, found in texts.items()}, arguments)
        for i, problem in enumerate(problems)
    ]


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Shares solved, a family a line, and the differences of the chosen text to each mode."""
    shown = [choice for choice in CHOICES if choice in next(iter(rows.values()))[0]]
    lines = [f"| family | {' | '.join(shown)} | texts equal | only diffusion | only causal |",
             "|---" * (len(shown) + 4) + "|"]  # fmt: skip

    def share(members: list[dict[str, Any]], choice: str) -> str:
        return f"{100 * statistics.mean(row[choice] for row in members):.1f} %"

    every = [row for members in rows.values() for row in members]
    for name, members in (*rows.items(), ("all", every)):
        only = [
            sum(row[a] and not row[b] for row in members)
            for a, b in (("diffusion", "speculative"), ("speculative", "diffusion"))
        ]
        cells = [
            *(share(members, choice) for choice in shown),
            share(members, "same"),
            *map(str, only),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    strata = [name for name, members in rows.items() for _ in members]
    for chosen in shown[2:-1]:
        for mode in ("diffusion", "speculative"):
            pair = [[float(row[which]) for row in every] for which in (chosen, mode)]
            found = paired_bootstrap(pair, mean_difference, strata=strata)
            low, middle, high = (100 * x for x in (found.low, found.estimate, found.high))
            lines.append(
                f"\n{chosen} against {mode}: {middle:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--split", choices=("test", "validation"), default="validation")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--bound", type=int, default=16, help="noise levels a canvas; 0: no bound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--families", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("results/minds/measured.json"))
    arguments = parser.parse_args()
    loaded = dg.load(arguments.model, dtype="float32")
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "out"}
    settings["weights"] = fingerprint(find_folder(arguments.model))
    record = resumed(
        arguments.out, {"settings": settings, "environment": environment(), "families": {}}
    )
    for name in tqdm(arguments.families, desc="families", disable=None):
        if name not in record["families"]:
            record["families"][name] = measured(loaded, name, arguments)
            write_json(arguments.out, record)
    print(table(record["families"]))


if __name__ == "__main__":
    main()
