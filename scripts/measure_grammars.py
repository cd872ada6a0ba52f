"""Measures what a grammar does to nano's answers: the same problems written freely and held to their family's grammar.

    python -m scripts.measure_grammars --out results/constraints [--count 100] [--family json …]

Of each family: how many of the right answers its grammar holds (all, or the family is refused), the share of free
answers that it holds, problems solved freely and held to it, with their paired difference and its 95 % interval, and
denoising steps a canvas. Figures are written to DIR/grammars.json as each family is done; the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import dgemma_core as dg
from dgemma_core import Constraint
from dgemma_core.constraints.examples import examined
from dgemma_core.errors import RequestError
from dgemma_core.nano.families import TASKS, examples, family
from dgemma_core.nano.grammars import GRAMMARS
from dgemma_evals.comparison.stats import mean_difference, paired_bootstrap
from dgemma_evals.machine import environment
from dgemma_evals.page import markdown_table
from dgemma_evals.saving import resumed, write_json


def measured(loaded: dg.Loaded, name: str, count: int, mode: str, batch: int) -> dict[str, Any]:
    """One family, by one mode. Raises RequestError for a grammar that turns a right answer down."""
    problems, own = examples(name, "test", count), family(name)
    constraint = Constraint.regex(GRAMMARS[name])
    turned_down = [
        verdict.reason
        for verdict in examined(constraint, [p.answer for p in problems], loaded)
        if not (verdict.accepted and verdict.spelled)
    ]
    if turned_down:
        raise RequestError(f"the grammar of {name} turns right answers down: {turned_down[0]}")
    prompts = [p.prompt for p in problems]
    ways = {
        way: dg.generate(loaded, prompts, mode=mode, batch_size=batch, constraint=held)
        for way, held in (("free", None), ("held", constraint))
    }
    solved = {
        way: [bool(own.solved(p.entry, t.text)) for p, t in zip(problems, texts, strict=True)]
        for way, texts in ways.items()
    }
    change = paired_bootstrap([solved["held"], solved["free"]], mean_difference)
    valid = [v.accepted for v in examined(constraint, [t.text for t in ways["free"]])]
    return {
        "problems": len(problems),
        "valid_free": sum(valid) / len(valid),
        "solved": {way: sum(verdicts) / len(verdicts) for way, verdicts in solved.items()},
        "change": [change.estimate, change.low, change.high],
        "passes_a_text": {
            way: sum(t.passes for t in texts) / len(texts) for way, texts in ways.items()
        },
        "steps_a_canvas": {
            way: sum(t.denoising_steps for t in texts) / sum(t.canvases for t in texts)
            for way, texts in ways.items()
            if mode == "diffusion"
        },
    }


def table(families: dict[str, Any], mode: str) -> str:
    """Markdown, a family a line."""
    lines = []
    for name, of_modes in families.items():
        found = of_modes[mode]
        change = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in found["change"]))
        spent = found["steps_a_canvas"] or found["passes_a_text"]
        lines.append(
            (name, str(found["problems"]), f"{100 * found['valid_free']:.1f}",
             f"{100 * found['solved']['free']:.1f} → {100 * found['solved']['held']:.1f}", change,
             f"{spent['free']:.2f} → {spent['held']:.2f}")
        )  # fmt: skip
    counted = "steps a canvas" if mode == "diffusion" else "passes a text"
    head = ("family", "problems", "valid without it, %", "solved, %", "points", counted)
    return markdown_table(head, lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="test problems of a family")
    parser.add_argument("--family", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--modes", nargs="+", default=["diffusion", "autoregressive"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("results/constraints"))
    options = parser.parse_args()
    file = options.out / "grammars.json"
    settings = {"count": options.count, "batch_size": options.batch_size}
    record = resumed(file, {"settings": settings, "environment": environment(), "families": {}})
    loaded = dg.load("nano")
    for name in options.family:
        known = record["families"].setdefault(name, {})
        for mode in options.modes:
            if mode not in known:
                known[mode] = measured(loaded, name, options.count, mode, options.batch_size)
                print(name, mode, known[mode], flush=True)
                write_json(file, record)
    for mode in options.modes:
        done = {name: found for name, found in record["families"].items() if mode in found}
        print(f"\n{mode}\n\n{table(done, mode)}")


if __name__ == "__main__":
    main()
