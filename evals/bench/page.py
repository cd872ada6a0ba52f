"""The page of `dgemma bench`: tables of ratios, and what each round took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgemma_core import RequestError
from dgemma_evals.bench import growth_page
from dgemma_evals.bench.gpu import page as gpu_page
from dgemma_evals.bench.processes import ENOUGH
from dgemma_evals.page import PALETTE, chart, document, folded, heading, table_of

TITLES = {
    "A": "A denoising step, random model with the released vocabulary",
    "B": "Kept tokens a second, nano, real prompts",
    "C": "A greedy autoregressive token",
}
COLOURS = (PALETTE[0], "#8fb7dd", *PALETTE[1:4])
"""This project's two in blues, then the others."""


def write(out: Path) -> Path:
    """Draws OUT/bench.html from the results in OUT. RequestError where there are none."""
    path = out / "bench.html"
    path.write_text(document("dgemma bench", *sections(out)), encoding="utf-8")
    return path


def sections(out: Path, *, prefix: str = "") -> tuple[list[str], dict[str, Any]]:
    """The body of a page and its figures. prefix: of the figures' names, where several bodies share a page."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    records = {name: record for name, record in records.items() if "rows" in record}
    if not records:
        raise RequestError(f"{out} holds no results: run `dgemma bench steps` first")
    parts: list[str] = [
        "<p class='note'>One process an implementation, asked in turn after a warm-up; medians, ranges, and ratios of "
        "medians. Each peer proved equal logits on the same weights first. Bars: medians, smaller is quicker for "
        "seconds, larger for tokens a second; whiskers: the whole range.</p>"
    ]
    figures: dict[str, Any] = {}
    for name, record in records.items():
        compared = [row for row in record["rows"] if "implementations" in row]
        if name == "growth":
            more, multiples = growth_page.sections(record, prefix)
            parts += more
            figures |= multiples
        elif compared:
            title = TITLES.get(compared[0]["table"], name)
            parts += [heading(title), chart(prefix + name, title), _table(compared)]
            figures[prefix + name] = _bars(compared)
        parts += [_start(row) for row in record["rows"] if row["table"] == "E"]
        if any(row["table"] == "gpu" for row in record["rows"]):
            parts += gpu_page.sections(record)
        parts += _memory([row for row in record["rows"] if row["table"] == "memory"])
        facts = [(key, json.dumps(value)) for key, value in record["environment"].items()]
        parts.append(
            folded(record["command"], table_of(("what", "value"), facts, first_left=False))
        )
    return parts, figures


def _label(row: dict[str, Any]) -> str:
    setting = row["setting"]
    extra = [str(row["model"])] if "model" in row else []
    extra += [f"batch {row['batch']}"] if "batch" in row else []
    return ", ".join([*extra, setting["dtype"], f"{setting['allocator']} allocator"])


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        for i, found in enumerate(row["implementations"]):
            ratio = row["ratio_to_fastest_peer"] if i == 0 else None
            solved = found["extra"].get("solved")
            lines.append(
                (
                    _label(row) if i == 0 else "",
                    found["name"],
                    f"{found['median']:.4g}",
                    f"{min(found['rounds']):.4g} to {max(found['rounds']):.4g}",
                    "" if ratio is None else _ratio(row, ratio),
                    _busy(found),
                    f"{found['peak_bytes'] / 1e9:.2f}",
                    f"{found['logits_difference']:.1e}",
                    "" if solved is None else f"{100 * solved / found['extra']['texts']:.0f} %",
                )
            )
    head = ("setting", "implementation", rows[0]["unit"], "range", "to the fastest peer", "cores of others",
            "peak GB", "logits apart", "solved")  # fmt: skip
    return table_of(head, lines)


def _ratio(row: dict[str, Any], ratio: float) -> str:
    """With a remark where a headline needs more rounds."""
    rounds = len(row["implementations"][0]["rounds"])
    return f"{ratio:.2f}×" + ("" if rounds >= ENOUGH else f" (of {rounds} rounds)")


def _busy(found: dict[str, Any]) -> str:
    """The most cores that other processes kept busy in a round; empty where an older run did not look."""
    known = [cores for cores in found.get("others", ()) if cores is not None]
    return f"{max(known):.1f}" if known else ""


def _bars(rows: Sequence[dict[str, Any]]) -> Any:
    from plotly import graph_objects as go

    names = list(dict.fromkeys(m["name"] for row in rows for m in row["implementations"]))
    figure = go.Figure()
    for name, colour in zip(names, COLOURS, strict=False):
        found = [(row, m) for row in rows for m in row["implementations"] if m["name"] == name]
        figure.add_bar(
            x=[_label(row) for row, _ in found],
            y=[m["median"] for _, m in found],
            error_y={
                "array": [max(m["rounds"]) - m["median"] for _, m in found],
                "arrayminus": [m["median"] - min(m["rounds"]) for _, m in found],
                "color": "#808080",
            },
            name=name,
            marker_color=colour,
        )
    figure.update_layout(
        barmode="group", height=420, margin={"t": 20, "r": 10}, plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)", legend={"orientation": "h", "y": -0.25},
        yaxis={"title": rows[0]["unit"], "rangemode": "tozero"},
    )  # fmt: skip
    return figure


def _start(row: dict[str, Any]) -> str:
    lines = [
        (name, f"{row[name]:.2f}")
        for name in ("import torch", "import dgemma_core", "first answer")
    ]
    return (
        "<h2>Starting</h2>"
        + table_of(("what", "seconds"), lines)
        + f"<p>import dgemma_core takes {row['ratio']:.2f}× of import torch.</p>"
    )


def _memory(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines, sums = [], []
    for row in rows:
        label = f"{row['prefix']:,} tokens, {row['dtype']}"
        for part in row["parts"]:
            sizes = (f"{part[key] / 1e6:,.1f}" for key in ("predicted", "measured"))
            lines.append((label, part["name"], *sizes, f"{100 * part['error']:+.1f} %"))
            for name, (size, arithmetic) in part["lines"].items():
                sums.append((f"{label}, {part['name']}", name, f"{size / 1e6:,.1f}", arithmetic))
        kept = f"{row['kept_by_kernels'] / 1e6:,.1f}"
        lines.append((label, "kept by kernels after a first pass", "", kept, ""))
    return [
        "<h2>The memory of a long prompt</h2>",
        "<p class='note'>Megabytes besides the weights. Held: by prefix cache and hidden states, once encoded. Peak: "
        "while it is encoded, in chunks. Predicted as in `dgemma plan`; measured as the rise of resident memory of a "
        "fresh process.</p>",
        table_of(("prefix", "what", "predicted", "measured", "error"), lines),
        folded("Arithmetic", table_of(("of", "term", "MB", "arithmetic"), sums, first_left=False)),
    ]
