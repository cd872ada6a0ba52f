"""The lab where it is used: JupyterLab, its kernel and nano, driven through Chromium."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

import dgemma_core as dg
from tests.browser.jupyterlab import PATIENCE, Lab, serve, write_notebook

FIRST = Path(__file__).parents[2] / "notebooks/01_first_canvas.ipynb"
SUDOKU = "Sudoku:\n1 _ _ _\n_ _ _ 2\n_ _ _ _\n_ 4 _ _"
SETUP = f"""
from dgemma_core import load
from dgemma_lab.race.race import Race, record_race
from dgemma_lab.session.session import Session
from dgemma_lab.steering.steering import Steering
nano = load("nano")
session = Session(nano)
SUDOKU = {SUDOKU!r}
"""
LONG = 'box = session.ask("Spell backward:\\nSTEP", steps=10000, stop_rule=None)\nbox'

VIEWS = """
from dgemma_core import Observe
from dgemma_lab.budget.budget import Budget
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.playground.playground import Playground
from dgemma_lab.session.plan import record, token_ids
from dgemma_lab.steering.edits import hold
trace = record(nano, SUDOKU, observe=Observe(top_k=5))
"""
WIDGETS = {
    "entropy budget": "budget = Budget(trace)\nbudget.step = 2\nbudget",
    "playground": "play = Playground(session, SUDOKU, columns=[{}, {'rule': 'autoregressive'}])\n"
    "play.run()\nplay.wait()\nplay",
    "playground that is wrong": "wrong = Playground(session, SUDOKU, columns=[{'rule': 'block_refinement', "
    "'block_refinement.top_p': 0.5}, {'rule': 'discrete_ddim', 'stop': False}])\nwrong.run()\nwrong",
    "steering": "tree = Steering(session, SUDOKU)\nroot = tree.run.wait()\n"
    "tree.apply(hold(root.trace, 0, 2, token_ids(nano, '4'), {})).wait()\n"
    "root.canvas.selected = 3\ntree.form.values = {**tree.form.values, 'other': '0'}\ntree",
    "race": "Race(record_race(nano, SUDOKU))",
    "prompt box": "box = session.ask(SUDOKU)\nbox.run()\nbox.settle()\nbox",
}

BROUGHT_INTO_VIEW = """(cell) => {
  const node = document.querySelector(cell);
  node.scrollIntoView({ block: 'start' });
  const { left, top, width } = node.getBoundingClientRect();
  return document.body.clientHeight > 0 && node.contains(document.elementFromPoint(left + width / 2, top + 20));
}"""

DRAWN = """() => jupyterapp.shell.currentWidget.content.widgets[0].model.outputs.get(0).data["image/png"]"""
"""Whether plotly has made the picture of the first cell's chart that it saves: the last that it draws unasked."""
PLOTLYS = "'removeChild' on 'Node'"
"""Of a script error of plotly's own, which may still be measuring text when JupyterLab takes its nodes away."""
CONTRASTS = """() => {
  const luminance = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor);
  return [...document.querySelectorAll('.main-svg text')].filter((node) => node.textContent.trim()).map((node) => {
    const [low, high] = [ground, luminance(getComputedStyle(node).fill)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
}"""
"""The contrast of every text in a chart with the notebook's ground."""


def covered(output: Locator) -> list[str]:
    """The controls of a canvas that its floating card touches."""
    found: list[str] = output.evaluate("""(output) => {
      const card = output.querySelector('.dg-panel').getBoundingClientRect();
      return [...output.querySelectorAll('.dg-controls :is(button, input, select)')].filter((node) => {
        const box = node.getBoundingClientRect();
        const beside = box.right <= card.left || card.right <= box.left;
        return box.width && !beside && box.top < card.bottom && card.top < box.bottom;
      }).map((node) => node.getAttribute('aria-label') ?? node.className);
    }""")
    return found


expect.set_options(timeout=PATIENCE * 1000)


@cache
def answer() -> str:
    """What nano writes for SUDOKU, seed 0: the text that a run in the browser must end with."""
    return dg.generate(dg.load("nano"), SUDOKU)[0].text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jupyterlab")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serve(folder) as found:
        yield found


@pytest.fixture
def open_lab(chromium: Browser, address: str, folder: Path) -> Iterator[Callable[..., Lab]]:
    """Opens a notebook of these cells; at the end nothing outside was asked for, and no script failed."""
    opened: list[Lab] = []

    def open_one(name: str, cells: list[str] | None = None) -> Lab:
        if cells is None:
            shutil.copyfile(FIRST, folder / name)
        else:
            write_notebook(folder / name, cells)
        opened.append(Lab(chromium, address, name))
        return opened[-1]

    yield open_one
    for lab in opened:
        lab.close()
        assert lab.outside == []
        assert [error for error in lab.errors if PLOTLYS not in error] == []


def frames(canvas: Locator) -> int:
    """The number of passes that a canvas shows."""
    return int(canvas.get_by_label("Step", exact=True).get_attribute("max") or 0)


def test_the_first_notebook_denoises_a_typed_prompt(open_lab: Callable[..., Lab]) -> None:
    lab = open_lab("first.ipynb")
    # Before anything runs, the finished sudoku of the committed outputs is there to see.
    expect(lab.page.locator(".jp-OutputArea img").first).to_be_visible()
    cells = lab.page.evaluate(
        "() => jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.type)"
    )
    output = lab.run_cell(cells.index("code"))
    facts = output.locator(".dg-summary").first
    expect(facts).to_have_text(re.compile(r"\d+ tokens .* stopped by"))

    prompt = output.get_by_label("Prompt")
    prompt.fill("Spell backward:\nSTEP b x m")  # letters that are command keys of JupyterLab
    prompt.press("Enter")
    expect(output.locator(".dg").first).to_have_attribute("aria-label", re.compile("STEP b x m"))
    expect(facts).to_have_text(re.compile(r"\d+ tokens .* stopped by"))
    assert output.locator(".dg-cell").count() > 0
    after = lab.page.evaluate(
        "() => jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.type)"
    )
    assert after == cells, "typing in the box must not act on the notebook"


def test_the_first_minute_prompt_and_tokens_on_one_screen_an_example_and_its_verdict(
    open_lab: Callable[..., Lab],
) -> None:
    lab = open_lab("minute.ipynb", [SETUP, "box = session.ask(SUDOKU)\nbox.run()\nbox"])
    lab.page.set_viewport_size({"width": 1280, "height": 900})
    lab.run_cell(0)
    output = lab.run_cell(1)
    facts = output.locator(".dg-summary")
    expect(facts).to_contain_text(re.compile(r"replayed.*it took"))  # over in a moment: shown again
    expect(facts).to_contain_text("stopped by")
    shown = output.page.evaluate("""() => [
      document.querySelector('.dgf textarea'), document.querySelector('.dg-controls'),
      document.querySelector('.dg-grids'), document.querySelector('.dg-strip')].map((node) => {
        const { top, bottom } = node.getBoundingClientRect(); return top >= 0 && bottom <= 872 })""")
    assert shown == [True] * 4, "prompt, controls, tokens and strip, on one screen"
    tops = output.page.evaluate("""() => [...document.querySelectorAll('.dg-controls > :not([hidden])')]
      .map((node) => { const { top, bottom } = node.getBoundingClientRect(); return (top + bottom) / 2 })""")
    assert max(tops) - min(tops) < 8, "the controls stand in one row"

    output.get_by_role("button", name="a word backward").or_(
        output.get_by_role("button", name="a sudoku")
    ).first.click()
    expect(output.locator(".dgf-message")).to_have_text(re.compile(r"^[✓✗] The verifier"))
    expect(output.locator(".dgf-right, .dgf-wrong")).to_have_count(1)
    prompt = output.get_by_label("Prompt")
    prompt.fill("What is the meaning of life?")
    prompt.press("Enter")
    expect(output.locator(".dgf-message")).to_contain_text("Outside what nano knows")

    with lab.page.expect_download() as download:
        output.get_by_label("Share this run").select_option("html")
    saved = Path(download.value.path()).read_text("utf-8")
    assert "A text-diffusion model writes" in saved and download.value.suggested_filename.endswith(
        ".html"
    )


def test_a_live_run_fills_its_canvas_and_stops(open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(
        "live.ipynb", [SETUP, LONG, "print(box.current.running, len(box.current.trace))"]
    )
    lab.run_cell(0)
    output = lab.run_cell(1)
    output.get_by_role("button", name="Run", exact=True).click()
    stop = output.get_by_role("button", name="Stop the run")
    expect(stop).to_be_visible()
    lab.page.wait_for_function("() => document.querySelector('.dg-range').max >= 5")
    expect(output.locator(".dg-cell").first).to_be_visible()  # it fills while the model writes
    stop.click()
    expect(stop).to_be_hidden()
    expect(output.locator(".dg-summary").first).to_have_text(re.compile(r"^stopped after \d+ pass"))

    answer = lab.run_cell(2)
    expect(answer).to_contain_text("False")
    running, passes = answer.inner_text().split()
    assert running == "False" and int(passes) == frames(output)  # nothing is lost at the end


def test_a_constrained_run_shows_what_its_grammar_forbids(
    open_lab: Callable[..., Lab], violations: Callable[..., list[str]]
) -> None:
    lab = open_lab("constrained.ipynb", [SETUP, "box = session.ask(SUDOKU)\nbox"])
    lab.run_cell(0)
    output = lab.run_cell(1)
    pattern = output.get_by_label("which the whole answer must match")
    expect(output.get_by_text("more settings")).to_be_visible()
    expect(pattern).to_be_hidden()
    output.get_by_text("more settings").click()
    output.get_by_label("the answer must be").select_option("regex")
    pattern.fill("(1")
    pattern.press("Enter")
    expect(output.locator(".dgf-message")).to_contain_text("cannot be an automaton")
    pattern.fill(r"[1-4]( [1-4]){3}(\n[1-4]( [1-4]){3}){3}")
    pattern.press("Enter")
    expect(output.locator(".dg-summary")).to_contain_text("obeys a regular expression")
    expect(output.locator(".dgf-message")).to_be_hidden()

    output.get_by_role("button", name="First step").click()
    output.get_by_role("button", name="Step forward").click()
    output.locator(".dg-cell").first.click()
    card = output.get_by_role("group", name="Token details")
    expect(card.locator(".dg-heads")).to_have_text(re.compile("before.*after"))
    constraint = card.locator(".dg-constraint")
    expect(constraint).to_contain_text(re.compile(r"forbidden here: .*automaton in state \d+"))
    expect(constraint).to_contain_text(re.compile("here may come: .*1.*2.*3.*4"))
    first = constraint.inner_text()
    lab.page.mouse.move(1, 1)  # what the mouse is over goes before what has the focus
    lab.page.keyboard.press("ArrowRight")
    expect(constraint).not_to_have_text(first)  # another state
    expect(card.locator(".dg-place")).to_contain_text("position 1")
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        lab.theme(theme)
        assert violations(lab.page, ".dg") == []
        assert violations(lab.page, ".dgf") == []


def test_pin_and_branch_make_runs_of_a_tree(open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(
        "steer.ipynb",
        [
            SETUP,
            "steering = Steering(session, SUDOKU)\nsteering",
            "pins = [dict(node.run.pins_at(len(node.run.trace))) for node in steering.nodes]\n"
            "print(pins, [node.run.parent is steering.nodes[0].run for node in steering.nodes],"
            " [node.run.request.seed for node in steering.nodes])",
        ],
    )
    lab.run_cell(0)
    output = lab.run_cell(1)
    tree = output.get_by_role("radio")
    expect(tree).to_have_count(1)
    expect(output.locator(".dgf-note").first).to_have_text(re.compile("passes$"))

    output.get_by_role("button", name="First step").click()
    output.locator(".dg-cell").nth(2).click()
    output.get_by_label("Replacement text").fill(" 4")
    output.get_by_role("button", name="Replace the token").click()
    expect(tree).to_have_count(2)
    expect(output.locator(".dgf-note").nth(1)).to_have_text(re.compile("passes$"))
    expect(output.locator(".dg-cell").nth(2)).to_have_attribute("aria-label", re.compile("pinned"))

    tree.first.check()  # back to the root, and branch off from there
    expect(output.locator(".dg-grid .dg-s4")).to_have_count(0)
    output.get_by_role("button", name="First step").click()
    output.get_by_role("button", name="Step forward").click()
    output.get_by_role("button", name="Branch from this step").click()
    expect(tree).to_have_count(3)
    expect(output.locator(".dgf-note").nth(2)).to_have_text(re.compile("passes$"))

    said = lab.run_cell(2)
    expect(said).to_contain_text("[False, True, True]")
    pins, parents, seeds = re.findall(r"\[[^\]]*\]", said.inner_text())
    assert pins.startswith("[{}, {2: ") and pins.endswith("}, {}]")
    assert parents == "[False, True, True]" and seeds == "[0, 0, 1]"

    output.get_by_label("compare with").select_option(label="as it came")
    expect(output.locator(".dg")).to_have_count(2)
    expect(output).to_contain_text("tokens of the answer are equal")  # both stand there, tied
    first, second = (output.get_by_label("Step", exact=True).nth(i) for i in range(2))
    deadline = time.monotonic() + 60
    while second.input_value() != "0" and time.monotonic() < deadline:
        first.press("Home")  # again: a view that has only just come stands at its last step
        lab.page.wait_for_timeout(500)
    expect(first).to_have_value("0")
    expect(second).to_have_value("0")  # the scrubbers move together


def test_every_finished_run_stands_at_its_last_step(open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(
        "ended.ipynb",
        [
            SETUP + VIEWS,
            "play = Playground(session, SUDOKU, columns=[{'stop': False, 'steps': 5}, "
            "{'stop': False, 'steps': 9}, {'rule': 'autoregressive'}])\nplay",
            "print([len(trace) for trace in play.traces.values()])",
            "from dgemma_lab import settling\nsettling(play.traces['A'])",
        ],
    )
    lab.run_cell(0)
    output = lab.run_cell(1)
    output.get_by_role("button", name="Run all").click()
    expect(output.locator(".dgf-message").first).to_contain_text("A and C")
    said = lab.run_cell(2)
    expect(said).to_contain_text("]")
    passes = re.findall(r"\d+", said.inner_text())
    assert passes[:2] == ["5", "9"]
    shared = output.get_by_label("Step of all")
    expect(shared).to_have_attribute("max", max(passes, key=int))
    # The runs are shown once more from their noise; then each rests at its own end, however many passes it took.
    expect(output.get_by_role("button", name="Play").first).to_be_visible()
    expect(shared).to_have_value(max(passes, key=int))
    sliders = output.get_by_label("Step", exact=True)  # hidden: the columns have one transport
    for i, count in enumerate(passes):
        assert sliders.nth(i).get_attribute("max") == count
        assert sliders.nth(i).input_value() == count
    shared.press("Home")
    expect(shared).to_have_value("0")
    output.page.wait_for_function(
        "() => [...document.querySelectorAll('.dg-follows .dg-range')].every((s) => s.value === '0')"
    )
    chart = lab.run_cell(3)
    # It is interactive though kaleido is here. (plotly's renderer keeps an empty image beside it.)
    expect(chart.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    expect(chart.locator("img:visible")).to_have_count(0)


def test_a_saved_notebook_keeps_its_pictures_and_a_lost_kernel_is_said(
    open_lab: Callable[..., Lab],
) -> None:
    lab = open_lab(
        "saved.ipynb",
        [SETUP, "run = session.run(SUDOKU)\nrun", "box = session.ask(SUDOKU)\nbox"],
    )
    lab.run_cell(0)
    canvas = lab.run_cell(1)
    expect(canvas.locator(".dg-summary")).to_have_text(re.compile("stopped by"))
    expect(canvas.locator(".dg-still")).to_be_hidden()
    box = lab.run_cell(2)
    box.get_by_role("button", name="Run", exact=True).click()
    expect(box.locator(".dg-summary")).to_have_text(re.compile("stopped by"))
    # A short run replays itself; its text is whole once that is over.
    expect(canvas.locator(".dg-summary")).to_have_text(re.compile("stopped by"))
    text = answer()
    expect(canvas.locator(".dg-text")).to_have_text(text)

    lab.restart_kernel()
    expect(canvas.locator(".dg-summary")).to_contain_text("The kernel is gone")
    expect(canvas.locator(".dg-text")).to_have_text(text)  # what was written stays to be read
    box.get_by_role("button", name="Run", exact=True).click()
    expect(box.locator(".dgf-message")).to_contain_text("Run this cell again")

    lab.save_and_open_again()
    for output in (lab.output(1), lab.output(2)):
        expect(output.locator(".dg-still")).to_be_visible()
        expect(output.locator(".dg-still pre")).to_have_text(text)
        expect(output).to_contain_text("Run this cell to make it live")
        expect(output.get_by_text("model not found")).to_be_hidden()
    canvas = lab.rerun(0, 1)
    expect(canvas.locator(".dg-summary")).to_have_text(re.compile("stopped by"))
    expect(canvas.locator(".dg-still")).to_be_hidden()


def test_a_kernel_that_was_shut_down_is_said_at_once_and_where_it_is_asked_for(
    open_lab: Callable[..., Lab],
) -> None:
    lab = open_lab("down.ipynb", [SETUP, "steering = Steering(session, SUDOKU)\nsteering.run.wait()\nsteering",
                                  "box = session.ask(SUDOKU)\nbox.run()\nbox"])  # fmt: skip
    lab.run_cell(0)
    tree = lab.run_cell(1)
    expect(tree.get_by_role("button", name="Branch from this step")).to_be_visible()
    box = lab.run_cell(2)
    expect(box.locator(".dg-summary")).to_have_text(re.compile("stopped by"))
    text = answer()
    expect(box.locator(".dg-text")).to_have_text(text)  # a short run replays itself first

    lab.shut_kernel_down()
    expect(box.locator(".dg-summary")).to_contain_text("The kernel is gone")
    expect(box.locator(".dgf-message")).to_contain_text("Run this cell again")
    box.get_by_role("button", name="Run", exact=True).click()
    expect(box.get_by_label("Share this run")).to_be_hidden()  # the kernel would make it
    tree.get_by_role("button", name="First step").click()
    tree.get_by_role("button", name="Branch from this step").click()
    expect(tree.locator(".dg-summary")).to_contain_text("The kernel is gone")
    expect(box.locator(".dg-text")).to_have_text(text)  # what was written stays to be read
    # That the page threw nothing is checked as the test ends.


def test_the_text_of_a_chart_is_legible_in_both_themes_whatever_the_notebook_did_before(
    open_lab: Callable[..., Lab],
) -> None:
    chart = "from dgemma_lab.charts.drafts import predicted_speculation\npredicted_speculation()"
    lab = open_lab("chart.ipynb", [chart])
    output = lab.run_cell(0)
    expect(output.locator(".main-svg text").first).to_be_visible()
    lab.page.wait_for_function(DRAWN)
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        lab.theme(theme)
        contrasts = lab.page.evaluate(CONTRASTS)
        assert len(contrasts) > 10 and min(contrasts) >= 4.5, (theme, min(contrasts))
    expect(output.locator(".jp-OutputArea-child:visible")).to_have_count(1)  # the chart alone


def test_a_canvas_and_its_budget_stand_on_one_screen_and_a_floating_card_on_no_control(
    open_lab: Callable[..., Lab],
) -> None:
    setup = SETUP + VIEWS + "canvas = Canvas(trace)"
    lab = open_lab("budget.ipynb", [setup, "display(canvas, Budget(canvas))"])
    lab.page.set_viewport_size({"width": 1280, "height": 900})
    lab.run_cell(0)
    output = lab.run_cell(1)
    expect(output.locator(".dgb-dot").first).to_be_visible()
    expect(output.locator(".dg-cell").first).to_be_visible()
    output.locator(".dg-head").evaluate("node => node.scrollIntoView({ block: 'start' })")
    parts = [".dg-head", ".dg-controls", ".dg-grids", ".dgb-chart", ".dgb-why"]
    shown = lab.page.evaluate(
        """(parts) => parts.map((name) => {
        const { top, bottom } = document.querySelector(`.jp-OutputArea ${name}`).getBoundingClientRect();
        return [name, Math.round(top), Math.round(bottom)] })""",
        parts,
    )
    panel = lab.page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    assert panel is not None
    for name, top, bottom in shown:
        assert top >= panel["y"] - 1 and bottom <= panel["y"] + panel["height"], (name, shown)

    lab.page.set_viewport_size({"width": 600, "height": 900})
    lab.page.evaluate("() => jupyterapp.shell.collapseLeft()")
    card = output.locator(".dg-panel")
    cells = output.locator(".dg-grid .dg-cell")
    for index in (0, cells.count() // 2, cells.count() - 1):
        cells.nth(index).hover()
        expect(card).to_be_visible()
        assert card.evaluate("node => node.matches(':popover-open')")
        assert covered(output) == [], index


def test_enter_in_a_field_of_a_playgrounds_column_runs_it(open_lab: Callable[..., Lab]) -> None:
    column = "Playground(session, SUDOKU, columns=[{'stop': False, 'steps': 5}])"
    lab = open_lab("enter.ipynb", [SETUP + VIEWS + column, "import time; time.sleep(4)"])
    output = lab.run_cell(0)
    steps = output.get_by_label("steps", exact=True)
    expect(steps).to_have_value("5")
    # While a cell runs, the front end holds back what was changed after a first change.
    lab.page.evaluate(
        """() => {
            jupyterapp.shell.currentWidget.content.activeCellIndex = 1;
            void jupyterapp.commands.execute("notebook:run-cell");
        }"""
    )
    steps.fill("4")
    steps.press("Tab")
    steps.fill("3")
    steps.press("Enter")
    expect(output.get_by_label("Step of all")).to_have_attribute("max", "3")


def test_a_race_is_replayed_on_one_clock(open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(
        "race.ipynb",
        [
            SETUP,
            "race = Race(record_race(nano, SUDOKU))\nrace",
            "print([len(t.ids) for t in race.traces.values()])",
        ],
    )
    lab.run_cell(0)
    output = lab.run_cell(1)
    race = output.locator(".dgr")
    lanes = race.locator(".dgr-lane")
    expect(lanes).to_have_count(3)
    expect(race.locator(".dgr-flag")).to_have_count(3)
    finish = [lanes.nth(i).locator(".dgr-text").inner_text() for i in range(3)]
    assert all(text.strip() for text in finish)

    slider = race.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    expect(race.locator(".dgr-count").first).to_contain_text(re.compile("^0 kept"))
    race.get_by_role("button", name="Play").click()
    expect(race.get_by_role("button", name="Pause")).to_be_visible()
    expect(race.get_by_role("button", name="Play")).to_be_visible()  # it ran to the end
    assert [lanes.nth(i).locator(".dgr-text").inner_text() for i in range(3)] == finish

    kept = lab.run_cell(2)
    expect(kept).to_contain_text("[")
    counts = re.findall(r"\d+", kept.inner_text())
    for i, count in enumerate(counts):
        expect(lanes.nth(i).locator(".dgr-count")).to_contain_text(count)


def test_axe_finds_nothing_in_any_widget_in_both_themes(
    open_lab: Callable[..., Lab], violations: Callable[..., list[str]]
) -> None:
    lab = open_lab("axe.ipynb", [SETUP + VIEWS, *WIDGETS.values()])
    lab.page.set_viewport_size({"width": 1280, "height": 1800})
    # JupyterLab's body is 0 pixels high and hides what is beyond: axe would judge the contrast of no text in it.
    lab.page.add_style_tag(content="html, body { height: 100%; }")
    lab.run_cell(0)
    shown = {
        "entropy budget": ".dgb-accepted",
        "playground": ".dg-cell",
        "playground that is wrong": ".dg-alert",
        "steering": ".dg-s4 >> nth=1",
        "race": ".dgr-text",
        "prompt box": ".dg-cell",
    }
    for index, name in enumerate(WIDGETS, start=1):
        output = lab.run_cell(index)
        expect(output.locator(shown[name]).first).to_be_visible()
        cell = f'.jp-Cell[data-windowed-list-index="{index}"] .jp-OutputArea-output:not(:has(.dg-still))'
        for theme in ("JupyterLab Dark", "JupyterLab Light"):
            lab.theme(theme)
            lab.page.wait_for_function(BROUGHT_INTO_VIEW, arg=cell)
            assert violations(lab.page, cell) == [], (name, theme)
