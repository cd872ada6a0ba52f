"""The exported page of a constrained run in Chromium: the card's two columns, by mouse and keys, in both themes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dgemma_core import Constraint, Observe
from dgemma_lab import Canvas
from dgemma_lab.session.plan import record
from tests.constraints.conftest import no_automata_of_the_user
from tests.lab import runs

__all__ = ["no_automata_of_the_user"]
OpenPage = Callable[..., Page]
LISTED = Constraint.regex(r"\[[a-z]{1,6}(, [a-z]{1,6}){0,4}\]")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, no_automata_of_the_user: object) -> Path:
    """Random weights, held to a list: most of what they would write is forbidden. The comma is a pin."""
    trace = record(
        runs.loaded(), "A list", constraint=LISTED, observe=Observe(top_k=5), pins={3: ","}
    )
    return Canvas(trace).to_html(tmp_path_factory.mktemp("page") / "bound.html", play=False)


def test_the_card_tells_what_is_forbidden_and_what_may_come(
    open_page: OpenPage, exported: Path, violations: Callable[..., list[str]]
) -> None:
    for theme, width in (("light", 1200), ("dark", 390)):
        page = open_page(exported, color_scheme=theme, width=width)
        page.evaluate("canvas.set('step', 1)")
        page.locator(".dg-grid .dg-cell").first.click()
        card = page.get_by_role("group", name="Token details")
        expect(card.locator(".dg-heads")).to_be_visible()
        barred = card.locator(".dg-barred")
        assert barred.count() > 0
        expect(barred.first).to_contain_text("forbidden")
        constraint = card.locator(".dg-constraint")
        expect(constraint).to_contain_text(re.compile(r"forbidden here: \d.*automaton in state 0"))
        expect(constraint).to_contain_text("here may come: [")
        box = card.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert violations(page) == []
        page.mouse.move(1, 1)  # what the mouse is over goes before what has the focus
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        expect(card.locator(".dg-place")).to_contain_text("position 3 · pinned")
        expect(constraint).to_contain_text("held by a pin · automaton in state")
        expect(card.locator(".dg-alternatives .dg-value", has_text="100 %")).to_have_count(1)
        expect(card.locator(".dg-barred")).to_have_count(0)


def test_a_free_run_has_a_card_of_one_column(open_page: OpenPage, tmp_path: Path) -> None:
    trace = record(runs.loaded(), "A list", observe=Observe(top_k=5))
    page = open_page(Canvas(trace).to_html(tmp_path / "free.html", play=False))
    page.locator(".dg-grid .dg-cell").first.click()
    card = page.get_by_role("group", name="Token details")
    expect(card.locator(".dg-alternatives li").first).to_contain_text("%")
    for name in (".dg-heads", ".dg-constraint", ".dg-before"):
        expect(card.locator(name).first).to_be_hidden()
