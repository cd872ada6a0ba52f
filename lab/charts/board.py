"""Attention over a text that has lines, as a board has: drawn where the tokens stand.

attention_board(trace, step)                   # Observe(attention_positions=…)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dgemma_core.files.trace import Trace
from dgemma_lab import theme
from dgemma_lab.canvas.frames import ink, ramp
from dgemma_lab.charts.inside import observed_attention, seen
from dgemma_lab.frontend.text import visible
from dgemma_lab.theme import Figure

WIDEST, NARROWEST = 16, 5
"""Tokens of a line; longer lines go on in the next."""
PANEL, CHARACTER = 390, 6.7
"""Pixels: the width of a board, and of a character in it."""


def lines_of(texts: Sequence[str], widest: int = WIDEST) -> list[tuple[int, int]]:
    """Line and column of each token: a line ends behind a token that ends in a break (⏎)."""
    places = []
    line = column = 0
    for text in texts:
        places.append((line, column))
        column += 1
        if text.endswith("⏎") or column == widest:
            line, column = line + 1, 0
    return places


def attention_board(trace: Trace, step: int, position: int | None = None) -> Figure:
    """Where one canvas position looks at a step, mean over layers and heads; each token stands in its place.

    The canvas has the lines of the text that it ends with, at every step, so that a place can be followed.
    position: an observed place on the canvas, the first of them if None. It has a frame.
    """
    row, place, weights = observed_attention(trace, step, position)
    texts, prefix = seen(trace, row, weights.shape[1])
    mean = weights.mean(0)
    highest = float(mean.max())
    figure = theme.panels(1, 2, ["before the canvas", "canvas"], horizontal_spacing=0.06)
    rows = 1
    for column, (start, stop) in enumerate(((0, prefix), (prefix, len(texts))), start=1):
        places = lines_of(texts[:prefix]) if column == 1 else canvas_lines(trace, row)
        z = _board(places, mean[start:stop])
        rows = max(rows, len(z))
        fits = max(int(PANEL / z.shape[1] / CHARACTER) - 1, 2)
        figure.add_heatmap(
            z=z, x=np.arange(z.shape[1]), y=np.arange(len(z)), coloraxis="coloraxis", xgap=2, ygap=2,
            hovertemplate="%{z:.1%}<extra></extra>", row=1, col=column,
        )  # fmt: skip
        for text, (line, at), share in zip(
            texts[start:stop], places, mean[start:stop], strict=True
        ):
            colour = ink(ramp(float(share) / max(highest, 1e-9)))
            figure.add_annotation(
                x=at, y=line, text=_shortened(text, fits).replace("<", "&lt;"), showarrow=False, row=1, col=column,
                font={"size": 11, "family": "monospace", "color": f"rgb{colour}"},
            )  # fmt: skip
        figure.update_xaxes(visible=False, row=1, col=column)
        figure.update_yaxes(visible=False, autorange="reversed", row=1, col=column)
    line, at = canvas_lines(trace, row)[place]
    figure.add_shape(
        type="rect", x0=at - 0.5, x1=at + 0.5, y0=line - 0.5, y1=line + 0.5,
        line={"color": theme.VERMILION, "width": 3}, row=1, col=2,
    )  # fmt: skip
    scale = [[stop / 7, f"rgb{ramp(stop / 7)}"] for stop in range(8)]
    figure.update_layout(
        title=theme.titled(
            f"Where “{texts[prefix + place]}” looks",
            f"place {place} of canvas {trace.canvas[row] + 1} at step {step}; "
            f"{mean[:prefix].sum():.0%} of its attention goes to what is before the canvas",
        ),
        height=130 + 30 * rows,
        coloraxis={"colorscale": scale, "cmin": 0, "cmax": highest, "colorbar": {"tickformat": ".0%", "thickness": 10}},
    )  # fmt: skip
    return figure


def canvas_lines(trace: Trace, row: int) -> list[tuple[int, int]]:
    """Line and column of each place of a pass's canvas, by what it ends with; its tail is as wide as its text."""
    canvas = int(trace.canvas[row])
    final = [visible(trace.text(token)) for token in trace.rows("argmax", canvas)[-1]]
    kept = next((c.kept for c in trace.commits if c.canvas == canvas), len(final))
    width = max((column + 1 for _, column in lines_of(final[:kept])), default=0)
    return lines_of(final, max(width, NARROWEST))


def _shortened(text: str, fits: int) -> str:
    return text if len(text) <= fits else text[: fits - 1] + "…"


def _board(places: Sequence[tuple[int, int]], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """(lines, columns), NaN where no token stands."""
    shape = (
        max((line for line, _ in places), default=-1) + 1,
        max((column for _, column in places), default=-1) + 1,
    )
    board = np.full(shape, np.nan)
    for (line, column), value in zip(places, values, strict=True):
        board[line, column] = value
    return board
