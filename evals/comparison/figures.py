"""The figures of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dgemma_evals.comparison.load import overtaking
from dgemma_evals.comparison.summary import PUBLISHED, Summary
from dgemma_evals.page import PALETTE

if TYPE_CHECKING:
    import pandas as pd

GREY = "#8a8f98"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star")


def figures(summary: Summary, table: pd.DataFrame) -> dict[str, Any]:
    """By name; None where there is nothing to draw."""
    return {
        "accuracy": _accuracy(summary),
        "latency": _latency(summary, table),
        "steps": _steps(summary),
        "front": load_front(summary),
        "open": _open_loop(summary),
        "lengths": _lengths(summary),
        "pareto_second": _pareto(summary, "tokens_per_second", "kept tokens a second"),
        "pareto_forward": _pareto(summary, "tokens_per_forward", "kept tokens for each forward pass"),
    }  # fmt: skip


def _layout(**more: Any) -> dict[str, Any]:
    return {
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": 380,
        **more,
    }


def _style(summary: Summary) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each side."""
    return {
        side: (PALETTE[i % len(PALETTE)], SYMBOLS[i % len(SYMBOLS)])
        for i, side in enumerate(summary["sides"])
    }


def _accuracy(summary: Summary) -> Any:
    """Left the scores of each task, right the first side's difference to each other one, with its interval."""
    from plotly.subplots import make_subplots

    style, first = _style(summary), summary["first"]
    some = next(iter(summary["against"].values()))
    tasks = [*some["tasks"], "all"]
    labels = [task.removeprefix("dgemma_nano_") for task in tasks]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    per_task = 22 + 12 * len(summary["against"])
    figure.update_layout(_layout(height=max(300, per_task * len(tasks) + 110), scattermode="group"))
    columns = {
        other: [*found["tasks"].values(), found["accuracy"]]
        for other, found in summary["against"].items()
    }
    scores = {other: [row["other"] for row in rows] for other, rows in columns.items()}
    scores[first] = [row["first"] for row in next(iter(columns.values()))]
    for side in (*summary["against"], first):
        colour, symbol = style[side]
        figure.add_scatter(
            x=scores[side], y=labels, mode="markers", name=side, row=1, col=1, legendgroup=side,
            marker={"color": colour, "size": 11, "symbol": symbol}, offsetgroup="all",
            hovertemplate="%{y}: %{x:.1%}",
        )  # fmt: skip
    for other, rows in columns.items():
        colour, symbol = style[other]
        differences = [row["difference"] for row in rows]
        figure.add_scatter(
            x=[d["estimate"] for d in differences], y=labels, mode="markers", row=1, col=2,
            name=f"{first} minus {other}", showlegend=False, offsetgroup=other, orientation="h",
            marker={"color": colour, "size": 9, "symbol": symbol},
            hovertemplate=f"%{{y}}, minus {other}: %{{x:+.1%}}<extra></extra>",
            error_x={
                "type": "data", "symmetric": False, "color": colour, "thickness": 1.5,
                "array": [d["high"] - d["estimate"] for d in differences],
                "arrayminus": [d["estimate"] - d["low"] for d in differences],
            },
        )  # fmt: skip
    figure.add_vline(x=0, row=1, col=2, line={"color": GREY, "width": 1.2, "dash": "dot"})
    figure.update_xaxes(tickformat=".0%", range=[-0.03, 1.03], title="score", col=1)
    title = f"{first} minus the other, 95 % interval"
    figure.update_xaxes(tickformat="+.0%", title=title, col=2)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _latency(summary: Summary, table: pd.DataFrame) -> Any:
    import numpy as np
    from plotly import graph_objects as go

    plain = table[~table.swept & (table.examples == table.examples.iloc[0])]
    figure = go.Figure(layout=_layout())
    for side, (colour, _) in _style(summary).items():
        seconds = np.sort(plain[plain.side == side].seconds.to_numpy(float))
        share = np.arange(1, len(seconds) + 1) / len(seconds)
        if len(seconds) > 400:  # the curve, not every text
            share = np.linspace(0.0025, 1, 400)
            seconds = np.quantile(seconds, share)
        figure.add_scatter(
            x=seconds, y=share, mode="lines", name=side,
            line={"color": colour, "width": 2.5, "shape": "hv"},
        )  # fmt: skip
    figure.update_xaxes(title="seconds", **_logarithmic(plain.seconds))
    figure.update_yaxes(title="texts done", tickformat=".0%", range=[0, 1.02])
    return figure


def _steps(summary: Summary) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure(layout=_layout(bargap=0.1))
    for side, (colour, _) in _style(summary).items():
        counts = summary["sides"][side].get("steps_histogram")
        if counts:
            figure.add_bar(x=list(counts), y=list(counts.values()), name=side, marker_color=colour)
    if not figure.data:
        return None
    figure.update_xaxes(title="denoising steps")
    figure.update_yaxes(title="canvases")
    figure.update_layout(showlegend=True)
    return figure


def load_front(summary: Summary) -> Any:
    """Tokens a second a user against tokens a second in all, a line a side, by requests at a time."""
    from plotly import graph_objects as go

    points = [point for point in summary["traffic"] if point["kind"] == "batch"]
    if not points:
        return None
    figure = go.Figure(layout=_layout(height=460))
    for side, (colour, symbol) in _style(summary).items():
        own = sorted((p for p in points if p["side"] == side), key=lambda p: float(p["amount"]))
        figure.add_scatter(
            x=[p["tokens_per_second_a_user"] for p in own], y=[p["tokens_per_second"] for p in own],
            text=[f"{p['amount']:g}" for p in own], name=side, mode="lines+markers+text",
            textposition="top center", line={"color": colour, "width": 2},
            marker={"color": colour, "size": 9, "symbol": symbol},
            hovertemplate=f"{side}, %{{text}} at a time<br>%{{x:.1f}} a user, %{{y:.1f}} in all<extra></extra>",
        )  # fmt: skip
    for other in summary["against"]:
        found = overtaking(points, summary["first"], other)
        if found:
            figure.add_scatter(
                x=[found["tokens_per_second_a_user"]], y=[found["tokens_per_second"]], mode="markers",
                name=f"{other} overtakes {summary['first']} at {found['amount']:g}",
                marker={"symbol": "diamond-open", "size": 19, "color": _style(summary)[other][0],
                        "line": {"width": 2.5}},
            )  # fmt: skip
    users = [float(p["tokens_per_second_a_user"]) for p in points]
    figure.update_xaxes(title="kept tokens a second a user", **_logarithmic(users))
    total = [float(p["tokens_per_second"]) for p in points]
    figure.update_yaxes(title="kept tokens a second in all", **_logarithmic(total))
    return figure


def _open_loop(summary: Summary) -> Any:
    from plotly import graph_objects as go

    points = [point for point in summary["traffic"] if point["kind"] == "rate"]
    if not points:
        return None
    figure = go.Figure(layout=_layout())
    for side, (colour, symbol) in _style(summary).items():
        own = sorted((p for p in points if p["side"] == side), key=lambda p: float(p["amount"]))
        for key, dash in (("p50", "solid"), ("p99", "dot")):
            figure.add_scatter(
                x=[p["amount"] for p in own], y=[p[key] for p in own], mode="lines+markers",
                name=f"{side}, {key}", line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 8},
            )  # fmt: skip
    figure.update_xaxes(title="requests a second", **_logarithmic(p["amount"] for p in points))
    figure.update_yaxes(
        title="seconds", **_logarithmic(p[k] for p in points for k in ("p50", "p99"))
    )
    return figure


def _lengths(summary: Summary) -> Any:
    from plotly import graph_objects as go

    rows = [row for row in summary["lengths"] if row["prompt_tokens_per_text"] is not None]
    if not rows:
        return None
    figure = go.Figure(layout=_layout())
    times = []
    for side, (colour, symbol) in _style(summary).items():
        own = [row for row in rows if row["side"] == side]
        for name, dash in (("end", "solid"), ("first", "dot")):
            y = [r["latency"]["p50"] if name == "end" else r["first_seconds"] for r in own]
            times += y
            figure.add_scatter(
                x=[row["prompt_tokens_per_text"] for row in own], y=y, mode="lines+markers",
                name=f"{side}, {name}", line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 8},
            )  # fmt: skip
    figure.update_xaxes(title="tokens of the prompt, mean")
    figure.update_yaxes(title="median seconds", **_logarithmic(times))
    return figure


def _pareto(summary: Summary, rate: str, title: str) -> Any:
    from plotly import graph_objects as go

    known = [point for point in summary["sweep"] if point[rate] is not None]
    if not known:
        return None
    figure = go.Figure(layout=_layout(height=460))
    first, style = summary["first"], _style(summary)
    ahead = sorted((p for p in known if rate in p["fronts"]), key=lambda p: float(p[rate]))
    figure.add_scatter(
        x=[p[rate] for p in ahead], y=[p["accuracy"]["estimate"] for p in ahead], mode="lines",
        name="front", line={"color": style[first][0], "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    groups: list[tuple[str, str, str, Sequence[Summary]]] = [
        ("sweep", style[first][0], "circle-open", [p for p in known if p["swept"]]),
        *(
            (side, *style[side], [p for p in known if p["side"] == side and not p["swept"]])
            for side in style
        ),
    ]
    for name, colour, symbol, group in groups:
        if not group:
            continue
        figure.add_scatter(
            x=[p[rate] for p in group], y=[p["accuracy"]["estimate"] for p in group],
            text=[p["contestant"] for p in group], mode="markers", name=name,
            hovertemplate="%{text}<br>%{x:.2f}, %{y:.1%}<extra></extra>",
            marker={"color": colour, "size": 11, "symbol": symbol},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1,
                "array": [p["accuracy"]["high"] - p["accuracy"]["estimate"] for p in group],
                "arrayminus": [p["accuracy"]["estimate"] - p["accuracy"]["low"] for p in group],
            },
        )  # fmt: skip
    for height, (name, rates) in enumerate(PUBLISHED.items()):
        figure.add_vline(x=rates[rate], line={"dash": "dot", "width": 1.2, "color": GREY})
        # Beside one another at the top they would overlap, so each has its own height.
        figure.add_annotation(
            x=rates[rate], y=1 - 0.07 * height, yref="paper", text=f"{name}: {rates[rate]:g}",
            showarrow=False, xanchor="right" if rates[rate] > 2 else "left", font={"size": 11},
        )  # fmt: skip
    figure.update_yaxes(title="score", tickformat=".0%")
    places = [*(float(p[rate]) for p in known), *(float(r[rate]) for r in PUBLISHED.values())]
    figure.update_xaxes(title=title, **_logarithmic(places))
    for note in figure.layout.annotations:  # whose place plotly takes as the logarithm
        note.x = math.log10(note.x)
    return figure


def _logarithmic(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis around `values`, with ticks at 1, 2 and 5 of each decade."""
    known = [float(value) for value in values if value == value and value > 0]
    low, high = min(known) / 1.15, max(known) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }
