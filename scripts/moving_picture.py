"""The README's moving picture: `python -m scripts.moving_picture` writes docs/site/pictures/run-light.gif
and run-dark.gif.

It is the lab's own animation of one run, as `Canvas.to_gif` makes it: of unseen requests for a story, the first one
whose text by diffusion the verifier accepts. The sampler's settings are the released model's, at which more of the
denoising is to be seen than at nano-talk's own, which are made for few steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dgemma_core as dg
from dgemma_core.diffusion import RELEASED_RULE
from dgemma_core.nano.english import kinds
from dgemma_core.samplers import EntropyBound
from dgemma_lab import record
from dgemma_lab.canvas import pictures

PICTURES = Path(__file__).parents[1] / "docs" / "site" / "pictures"
REQUESTS = kinds.examples("story", "test_slots", 8)
SEED = 0
RELEASED: dict[str, Any] = {"sampler": EntropyBound(), "stop_rule": RELEASED_RULE}
ON_DARK = pictures.Inks(
    (13, 17, 23, 255), (230, 237, 243, 255), (145, 152, 161, 255), (110, 118, 129, 255), (48, 54, 61, 255),
    (22, 27, 34, 255),
)  # fmt: skip
"""The lab's pictures move on white; these are the colours of a dark page."""


def main() -> None:
    talk = dg.load("nano-talk")
    answers = dg.generate(
        talk, [each.messages for each in REQUESTS], seed=SEED, batch_size=8, **RELEASED
    )
    accepted = [
        kinds.accepts(*pair) for pair in zip(REQUESTS, [a.text for a in answers], strict=True)
    ]
    place = accepted.index(True)
    prompt, seed = REQUESTS[place].prompt, answers[place].seed
    trace = record(talk, prompt, seed=seed, observe=dg.Observe(top_k=5), **RELEASED)
    print(
        f"{sum(accepted)} of {len(REQUESTS)} accepted; number {place}: {prompt}\n{answers[place].text}"
    )
    for name, inks in (("light", pictures.ON_WHITE), ("dark", ON_DARK)):
        file = PICTURES / f"run-{name}.gif"
        path = pictures.animate(trace, file, "GIF", seconds_a_step=0.3, inks=inks)
        print(f"{path.name}: {len(trace)} steps, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
