"""A real Chromium for the tests of this folder, and axe-core to judge pages by."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
FLAGS = [
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Where there is none, the tests fail: they are not skipped."""
    path = shutil.which("chromium")
    assert path, "the browser tests need chromium on the PATH: run `make test`, which installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


class Watched:
    """A page, what it asked for from outside, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._request)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1")):
            self.outside.append(request.url)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file or an address in a context of its own; when the test ends the page must have asked for
    nothing outside and have met no error."""
    watched: list[Watched] = []

    def open_one(
        target: Path | str, *, width: int = 1200, height: int = 900, **options: Any
    ) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        watched.append(Watched(page))
        page.goto(target.as_uri() if isinstance(target, Path) else target)
        return page

    yield open_one
    for one in watched:
        one.page.context.close()
        assert one.outside == []
        assert one.errors == []


@pytest.fixture(scope="session")
def violations() -> Callable[..., list[str]]:
    """axe-core's violations on a page, or within what a selector finds on it, one line each: rule, how bad, where."""
    assert AXE.exists(), (
        "axe-core is missing: run `npm ci --prefix tests/browser`, as `make test` does"
    )
    script = AXE.read_text("utf-8")

    def check(page: Page, within: str | None = None) -> list[str]:
        page.evaluate(script)
        found = page.evaluate("within => axe.run(within ?? document)", within)
        judged = {rule["id"] for rule in found["passes"]} | {v["id"] for v in found["violations"]}
        assert "color-contrast" in judged, "axe saw no text"
        return [
            f"{v['id']} ({v['impact']}): {node['target']} {node['failureSummary']}"
            for v in found["violations"]
            for node in v["nodes"]
        ]

    return check
