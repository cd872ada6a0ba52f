"""What a written text cost, counted from the events of its run.

The rules (they are those of the loops): the end-of-sequence token is kept, for it cost a pass; a
stop string, what follows the end, and what exceeds the limit are not. passes = prefill + denoising
steps + commits, or prefill + further tokens; one of speculation may verify a draft and take the next one's
first denoising step. A thought is kept: it was written, and paid for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from dgemma_core import (
    CanvasEvent,
    DgemmaError,
    DraftEvent,
    FinishEvent,
    PromptEvent,
    StepEvent,
    TokenEvent,
)
from dgemma_core.events import Event, Mode


@dataclass(frozen=True)
class Counts:
    """One text. Fields that a source cannot know (a server's passes) are None.

    steps_per_canvas: denoising steps of each canvas, in order. positions: canvas positions that
    were denoised and committed. accepted: drafted tokens that each round of speculation accepted.
    milestones: (kept tokens so far, seconds), one a canvas or one a token. Seconds run from the
    request's joining the batch; `seconds` is to the end of the text. cut_tokens: of the prompt's beginning, which did
    not fit.
    """

    mode: str
    prompt_tokens: int | None
    kept_tokens: int
    passes: int | None
    denoising_steps: int | None
    steps_per_canvas: tuple[int, ...]
    converged: tuple[bool, ...]
    positions: int
    prompt_seconds: float | None
    seconds: float
    milestones: tuple[tuple[int, float], ...]
    stop_reason: str
    accepted: tuple[int, ...] = ()
    cut_tokens: int = 0

    @property
    def wasted_fraction(self) -> float | None:
        """The share of denoised canvas positions that hold no kept token; None without canvases."""
        return 1 - self.kept_tokens / self.positions if self.positions else None

    @property
    def tokens_per_forward(self) -> float | None:
        """Kept tokens for each denoising step; in the other modes for each pass."""
        forwards = self.denoising_steps if self.positions else self.passes
        return self.kept_tokens / forwards if forwards else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Kept tokens for each pass of any kind."""
        return self.kept_tokens / self.passes if self.passes else None

    @property
    def first_seconds(self) -> float | None:
        """To the first canvas, or the first token."""
        return self.milestones[0][1] if self.milestones else None

    def seconds_to(self, tokens: int) -> float | None:
        """Until `tokens` tokens were there; None if the text never had as many."""
        return next((seconds for kept, seconds in self.milestones if kept >= tokens), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes an equal object; for readers also the waste."""
        return {**asdict(self), "wasted_fraction": self.wasted_fraction}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counts:
        """Raises DgemmaError where a field is missing, or is none."""
        if not isinstance(values, dict):
            raise DgemmaError("no counts")
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if needed - values.keys():
            raise DgemmaError(f"no counts: {', '.join(sorted(needed - values.keys()))} is missing")
        given = {name: values[name] for name in names & values.keys()}
        if not isinstance(given["kept_tokens"], int) or not isinstance(given["seconds"], float):
            raise DgemmaError("no counts: kept_tokens and seconds must be numbers")
        given["milestones"] = tuple((int(kept), float(at)) for kept, at in given["milestones"])
        given["steps_per_canvas"] = tuple(given["steps_per_canvas"])
        given["converged"] = tuple(given["converged"])
        given["accepted"] = tuple(given.get("accepted", ()))
        return cls(**given)


class Counter:
    """Listens to a stream of one mode's events and counts each request; `pop` hands a finished one out."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._open: dict[Hashable, _Running] = {}
        self._done: dict[Hashable, Counts] = {}

    def __call__(self, event: Event) -> None:
        """Takes the next event of the stream."""
        match event:
            case PromptEvent():
                self._open[event.request] = _Running(len(event.ids), event.seconds)
            case StepEvent():
                self._open[event.request].step(event)
            case CanvasEvent():
                self._open[event.request].canvas(event)
            case TokenEvent():
                running = self._open[event.request]
                running.milestones.append((event.index + 1, event.seconds))
            case DraftEvent():
                self._open[event.request].accepted.append(event.accepted)
            case FinishEvent():
                self._done[event.request] = self._open.pop(event.request).counts(event, self._mode)

    def pop(self, request: Hashable) -> Counts:
        """The counts of a request whose FinishEvent has been seen."""
        return self._done.pop(request)


class _Running:
    def __init__(self, prompt_tokens: int, seconds: float) -> None:
        self.prompt_tokens = prompt_tokens
        self.prompt_seconds = seconds
        self.steps: list[int] = []
        self.converged: list[bool] = []
        self.positions = 0
        self.accepted: list[int] = []
        self.milestones: list[tuple[int, float]] = []

    def step(self, event: StepEvent) -> None:
        while len(self.steps) <= event.canvas:
            self.steps.append(0)
        self.steps[event.canvas] += 1

    def canvas(self, event: CanvasEvent) -> None:
        before = self.milestones[-1][0] if self.milestones else 0
        self.converged.append(event.converged)
        self.positions += len(event.ids)
        self.milestones.append((before + event.kept, event.seconds))

    def counts(self, event: FinishEvent, mode: Mode) -> Counts:
        kept = len(event.ids)
        # A stop string may begin in an earlier canvas or token, which shortens what was kept there.
        milestones = [(min(count, kept), at) for count, at in self.milestones]
        return Counts(
            mode=mode,
            prompt_tokens=self.prompt_tokens,
            kept_tokens=kept,
            passes=event.passes,
            denoising_steps=event.denoising_steps,
            steps_per_canvas=tuple(self.steps),
            converged=tuple(self.converged),
            positions=self.positions,
            prompt_seconds=self.prompt_seconds,
            seconds=event.seconds,
            milestones=tuple(milestones),
            stop_reason=event.stop_reason,
            accepted=tuple(self.accepted),
        )


def summary(counts: Sequence[Counts]) -> dict[str, Any]:
    """Totals and ratios of sums over many texts (a ratio of sums weighs every token alike)."""
    if not counts:
        return {"texts": 0}
    kept = sum(c.kept_tokens for c in counts)
    steps = [n for c in counts for n in c.steps_per_canvas]
    positions = sum(c.positions for c in counts)
    reasons = sorted({c.stop_reason for c in counts})
    found: dict[str, Any] = {
        "texts": len(counts),
        "kept_tokens": kept,
        "stop_reasons": {
            reason: sum(c.stop_reason == reason for c in counts) for reason in reasons
        },
        "seconds_per_text": sum(c.seconds for c in counts) / len(counts),
    }
    cut = [c.cut_tokens for c in counts if c.cut_tokens]
    if cut:
        found |= {"truncated_prompts": len(cut), "truncated_tokens": sum(cut)}
    if all(c.passes is not None for c in counts):
        passes = sum(c.passes or 0 for c in counts)
        forwards = sum(c.denoising_steps or 0 for c in counts if c.positions) or passes
        found |= {
            "passes": passes,
            "tokens_per_forward": kept / forwards,
            "tokens_per_pass": kept / passes,
        }
    if steps:
        found |= {
            "canvases": len(steps),
            "steps_per_canvas": sum(steps) / len(steps),
            "steps_histogram": histogram(steps),
            "converged_canvases": sum(sum(c.converged) for c in counts) / len(steps),
            "wasted_fraction": 1 - kept / positions,
        }
    rounds = [n for c in counts for n in c.accepted]
    if rounds:
        found |= acceptance(rounds)
    return found


def acceptance(rounds: Sequence[int]) -> dict[str, Any]:
    """How many rounds of speculation there were, and how many drafted tokens they accepted."""
    return {
        "rounds": len(rounds),
        "accepted_per_round": sum(rounds) / len(rounds),
        "accepted_histogram": histogram(rounds),
    }


def histogram(values: Iterable[int]) -> dict[int, int]:
    """How often each value occurs, in order of value."""
    table: dict[int, int] = {}
    for value in values:
        table[value] = table.get(value, 0) + 1
    return dict(sorted(table.items()))
