"""The exported page as it is mailed: it plays, keeps boards, shows rounds and differences, and fits a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dgemma_core.files.trace import Trace
from dgemma_lab import Canvas
from dgemma_lab.canvas.sharing import EXPLAINED
from dgemma_lab.race.race import Race
from tests.browser.test_canvas_page import BEGIN_LIVE, SEND_TAIL, live_tails
from tests.files.fake_events import EOS, diffusion_events, draft_events

OpenPage = Callable[..., Page]
WORDS = {10: "1", 11: " 2", 12: "\n", EOS: "<turn|>"}
BOARD = [10, 11, 11, 12, 11, 10, 11, 12, 10, 11, 10, EOS]
OTHER_BOARD = [*BOARD[:5], 11, *BOARD[6:]]
META = {"prompt": "A board", "eos_token_ids": [EOS]}


def text(token: int) -> str:
    return WORDS.get(token, f" w{token}")


def make(answer: list[int], **options: object) -> Trace:
    events = diffusion_events(answer, top_k=3, canvas_length=16, steps=6, **options)
    return Trace.record(events, metadata=META, decode=text)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Canvas(make(BOARD)).to_html(tmp_path_factory.mktemp("pages") / "board.html")


def step(page: Page) -> int:
    return int(page.get_by_role("slider", name="Step").input_value())


def played(open_page: OpenPage, path: Path) -> Page:
    """The page with a clock that stands, from just before its replay begins."""
    page = open_page("about:blank")
    page.clock.install(time=0)
    page.clock.pause_at(1)
    page.goto(path.as_uri())
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    return page


def lines(page: Page) -> list[int]:
    """How many cells stand in each row of the grid."""
    counted: list[int] = page.evaluate("""() => { const rows = new Map();
      for (const cell of document.querySelectorAll('.dg-grid .dg-cell')) {
        rows.set(cell.offsetTop, (rows.get(cell.offsetTop) ?? 0) + 1);
      }
      return [...rows.values()] }""")
    return counted


def test_it_opens_playing_from_the_noise_and_rests_on_the_last_step(
    open_page: OpenPage, board: Path
) -> None:
    page = played(open_page, board)
    page.clock.run_for(900)
    assert step(page) == 0 and page.locator(".dg-grid .dg-s0").count() == 16, "noise is seen first"
    expect(page.locator(".dg-summary")).to_contain_text("times slower: it took")
    seen = []
    for _ in range(24):
        page.clock.run_for(100)
        seen.append(step(page))
    assert seen == sorted(seen) and set(range(1, 6)) <= set(seen), "every step is seen"
    assert page.evaluate("canvas.get('step')") == -1, "the reader's step is left alone"
    page.clock.run_for(1000)
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    assert step(page) == 6
    expect(page.locator(".dg-summary")).to_contain_text("stopped by eos")
    expect(page.get_by_text(EXPLAINED["diffusion"])).to_be_visible()


GRID = "Sudoku:\n_ _ _ _\n2 _ _ 3\n_ 3 1 _\n_ _ _ _"


@pytest.mark.parametrize("kind", ["canvas", "race"])
def test_a_title_keeps_its_lines_up_to_as_many_as_a_grid_has(
    open_page: OpenPage, tmp_path: Path, kind: str
) -> None:
    trace = make(BOARD)
    heights = []
    for title in ("one line", GRID, GRID * 3):
        widget = Canvas(trace, title=title) if kind == "canvas" else Race([trace], title=title)
        page = open_page(widget.to_html(tmp_path / "titled.html"), reduced_motion="reduce")
        shown = page.locator(".dg-title")
        assert shown.inner_text() == title
        heights.append(shown.evaluate("node => node.clientHeight"))
    assert 4 * heights[0] < heights[1] == heights[2] < 5 * heights[0]


def test_a_replay_gives_way_to_the_reader(open_page: OpenPage, board: Path) -> None:
    page = played(open_page, board)
    page.clock.run_for(900)
    page.get_by_role("button", name="Step forward").click()
    assert step(page) == 1
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.clock.run_for(5000)
    assert step(page) == 1
    page = played(open_page, board)
    page.clock.run_for(1900)
    at = step(page)
    assert 0 < at < 6
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("canvas.get('step')") == at, "a paused replay stays where it is"
    page = open_page(board, reduced_motion="reduce")
    page.wait_for_timeout(300)
    assert step(page) == 6, "who wants little motion gets none unasked"


@pytest.mark.parametrize("width", [1200, 390])
def test_a_board_is_drawn_as_one_even_where_there_is_little_room(
    open_page: OpenPage, board: Path, width: int
) -> None:
    page = open_page(board, width=width, height=844, reduced_motion="reduce")
    assert lines(page)[:3] == [4, 4, 4]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cell = page.locator(".dg-grid .dg-cell").nth(1)
    cell.click()
    page.keyboard.press("ArrowDown")
    focused = "Number(document.activeElement.dataset.index)"
    assert page.evaluate(focused) == 5
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == 1


def test_a_live_run_becomes_a_board_as_soon_as_its_breaks_have_held_for_two_steps(
    open_page: OpenPage, board: Path
) -> None:
    page = open_page(board, reduced_motion="reduce")
    expect(page.locator(".dg-grid .dg-cell")).to_have_count(16)
    rested = lines(page)
    page.evaluate(
        "globalThis.kept = ['_rows', '_tokens', '_meta'].map((name) => [name, canvas.get(name)])"
    )
    meta, tails = live_tails(BOARD, every=1, decode=text)
    page.evaluate(BEGIN_LIVE, meta)
    seen = []
    for tail in tails:
        page.evaluate(SEND_TAIL, tail)
        seen.append(lines(page))
    assert rested[:3] == [4, 4, 4] and seen[0] != rested
    assert seen[-2:] == [rested, rested], "it is a board before it ends"
    page.evaluate(
        "kept.forEach(([name, value]) => canvas.set(name, name === '_meta' ? { ...value, version: 99 } : value))"
    )
    assert lines(page) == rested


def test_what_another_run_has_is_marked_where_it_differs(
    open_page: OpenPage, tmp_path: Path
) -> None:
    one, other = make(BOARD), make(OTHER_BOARD)
    widget = Canvas(one)
    page = open_page(widget.to_html(tmp_path / "differs.html", play=False))
    expect(page.locator(".dg-differs:not(.dg-sample)")).to_have_count(0)
    expect(page.locator(".dg-legend")).not_to_contain_text("not as in")
    widget.compare(other, "B")
    page.evaluate("(against) => canvas.set('_against', against)", widget._against)
    marked = page.locator(".dg-grid .dg-differs")
    expect(marked).to_have_count(1)
    expect(marked).to_have_attribute("data-index", "5")
    expect(marked).to_have_attribute("aria-label", "5: 1, accepted, 99.9 %, ·2 in B")
    expect(page.locator(".dg-legend")).to_contain_text("not as in B: 1")


def taken_back() -> Trace:
    """A run that takes back some of what it accepted."""
    trace = make([*range(20, 35), EOS], seed=2)
    assert trace.remelted().any()
    return trace


def drafted() -> Trace:
    """A run of speculation in four rounds."""
    events = draft_events([*range(20, 30), EOS], [2, 0, 4, 0])
    return Trace.record(events, metadata=META, decode=text)


def test_a_token_that_is_taken_back_flashes_while_one_watches(
    open_page: OpenPage, tmp_path: Path
) -> None:
    trace = taken_back()
    page = open_page(Canvas(trace).to_html(tmp_path / "flash.html", play=False))
    flashing = "document.querySelectorAll('.dg-grid .dg-flash').length"
    for frame in range(len(trace) + 1):
        page.evaluate("(frame) => canvas.set('step', frame)", frame)
        assert page.evaluate(flashing) == 0
    page.evaluate("""() => { globalThis.flashed = 0; canvas.set('step', 0);
      new MutationObserver(() => { flashed += document.querySelectorAll('.dg-flash').length; })
        .observe(document.querySelector('.dg-grids'), { subtree: true, attributeFilter: ['class'] }) }""")
    page.get_by_label("speed").select_option("4")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("canvas.get('step') === -1 || canvas.get('step') === 6")
    assert page.evaluate("flashed") > 0


def test_a_round_of_speculation_shows_what_became_of_each_token(
    open_page: OpenPage, tmp_path: Path, violations: Callable[[Page], list[str]]
) -> None:
    trace = drafted()
    for scheme in ("light", "dark"):
        page = open_page(
            Canvas(trace).to_html(tmp_path / "rounds.html", play=False), color_scheme=scheme
        )
        group = page.get_by_role("group", name="Round of speculation")
        page.evaluate("canvas.set('step', 4)")
        expect(group).to_contain_text("round 1 of 4 · 5 drafted in 1 denoising step")
        parts = {
            kind: page.locator(f".dg-part-{kind} .dg-drafted").all_inner_texts()
            for kind in ("given", "accepted", "replaced", "chosen", "rejected")
        }
        assert parts["given"] == ["·w20"] and parts["accepted"] == ["·w21", "·w22"]
        assert len(parts["replaced"]) == 1 and parts["chosen"] == ["·w23"]
        assert len(parts["rejected"]) == 2
        looks = page.evaluate("""['accepted', 'replaced', 'chosen', 'rejected'].map((kind) => {
          const s = getComputedStyle(document.querySelector(`.dg-part-${kind} .dg-drafted`));
          return [s.borderStyle, s.textDecorationLine, s.fontStyle, s.borderLeftWidth,
            s.borderTopColor === 'rgba(0, 0, 0, 0)'].join() })""")
        assert len(set(looks)) == 4, "by shape, not by colour alone"
        assert page.locator(".dg-grid .dg-chosen").count() == 2
        assert violations(page) == []
        page.evaluate("canvas.set('step', 1)")
        expect(group).to_contain_text("the first token comes with the prompt's pass")
