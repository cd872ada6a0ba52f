"""The growth of a step as small multiples: one chart an axis, both scales logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dgemma_evals.bench.growth import on_axis
from dgemma_evals.page import chart, escaped, table_of

COLOURS = ("#3b82c4", "#d9822b", "#8a63b8", "#5b8c5a", "#8fb7dd")
SYMBOLS = (
    ("circle", "●"), ("diamond", "◆"), ("square", "■"), ("triangle-up", "▲"), ("cross", "✚")
)  # fmt: skip
"""As plotly draws them, and as letters."""
WORDS = {
    "prefix": "tokens of the prefix",
    "canvas": "tokens of the canvas",
    "batch": "rows of the batch",
    "vocabulary": "tokens of the vocabulary",
    "experts": "experts, 4 of them for a token",
}

Row = Mapping[str, Any]


def sections(record: Mapping[str, Any], prefix: str = "") -> tuple[list[str], dict[str, Any]]:
    """The page's parts and the figures in them (`prefix`: of their names), of a record of `dgemma bench growth`."""
    parts = ["<h2>A denoising step as its work grows</h2>", _lead(record)]
    figures: dict[str, Any] = {}
    settings = list(dict.fromkeys((r["setting"]["dtype"], r["setting"]["allocator"])
                                  for r in record["rows"]))  # fmt: skip
    for dtype, allocator in settings:
        rows = [row for row in record["rows"]
                if (row["setting"]["dtype"], row["setting"]["allocator"]) == (dtype, allocator)]  # fmt: skip
        charts, slopes, points = [], [], []
        for axis in record["axes"]:
            line = sorted((row for row in rows if on_axis(row, record["base"], axis)),
                          key=lambda row: row["shape"][axis])  # fmt: skip
            name = f"{prefix}growth-{dtype}-{allocator}-{axis}"
            charts.append(chart(name, f"Milliseconds a step against {WORDS[axis]}"))
            figures[name] = _figure(line, axis)
            slopes += _slopes(line, axis)
            points += [entry for row in line for entry in _point(row, axis)]
        parts += [
            f"<h3>{escaped(dtype)}, {escaped(allocator)} allocator</h3>",
            _legend(_names(rows)),
            f"<div class='multiples'>{''.join(charts)}</div>",
            table_of(("axis", "implementation", "work", "time", "steepest"), slopes),
            "<p class='note'>Work and time: how many times more at the last point than at the first. Steepest: the "
            "largest exponent of time over work between neighbours; 1 is in proportion.</p>",
            f"<details><summary>All points</summary>{table_of(_HEAD, points)}</details>",
        ]
    return parts, figures


def _lead(record: Mapping[str, Any]) -> str:
    base = ", ".join(f"{name} {value:,}" for name, value in record["base"].items())
    left = record["left"]
    unfinished = f" This run is not finished: {left} points are missing." if left else ""
    return (
        f"<p class='note'>One axis at a time, the others as in the base: {escaped(base)}. Medians of "
        f"{record['rows'][0]['setting']['rounds'] if record['rows'] else 0} rounds in turn; bars: the range; "
        "dotted: in proportion to the work, from this project's last point. A cross at the top marks a point that an "
        f"implementation could not run; the table says why.{unfinished}</p>"
    )


def _legend(names: Sequence[str]) -> str:
    """The implementations' colours and marks, once for all charts."""
    marks = [
        f"<span style='color:{COLOURS[i % len(COLOURS)]}'>{SYMBOLS[i % len(SYMBOLS)][1]}</span> {escaped(name)}"
        for i, name in enumerate(names)
    ]
    return f"<p>{' &ensp; '.join(marks)} &ensp; <span style='color:#808080'>┄┄</span> in proportion</p>"


def _times(line: Sequence[Row], name: str) -> list[tuple[Row, Any]]:
    """(row, entry) of one implementation."""
    return [(row, one) for row in line for one in row["implementations"] if one["name"] == name]


def _names(line: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(one["name"] for row in line for one in row["implementations"]))


def _figure(line: Sequence[Row], axis: str) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    seconds = [
        time for row in line for one in row["implementations"] for time in one.get("rounds", ())
    ]
    lowest, highest = (1000 * f(seconds, default=1.0) for f in (min, max))
    for i, name in enumerate(_names(line)):
        found = _times(line, name)
        timed = [(row["shape"][axis], one) for row, one in found if "median" in one]
        missing = [(row["shape"][axis], one) for row, one in found if "failed" in one]
        look = {
            "color": COLOURS[i % len(COLOURS)],
            "symbol": SYMBOLS[i % len(SYMBOLS)][0],
            "size": 7,
        }
        figure.add_scatter(
            x=[x for x, _ in timed], y=[1000 * one["median"] for _, one in timed], name=name,
            mode="lines+markers", marker=look, line={"color": look["color"], "width": 2},
            error_y={
                "array": [1000 * (max(one["rounds"]) - one["median"]) for _, one in timed],
                "arrayminus": [1000 * (one["median"] - min(one["rounds"])) for _, one in timed],
                "color": look["color"], "thickness": 1, "width": 3,
            },
            hovertemplate=f"{axis} %{{x:,}}: %{{y:.4g}} ms<extra>{escaped(name)}</extra>",
        )  # fmt: skip
        if missing:
            figure.add_scatter(
                x=[x for x, _ in missing], y=[highest] * len(missing), mode="markers",
                name=f"{name}: cannot run", marker={**look, "symbol": "x", "size": 10},
                customdata=[escaped(one["failed"]) for _, one in missing],
                hovertemplate=f"{axis} %{{x:,}}: %{{customdata}}<extra>{escaped(name)}</extra>",
            )  # fmt: skip
        if i == 0 and len(timed) > 1:
            (last, end), values = timed[-1], [x for x, _ in timed]
            figure.add_scatter(
                x=values, y=[1000 * end["median"] * x / last for x in values], mode="lines",
                name="in proportion", line={"color": "#808080", "width": 1, "dash": "dot"}, hoverinfo="skip",
            )  # fmt: skip
    values = [row["shape"][axis] for row in line]
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    figure.update_layout(
        height=230, margin={"t": 10, "r": 10, "l": 55, "b": 30}, showlegend=False,
        plot_bgcolor="rgba(0,0,0,0)", paper_bgcolor="rgba(0,0,0,0)",
        xaxis={"type": "log", "tickvals": values, "ticktext": [_short(value) for value in values]},
        yaxis={"type": "log", "title": "ms a step", "tickvals": ticks,
               "ticktext": [f"{tick:g}" for tick in ticks],
               "range": [math.log10(lowest / 1.5), math.log10(highest * 1.5)]},
    )  # fmt: skip
    return figure


def _short(value: int) -> str:
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def _slopes(line: Sequence[Row], axis: str) -> list[tuple[str, ...]]:
    """How time follows work, an implementation a line."""
    found: list[tuple[str, ...]] = []
    for name in _names(line):
        timed = [(row["shape"][axis], one["median"]) for row, one in _times(line, name) if "median" in one]  # fmt: skip
        if len(timed) < 2:
            found.append((axis, name, "", "", ""))
            continue
        (first, least), (last, most) = timed[0], timed[-1]
        steepest = max(
            math.log(t / s) / math.log(x / w) for (w, s), (x, t) in pairwise(timed)
        )  # fmt: skip
        found.append(
            (axis, name, f"{last / first:.4g}×", f"{most / least:.3g}×", f"{steepest:.2f}")
        )
    return found


_HEAD = ("point", "implementation", "s/step", "range", "to the fastest peer", "logits apart")


def _point(row: Row, axis: str) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for i, one in enumerate(row["implementations"]):
        label = f"{axis} {row['shape'][axis]:,}" if i == 0 else ""
        if "failed" in one:
            lines.append((label, one["name"], "cannot run", one["failed"], "", ""))
            continue
        ratio = row["ratio_to_fastest_peer"] if i == 0 else None
        lines.append(
            (
                label,
                one["name"],
                f"{one['median']:.4g}",
                f"{min(one['rounds']):.4g} to {max(one['rounds']):.4g}",
                "" if ratio is None else f"{ratio:.2f}×",
                f"{one['logits_difference']:.1e}",
            )
        )
    return lines
