"""The tables of a comparison's page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dgemma_evals.comparison.summary import Summary
from dgemma_evals.page import heading, table_of


def percent(value: float | None) -> str:
    """A share."""
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def figure(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """A number, a dash where it is not known."""
    return "–" if value is None or value != value else f"{value:{form}}{unit}"


def _interval(found: Summary) -> str:
    return f"{found['estimate']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def accuracy(summary: Summary) -> list[str]:
    """A table for each other side: the tasks, then all."""
    parts = []
    first = summary["first"]
    for other, found in summary["against"].items():
        rows = []
        for name, row in {**found["tasks"], "all": found["accuracy"]}.items():
            d = row["difference"]
            rows.append(
                (
                    name.removeprefix("dgemma_nano_"),
                    row["documents"],
                    percent(row["first"]),
                    percent(row["other"]),
                    f"{100 * d['estimate']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})",
                    f"{row['better']} / {row['worse']}",
                    f"{row.get('p_holm', row['p']):.2g}",
                )
            )
        if len(summary["against"]) > 1:
            parts.append(heading(f"Against {other}", 3))
        head = (
            "task", "documents", first, other, "difference, points (95 %)", "better / worse", "p",
        )  # fmt: skip
        parts.append(table_of(head, rows))
    return parts


def speed(summary: Summary) -> str:
    """A column for each side, and one for each ratio of the first to another."""
    sides, against = summary["sides"], summary["against"]
    first = sides[summary["first"]]

    def row(name: str, shown: Sequence[str], ratios: Sequence[str] | None = None) -> list[str]:
        return [name, *shown, *(ratios or ["–"] * len(against))]

    def line(name: str, key: str, form: str = ".2f", unit: str = "") -> list[str]:
        ratios = []
        for other in against:
            a, b = first.get(key), sides[other].get(key)
            ratios.append(f"{a / b:.2f}" if a and b else "–")
        return row(name, [figure(side.get(key), form, unit) for side in sides.values()], ratios)

    def share(name: str, key: str) -> list[str]:
        return row(name, [percent(side.get(key)) for side in sides.values()])

    def ratio(key: str) -> list[str]:
        return [_interval(found["speed"][key]) for found in against.values()]

    def each(what: Any) -> list[str]:
        return [str(what(side)) for side in sides.values()]

    rows = [
        row(
            "kept tokens a second, end to end",
            each(lambda s: figure(s["tokens_per_second"], ".1f")),
            ratio("tokens_per_second_ratio"),
        ),
        row(
            "… of a text, median (quartiles)",
            each(lambda s: "{1:.1f} ({0:.1f} to {2:.1f})".format(*s["tokens_per_second_quartiles"])),
        ),
        row(
            "answers a second",
            each(lambda s: figure(s["texts"] / (s["kept_tokens"] / s["tokens_per_second"]))),
            ratio("answers_per_second_ratio"),
        ),
        row(
            "latency p50 / p90 / p99, s",
            each(lambda s: " / ".join(f"{s['latency'][key]:.3f}" for key in ("p50", "p90", "p99"))),
        ),
        line("kept tokens a text", "kept_tokens_per_text", ".1f"),
        line("kept tokens for each denoising step (or pass)", "tokens_per_forward"),
        line("kept tokens for each pass of any kind", "tokens_per_pass"),
        line("milliseconds a pass", "milliseconds_per_pass"),
        line("denoising steps a canvas, mean", "steps_per_canvas"),
        line("drafted tokens accepted a round, mean", "accepted_per_round"),
        share("canvases that converged", "converged_canvases"),
        share("canvas positions wasted", "wasted_fraction"),
        share("answers whose form the verifier cannot read", "unreadable"),
        share("answers that ran on to the limit", "runaways"),
        row("documents whose text differs between blocks",
            each(lambda s: s["texts_that_differ_between_blocks"])),
        row("prompts that lost their beginning", each(lambda s: s["truncated_prompts"])),
        line("joules a kept token", "joules_per_token", ".3g"),
        line("cost of a million kept tokens", "cost_per_million_tokens", ".3g"),
        row(
            "peak memory" + ("" if summary["facts"]["device_memory"] else ", of the one process"),
            each(lambda s: figure(s["peak_bytes"] / 1e6, ",.0f", " MB")),
        ),
        row("texts written", each(lambda s: s["texts"])),
        row("ended by", each(lambda s: ", ".join(f"{k} {n}" for k, n in s["stop_reasons"].items()))),
    ]  # fmt: skip
    known = [cells for cells in rows if set(cells[1 : 1 + len(sides)]) != {"–"}]
    head = ("", *sides, *(f"to {other} (95 %)" for other in against))
    return table_of(head, known)


def first(summary: Summary) -> list[str]:
    """A table for each other side: the time to the first canvas or token."""
    names = {
        "to_first": "first canvas, against the first token",
        "to_same_tokens": "first canvas, against as many tokens",
    }
    parts = []
    name = summary["first"]
    for other, found in summary["against"].items():
        rows = [
            (
                label,
                figure(found["first"][key].get("first"), ".4f"),
                figure(found["first"][key].get("other"), ".4f"),
                figure(found["first"][key].get("ratio")),
                found["first"][key]["pairs"],
            )
            for key, label in names.items()
        ]
        if summary["sides"][name].get("canvases") is None:
            rows = [("first token", *row[1:]) for row in rows[:1]]
        head = ("median seconds to the …", name, other, "median ratio", "pairs")
        parts.append(table_of(head, rows))
    return parts


def traffic(summary: Summary) -> str:
    """A row a side and batch size or rate."""
    rows = [
        (
            point["side"],
            f"{point['amount']:g} at a time" if point["kind"] == "batch" else f"{point['amount']:g} a second",
            f"{point['tokens_per_second']:.1f} ({point['range_of_tokens_per_second'][0]:.1f} to "
            f"{point['range_of_tokens_per_second'][1]:.1f})",
            figure(point["tokens_per_second_a_user"], ".1f"),
            figure(point["first_seconds"], ".3f"),
            figure(point["seconds_per_further_token"], ".4f"),
            " / ".join(figure(point[key], ".3f") for key in ("p50", "p90", "p99")),
            f"{figure(point['good_requests_per_second'])} ({percent(point['good_share'])})",
            percent(point["score"]),
            figure(None if point["bytes_per_request"] is None else point["bytes_per_request"] / 1e6, ".2f", " MB"),
            figure(point["cost_per_million_tokens"], ".3g"),
        )
        for point in summary["traffic"]
    ]  # fmt: skip
    head = (
        "side", "requests", "tokens/s in all (range)", "tokens/s a user", "first, s", "each further token, s",
        "p50 / p90 / p99, s", "good requests/s", "score", "memory a request", "cost of a million",
    )  # fmt: skip
    return table_of(head, rows)


def lengths(summary: Summary) -> str:
    """A row a side and number of examples."""
    rows = [
        (
            row["side"],
            row["examples"],
            figure(row["prompt_tokens_per_text"], ".1f"),
            percent(row["score"]),
            figure(row["first_seconds"], ".4f"),
            figure(row["latency"]["p50"], ".4f"),
            figure(row["tokens_per_second"], ".1f"),
        )
        for row in summary["lengths"]
    ]
    head = (
        "side", "examples", "tokens of the prompt", "score", "first, s (median)", "end, s (median)", "tokens/s",
    )  # fmt: skip
    return table_of(head, rows)


def sweep(points: Sequence[Summary]) -> str:
    """A row a setting."""
    rows = [
        (
            point["contestant"],
            f"{percent(point['accuracy']['estimate'])} ({100 * point['accuracy']['low']:.1f} to "
            f"{100 * point['accuracy']['high']:.1f})",
            figure(point["tokens_per_second"], ".1f"),
            figure(point["tokens_per_forward"]),
            figure(point["steps_per_canvas"]),
            ", ".join(name.replace("_", " ") for name in point["fronts"]) or "–",
        )
        for point in points
    ]
    head = (
        "settings", "score (95 %)", "kept tokens/s", "per forward", "steps/canvas", "on the front of",
    )  # fmt: skip
    return table_of(head, rows)


def facts(found: Summary) -> str:
    """Settings and machine, as they are."""
    rows = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", _plain(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _plain(value)))
    return table_of(("what", "value"), rows, first_left=False)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
