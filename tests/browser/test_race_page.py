"""The exported page of a race: replayed with no kernel and no network, legible to everyone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dgemma_core.files.trace import Trace
from dgemma_lab.race.race import Race
from tests.files.fake_events import EOS, diffusion_events, draft_events, token_events

ANSWER = [*range(10, 32), EOS]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_replays_the_race_and_axe_finds_nothing(
    open_page: Callable[..., Page],
    violations: Callable[..., list[str]],
    tmp_path: Path,
    scheme: str,
) -> None:
    traces = [
        Trace.record(events, metadata={"prompt": "Count <i>up</i>"}, decode=" w{}".format)
        for events in (
            diffusion_events(ANSWER),
            token_events(ANSWER),
            draft_events(ANSWER, [3, 3, 3, 3, 3, 1]),
        )
    ]
    page = open_page(Race(traces).to_html(tmp_path / "race.html"), color_scheme=scheme)
    assert page.title() == "Count <i>up</i>"
    expect(page.locator(".dgr-title")).to_have_text("Count <i>up</i>")
    finish = page.locator(".dgr-text").all_inner_texts()
    assert all("w31" in text for text in finish)
    assert violations(page) == []
    page.get_by_role("slider", name="Time").fill("150")
    assert page.locator(".dgr-text").all_inner_texts() != finish
    # One pass for the prompt and its token, then one for every four tokens, which verifies a draft and drafts the next.
    drafted = page.locator(".dgr-lane", has_text="speculative").inner_text()
    kept, passes = map(int, re.search(r"(\d+) kept · (\d+) passes", drafted).groups())  # type: ignore[union-attr]
    assert kept == 1 + 4 * (passes - 1) and 1 < passes < 7
    assert violations(page) == []
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".dgr-verdict")).to_contain_text("was first", timeout=60_000)
    assert page.locator(".dgr-text").all_inner_texts() == finish
