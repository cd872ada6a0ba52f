"""Pictures of the main views, as they look in JupyterLab: `python -m scripts.screenshots` from the repository's root.

Writes docs/site/pictures/VIEW-light.png and docs/site/pictures/VIEW-dark.png. It needs what the browser tests need.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, expect, sync_playwright

from tests.browser.jupyterlab import PATIENCE, Lab, serve, write_notebook

PICTURES = Path(__file__).parents[1] / "docs" / "site" / "pictures"
THEMES: Mapping[str, str] = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

STEADY = """async (node) => {
    for (let height = -1, same = 0; same < 4; ) {
        const now = node.getBoundingClientRect().height;
        same = now === height ? same + 1 : 0;
        height = now;
        await new Promise((done) => setTimeout(done, 250));
    }
}"""
"""Resolves once the height has not changed for a second: charts are laid out late."""

SETUP = """
from dgemma_core import Observe, load
from dgemma_core.nano.families import examples
from dgemma_lab import (
    Budget, Canvas, Playground, Race, Session, Steering, hold, record, record_race, settling, token_ids
)
nano = load("nano")
session = Session(nano)
SUDOKU = "Sudoku:\\n_ _ _ _\\n_ _ _ _\\n_ _ 1 3\\n_ _ 4 _"
trace = record(nano, SUDOKU, observe=Observe(top_k=5))
canvas = Canvas(trace, title="A 4×4 sudoku")
canvas.step, canvas.selected = 1, 2
"""


@dataclass(frozen=True)
class View:
    """A cell to run, and what of its output must be seen before the picture is taken."""

    name: str
    code: str
    seen: str


VIEWS = (
    View("canvas", "canvas", ".dg-cell"),
    View("budget", "Budget(canvas)", "svg"),
    View("race", "Race(record_race(nano, SUDOKU))", ".dgr-lane"),
    View(
        "steering",
        "steering = Steering(session, SUDOKU)\n"
        "root = steering.run.wait()\n"
        "steering.apply(hold(root.trace, 0, 0, token_ids(nano, '1'), {})).wait()\n"
        "steering.form.values = {**steering.form.values, 'other': '0'}\n"
        "steering",
        ".dg-cell",
    ),
    View(
        "playground",
        "playground = Playground(session, SUDOKU)\nplayground.run()\nplayground.wait()\nplayground",
        ".dg-cell",
    ),
    View("order", "settling(trace)", ".js-plotly-plot .main-svg"),
)


def picture(output: Locator, path: Path) -> None:
    """One output, without the cell's number beside it."""
    shown = output.locator(".jp-OutputArea-output:not(:has(.dg-still))").first
    shown.evaluate(STEADY)
    shown.evaluate("node => node.scrollIntoView({ block: 'start' })")
    shown.page.mouse.move(0, 0)
    shown.screenshot(path=path, animations="disabled")


def main() -> None:
    browser_path = shutil.which("chromium")
    if browser_path is None:
        raise SystemExit("screenshots need chromium on the PATH: run `make tools`")
    PICTURES.mkdir(exist_ok=True)
    expect.set_options(timeout=PATIENCE * 1000)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_notebook(Path(folder) / "views.ipynb", [SETUP, *(view.code for view in VIEWS)])
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        with serve(Path(folder)) as address:
            lab = Lab(
                browser,
                address,
                "views.ipynb",
                viewport={"width": 1280, "height": 1600},
                device_scale_factor=1.5,
            )
            lab.page.evaluate("() => jupyterapp.shell.collapseLeft()")
            lab.run_cell(0)
            for index, view in enumerate(VIEWS, start=1):
                output = lab.run_cell(index)
                expect(output.locator(view.seen).first).to_be_visible()
                for name, theme in THEMES.items():
                    lab.theme(theme)
                    path = PICTURES / f"{view.name}-{name}.png"
                    picture(output, path)
                    print(path.relative_to(PICTURES.parent), flush=True)
            lab.close()
        browser.close()


if __name__ == "__main__":
    main()
