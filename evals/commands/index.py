"""One page of many results: comparisons, benches and flips, with plotly.js in it once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgemma_core import DgemmaError, RequestError
from dgemma_evals.bench import page as bench_page
from dgemma_evals.comparison import figures as draw
from dgemma_evals.comparison import report
from dgemma_evals.comparison.flips import RESULTS as FLIPS
from dgemma_evals.comparison.load import overtaking
from dgemma_evals.comparison.summary import Summary, by_task
from dgemma_evals.page import answer, bullets, chart, document, heading

PAGE = "index.html"


def write(out: Path, folders: Sequence[Path] = ()) -> Path:
    """Draws OUT/index.html from the results in `folders`, all of OUT's where none is named.

    Raises DgemmaError where there are none, where one cannot be read, or where the page cannot be written.
    """
    named = folders or sorted(path for path in out.glob("*") if path.is_dir())
    found = [folder for folder in named if _kind(folder) is not None]
    for folder in folders:
        if folder not in found:
            raise RequestError(
                f"{folder} holds no results: name folders that `dgemma compare` or `dgemma bench` wrote, or the "
                f"folder that holds them by --out"
            )
    if not found:
        raise RequestError(f"{out} holds no results: run `dgemma compare --out {out}/…` first")
    bodies: list[str] = []
    figures: dict[str, Any] = {}
    summaries: list[Summary] = []
    for folder in found:
        prefix = f"{folder.name}-"
        bodies.append(f"<section id='{folder.name}'>{heading(folder.name)}")
        if _kind(folder) == "comparison":
            summary, table = report.read_results(folder)
            summaries.append(summary)
            parts, drawn = report.sections(summary, table, prefix=prefix)
        elif _kind(folder) == "flips":
            parts, drawn = [bullets(_read(folder / FLIPS)["answer"])], {}
        else:
            parts, drawn = bench_page.sections(folder, prefix=prefix)
        bodies += [_lower(part) for part in parts] + ["</section>"]
        figures |= drawn
    opening, picture = _opening(summaries, found)
    links = " · ".join(f"<a href='#{folder.name}'>{folder.name}</a>" for folder in found)
    first: list[str] = [answer(sentence) for sentence in opening]
    if picture is not None:
        title, figure = picture
        first.append(chart("opening", title))
        figures = {"opening": figure, **figures}
    page = document("Results", [*first, f"<p>{links}</p>", *bodies], figures)
    path = out / PAGE
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DgemmaError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _kind(folder: Path) -> str | None:
    """What lies in a folder; None where it is no result."""
    if (folder / report.RESULTS).exists():
        return "comparison"
    if (folder / FLIPS).exists():
        return "flips"
    return "bench" if any("rows" in _read(path) for path in folder.glob("*.json")) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DgemmaError(f"{path}: cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def _lower(part: str) -> str:
    """A part of a page as a part of a section: its headings are one level lower."""
    for level in (3, 2):
        part = part.replace(f"<h{level}>", f"<h{level + 1}>")
        part = part.replace(f"</h{level}>", f"</h{level + 1}>")
    return part


def _opening(
    summaries: Sequence[Summary], folders: Sequence[Path]
) -> tuple[list[str], tuple[str, Any] | None]:
    """At most three sentences: quality and pace, many at once, and the public implementations; and a picture."""
    said, picture = [], None
    if summaries:
        largest = max(summaries, key=lambda summary: int(summary["documents"]))
        said.append(_quality(largest))
        loaded = next((summary for summary in summaries if summary["traffic"]), None)
        if loaded is not None:
            said.append(_at_once(loaded))
            title = "Kept tokens a second a user against all in all; numbers: requests at a time"
            figure = draw.load_front(loaded)
            picture = None if figure is None else (title, figure)
    steps = [_read(folder / "steps.json") for folder in folders if (folder / "steps.json").exists()]
    measured = [
        (bool(row.get("enough_rounds")), record["environment"].get("date") or "", row)
        for record in steps
        for row in record["rows"]
        if row["ratio_to_fastest_peer"]
    ]
    if measured:  # the latest of those with rounds enough for a headline
        _, _, row = max(measured, key=lambda each: each[:2])
        setting = row["setting"]
        said.append(
            f"A denoising step with the released vocabulary takes {row['implementations'][0]['median']:.2g} s, "
            f"{row['ratio_to_fastest_peer']:.2f} times as fast as the fastest public implementation "
            f"({setting['dtype']}, {setting['threads']} threads, {setting['allocator']} allocator)."
        )
    return said, picture


def _quality(summary: Summary) -> str:
    first, (other, found) = summary["first"], next(iter(summary["against"].items()))
    ratio = found["speed"]["tokens_per_second_ratio"]
    tasks = by_task(found["tasks"], first, other)
    if not tasks:
        tasks = (
            f"Of {found['accuracy']['documents']} documents {first} solves {100 * found['accuracy']['first']:.1f} % "
            f"and {other} {100 * found['accuracy']['other']:.1f} %"
        )
    return (
        f"{tasks}; it writes {ratio['estimate']:.2f} times as many kept tokens a second (95 % interval "
        f"{ratio['low']:.2f} to {ratio['high']:.2f}), one text at a time."
    )


def _at_once(summary: Summary) -> str:
    first = summary["first"]
    parts = []
    for other in summary["against"]:
        found = overtaking(summary["traffic"], first, other)
        sizes = [p["amount"] for p in summary["traffic"] if p["kind"] == "batch"]
        if found is None:
            parts.append(f"up to {max(sizes, default=1):g} at a time {other} writes no more in all")
        else:
            parts.append(f"from {found['amount']:g} at a time on {other} writes more in all")
    return f"With more requests at once than one, against {first}: {'; '.join(parts)}."
