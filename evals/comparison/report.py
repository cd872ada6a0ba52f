"""A comparison as files: tidy parquet, JSON, and one HTML page that needs no network."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core import DgemmaError
from dgemma_evals.comparison import figures as draw
from dgemma_evals.comparison import tables
from dgemma_evals.comparison.compare import Comparison
from dgemma_evals.comparison.summary import Summary, summarise
from dgemma_evals.page import answer, bullets, chart, document, heading, note

if TYPE_CHECKING:
    import pandas as pd

GENERATIONS, TRAFFIC = "generations.parquet", "traffic.parquet"
RESULTS, PAGE = "results.json", "report.html"


@dataclass(frozen=True)
class Report:
    """Where the page is, and the sentences that it opens with, one for each other side."""

    path: Path
    answers: tuple[str, ...]


def write(comparison: Comparison, out: Path) -> Report:
    """Writes the files into `out`; each text file whole or not at all."""
    summary = summarise(comparison)
    parts, figures = sections(summary, comparison.table)
    page = document(" against ".join(summary["sides"]), parts, figures)
    try:
        out.mkdir(parents=True, exist_ok=True)
        packed: dict[str, Any] = {"index": False, "compression": "zstd", "compression_level": 19}
        comparison.table.to_parquet(out / GENERATIONS, **packed)
        if comparison.traffic is not None:
            comparison.traffic.to_parquet(out / TRAFFIC, **packed)
        _replace(out / RESULTS, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        _replace(out / PAGE, page)
    except OSError as error:
        raise DgemmaError(f"{out}: the report cannot be written ({error.strerror})") from error
    return Report(out / PAGE, tuple(summary["answers"]))


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


def sections(
    summary: Summary, table: pd.DataFrame, *, prefix: str = ""
) -> tuple[list[str], dict[str, Any]]:
    """The body of a page and its figures. prefix: of the figures' names, where several bodies share a page."""
    figures = {name: figure for name, figure in draw.figures(summary, table).items() if figure}

    def placed(name: str, title: str) -> list[str]:
        return [chart(prefix + name, title)] if name in figures else []

    parts = [
        *(answer(text) for text in summary["answers"]),
        heading("Accuracy"),
        *placed("accuracy", "Score of documents, by task (left), and the difference (right)"),
        *tables.accuracy(summary),
        note(
            "Seeds of a document are averaged first. Interval: bootstrap over documents within tasks. p: the signs of "
            "documents' mean differences flipped; of the tasks, corrected for their number (Holm). Better, worse: "
            "documents."
        ),
        heading("Speed and cost"),
        note(
            "The very generations that are scored, written alone after a warm-up; the sides take turns, forwards for "
            "one document and backwards for the next (A B B A). Seconds run from the prompt to the final text. "
            "Interval of a ratio: documents within tasks and blocks are both drawn anew."
        ),
        tables.speed(summary),
        *tables.first(summary),
        *placed("latency", "Seconds a text takes, as a share of texts"),
        *placed("steps", "Denoising steps a canvas takes"),
    ]
    if summary["traffic"]:
        within = summary["facts"]["within"]
        parts += [
            heading("Many at once"),
            note(
                "A user's rate is kept tokens over the whole wait, from arrival to the end; the median of requests. "
                f"Good: answered within {within:g} s. Medians over blocks. The diamond marks where a side begins to "
                "write more tokens a second in all than the first one."
            ),
            *placed(
                "front",
                "Tokens a second a user against tokens a second in all, by requests at a time",
            ),
            *placed(
                "open",
                "Seconds until an answer is there (p50, and p99 dotted), by requests that arrive a second",
            ),
            tables.traffic(summary),
        ]
    if summary["lengths"]:
        parts += [
            heading("Longer prompts"),
            note("The same questions behind more and more few-shot examples."),
            *placed(
                "lengths",
                "Seconds to the first canvas or token (dotted) and to the end, by tokens of the prompt",
            ),
            tables.lengths(summary),
        ]
    if summary["sweep"]:
        parts += [
            heading("Sweep"),
            note(
                "Lines join the points that no other setting beats in both. Dotted lines: published rates of the 26B "
                "models (second-hand; other tasks, one H100), as marks on the rate axis alone."
            ),
            *placed("pareto_second", "Score against kept tokens a second, end to end"),
            *placed("pareto_forward", "Score against kept tokens for each forward pass"),
            tables.sweep(summary["sweep"]),
        ]
    parts += [
        heading("Settings and machine"),
        tables.facts(summary["facts"]),
        heading("Not measured"),
        bullets(summary["not_measured"]),
    ]
    return parts, {prefix + name: figure for name, figure in figures.items()}


def read_results(folder: Path) -> tuple[Summary, pd.DataFrame]:
    """What `write` left in a folder. Raises DgemmaError where it is not to be read, or of an older version."""
    import pandas as pd

    try:
        summary: Summary = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        table = pd.read_parquet(folder / GENERATIONS)
    except (OSError, ValueError) as error:
        raise DgemmaError(f"{folder}: no results of a comparison ({error})") from error
    if "against" not in summary:
        raise DgemmaError(f"{folder}: results of an older version; run its comparison again")
    return summary, table
