"""Draws nano's learning curves over all legs: docs/nano/curves-{light,dark}.png from docs/nano/curve_*.csv.

python scripts/plot_curves.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

FOLDER = Path("docs/nano")
LEGS = (
    "first", "copy", "nano", "finish", "grids", "long", "anneal", "corrected",
    "distil", "walks", "columns", "word_sums", "adding", "regain", "round_off",
    "further", "furthest", "drafting",
)  # fmt: skip
"""Their recipes, in the order of the model card."""
GROUNDS = {"light": ("#ffffff", "#1d2330", "#d9dde3"), "dark": ("#14181f", "#e6e9ee", "#363e4a")}
BLUE, ORANGE = "#3b82c4", "#d9822b"


def curves() -> list[pd.DataFrame]:
    """All legs, with their examples counted on."""
    found, before = [], 0
    for name in LEGS:
        curve = pd.read_csv(FOLDER / f"curve_{name}.csv")
        curve["total"] = curve["examples"] + before
        before = int(curve["total"].iloc[-1])
        found.append(curve)
    return found


def figure(ground: str, ink: str, line: str) -> go.Figure:
    """Both losses against examples, a dotted line and its number where a leg begins."""
    drawn = go.Figure()
    for leg, curve in enumerate(curves()):
        for column, label, colour in (
            ("canvas_loss", "canvas (denoising)", BLUE),
            ("autoregressive_loss", "autoregressive", ORANGE),
        ):
            drawn.add_scatter(
                x=curve["total"], y=curve[column], name=label, line={"color": colour, "width": 2},
                showlegend=leg == 0, mode="lines",
            )  # fmt: skip
        start = int(curve["total"].iloc[0] - curve["examples"].iloc[0])
        drawn.add_vline(x=start, line={"dash": "dot", "color": ink, "width": 1}, opacity=0.5)
        drawn.add_annotation(
            x=start, y=1, yref="paper", text=str(leg + 1), showarrow=False, xanchor="left",
            yanchor="bottom", yshift=18 * (leg % 3), font={"size": 13}, xshift=-4,
        )  # fmt: skip
    axis = {"gridcolor": line, "linecolor": line, "zerolinecolor": line}
    drawn.update_layout(
        width=900, height=440, paper_bgcolor=ground, plot_bgcolor=ground,
        font={"color": ink, "family": "sans-serif", "size": 14},
        margin={"l": 70, "r": 20, "t": 70, "b": 60},
        legend={"x": 0.6, "y": 0.95, "xanchor": "right", "bgcolor": "rgba(0,0,0,0)"},
        xaxis={"title": "examples", "rangemode": "tozero", **axis},
        yaxis={"title": "loss, nats a token", "type": "log", "dtick": 1, **axis},
    )  # fmt: skip
    return drawn


def main() -> None:
    """Draws both pictures."""
    for theme, colours in GROUNDS.items():
        figure(*colours).write_image(FOLDER / f"curves-{theme}.png", scale=2)


if __name__ == "__main__":
    main()
