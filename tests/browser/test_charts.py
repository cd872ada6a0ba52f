"""Charts of which the machine decides how they look: nothing written on them may cover anything else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from dgemma_lab.charts.drafts import predicted_speculation
from dgemma_lab.charts.roofline import Machine, StepCost, break_even, roofline
from dgemma_lab.theme import Figure

WRITTEN = """() => [...document.querySelectorAll('.main-svg text')].map((node) => {
  const { left, right, top, bottom } = node.getBoundingClientRect();
  return { text: node.textContent, left, right, top, bottom, fill: getComputedStyle(node).fill };
}).filter(({ text }) => text.trim())"""

PLOT = """() => {
  const { left, top, bottom } = document.querySelector('.nsewdrag').getBoundingClientRect();
  return { left, top, bottom };
}"""


def machine(ratios: dict[int, float]) -> Machine:
    """A machine on which a denoising step takes so many autoregressive steps, batch size → ratio."""
    return Machine(
        name="x86_64 CPU, 2 threads", model="nano", dtype="float32", bandwidth=1.9e10, matrix_rate=1.2e11, prefix=20,
        token_steps=tuple(StepCost(b, b, 0.003, 1e7 * b, 8e6 + 1e4 * b) for b in ratios),
        canvas_steps=tuple(StepCost(b, 36 * b, 0.003 * r, 3.6e8 * b, 9e6 + 1e4 * b) for b, r in ratios.items()),
    )  # fmt: skip


LIKE_NANO = machine({1: 2.8, 2: 3.6, 4: 5.4, 8: 8.0, 16: 11.3, 32: 14.4})
LIKE_THE_CLAIM = machine({1: 3.2, 32: 19.7})
CHARTS = {
    "break-even": break_even(LIKE_NANO, tokens_per_forward=5.2),
    "on the published step": break_even(LIKE_THE_CLAIM, tokens_per_forward=3.2),
    "on the published crossing": break_even(LIKE_THE_CLAIM, tokens_per_forward=19.7),
    "alone": break_even(LIKE_NANO, published=None),
    "roofline": roofline(LIKE_NANO),
    "drafts": predicted_speculation(),
}


def overlapping(written: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (a["text"], b["text"])
        for a, b in combinations(written, 2)
        if min(a["right"], b["right"]) - max(a["left"], b["left"]) > 0.5
        and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 2  # lines lie close
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_no_label_covers_another_or_a_point(
    open_page: Callable[..., Page], tmp_path: Path, name: str, scheme: str
) -> None:
    figure: Figure = CHARTS[name]
    figure.write_html(tmp_path / "chart.html")
    page = open_page(tmp_path / "chart.html", width=1000, color_scheme=scheme)
    for width in (1000, 850, 700):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_function(
            "width => document.querySelector('.main-svg')?.clientWidth === width - 16", arg=width
        )
        written = page.evaluate(WRITTEN)
        assert len(written) >= 8 and overlapping(written) == [], width
        assert all(label["left"] >= 0 and label["right"] <= width for label in written), width
        plot = page.evaluate(PLOT)
        among = [
            label["text"]
            for label in written
            if label["right"] > plot["left"] and plot["top"] < label["bottom"] < plot["bottom"]
        ]
        assert among == [], width
    assert {label["fill"] for label in written} == {
        "rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)"
    }
