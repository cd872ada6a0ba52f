"""What each place of a canvas shows at a step, and in which colour: what stills, pictures and the canvas widget share.

`frame` agrees with `Run.cell` in run.js; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import AFTER_EOS, NOISE, PINNED, Trace
from dgemma_lab.frontend.text import visible

# The colours of colour.js, unsure to sure.
RAMP = np.array(
    [
        (24, 52, 97), (52, 84, 125), (88, 116, 148), (128, 148, 163), (168, 178, 170),
        (203, 203, 168), (230, 221, 160), (250, 236, 152),
    ]
)  # fmt: skip

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Cell:
    """What one place shows at one frame."""

    position: int  # in the answer
    token: int | None  # None: not written yet
    state: int  # index into STATES
    shade: float | None  # place on the ramp, 0 … 1; None where there is no value yet


def frame(
    trace: Trace, step: int, show: str = "draft", colour_by: str = "confidence"
) -> list[list[Cell]]:
    """Each canvas's cells after `step` passes; 0 is the first canvas's noise.

    `show` is "draft" (accepted tokens, best guesses elsewhere) or "canvas" (what the model sees
    next, noise included).
    In autoregression the answer is one canvas that grows by a cell a pass.
    """
    if not 0 <= step <= len(trace):
        raise DgemmaError(f"the trace has steps 0 to {len(trace)}, not {step}")
    if len(trace) == 0:
        return []
    shades, states, positions = _shades(trace, colour_by), trace.states(), trace.positions()
    if trace.token_by_token:
        return [
            [
                Cell(int(positions[r]), int(trace.tokens_out[r]), int(states[r]), shades[r])
                if r < step
                else Cell(int(positions[r]), None, NOISE, None)
                for r in range(len(trace))
            ]
        ]
    canvases = []
    for canvas in dict.fromkeys(trace.canvas.tolist()):
        passes = trace.passes_of(canvas)
        start = int(trace.offsets[passes.start])
        first = positions[start : trace.offsets[passes.start + 1]].tolist()
        done = min(step - passes.start, len(passes))
        if done <= 0:
            begins = step == 0 and passes.start == 0
            noise = trace.tokens_in[: len(first)].tolist() if begins else [None] * len(first)
            pins = trace.pinned[: len(first)]
            canvases.append(
                [
                    Cell(position, noise[i], PINNED if begins and pins[i] else NOISE, None)
                    for i, position in enumerate(first)
                ]
            )
            continue
        r = passes.start + done - 1
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        tokens = np.where(
            (trace.accepted[cut] | trace.pinned[cut]) | (show == "canvas"),
            trace.tokens_out[cut],
            trace.argmax[cut],
        )
        if step > passes.stop or (trace.decided()[r] and show == "draft"):
            tokens = trace.argmax[cut]  # committed, or about to be
        row = shades[cut]
        if colour_by == "settled":
            settled = trace.settled_step()[canvas] - trace.step[passes.start]
            row = [shade if done > when else None for shade, when in zip(row, settled, strict=True)]
        canvases.append(
            [
                Cell(position, int(tokens[i]), int(states[cut][i]), row[i])
                for i, position in enumerate(first)
            ]
        )
    return canvases


def against(trace: Trace, name: str) -> dict[str, Any]:
    """What a canvas needs to mark differences from this run: its tokens by frame and answer position (−1: none)."""
    frames = [
        [
            -1 if cell.token is None else cell.token
            for canvas in frame(trace, step)
            for cell in canvas
        ]
        for step in range(len(trace) + 1)
    ]
    occurring = {token for row in frames for token in row if token >= 0}
    texts = {token: visible(trace.text(token), LONGEST) for token in sorted(occurring)}
    return {"name": name, "frames": frames, "texts": texts}


def line_starts(trace: Trace) -> set[int]:
    """Answer positions that begin a line of the final text, where it has several; as `Run.lineStarts` in run.js.

    They stand behind a line break, unless nothing but another one stands there; and where there is one the first
    position behind the end begins a line, too.
    """
    cells = [
        cell for canvas in frame(trace, len(trace)) for cell in canvas if cell.token is not None
    ]
    eos = trace.eos_ids()
    kept = [cell for cell in cells if cell.state != AFTER_EOS and cell.token not in eos]
    texts = [trace.text(cell.token) for cell in kept if cell.token is not None]
    starts = {
        kept[at].position
        for at in range(1, len(kept))
        if texts[at - 1].endswith("\n") and texts[at] != "\n"
    }
    end = next((cell.position for cell in cells if cell.token in eos), None)
    return starts | {end + 1} if starts and end is not None else starts


def _shades(trace: Trace, colour_by: str) -> list[float | None]:
    """(n,) place on the ramp of every recorded position: bright is sure, or settled early."""
    if colour_by == "confidence":
        return list(trace.probability.astype(float))
    if colour_by == "entropy":
        highest = max(float(trace.entropy.max()), 1.0 / 255**2)
        return list(1 - np.sqrt(np.clip(trace.entropy / highest, 0, 1)))
    if colour_by != "settled":
        raise DgemmaError(f"colour_by is confidence, entropy or settled, not {colour_by!r}")
    shades: list[float | None] = []
    settled = trace.settled_step()
    if trace.token_by_token:
        return [1 - r / max(1, len(trace) - 1) for r in range(len(trace))]
    for r in range(len(trace)):
        passes = trace.passes_of(int(trace.canvas[r]))
        when = settled[int(trace.canvas[r])] - trace.step[passes.start]
        shades += list(1 - when / max(1, len(passes) - 1))
    return shades


def ramp(shade: float) -> Colour:
    """A colour of the ramp, 0 … 1."""
    place = min(max(shade, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    r, g, b = np.rint(RAMP[low] + (RAMP[low + 1] - RAMP[low]) * (place - low)).astype(int).tolist()
    return r, g, b


def ink(rgb: Colour) -> Colour:
    """Black or white, whichever stands out more on it: at least 4.58 : 1 (WCAG 2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


LONGEST = 12  # characters of a token that a cell shows whole
SMALLEST = 0.62  # of the usual size of letters


def column_width(trace: Trace) -> int:
    """Width of all cells, in characters, so that tokens can be read in every frame; as `cellWidth` in cells.js.

    Nine in ten cells fit at the usual size of letters, and the longest token at the smallest.
    """
    begin = trace.tokens_in[: trace.offsets[1]] if len(trace) else trace.tokens_in
    tokens, counts = np.unique(
        np.concatenate([begin, trace.tokens_out, trace.argmax]), return_counts=True
    )
    if not len(tokens):
        return 7
    lengths = np.array([min(len(visible(trace.text(t))), LONGEST) for t in tokens.tolist()])
    order = np.argsort(lengths, kind="stable")
    seen = np.cumsum(counts[order])
    most = lengths[order][np.searchsorted(seen, 0.9 * seen[-1])]
    return int(np.clip(max(most, np.ceil(SMALLEST * lengths.max())), 3, 8))


def fit(length: int, width: int) -> float:
    """Size of a text of `length` characters in a cell, 0.62 … 1 of the usual."""
    return min(1.0, max(SMALLEST, width / max(length, 1)))
