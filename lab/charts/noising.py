"""Forward noising: one text at rising noise levels, with masks and with random tokens, in one picture.

noising(levels, masked, uniform, damaged)      # texts of tokens, a row a level
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dgemma_core.errors import DgemmaError, check_kind, finite_number
from dgemma_lab import theme
from dgemma_lab.frontend.text import visible
from dgemma_lab.given import listed
from dgemma_lab.theme import Figure

MOST = 22
"""Places that are drawn: the first of the text."""


def noising(
    levels: Sequence[float],
    masked: Sequence[Sequence[str]],
    uniform: Sequence[Sequence[str]],
    damaged: ArrayLike,
) -> Figure:
    """Two boards, a row a noise level: above, damaged places are masked; below, they hold a random token.

    masked, uniform: the texts of the tokens, (levels, places). damaged: (levels, places), which of them were replaced.
    Raises DgemmaError where these do not fit each other.
    """
    levels = [finite_number("a noise level", at) for at in listed("levels", levels, "numbers")]
    try:
        hit = np.asarray(damaged, bool)
    except ValueError:
        hit = np.zeros(0, bool)
    boards = {
        name: [listed(name, row, "rows of texts") for row in listed(name, rows, "rows of texts")]
        for name, rows in (("with masks", masked), ("with random tokens", uniform))
    }
    for name, texts in boards.items():
        fits = hit.shape == (len(levels), len(texts[0]) if texts else 0)
        if not fits or any(len(row) != hit.shape[1] for row in texts) or len(texts) != len(levels):
            raise DgemmaError(
                f"{name}: {len(texts)} rows of texts for {len(levels)} levels and {hit.shape} places"
            )
    hit = hit[:, :MOST]
    figure = theme.panels(2, 1, list(boards), vertical_spacing=0.14)
    ticks = {"tickvals": list(range(len(levels))), "ticktext": [f"{level:.0%}" for level in levels]}
    for row, (name, texts) in enumerate(boards.items(), start=1):
        # With masks the damage can be seen; with random tokens only we know where it is, by the frame.
        shown = hit.astype(float) if name == "with masks" else np.zeros(hit.shape)
        figure.add_heatmap(
            z=shown, xgap=3, ygap=3, showscale=False, zmin=0, zmax=1, hoverinfo="skip",
            colorscale=[[0, theme.FAINT_BLUE], [1, "rgba(128, 128, 128, 0.55)"]], row=row, col=1,
        )  # fmt: skip
        for level, tokens in enumerate(texts):
            for place, text in enumerate(tokens[:MOST]):
                check_kind("a token", text, str, "a text")
                figure.add_annotation(
                    x=place, y=level, text=visible(text, 5).replace("<", "&lt;"), showarrow=False,
                    font={"size": 10, "family": "monospace", "color": theme.INK}, row=row, col=1,
                )  # fmt: skip
        for level, place in zip(*np.nonzero(hit), strict=True):
            figure.add_shape(
                type="rect", x0=place - 0.46, x1=place + 0.46, y0=level - 0.44, y1=level + 0.44,
                line={"color": theme.VERMILION, "width": 1.5}, row=row, col=1,
            )  # fmt: skip
        bare = {"showgrid": False, "zeroline": False, "ticks": "", "row": row, "col": 1}
        figure.update_xaxes(showticklabels=False, range=[-0.5, hit.shape[1] - 0.5], **bare)
        figure.update_yaxes(title="noise", range=[len(levels) - 0.5, -0.5], **ticks, **bare)
    figure.update_layout(
        title="The same text at rising noise; framed: what was damaged",
        height=150 + 2 * 32 * len(levels),
        showlegend=False,
    )
    return figure
