"""Edits of a run: pin, replace or blank tokens, branch from any step. Pure functions of a trace.

An edit never changes a run: it makes another one, that starts from a state of the first. What the edits mean:
- *pin*, *replace*: the position holds this token (replace: these tokens) from here on, and all others make up their
  minds around it. On a canvas that has passes left the run continues from the step in view; on one that is over, and
  for a position of an earlier canvas, that canvas is written anew with the pin in place.
- *unpin*: the same with the position set free.
- *blank*: infill. The canvas is written anew; everything outside the span stays as it is in view.
- *branch*: continues from the step in view with another seed, or with another sampler.

Where the run has a constraint, all of this holds within its language: pins are conditions as the constraint is, and an
edit that leaves no text of it is refused (`Steering.apply`).

Positions are answer positions: canvas · C + place. A frame is a number of passes, 0 being the first canvas's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgemma_core.errors import RequestError, check_kind, whole_number
from dgemma_core.files.trace import Trace
from dgemma_core.samplers import Sampler, describe
from dgemma_lab.canvas.compare import tokens_at
from dgemma_lab.frontend.text import visible
from dgemma_lab.given import check_trace, whole_numbers


@dataclass(frozen=True)
class Edit:
    """What to do differently, from a frame on.

    canvas: the first canvas that is written under the edit. pins: all that hold there and after it (answer position →
    token). seed and sampler: None keeps the run's own.
    """

    frame: int
    canvas: int
    pins: Mapping[int, int] = field(default_factory=dict)
    seed: int | None = None
    sampler: Sampler | None = None
    words: str = ""  # for the tree; where empty, `described` finds them


def hold(
    trace: Trace, frame: int, position: int, tokens: Sequence[int], pins: Mapping[int, int]
) -> Edit:
    """Pins `tokens` from `position` on; `pins` are those that the run has already."""
    check_kind("pins", pins, Mapping, "positions with the token that each holds")
    position, found = whole_number("position", position), whole_numbers("tokens", tokens)
    held = {**pins, **{position + i: token for i, token in enumerate(found)}}
    return Edit(*_open(trace, frame, position), held)


def release(trace: Trace, frame: int, position: int, pins: Mapping[int, int]) -> Edit:
    """Sets a pinned position free."""
    check_kind("pins", pins, Mapping, "positions with the token that each holds")
    position = whole_number("position", position)
    if position not in pins:
        raise RequestError(f"position {position} is not pinned: nothing to set free")
    held = {at: token for at, token in pins.items() if at != position}
    return Edit(*_open(trace, frame, position), held)


def blank(trace: Trace, frame: int, start: int, stop: int) -> Edit:
    """Infill: positions start … stop − 1 are written anew, all others stay as frame `frame` shows them."""
    frame = _frame(trace, frame)
    start, stop = whole_number("start", start), whole_number("stop", stop)
    shown = tokens_at(trace, frame)
    if not start < stop or start not in shown or stop - 1 not in shown:
        raise RequestError(
            f"positions {start} to {stop - 1} are not all on the canvas at step {frame}: mark some"
        )
    canvas = start // trace.canvas_length
    first = canvas * trace.canvas_length
    held = {at: token for at, token in shown.items() if first <= at and not start <= at < stop}
    words = f"step {frame}: blank {_span(start, stop)}"
    return Edit(trace.passes_of(canvas).start, canvas, held, words=words)


def another(trace: Trace, frame: int, pins: Mapping[int, int], **changes: Any) -> Edit:
    """Continues from a frame with another seed, or another sampler (`seed=`, `sampler=`)."""
    frame = _frame(trace, frame)
    if frame >= len(trace) and _over(trace, frame, int(trace.canvas[-1])):
        raise RequestError("the run is over at this step: go back to an earlier one to branch from")
    canvas = int(trace.canvas[min(frame, len(trace) - 1)])
    return Edit(frame, canvas, pins, **changes)


def described(edit: Edit, before: Mapping[int, int], text: Callable[[int], str]) -> str:
    """An edit in words, for the tree: its own, or what sets it apart from a run that held the pins `before`.

    text: of a token; the one that is pinned need not occur in the run.
    """
    if edit.words:
        return edit.words
    new = {at: token for at, token in edit.pins.items() if before.get(at) != token}
    parts = []
    for start, stop in _stretches(new):
        tokens = "".join(text(new[at]) for at in range(start, stop))
        parts.append(f"pin {_span(start, stop)} = “{visible(tokens)}”")
    parts += [f"unpin {_span(*span)}" for span in _stretches(before.keys() - edit.pins.keys())]
    if edit.sampler is not None:
        parts.append(f"sampler {describe(edit.sampler)['name']}")
    if edit.seed is not None:
        parts.append(f"seed {edit.seed}")
    return f"step {edit.frame}: {', '.join(parts) or 'the same again'}"


def _stretches(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Positions as stretches without a gap: [(start, stop)], stop exclusive."""
    found: list[tuple[int, int]] = []
    for at in sorted(positions):
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return found


def _span(start: int, stop: int) -> str:
    return f"{start}" if stop - start == 1 else f"{start}–{stop - 1}"


def _open(trace: Trace, frame: int, position: int) -> tuple[int, int]:
    """Frame and canvas to go on from so that `position` is undecided: this frame, or its canvas's start."""
    frame = _frame(trace, frame)
    canvas = position // trace.canvas_length
    passes = trace.passes_of(canvas)
    started = passes.start <= frame and not _over(trace, frame, canvas)
    return (frame if started else passes.start), canvas


def _frame(trace: Trace, frame: int) -> int:
    """A frame of the trace; RequestError where it has none of this number."""
    check_trace(trace)
    return whole_number("frame", frame, high=len(trace))


def _over(trace: Trace, frame: int, canvas: int) -> bool:
    """Whether no pass over this canvas is left at a frame: it converged, or its schedule ended."""
    last = trace.passes_of(canvas).stop - 1
    return frame > last and bool(trace.finished[last] or trace.step[last] + 1 == trace.steps)
