"""A comparison as files: tidy parquet, JSON, and one HTML page that needs no network."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core import DgemmaError
from dgemma_evals.comparison.compare import Comparison
from dgemma_evals.comparison.summary import PUBLISHED, Summary, summarise
from dgemma_evals.page import chart, document, escaped, table_of

if TYPE_CHECKING:
    import pandas as pd

MODEL, BASELINE, THIRD = "#3b82c4", "#d9822b", "#8a63b8"
"""Colours that hold on light and dark ground, also for the colour-blind."""
GENERATIONS, RESULTS, PAGE = "generations.parquet", "results.json", "report.html"


@dataclass(frozen=True)
class Report:
    """Where the page is, and the sentence that it opens with."""

    path: Path
    answer: str


def write(comparison: Comparison, out: Path) -> Report:
    """Writes all three files into `out`; each text file whole or not at all."""
    summary = summarise(comparison)
    page = render(summary, comparison.table)
    try:
        out.mkdir(parents=True, exist_ok=True)
        comparison.table.to_parquet(out / GENERATIONS, index=False)
        _replace(out / RESULTS, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        _replace(out / PAGE, page)
    except OSError as error:
        raise DgemmaError(f"{out}: the report cannot be written ({error.strerror})") from error
    return Report(out / PAGE, str(summary["answer"]))


def _replace(path: Path, text: str) -> None:
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError:
        os.unlink(aside)
        raise


def render(summary: Summary, table: pd.DataFrame) -> str:
    """The page."""
    figures = {name: figure for name, figure in _figures(summary, table).items() if figure}
    parts = [
        f"<p class='answer'>{escaped(summary['answer'])}</p>",
        "<h2>Accuracy</h2>",
        chart("accuracy", "Documents solved, by task (left), and the difference (right)"),
        _accuracy_table(summary),
        "<p class='note'>Seeds of a document are averaged first. Interval: bootstrap over documents "
        "within tasks. p: the signs of documents' mean differences flipped; of the tasks, corrected for "
        "their number (Holm). Better, worse: documents.</p>",
        "<h2>Speed and cost</h2>",
        "<p class='note'>The very generations that are scored, written alone and by turns (A B A B) "
        "after a warm-up; seconds run from the prompt to the final text.</p>",
        _speed_table(summary),
        _first_table(summary),
        chart("latency", "Seconds a text takes, as a share of texts"),
    ]
    if "steps" in figures:
        parts.append(chart("steps", "Denoising steps a canvas takes"))
    if summary["sweep"]:
        parts += [
            "<h2>Sweep</h2>",
            "<p class='note'>Lines join the points that no other setting beats in both. Dotted lines: "
            "published rates of the 26B models (second-hand; other tasks, one H100), as marks on the "
            "rate axis alone.</p>",
            chart("pareto_second", "Accuracy against kept tokens a second, end to end"),
            chart("pareto_forward", "Accuracy against kept tokens for each forward pass"),
            _sweep_table(summary["sweep"]),
        ]
    parts += [
        "<h2>Settings and machine</h2>",
        _facts_table(summary["facts"]),
        "<h2>Not measured</h2>",
        "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in summary["not_measured"]) + "</ul>",
    ]
    names = [summary["facts"][side]["name"] for side in ("model", "baseline")]
    return document(f"{names[0]} against {names[1]}", parts, figures)


def _figures(summary: Summary, table: pd.DataFrame) -> dict[str, Any]:
    return {
        "accuracy": _accuracy_figure(summary),
        "latency": _latency_figure(table[~table.swept]),
        "steps": _steps_figure(summary),
        "pareto_second": _pareto(summary["sweep"], "tokens_per_second", "kept tokens a second"),
        "pareto_forward": _pareto(
            summary["sweep"], "tokens_per_forward", "kept tokens for each forward pass"
        ),
    }


def _layout(**more: Any) -> dict[str, Any]:
    return {
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": 380,
        **more,
    }


def _names(summary: Summary) -> tuple[str, str]:
    return summary["facts"]["model"]["name"], summary["facts"]["baseline"]["name"]


def _accuracy_figure(summary: Summary) -> Any:
    """Left the two accuracies of each task, right their difference with its interval."""
    from plotly.subplots import make_subplots

    tasks = {**summary["tasks"], "all": summary["accuracy"]}
    labels = [task.removeprefix("dgemma_nano_") for task in tasks]
    model, baseline = _names(summary)
    found = list(tasks.values())
    differences = [row["difference"] for row in found]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    figure.update_layout(_layout(height=max(300, 34 * len(tasks) + 110)))
    sides = (("baseline", baseline, BASELINE, "diamond"), ("model", model, MODEL, "circle"))
    for side, name, colour, symbol in sides:
        figure.add_scatter(
            x=[row[side] for row in found], y=labels, mode="markers", name=name, row=1, col=1,
            marker={"color": colour, "size": 11, "symbol": symbol},
            hovertemplate="%{y}: %{x:.1%}",
        )  # fmt: skip
    figure.add_scatter(
        x=[d["estimate"] for d in differences], y=labels, mode="markers", row=1, col=2,
        name=f"{model} minus {baseline}", marker={"color": THIRD, "size": 9, "symbol": "square"},
        hovertemplate="%{y}: %{x:+.1%}",
        error_x={
            "type": "data", "symmetric": False, "color": THIRD, "thickness": 1.5,
            "array": [d["high"] - d["estimate"] for d in differences],
            "arrayminus": [d["estimate"] - d["low"] for d in differences],
        },
    )  # fmt: skip
    figure.add_vline(x=0, row=1, col=2, line={"color": "#8a8f98", "width": 1.2, "dash": "dot"})
    figure.update_xaxes(tickformat=".0%", range=[-0.03, 1.03], title="documents solved", col=1)
    figure.update_xaxes(tickformat="+.0%", title="difference, 95 % interval", col=2)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _latency_figure(table: pd.DataFrame) -> Any:
    import numpy as np
    from plotly import graph_objects as go

    figure = go.Figure(layout=_layout())
    for side, colour in (("model", MODEL), ("baseline", BASELINE)):
        part = table[table.side == side]
        seconds = np.sort(part.seconds.to_numpy(float))
        share = np.arange(1, len(seconds) + 1) / len(seconds)
        if len(seconds) > 400:  # the curve, not every text
            share = np.linspace(0.0025, 1, 400)
            seconds = np.quantile(seconds, share)
        figure.add_scatter(
            x=seconds, y=share, mode="lines", name=str(part.contestant.iloc[0]),
            line={"color": colour, "width": 2.5, "shape": "hv"},
        )  # fmt: skip
    figure.update_xaxes(title="seconds", **_logarithmic(table.seconds))
    figure.update_yaxes(title="texts done", tickformat=".0%", range=[0, 1.02])
    return figure


def _steps_figure(summary: Summary) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure(layout=_layout(bargap=0.1))
    for side, colour in (("model", MODEL), ("baseline", BASELINE)):
        counts = summary["sides"][side].get("steps_histogram")
        if counts:
            figure.add_bar(
                x=list(counts), y=list(counts.values()), name=summary["sides"][side]["contestant"],
                marker_color=colour,
            )  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title="denoising steps")
    figure.update_yaxes(title="canvases")
    figure.update_layout(showlegend=True)
    return figure


def _pareto(points: Sequence[Summary], rate: str, title: str) -> Any:
    from plotly import graph_objects as go

    known = [point for point in points if point[rate] is not None]
    if not known:
        return None
    figure = go.Figure(layout=_layout(height=460))
    groups = (
        ("sweep", MODEL, [p for p in known if p["swept"]]),
        ("default settings", THIRD, [p for p in known if p["side"] == "model" and not p["swept"]]),
        ("baseline", BASELINE, [p for p in known if p["side"] == "baseline"]),
    )
    ahead = sorted((p for p in known if rate in p["fronts"]), key=lambda p: float(p[rate]))
    figure.add_scatter(
        x=[p[rate] for p in ahead], y=[p["accuracy"]["estimate"] for p in ahead], mode="lines",
        name="front", line={"color": MODEL, "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    for name, colour, group in groups:
        if not group:
            continue
        figure.add_scatter(
            x=[p[rate] for p in group], y=[p["accuracy"]["estimate"] for p in group],
            text=[p["contestant"] for p in group], mode="markers", name=name,
            hovertemplate="%{text}<br>%{x:.2f}, %{y:.1%}<extra></extra>",
            marker={"color": colour, "size": 11, "symbol": "diamond" if name == "baseline" else "circle"},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1,
                "array": [p["accuracy"]["high"] - p["accuracy"]["estimate"] for p in group],
                "arrayminus": [p["accuracy"]["estimate"] - p["accuracy"]["low"] for p in group],
            },
        )  # fmt: skip
    for height, (name, rates) in enumerate(PUBLISHED.items()):
        figure.add_vline(x=rates[rate], line={"dash": "dot", "width": 1.2, "color": "#8a8f98"})
        # Beside one another at the top they would overlap, so each has its own height.
        figure.add_annotation(
            x=rates[rate], y=1 - 0.07 * height, yref="paper", text=f"{name}: {rates[rate]:g}",
            showarrow=False, xanchor="right" if rates[rate] > 2 else "left", font={"size": 11},
        )  # fmt: skip
    figure.update_yaxes(title="documents solved", tickformat=".0%")
    places = [*(float(p[rate]) for p in known), *(float(r[rate]) for r in PUBLISHED.values())]
    figure.update_xaxes(title=title, **_logarithmic(places))
    for note in figure.layout.annotations:  # whose place plotly takes as the logarithm
        note.x = math.log10(note.x)
    return figure


def _logarithmic(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis around `values`, with ticks at 1, 2 and 5 of each decade."""
    known = [float(value) for value in values if value > 0]
    low, high = min(known) / 1.15, max(known) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


# --- tables


def _accuracy_table(summary: Summary) -> str:
    rows = []
    for name, row in {**summary["tasks"], "all": summary["accuracy"]}.items():
        d = row["difference"]
        rows.append(
            (
                name.removeprefix("dgemma_nano_"),
                row["documents"],
                _percent(row["model"]),
                _percent(row["baseline"]),
                f"{100 * d['estimate']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})",
                f"{row['better']} / {row['worse']}",
                f"{row.get('p_holm', row['p']):.2g}",
            )
        )
    model, baseline = _names(summary)
    head = (
        "task",
        "documents",
        model,
        baseline,
        "difference, points (95 %)",
        "better / worse",
        "p",
    )
    return table_of(head, rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _figure(value: float | None, form: str = ".2f", unit: str = "") -> str:
    return "–" if value is None or value != value else f"{value:{form}}{unit}"


def _speed_table(summary: Summary) -> str:
    first, second = summary["sides"]["model"], summary["sides"]["baseline"]
    pace = summary["speed"]["tokens_per_second_ratio"]
    answers = summary["speed"]["answers_per_second_ratio"]

    def line(name: str, key: str, form: str = ".2f", unit: str = "") -> tuple[str, ...]:
        a, b = first.get(key), second.get(key)
        ratio = f"{a / b:.2f}" if a and b else "–"
        return name, _figure(a, form, unit), _figure(b, form, unit), ratio

    def between(values: Sequence[float]) -> str:
        return f"{values[1]:.1f} ({values[0]:.1f} to {values[2]:.1f})"

    def waits(side: Summary) -> str:
        return " / ".join(f"{side['latency'][key]:.3f}" for key in ("p50", "p90", "p99"))

    def interval(found: Summary) -> str:
        return f"{found['estimate']:.2f} ({found['low']:.2f} to {found['high']:.2f})"

    rows = [
        (
            "kept tokens a second, end to end",
            _figure(first["tokens_per_second"], ".1f"),
            _figure(second["tokens_per_second"], ".1f"),
            interval(pace),
        ),
        (
            "… of a text, median (quartiles)",
            between(first["tokens_per_second_quartiles"]),
            between(second["tokens_per_second_quartiles"]),
            "–",
        ),
        (
            "answers a second",
            _figure(first["texts"] / (first["kept_tokens"] / first["tokens_per_second"])),
            _figure(second["texts"] / (second["kept_tokens"] / second["tokens_per_second"])),
            interval(answers),
        ),
        ("latency p50 / p90 / p99, s", waits(first), waits(second), "–"),
        line("kept tokens a text", "kept_tokens_per_text", ".1f"),
        line("kept tokens for each denoising step (or pass)", "tokens_per_forward"),
        line("kept tokens for each pass of any kind", "tokens_per_pass"),
        line("milliseconds a pass", "milliseconds_per_pass"),
        line("denoising steps a canvas, mean", "steps_per_canvas"),
        line("drafted tokens accepted a round, mean", "accepted_per_round"),
        (
            "canvases that converged",
            _percent(first.get("converged_canvases")),
            _percent(second.get("converged_canvases")),
            "–",
        ),
        (
            "canvas positions wasted",
            _percent(first.get("wasted_fraction")),
            _percent(second.get("wasted_fraction")),
            "–",
        ),
        (
            "peak memory" + ("" if summary["facts"]["device_memory"] else ", of the one process"),
            _figure(first["peak_bytes"] / 1e6, ",.0f", " MB"),
            _figure(second["peak_bytes"] / 1e6, ",.0f", " MB"),
            "–",
        ),
        ("texts written", first["texts"], second["texts"], "–"),
        ("ended by", _reasons(first), _reasons(second), "–"),
    ]
    model, baseline = _names(summary)
    return table_of(("", model, baseline, "ratio (95 %)"), rows)


def _reasons(side: Summary) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in side["stop_reasons"].items())


def _first_table(summary: Summary) -> str:
    model, baseline = _names(summary)
    names = {
        "to_first": "first canvas, against the first token",
        "to_same_tokens": "first canvas, against as many tokens",
    }
    rows = [
        (
            name,
            _figure(summary["first"][key].get("model"), ".4f"),
            _figure(summary["first"][key].get("baseline"), ".4f"),
            _figure(summary["first"][key].get("ratio")),
            summary["first"][key]["pairs"],
        )
        for key, name in names.items()
    ]
    if summary["sides"]["model"].get("canvases") is None:
        rows = [("first token", *row[1:]) for row in rows[:1]]
    return table_of(("median seconds to the …", model, baseline, "median ratio", "pairs"), rows)


def _sweep_table(points: Sequence[Summary]) -> str:
    rows = [
        (
            point["contestant"],
            f"{_percent(point['accuracy']['estimate'])} ({100 * point['accuracy']['low']:.1f} to "
            f"{100 * point['accuracy']['high']:.1f})",
            _figure(point["tokens_per_second"], ".1f"),
            _figure(point["tokens_per_forward"]),
            _figure(point["steps_per_canvas"]),
            ", ".join(name.replace("_", " ") for name in point["fronts"]) or "–",
        )
        for point in points
    ]
    head = (
        "settings",
        "solved (95 %)",
        "kept tokens/s",
        "per forward",
        "steps/canvas",
        "on the front of",
    )
    return table_of(head, rows)


def _facts_table(facts: Summary) -> str:
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", _plain(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _plain(value)))
    return table_of(("what", "value"), rows, first_left=False)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
