"""Two runs side by side: what differs between them, and their scrubbers tied together."""

from __future__ import annotations

import itertools
from typing import Any

import ipywidgets

from dgemma_core.files.trace import Trace
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.canvas.frames import frame


def tokens_at(trace: Trace, step: int) -> dict[int, int]:
    """The draft at a step of a diffusion run: answer position → token, of all canvases that have a pass by then."""
    if step == 0:
        return {}
    return {
        cell.position: cell.token
        for canvas in frame(trace, step)
        for cell in canvas
        if cell.token is not None
    }


def difference(a: Trace, b: Trace) -> str:
    """Two runs in one line: since when they differ, in how much of the answer."""
    texts = [tokens_at(trace, len(trace)) for trace in (a, b)]
    kept = [len(trace.ids) for trace in (a, b)]
    longest = max(kept)
    same = sum(
        texts[0].get(at) == texts[1].get(at)
        for at in range(longest)
        if at < kept[0] and at < kept[1]
    )
    first = next(
        (r for r in range(min(len(a), len(b))) if not _same_pass(a, b, r)), min(len(a), len(b))
    )
    if first == len(a) == len(b):
        return "the same run, pass by pass"
    since = f"alike for {first} passes" if first else "different from the first pass on"
    return f"{since}; {same} of {longest} tokens of the answer are equal; {a.passes} against {b.passes} passes"


def _same_pass(a: Trace, b: Trace, r: int) -> bool:
    def row(trace: Trace) -> tuple[Any, ...]:
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        return trace.canvas[r], trace.tokens_in[cut].tobytes(), trace.tokens_out[cut].tobytes()

    return row(a) == row(b)


def linked(*canvases: Canvas) -> list[Any]:
    """Ties the scrubbers of several canvases together, in the browser; call `.unlink()` on each to let go."""
    return [
        ipywidgets.jslink((one, "step"), (two, "step")) for one, two in itertools.pairwise(canvases)
    ]
