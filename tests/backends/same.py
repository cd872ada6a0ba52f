"""Two runs of the product's loops with the same draws: equal, or parted at a near-tie.

Where two runs first differ, the logits of both are computed again from their own states. They must lie close together,
and that distance must explain every difference of the step (tests/oracle/ties.py). Or the first step whose logits lie
apart is one where a router chose other experts between which it was undecided: rounding alone moves logits far then.

Axes: C canvas length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.events import Event, FinishEvent, StepEvent, TokenEvent
from dgemma_core.model import DiffusionGemma, Watch
from dgemma_core.observe import Observe, Watcher
from tests.oracle.record import Knobs
from tests.oracle.ties import LOGITS, RowStep, differences, mistakes_from_uniforms


@dataclass(frozen=True)
class Run:
    """One text, written by a model: its events."""

    model: DiffusionGemma
    events: list[Any]

    @classmethod
    def of_each(cls, model: DiffusionGemma, events: Sequence[Event]) -> dict[Any, Run]:
        """Request → its run."""
        runs: dict[Any, Run] = {}
        for event in events:
            runs.setdefault(event.request, cls(model, [])).events.append(event)
        return runs

    @property
    def steps(self) -> list[StepEvent]:
        return [event for event in self.events if isinstance(event, StepEvent)]

    @property
    def tokens(self) -> list[TokenEvent]:
        return [event for event in self.events if isinstance(event, TokenEvent)]

    @property
    def end(self) -> FinishEvent:
        (event,) = (event for event in self.events if isinstance(event, FinishEvent))
        return event

    def logits(self, index: int, watch: Watch | None = None) -> Tensor:
        """(C, V) float32 of step number `index`, divided by its temperature."""
        step = self.steps[index]
        soft = self.steps[index - 1].state.soft_embedding if step.step else None
        hidden = self.model.denoise(
            step.tokens_in.unsqueeze(0),
            step.state.cache,
            None if soft is None else soft.unsqueeze(0),
            watch=watch,
        )
        return self.model.logits(hidden[0]) / step.temperature


def done(step: StepEvent) -> RowStep:
    return RowStep(step.tokens_out, step.sample, step.argmax, step.accepted, step.finished)


@dataclass(frozen=True)
class Outcome:
    """Where two runs first differ (None: nowhere), and what of it no near-tie explains."""

    differ_at: str | None = None
    mistakes: tuple[str, ...] = ()


UNDECIDED = 1e-5
"""Probabilities of two experts between which rounding decides; logits that agree move them by some 1e-6."""


def undecided_router(ours: Run, theirs: Run, last: int, most_noise: float) -> bool:
    """Whether, in the first step up to `last` whose logits lie apart, a router's near-tie was decided otherwise, in the
    first layer that chose other experts."""
    for index in range(last + 1):
        our, their = (Watcher(Observe(router=True), [], 0) for _ in range(2))
        apart = (ours.logits(index, our) - theirs.logits(index, their)).abs().max()
        if apart * theirs.steps[index].temperature <= most_noise:
            continue
        for mine, other in zip(our.routings, their.routings, strict=True):
            flipped = (mine.chosen.sort(-1).values != other.chosen.sort(-1).values).any(-1)
            if flipped.any():
                count = other.chosen.shape[-1]
                best = other.probabilities.sort(-1, descending=True).values[flipped]
                return bool((best[:, count - 1] - best[:, count] < UNDECIDED).all())
        return False
    return False


def compare(ours: Run, theirs: Run, knobs: Knobs, most_noise: float) -> Outcome:
    """Diffusion, step by step. most_noise: raw logits at which rounding may have arrived at the first difference."""
    for index, (our, their) in enumerate(zip(ours.steps, theirs.steps, strict=False)):
        assert (our.canvas, our.step) == (their.canvas, their.step)
        assert torch.equal(our.tokens_in, their.tokens_in)
        names = differences(done(our), done(their))
        if names:
            where = f"canvas {our.canvas}, step {our.step}: {', '.join(names)}"
            logits = theirs.logits(index)
            noise = float((ours.logits(index) - logits).abs().max()) * their.temperature
            if noise > most_noise:
                if undecided_router(ours, theirs, index, most_noise):
                    return Outcome(f"{where}, after a router's near-tie")
                return Outcome(where, (f"logits differ by {noise:.2e}",))
            key = RowKey(their.state.seed, their.canvas)
            uniform = CounterDraws().step([key], [their.step], len(their.argmax)).uniform[0]
            wrong = mistakes_from_uniforms(
                done(our), done(their), logits, uniform, their.temperature, knobs,
                max(LOGITS, 2 * noise),
            )  # fmt: skip
            return Outcome(where, tuple(wrong))
    return _ends(ours, theirs)


ENDS = ("ids", "stop_reason", "canvases", "denoising_steps", "passes")


def compare_tokens(ours: Run, theirs: Run, ends: Sequence[str] = ENDS) -> Outcome:
    """Greedy texts of the causal modes, token by token; `ends`: what both count alike."""
    for our, their in zip(ours.tokens, theirs.tokens, strict=False):
        if our.token != their.token:
            where = f"token {our.index}"
            logits = theirs.model.logits(their.state.hidden)
            noise = (ours.model.logits(our.state.hidden) - logits).abs().max()
            gap = float(logits[their.token] - logits[our.token])
            tie = noise < 1e-3 and gap <= 2 * max(LOGITS, float(noise))
            return Outcome(where, () if tie else (f"{gap:.2e} below the best",))
    return _ends(ours, theirs, ends)


def _ends(ours: Run, theirs: Run, fields: Sequence[str] = ENDS) -> Outcome:
    wrong = [name for name in fields if getattr(ours.end, name) != getattr(theirs.end, name)]
    return Outcome("the end", tuple(wrong)) if wrong else Outcome()
