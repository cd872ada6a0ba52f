"""The README's moving picture: `python -m scripts.moving_picture` writes docs/site/pictures/run-light.gif
and run-dark.gif.

It is the lab's own animation of one run, as `Canvas.to_gif` makes it: of the seeds tried, the right answer that took
most steps, so that there is something to see. It is not a typical run.
"""

from __future__ import annotations

from pathlib import Path

import dgemma_core as dg
from dgemma_core.nano.families import examples, family
from dgemma_lab import record
from dgemma_lab.canvas import pictures

PICTURES = Path(__file__).parents[1] / "docs" / "site" / "pictures"
PROBLEM = examples("word_sorting", count=3)[-1]
SEEDS = range(16)
ON_DARK = pictures.Inks(
    (13, 17, 23, 255), (230, 237, 243, 255), (145, 152, 161, 255), (110, 118, 129, 255), (48, 54, 61, 255),
    (22, 27, 34, 255),
)  # fmt: skip
"""The lab's pictures move on white; these are the colours of a dark page."""


def main() -> None:
    print(PROBLEM.prompt)
    nano = dg.load("nano")
    answers = dg.generate(nano, [PROBLEM.prompt] * len(SEEDS), seed=SEEDS[0], batch_size=len(SEEDS))
    right = [family(PROBLEM.family).solved(PROBLEM.entry, answer.text) for answer in answers]
    steps = [answer.denoising_steps * solved for answer, solved in zip(answers, right, strict=True)]
    seed = SEEDS[steps.index(max(steps))]
    trace = record(nano, PROBLEM.prompt, seed=seed, observe=dg.Observe(top_k=5))
    for name, inks in (("light", pictures.ON_WHITE), ("dark", ON_DARK)):
        file = PICTURES / f"run-{name}.gif"
        path = pictures.animate(trace, file, "GIF", seconds_a_step=0.6, inks=inks)
        print(f"{path.name}: seed {seed}, {max(steps)} steps, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
