"""Times `generate` itself, beside the bare replay of the recorded pass: the rest is the loop's share.

The time of a step (or token) runs from the moment the last prompt of a batch is encoded to the end of its last text,
over the passes between. What the loop adds to a replay is in it: the sampler and the stop rule, copies into and out of
fixed buffers, events, and the host's waiting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dgemma_core.errors import RequestError
from dgemma_core.events import Event, FinishEvent, Mode, PromptEvent, StepEvent, TokenEvent
from dgemma_core.generation import generate
from dgemma_core.model import DiffusionGemma
from dgemma_evals.bench.gpu.card import timed
from dgemma_evals.bench.gpu.parts import fast
from dgemma_evals.bench.gpu.proof import without_ends

AIM = 0.05
"""The loop's share of a step that the project aims at, at most."""


class Stopwatch:
    """Hears the events of a run; `milliseconds` of each pass after the last prompt."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begun = self.ended = 0.0
        self.passes = 0
        self.early = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, PromptEvent):
            self.early += self.passes
            self.begun, self.passes = self._now(), 0
        elif isinstance(event, StepEvent) or (isinstance(event, TokenEvent) and event.index):
            self.passes += 1  # a text's first token comes from its prompt's pass
        elif isinstance(event, FinishEvent):
            self.ended = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def milliseconds(self, batch: int) -> float:
        """Of a pass over `batch` rows. Raises RequestError where rows did not run together."""
        if self.early or self.passes % batch:
            raise RequestError(f"{batch} texts were not written as one batch: nothing to time")
        return 1e3 * (self.ended - self.begun) / (self.passes / batch)


@dataclass(frozen=True)
class Timing:
    """One mode at one batch size: milliseconds of a pass within `generate`, and of its bare replay, a round each."""

    mode: Mode
    batch: int
    generate: list[float]
    replay: list[float]

    @property
    def share(self) -> float:
        """The loop's share of a pass within `generate`."""
        return 1 - statistics.median(self.replay) / statistics.median(self.generate)

    def record(self) -> dict[str, Any]:
        """As results hold it."""
        inside, bare = statistics.median(self.generate), statistics.median(self.replay)
        return {
            "mode": self.mode,
            "batch": self.batch,
            "median_ms": inside,
            "rounds_ms": self.generate,
            "replay_ms": bare,
            "replay_rounds_ms": self.replay,
            "loop_share": self.share,
            "aim": AIM,
        }


def timing(
    model: DiffusionGemma, mode: Mode, prompts: Sequence[list[int]], *, rounds: int, repeats: int, seed: int
) -> Timing:  # fmt: skip
    """`generate` and the bare replay in turn, `rounds` times after one to warm up, all prompts as one batch.

    repeats: denoising steps of one canvas, or further tokens, a round.
    """
    batch, device = len(prompts), model.device
    loaded = without_ends(model)
    settings: dict[str, Any] = {"mode": mode, "max_new_tokens": repeats + 1}
    if mode == "diffusion":
        settings = {
            "steps": repeats,
            "stop_rule": None,
            "max_new_tokens": model.config.canvas_length,
        }
    inside: list[float] = []
    bare: list[float] = []
    for turn in range(rounds + 1):
        watch = Stopwatch(device)
        generate(
            loaded, list(prompts), seed=seed, batch_size=batch, listen=watch, **settings
        )  # fmt: skip
        inside.append(watch.milliseconds(batch))
        bare += _replayed(model, mode, prompts, repeats, seed + turn)
    return Timing(mode, batch, inside[1:], bare[1:])


def _replayed(
    model: DiffusionGemma, mode: Mode, prompts: Sequence[list[int]], repeats: int, seed: int
) -> list[float]:
    """Milliseconds of the bare replay behind these prompts: one figure."""
    tokens = model.config.canvas_length if mode == "diffusion" else 1
    draws = torch.Generator().manual_seed(seed)
    shape = len(prompts), tokens
    ids = torch.randint(0, model.config.text.vocab_size, shape, generator=draws).to(model.device)
    soft = None
    if mode == "diffusion":
        soft = model.embed(ids.roll(1))  # any soft embedding takes as long
    step = fast(model).recorded(ids, model.encode(list(prompts)), soft)
    return timed(model.device, 1, repeats, step)
