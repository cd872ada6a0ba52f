"""The exported canvas page in Chromium: the widget's own script and style, with no kernel and no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from dgemma_core.files.trace import Trace
from dgemma_lab import Canvas
from tests.files.fake_events import EOS, StepEvent, diffusion_events, token_events

OpenPage = Callable[..., Page]

NASTY = [
    "<pad>", "<eos>", "\n", "\t", " ", "", "\x00\x1b", "\u202eturned", "\u200b", "\u0301", "שלום עולם", "مرحبا",
    "日本語テキスト", "👩\u200d👧", "<b>bold</b>", "antidisestablishmentarianism" * 40, "a\nb\nc\n", "\r\n", "\u2028",
    "\u00ad",
]  # fmt: skip
WORDS = NASTY + [f" word{i}" for i in range(40)]
ANSWER = [*range(20, 60), *range(2, 12), EOS]  # 51 tokens: four canvases of 16
META = {"prompt": "Say something <i>odd</i>", "model": "fake", "eos_token_ids": [EOS]}


def decode(token: int) -> str:
    return WORDS[token % len(WORDS)]


def make(**options: Any) -> Trace:
    settings = {"top_k": 5, "pins": (3,), "canvas_length": 16, "steps": 6, **options}
    return Trace.record(diffusion_events(ANSWER, **settings), metadata=META, decode=decode)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Canvas(make()).to_html(tmp_path_factory.mktemp("pages") / "diffusion.html", play=False)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trace = Trace.record(token_events(ANSWER, top_k=5), metadata=META, decode=decode)
    return Canvas(trace).to_html(tmp_path_factory.mktemp("pages") / "tokens.html", play=False)


def step(page: Page) -> int:
    """The frame in view; the model says -1 for the last, whichever that is."""
    return int(page.get_by_role("slider", name="Step").input_value())


def set_value(page: Page, name: str, value: Any) -> None:
    page.evaluate("([name, value]) => canvas.set(name, value)", [name, value])


def shown(page: Page) -> list[str]:
    return page.locator(".dg-grid .dg-cell").all_inner_texts()


def states(page: Page) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('.dg-grid .dg-cell')].map((c) => c.className)"
    )


# frames


def test_opens_on_the_last_frame_and_shows_the_answer(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    assert step(page) == 24
    expect(page.get_by_role("listbox")).to_have_count(4)
    expect(page.locator(".dg-title")).to_have_text("Say something <i>odd</i>")
    cells = shown(page)
    assert len(cells) == 64 and cells[0] == "·word0" and cells[40] == "⏎" and cells[50] == "<eos>"
    assert ["dg-s5" in name for name in states(page)] == [False] * 51 + [True] * 13
    reading = page.get_by_role("group", name="Text at this step")
    assert reading.inner_text().startswith(" word0 word1 word2")
    assert "<eos>" not in reading.inner_text()


def test_buttons_slider_and_strip_move_through_the_steps(
    open_page: OpenPage, exported: Path
) -> None:
    page = open_page(exported)
    page.get_by_role("button", name="First step").click()
    assert step(page) == 0
    expect(page.get_by_role("button", name="Step back")).to_be_visible()
    page.get_by_role("button", name="Step forward").click()
    page.get_by_role("button", name="Step forward").click()
    assert step(page) == 2
    page.get_by_role("button", name="Step back").click()
    assert step(page) == 1
    slider = page.get_by_role("slider", name="Step")
    assert slider.get_attribute("aria-valuetext") == "step 1 of 24, canvas 1, pass 1 of 6"
    slider.fill("9")
    assert step(page) == 9
    assert slider.get_attribute("aria-valuetext") == "step 9 of 24, canvas 2, pass 3 of 6"
    chart = page.locator(".dg-chart")
    box = chart.bounding_box()
    assert box is not None
    for wanted in (1, 13, 24):
        chart.click(position={"x": box["width"] * (wanted - 0.5) / 24, "y": 20})
        assert step(page) == wanted
    page.mouse.move(box["x"] + 5, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 7.5 / 24, box["y"] + 30)
    page.mouse.up()
    assert step(page) == 8


def test_play_runs_to_the_end_pauses_and_starts_over(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    page.get_by_label("speed").select_option("0.5")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("canvas.get('step') > 0 && canvas.get('step') < 24")
    page.get_by_role("button", name="Pause").click()
    at = step(page)
    page.wait_for_timeout(1200)
    assert step(page) == at and 0 < at < 24
    page.get_by_label("speed").select_option("8")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("canvas.get('step') === 24")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect(page.locator(".dg-spoken")).to_have_text(re.compile("^Step 24 of 24"))


def test_recorded_speed_follows_the_clock_of_the_run(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    set_value(page, "step", 0)
    page.get_by_label("speed").select_option("as recorded")
    began = page.evaluate("performance.now()")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("canvas.get('step') === 24")
    assert page.evaluate("performance.now()") - began >= 1000 * 0.02 * 24


def test_menus_change_colour_and_text(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    set_value(page, "step", 3)
    fills = """[...document.querySelectorAll('.dg-grid .dg-cell')].slice(0, 16)
      .map((c) => c.style.getPropertyValue('--dg-fill') + c.classList.contains('dg-blank'))"""
    seen = {str(page.evaluate(fills))}
    for choice in ("entropy", "settled"):
        page.get_by_label("colour").select_option(choice)
        seen.add(str(page.evaluate(fills)))
    assert len(seen) == 3
    draft = shown(page)
    page.get_by_label("show").select_option("canvas")
    assert shown(page) != draft


def test_the_grid_never_moves(open_page: OpenPage, exported: Path) -> None:
    """Whatever the tokens: very long ones, newlines, right-to-left text, control characters."""
    page = open_page(exported)
    boxes = """[...document.querySelectorAll('.dg-grid .dg-cell, .dg-legend, .dg-text, .dg-chart')].map((c) => {
      const b = c.getBoundingClientRect(); return [b.x, b.y, b.width, b.height].map(Math.round).join() })"""
    first = page.evaluate(boxes)
    assert len(first) == 64 + 3
    for show in ("draft", "canvas"):
        set_value(page, "show", show)
        for frame in range(25):
            set_value(page, "step", frame)
            assert page.evaluate(boxes) == first, (show, frame)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_frame_makes_no_nodes(open_page: OpenPage, tmp_path: Path) -> None:
    """256 tokens, 48 steps: the page's nodes are counted, and stay the same ones through a whole play."""
    answer = np.random.default_rng(0).integers(2, 60, 250).tolist()
    events = diffusion_events([*answer, EOS], canvas_length=256, steps=48, top_k=5)
    widget = Canvas(Trace.record(events, metadata=META, decode=decode))
    page = open_page(widget.to_html(tmp_path / "big.html", play=False))
    count = page.evaluate("document.querySelectorAll('*').length")
    assert count <= 256 * 2 + 230
    page.evaluate(
        "() => { globalThis.cells = [...document.querySelectorAll('.dg-grid .dg-cell')] }"
    )
    for frame in range(49):
        set_value(page, "step", frame)
    assert (
        page.evaluate("document.querySelectorAll('*').length") <= count + 5
    )  # the list of guesses
    assert page.evaluate(
        "cells.every((c, i) => c === document.querySelectorAll('.dg-grid .dg-cell')[i])"
    )


# one token


def test_hover_shows_alternatives_and_history(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    set_value(page, "step", 2)
    panel = page.get_by_role("group", name="Token details")
    expect(panel).to_contain_text("Point at a token")
    page.locator(".dg-grid .dg-cell").nth(5).hover()
    expect(panel).to_contain_text("position 5")
    expect(panel.locator(".dg-alternatives li")).to_have_count(5)
    expect(panel).to_contain_text("nats")
    # Without a constraint there is nothing before it.
    after = panel.locator(".dg-alternatives .dg-value:not(.dg-before)")
    shares = [float(t.strip("<% ")) for t in after.all_inner_texts()]
    assert 5 < sum(shares) <= 101 and shares == sorted(shares, reverse=True)
    assert panel.locator(".dg-guesses li").count() >= 1
    assert "confidence from" in (panel.get_by_role("img").get_attribute("aria-label") or "")
    page.locator(".dg-title").hover()
    expect(panel).to_contain_text("Point at a token")


def test_details_follow_the_steps_of_a_selected_token(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    cell = page.locator(".dg-grid .dg-cell").nth(20)
    cell.click()
    expect(cell).to_have_attribute("aria-selected", "true")
    panel = page.get_by_role("group", name="Token details")
    texts = set()
    for frame in range(25):
        set_value(page, "step", frame)
        texts.add(panel.inner_text())
    assert len(texts) >= 6
    set_value(page, "step", 3)
    expect(panel).to_contain_text("position 20 · not written yet")


def test_keyboard(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    cells = page.locator(".dg-grid .dg-cell")
    focused = "document.activeElement.dataset.group + '/' + document.activeElement.dataset.index"
    page.get_by_role("group", name="Text at this step").focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "0/0"
    assert page.evaluate("document.querySelectorAll('.dg-grid [tabindex=\"0\"]').length") == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "0/2" and page.evaluate("canvas.get('selected')") == 2
    expect(cells.nth(2)).to_have_attribute("aria-label", "2: ·word2, accepted, 99.9 %")
    page.keyboard.press("PageDown")
    assert page.evaluate(focused) == "1/0"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "0/15"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("""() => { const c = [...document.querySelectorAll('.dg-grid')[0].children];
      return c.filter((n) => n.offsetTop === c[0].offsetTop).length }""")
    assert page.evaluate(focused) == f"0/{columns}"
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "0/0"
    page.keyboard.press(",")
    assert step(page) == 23
    page.keyboard.press("<")
    assert step(page) == 0
    page.keyboard.press(".")
    assert step(page) == 1
    set_value(page, "speed", 0.5)
    page.keyboard.press("Space")
    page.wait_for_function("canvas.get('step') > 1")
    page.keyboard.press("Space")
    at = step(page)
    page.wait_for_timeout(600)
    assert step(page) == at
    page.keyboard.press(">")
    assert step(page) == 24
    page.keyboard.press("Escape")
    assert page.evaluate("canvas.get('selected')") == -1


def test_every_focusable_keeps_its_keys_to_itself(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    set_value(page, "_steerable", True)
    found = page.evaluate("""[...document.querySelectorAll(
      '.dg a, .dg button, .dg input, .dg select, .dg textarea, .dg summary, .dg [tabindex]')]
      .map((e) => [e.tagName, e.className, e.dataset.lmSuppressShortcuts])""")
    assert len(found) > 64 + 12
    assert [entry for entry in found if entry[2] != "true"] == []


def test_details_are_never_clipped(open_page: OpenPage, exported: Path) -> None:
    """Narrow, inside a box that hides what leaves it: the card floats in the top layer, whole."""
    page = open_page(exported, width=560, height=700)
    page.evaluate("""() => { const main = document.querySelector('main');
      main.style.cssText = 'overflow: hidden; height: 420px; contain: paint; transform: none' }""")
    cells = page.locator(".dg-grid .dg-cell")
    for index in (0, 6, 15):
        cells.nth(index).hover()
        panel = page.locator(".dg-panel")
        expect(panel).to_be_visible()
        box = panel.bounding_box()
        assert box is not None
        assert box["x"] >= 0 and box["y"] >= 0
        assert box["x"] + box["width"] <= 560 and box["y"] + box["height"] <= 700
        corners = page.evaluate(
            """([x, y, w, h]) => [[x + 3, y + 3], [x + w - 3, y + 3], [x + 3, y + h - 3], [x + w - 3, y + h - 3]]
              .every(([a, b]) => document.elementFromPoint(a, b)?.closest('.dg-panel'))""",
            [box["x"], box["y"], box["width"], box["height"]],
        )
        assert corners, index
    page.mouse.move(280, 5)
    expect(page.locator(".dg-panel")).to_be_hidden()


# autoregression


def test_autoregression_writes_a_token_a_pass(open_page: OpenPage, tokens: Path) -> None:
    page = open_page(tokens)
    assert step(page) == 51
    set_value(page, "step", 7)
    names = states(page)
    assert [("dg-empty" in name) for name in names] == [False] * 7 + [True] * 44
    assert "dg-newest" in names[6]
    expect(page.locator(".dg-group-name")).to_have_text("one token a pass · 7 of 51")
    expect(page.locator(".dg-strip")).to_contain_text("confidence")
    expect(page.get_by_label("show")).to_be_hidden()
    page.locator(".dg-grid .dg-cell").nth(2).hover()
    expect(page.locator(".dg-alternatives li")).to_have_count(5)


def test_another_trace_in_the_same_widget(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    widget = Canvas(make(seed=5))
    rows = base64.b64encode(widget._rows).decode()
    decoded = "new DataView(Uint8Array.from(atob(rows), (c) => c.charCodeAt(0)).buffer)"
    page.evaluate(f"(rows) => canvas.set('_rows', {decoded})", rows)
    texts = [f"other{token}" for token in widget._tokens["ids"]]
    set_value(page, "_tokens", {**widget._tokens, "texts": texts})
    set_value(page, "_meta", {**widget._meta, "version": 2})
    assert all(text.startswith("other") for text in shown(page))
    set_value(page, "step", 0)
    assert all(text.startswith("other") for text in shown(page)[:16])


# live, and steering: what the kernel sends and hears, without a kernel


HEAR = """() => {
  globalThis.heard = [];
  globalThis.sets = [];
  const { set } = canvas;
  canvas.send = (message) => heard.push(message);
  canvas.set = (name, value) => { if (name === 'step') sets.push(value); set(name, value); };
}"""


def live_tails(
    answer: Sequence[int] = ANSWER[:20],
    *,
    every: int = 3,
    decode: Callable[[int], str] = decode,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The live header and the messages that a widget sends for a run of 6 passes a canvas, one for `every` so many."""
    widget = Canvas()
    widget.begin(prompt="live", decode=decode, eos_token_ids=[EOS])
    live = widget._live
    assert live is not None
    events = [e for e in diffusion_events(answer, steps=6, top_k=3) if isinstance(e, StepEvent)]
    tails = []
    for i, event in enumerate(events):
        live.add(event, widget._table, 5)
        if (i + 1) % every == 0:
            live.times = []
            widget._send_tail()
            rows = [base64.b64encode(row).decode() for row in widget._tail["rows"]]
            tails.append({**widget._tail, "rows": rows})
    return widget._meta, tails


BEGIN_LIVE = """(meta) => { canvas.set('_rows', new DataView(new ArrayBuffer(0))); canvas.set('_tokens', {});
  canvas.set('_meta', meta) }"""
SEND_TAIL = """(tail) => canvas.set('_tail', { ...tail, rows: tail.rows.map((row) =>
  new DataView(Uint8Array.from(atob(row), (c) => c.charCodeAt(0)).buffer)) })"""


def test_live_rows_appear_as_they_come(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    page.evaluate(HEAR)
    meta, tails = live_tails()
    page.evaluate(BEGIN_LIVE, meta)
    expect(page.locator(".dg-grid")).to_have_count(0)
    expect(page.locator(".dg-summary")).to_contain_text("live")
    page.evaluate(SEND_TAIL, tails[0])
    assert step(page) == 3 and len(shown(page)) == 16
    page.evaluate(SEND_TAIL, tails[0])  # again: nothing new
    assert step(page) == 3
    assert page.evaluate("sets") == [], "a live run is followed without setting the step"
    page.get_by_role("button", name="Step back").click()
    page.evaluate(SEND_TAIL, tails[1])
    assert step(page) == 2  # who scrubbed back is left in peace
    page.get_by_role("button", name="Last step").click()
    page.evaluate(SEND_TAIL, tails[3])  # one went missing
    assert page.evaluate("heard") == [
        {
            "type": "resend",
            "first": 6,
            "firstToken": len(tails[0]["texts"]) + len(tails[1]["texts"]),
        }
    ]
    page.evaluate(SEND_TAIL, tails[2])
    page.evaluate(SEND_TAIL, tails[3])
    assert step(page) == 12 and len(shown(page)) == 32
    assert [tail["ends"] for tail in tails] == [[3], [6], [9], [12]], "one row for three passes"
    seen = []
    for frame in (4, 5, 6, 7):  # 4 and 5 did not come: they look like 3, and 7 like 9
        set_value(page, "step", frame)
        seen.append([shown(page), states(page)])
    assert seen[0] == seen[1] != seen[2] != seen[3]
    expect(page.locator(".dg-group-name").nth(1)).to_have_text("canvas 2 · 1 of 6 passes")
    set_value(page, "step", 12)
    page.evaluate("heard.length = 0")
    set_value(page, "_stoppable", True)
    page.get_by_role("button", name="Stop the run").click()
    assert page.evaluate("heard") == [{"type": "stop"}]
    stale = {**tails[0], "version": 99}
    page.evaluate(SEND_TAIL, stale)  # of a run that is not shown
    assert step(page) == 12


def test_steering_tells_the_kernel(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    page.evaluate(HEAR)
    expect(page.get_by_role("button", name="Branch from this step")).to_be_hidden()
    page.locator(".dg-grid .dg-cell").nth(18).click()
    expect(page.get_by_role("button", name="Pin this token")).to_be_hidden()
    set_value(page, "_steerable", True)
    set_value(page, "step", 9)
    page.get_by_role("button", name="Pin this token").click()
    page.locator(".dg-grid .dg-cell").nth(21).click(modifiers=["Shift"])
    expect(page.locator(".dg-marked")).to_have_count(4)
    page.get_by_role("button", name="Blank 18 to 21").click()
    page.locator(".dg-grid .dg-cell").nth(4).click()
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".dg-marked")).to_have_count(2)
    page.locator(".dg-grid .dg-cell").nth(3).click()
    expect(page.locator(".dg-marked")).to_have_count(0)
    page.get_by_role("button", name="Unpin this token").click()
    box = page.get_by_label("Replacement text")
    box.fill("sea, b x m .")
    box.press("Enter")
    expect(box).to_have_value("sea, b x m .")  # a constraint may refuse it: it is not lost
    page.locator(".dg-grid .dg-cell").nth(4).click()
    expect(box).to_have_value("")
    box.fill("old")
    page.get_by_role("button", name="Replace the token").focus()
    box.focus()
    page.keyboard.type("new")  # over what stands there, not behind it
    expect(box).to_have_value("new")
    page.get_by_role("button", name="Branch from this step").click()
    steer = {"type": "steer", "step": 9}
    assert page.evaluate("heard") == [
        {**steer, "action": "pin", "position": 18, "start": 18, "stop": 19},
        {**steer, "action": "blank", "position": 21, "start": 18, "stop": 22},
        {**steer, "action": "unpin", "position": 3, "start": 3, "stop": 4},
        {
            **steer,
            "action": "replace",
            "position": 3,
            "start": 3,
            "stop": 4,
            "text": "sea, b x m .",
        },
        {**steer, "action": "branch"},
    ]


def test_the_last_step_is_shown_when_a_run_is_over(open_page: OpenPage, exported: Path) -> None:
    """However many rows came live, and unless the reader has gone elsewhere."""
    page = open_page(exported)
    page.evaluate(HEAR)
    whole = page.evaluate("['_meta', '_tokens', '_rows'].map((name) => canvas.get(name))[0]")
    page.evaluate("globalThis.kept = ['_rows', '_tokens'].map((name) => [name, canvas.get(name)])")
    meta, tails = live_tails()
    for back, at in ((False, 24), (True, 1)):
        page.evaluate(BEGIN_LIVE, {**meta, "version": meta["version"] + back})
        page.evaluate(SEND_TAIL, {**tails[0], "version": meta["version"] + back})
        if back:
            page.get_by_role("button", name="First step").click()
            page.get_by_role("button", name="Step forward").click()
        page.evaluate("kept.forEach(([name, value]) => canvas.set(name, value))")
        set_value(page, "_meta", {**whole, "version": 50 + back})
        assert step(page) == at


def test_a_run_that_takes_over_takes_the_lost_focus(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    focused = "document.activeElement.dataset.group + '/' + document.activeElement.dataset.index"
    page.get_by_label("speed").focus()
    set_value(page, "_focus", 20)
    assert page.evaluate("document.activeElement.tagName") == "SELECT"  # somebody is using that
    page.evaluate("document.activeElement.blur()")
    set_value(page, "_focus", 20)
    assert page.evaluate(focused) == "1/4"
    assert page.evaluate("[canvas.get('_focus'), canvas.get('selected')]") == [-1, 20]


def test_tokens_can_be_read_in_every_frame(open_page: OpenPage, tmp_path: Path) -> None:
    """Noise, end marks and pins of up to 12 characters: whole, in cells of one width."""
    words = ["<pad>", "<turn|>", "1", " a", " seven", " elephants", "ing", ",", "⏎⏎", "<0xF0>"]
    answer = [*range(2, 30), EOS]
    events = diffusion_events(answer, top_k=3, pins=(0, 3), canvas_length=16, steps=8)
    trace = Trace.record(events, metadata=META, decode=lambda t: words[t % len(words)])
    page = open_page(Canvas(trace).to_html(tmp_path / "legible.html", play=False))
    cut_off = """[...document.querySelectorAll('.dg-grid .dg-cell')].filter((cell) =>
      cell.firstChild.getBoundingClientRect().width > cell.clientWidth + 0.5).map((cell) => cell.textContent)"""
    for show in ("draft", "canvas"):
        set_value(page, "show", show)
        for frame in range(len(trace) + 1):
            set_value(page, "step", frame)
            assert page.evaluate(cut_off) == [], (show, frame)
    assert "⟨F0⟩" in shown(page)
    sizes = page.evaluate("""[...document.querySelectorAll('.dg-grid .dg-cell')]
      .map((cell) => parseFloat(getComputedStyle(cell).fontSize))""")
    assert min(sizes) >= 7


def test_bars_stay_in_forced_colours(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported, forced_colors="active")
    set_value(page, "step", 2)
    page.locator(".dg-grid .dg-cell").nth(5).click()
    painted = "getComputedStyle(document.querySelector('%s')).backgroundImage"
    for bar in (".dg-bar", ".dg-ramp"):
        assert "gradient" in page.evaluate(painted % bar), bar
    fill = "getComputedStyle(document.querySelector('.dg-track-1')).fill"
    ground = "getComputedStyle(document.querySelector('.dg')).backgroundColor"
    assert page.evaluate(fill) != page.evaluate(ground)


# manners


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    open_page: OpenPage,
    exported: Path,
    tokens: Path,
    violations: Callable[[Page], list[str]],
    scheme: str,
) -> None:
    page = open_page(exported, color_scheme=scheme)
    back = page.evaluate("getComputedStyle(document.querySelector('.dg')).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    assert violations(page) == []
    set_value(page, "_steerable", True)
    set_value(page, "selected", 5)
    page.locator("summary").click()
    for by, frame in (("confidence", 0), ("confidence", 2), ("entropy", 2), ("settled", 9)):
        set_value(page, "colour_by", by)
        set_value(page, "step", frame)
        assert violations(page) == [], (by, frame)
    page = open_page(tokens, color_scheme=scheme)
    set_value(page, "step", 20)
    assert violations(page) == []
    page = open_page(exported, color_scheme=scheme, width=500)
    page.locator(".dg-grid .dg-cell").nth(2).click()
    assert violations(page) == []


def test_jupyterlab_theme_is_followed_live(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    look = """() => { const s = getComputedStyle(document.querySelector('.dg'));
      return [s.backgroundColor, s.color, s.colorScheme] }"""
    page.evaluate("""() => {
      document.body.dataset.jpThemeLight = 'false';
      document.documentElement.style.setProperty('--jp-layout-color0', 'rgb(17, 17, 17)');
      document.documentElement.style.setProperty('--jp-content-font-color1', 'rgb(250, 250, 250)');
    }""")
    assert page.evaluate(look) == ["rgb(17, 17, 17)", "rgb(250, 250, 250)", "dark"]
    page.evaluate(
        "document.documentElement.style.setProperty('--jp-layout-color0', 'rgb(255, 255, 255)')"
    )
    assert page.evaluate(look)[0] == "rgb(255, 255, 255)"


def test_reduced_motion_changes_at_most_twice_a_second(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported, reduced_motion="reduce")
    page.evaluate(
        """() => { globalThis.changes = []; canvas.on('change:step', () => changes.push(performance.now())) }"""
    )
    page.get_by_label("speed").select_option("4")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("canvas.get('step') === 24 && changes.length > 1")
    times = page.evaluate("changes")
    gaps = [b - a for a, b in pairwise(times[1:-1])]
    assert (
        gaps and min(gaps) >= 400
    )  # frames come late on a busy machine, and the next one then early


def test_nothing_fades(open_page: OpenPage, exported: Path) -> None:
    page = open_page(exported)
    moving = page.evaluate("""[...document.querySelectorAll('.dg, .dg *')].filter((e) => {
      const s = getComputedStyle(e);
      return !['0s', ''].includes(s.transitionDuration) || s.animationName !== 'none' }).length""")
    assert moving == 0
