"""The canvas widget without a browser: the wire, live and whole; steering; the other forms."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import STATES, Trace
from dgemma_lab.canvas import packing
from dgemma_lab.canvas.canvas import Canvas, Steer
from dgemma_lab.canvas.frames import RAMP, column_width, frame
from dgemma_lab.canvas.pictures import png
from dgemma_lab.canvas.still import static_html
from dgemma_lab.frontend import still
from dgemma_lab.frontend.scripts import LAB, bundled
from dgemma_lab.frontend.text import readable, visible
from tests.files.fake_events import EOS, StepEvent, diffusion_events, token_events

ANSWER = [*range(10, 34), EOS]
MAX_BYTES = 300_000


def decode(token: int) -> str:
    return {5: "<script>alert(1)</script>", 6: "\u202eevil", 7: "x" * 5000, 8: "\n"}.get(
        token, f"w{token}"
    )


def make(**options: Any) -> Trace:
    metadata = {"prompt": "A <b>bold</b> prompt", "model": "fake", "eos_token_ids": [EOS]}
    events = diffusion_events(ANSWER, **{"top_k": 3, "pins": (2,), **options})
    return Trace.record(events, metadata=metadata, decode=decode)


@pytest.fixture
def trace() -> Trace:
    return make()


# the wire


def test_a_full_canvas_of_256_tokens_48_steps_and_5_alternatives_is_small() -> None:
    answer = np.random.default_rng(0).integers(2, 60_000, 255).tolist()
    events = diffusion_events(
        [*answer, EOS], canvas_length=256, steps=48, vocabulary=60_000, top_k=5
    )
    trace = Trace.record(events, decode=str)
    assert len(trace) == 48 and trace.top_ids is not None and trace.top_ids.shape == (48 * 256, 5)
    widget = Canvas(trace, alternatives=5)
    row = packing.HEADER.size + 256 * (2 * 6 + 8)
    assert len(widget._rows) == 48 * row <= MAX_BYTES


def test_what_a_scrub_changes_is_no_payload(trace: Trace) -> None:
    widget = Canvas(trace)
    heavy = {name: widget.traits()[name] for name in ("_rows", "_tokens", "_meta", "_tail")}
    before = {name: getattr(widget, name) for name in heavy}
    widget.step, widget.colour_by, widget.show, widget.selected = 3, "entropy", "canvas", 4
    assert all(getattr(widget, name) is value for name, value in before.items())


def unpack(data: bytes) -> list[dict[str, Any]]:
    """The format of packing.py, read on its own terms."""
    rows = []
    while data:
        head = packing.HEADER.unpack_from(data)
        names = "length n width k canvas accepted step position temperature mean seconds kind decided constrained f"
        row = dict(zip(names.split(), head, strict=True))
        n, k, width = row["n"], row["k"], row["width"]
        ids = np.frombuffer(data, f"<u{width}", n * (1 + k), packing.HEADER.size)
        u8 = np.frombuffer(data, np.uint8, n * (3 + k), packing.HEADER.size + width * len(ids))
        row |= {"out": ids[:n], "alternatives": ids[n:].reshape(n, k), "sample": u8[:n]}
        row |= {"entropy": u8[n : 2 * n], "p": u8[2 * n : (2 + k) * n].reshape(n, k)}
        row["marks"] = u8[(2 + k) * n :]
        rows.append(row)
        data = data[row["length"] :]
    return rows


def test_rows_hold_the_trace(trace: Trace) -> None:
    widget = Canvas(trace)
    ids = np.array(widget._tokens["ids"])
    rows = unpack(widget._rows)
    assert len(rows) == len(trace)
    states = trace.states()
    assert {STATES[s] for s in states} == set(STATES)  # the play shows every state
    for r, row in enumerate(rows):
        cut = slice(trace.offsets[r], trace.offsets[r + 1])
        np.testing.assert_array_equal(ids[row["out"]], trace.tokens_out[cut])
        np.testing.assert_array_equal(ids[row["alternatives"]], trace.top_ids[cut])
        best = np.where(trace.pinned[cut], trace.top_ids[cut][:, 0], trace.argmax[cut])
        np.testing.assert_array_equal(ids[row["alternatives"][:, 0]], best)
        np.testing.assert_array_equal([packing.state_of(m) for m in row["marks"]], states[cut])
        p = np.sin(np.pi / 2 * row["p"] / 255) ** 2
        np.testing.assert_allclose(p, trace.top_probabilities[cut], atol=0.004)
        h = packing.MAX_ENTROPY * (row["entropy"] / 255) ** 2
        np.testing.assert_allclose(h, trace.entropy[cut], atol=0.04)
        assert row["accepted"] == trace.accepted_count()[r], (
            "one meaning: what the sampler accepted"
        )
        assert row["mean"] == pytest.approx(trace.mean_entropy()[r], rel=1e-5)
        assert (row["canvas"], row["step"]) == (trace.canvas[r], trace.step[r])
    assert [decode(i) for i in widget._tokens["ids"]] == widget._tokens["texts"]


def test_small_probabilities_and_entropies_survive() -> None:
    tiny = np.array([0.0, 1e-4, 0.5, 0.9999, 1.0])
    back = np.sin(np.pi / 2 * packing.quantise_probability(tiny) / 255) ** 2
    np.testing.assert_allclose(back, tiny, atol=4e-3)
    assert 0 < back[1] < 5e-4 and 0.9995 < back[3] < 1
    assert packing.quantise_entropy(np.array([0.005]))[0] > 0


def test_more_tokens_than_two_bytes_count_take_four() -> None:
    rng = np.random.default_rng(0)
    events = list(diffusion_events([5], canvas_length=4, steps=3, vocabulary=60, top_k=2))
    step = events[1]
    wide = rng.permutation(200_000)[: 4 * 20_000].reshape(4, 20_000)
    observed = replace(step.observed, top_ids=wide, top_probabilities=np.zeros_like(wide, float))
    table = packing.TokenTable(str)
    table.local(np.arange(70_000))
    now = packing.pass_from_event(replace(step, observed=observed), 4, 3)
    (row,) = unpack(packing.pack(now, packing.marks(now, None, frozenset()), table))
    assert row["width"] == 4
    assert np.array(table.ids)[row["alternatives"][:, 1]].tolist() == wide[:, 0].tolist()


def test_the_argmax_leads_the_alternatives_however_top_k_broke_the_tie() -> None:
    step = next(e for e in diffusion_events(ANSWER, top_k=3) if isinstance(e, StepEvent))
    swapped = replace(step.observed, top_ids=step.observed.top_ids[:, [1, 0, 2]])
    now = packing.pass_from_event(replace(step, observed=swapped), 16, 3)
    assert now.argmax.tolist() == step.argmax.tolist()
    assert (np.sort(now.alternatives) == np.sort(step.observed.top_ids)).all()
    missing = replace(step.observed, top_ids=step.observed.top_ids + 1000)
    now = packing.pass_from_event(replace(step, observed=missing), 16, 3)
    assert now.argmax.tolist() == step.argmax.tolist() and now.alternatives.shape == (16, 3)
    bare = packing.pass_from_event(replace(step, observed=None), 16, 3)
    assert bare.alternatives.shape == (16, 1)


# live


class Clock:
    """The time that the canvas goes by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def watch(widget: Canvas, clock: Clock | None = None) -> list[dict[str, Any]]:
    """Everything that goes to the browser while a run is live, each with the time `at` which it went."""
    tails: list[dict[str, Any]] = []

    def sent(change: Any) -> None:
        if change["new"]:
            tails.append({**change["new"], "at": clock.now if clock else 0.0})

    widget.observe(sent, "_tail")
    return tails


def rows_of(tails: list[dict[str, Any]]) -> list[bytes]:
    return [row for tail in tails for row in tail["rows"]]


def test_pushed_rows_are_the_rows_of_the_trace(clock: Clock) -> None:
    """Live, where there is time for each, and after the fact the same rows."""
    widget = Canvas()
    tails = watch(widget, clock)
    widget.begin(decode=decode, eos_token_ids=[EOS])
    for event in diffusion_events(ANSWER, top_k=3, pins=(2,)):
        clock.now += 0.04
        widget.push(event)
    whole = packing.TokenTable(decode)
    rows = packing.pack_trace(make(), whole)
    table = widget._table
    assert [tail["ends"] for tail in tails] == [[end] for end in range(1, 17)]
    for ours, theirs in zip(unpack(b"".join(rows_of(tails))), unpack(b"".join(rows)), strict=True):
        np.testing.assert_array_equal(
            np.array(table.ids)[ours["alternatives"]], np.array(whole.ids)[theirs["alternatives"]]
        )
        for name in ("sample", "entropy", "p", "marks", "accepted", "temperature", "position"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("a_second", [10, 60, 200, 2000])
def test_at_most_30_rows_a_second_and_nothing_is_lost(clock: Clock, a_second: int) -> None:
    widget = Canvas()
    tails = watch(widget, clock)
    widget.begin(decode=decode, eos_token_ids=[EOS])
    answer = ANSWER[:-1] * 60  # 90 canvases of two passes
    events = list(diffusion_events([*answer, EOS], top_k=2, steps=2))
    trace = Trace.record(events, decode=decode)
    for event in events:
        clock.now += 1 / a_second
        widget.push(event)
    times = [tail["at"] for tail in tails for _ in tail["rows"]]
    assert (len(times) == len(trace)) == (a_second == 10)
    for i, begin in enumerate(times):  # whatever second one looks at
        assert sum(at < begin + 1 for at in times[i:]) <= 30
    live = unpack(b"".join(rows_of(tails)))
    ends = [end for tail in tails for end in tail["ends"]]
    assert ends == sorted(set(ends)), "rows stand in order, none twice"
    assert [(row["canvas"], row["step"]) for row in live] == [
        (trace.canvas[end - 1], trace.step[end - 1]) for end in ends
    ]
    over = {len(trace.passes_of(c)) * (c + 1) for c in range(live[-1]["canvas"])}
    assert over <= set(ends), "of a canvas that is over the last pass came"
    sent = [token for tail in tails for token in tail["ids"]]
    assert sent == widget._table.ids, "each token's text goes over once"
    widget.finish(trace)
    assert widget._tail == {} and not widget._meta["live"]
    assert len(unpack(widget._rows)) == len(trace)


def test_tokens_of_autoregression_all_come_in_few_rows(clock: Clock) -> None:
    widget = Canvas()
    tails = watch(widget, clock)
    widget.begin(decode=decode, steps=0)
    for event in token_events(ANSWER, top_k=2):
        clock.now += 0.01
        widget.push(event)
    rows = unpack(b"".join(rows_of(tails)))
    assert len(rows) == len(tails) and [row["n"] for row in rows] == [1, *[4] * 6]
    assert all(row["kind"] == 2 and (row["marks"] == 1).all() for row in rows)
    assert [row["position"] for row in rows] == [0, 1, 5, 9, 13, 17, 21]
    tokens = np.array(widget._table.ids)[np.concatenate([row["out"] for row in rows])]
    assert tokens.tolist() == ANSWER


def test_a_view_that_came_late_gets_what_it_missed(clock: Clock) -> None:
    widget = Canvas()
    tails = watch(widget, clock)
    widget.begin(decode=decode)
    events = [e for e in diffusion_events(ANSWER, top_k=2) if isinstance(e, StepEvent)]
    for event in events[:11]:
        clock.now += 0.05
        widget.push(event)
    ask = {"type": "resend", "first": 0, "firstToken": 0}
    widget._receive(widget, ask, [])
    assert len(tails) == 11, "not at once: the last row went out just now"
    clock.now += 0.05
    widget._receive(widget, ask, [])
    assert tails[-1]["first"] == 0 and tails[-1]["ends"] == [8, 11], "each canvas as it stands"
    assert tails[-1]["texts"] == widget._table.texts
    assert len(tails[-1]["initial"]) == 16
    clock.now += 0.05
    widget.push(events[11])
    assert tails[-1]["first"] == 11 and tails[-1]["ends"] == [12]


def test_a_second_run_replaces_the_first_and_the_end_keeps_the_readers_step() -> None:
    widget = Canvas(make())
    versions = [widget._meta["version"]]
    widget.begin(prompt="next")
    versions.append(widget._meta["version"])
    assert widget.trace is None and widget.step == -1 and widget._meta["live"]
    events = list(diffusion_events(ANSWER))
    for event in events[:4]:
        widget.push(event)
    widget.begin(prompt="third")
    assert repr(widget) == "Canvas(live, 0 passes)"
    for event in events:
        widget.push(event)
    widget.step = 2  # scrubbed back while it ran
    widget.finish(Trace.record(events, decode=decode))
    assert widget.step == 2
    versions.append(widget._meta["version"])
    assert versions == sorted(set(versions))
    with pytest.raises(DgemmaError, match="begin first"):
        widget.push(events[1])


# steering


def test_steering_reaches_the_callback(trace: Trace) -> None:
    widget = Canvas(trace)
    assert not widget._steerable
    asked: list[Steer] = []
    widget.on_steer(asked.append)
    assert widget._steerable

    def send(action: str, step: int, **where: Any) -> None:
        widget._receive(widget, {"type": "steer", "action": action, "step": step, **where}, [])

    send("pin", 3, position=4, start=4, stop=5)
    send("blank", 3, position=20, start=18, stop=21)
    send("replace", 16, position=5, start=5, stop=6, text="hi")
    send("branch", 9)
    send("branch", 0)
    pin, blank, replaced, branch, start = asked
    shown = frame(trace, 3)[0][4].token
    assert pin == Steer("pin", 3, 2, 4, 4, 5, shown, None)
    assert (blank.start, blank.stop, blank.token) == (18, 21, None)  # canvas 2 has not begun
    assert (replaced.text, replaced.token) == ("hi", int(trace.ids[5]))
    assert branch == Steer("branch", 9, 8) and start.pass_index is None
    widget.on_steer(asked.append, remove=True)
    assert not widget._steerable


def test_stop_reaches_the_callback() -> None:
    widget = Canvas()
    stopped: list[bool] = []
    widget.on_stop(lambda: stopped.append(True))
    widget._receive(widget, {"type": "stop"}, [])
    assert stopped == [True] and widget._stoppable


# other forms


FRAMES = """
({ rows, initial, shows }) => {
  const run = new js.Run();
  run.initial = initial;
  for (const row of js.parseRows(Buffer.from(rows, "base64"))) run.add(row);
  const look = (group, step, show) => Array.from({ length: group.n }, (_, i) => {
    const cell = run.cell(group, i, step, show);
    return cell && [cell.token, cell.state, run.shade(group, i, step, cell, "settled")];
  });
  const steps = [...run.rows.keys(), run.rows.length];
  return shows.map((show) => steps.map((step) => run.groups.map((g) => look(g, step, show))));
}
"""


def in_node(function: str, given: Any, script: str = "canvas/run.js") -> Any:
    """Calls a JavaScript function, in which `js` is a module of lab/, with json in and out."""
    node = shutil.which("node")
    assert node, "these tests run lab/canvas/*.js in Node.js: install nodejs (20 or newer)"
    source = base64.b64encode(bundled(script).encode()).decode()
    code = f"""
      import("data:text/javascript;base64,{source}").then((js) => {{
        const given = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
        console.log(JSON.stringify(({function})(given)));
      }});"""
    done = subprocess.run(
        [node, "-e", code], input=json.dumps(given), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["diffusion", "unfinished", "autoregressive"])
def test_script_and_pictures_show_the_same_frames(mode: str) -> None:
    if mode == "autoregressive":
        trace = Trace.record(token_events(ANSWER), decode=decode)
    else:
        trace = make(converge=mode == "diffusion")
    widget = Canvas(trace)
    ids = widget._tokens["ids"]
    shows = ["draft", "canvas"]
    rows = base64.b64encode(widget._rows).decode()
    given = {"rows": rows, "initial": widget._meta["initial"], "shows": shows}
    for show, frames in zip(shows, in_node(FRAMES, given), strict=True):
        assert len(frames) == len(trace) + 1
        for step, theirs in enumerate(frames):
            ours = frame(trace, step, show, "settled")
            for cells, scripted in zip(ours, theirs, strict=True):
                for cell, seen in zip(cells, scripted, strict=True):
                    if seen is None:
                        assert cell.token is None
                        continue
                    token, state, shade = seen
                    assert (cell.token, cell.state) == (ids[token], state), (show, step, cell)
                    assert (cell.shade is None) == (shade is None), (step, cell)
                    assert shade is None or abs(cell.shade * 255 - shade) <= 0.51


def test_both_halves_share_colours_and_visible_text() -> None:
    script = (LAB / "frontend/colour.js").read_text("utf-8")
    listed = re.search(r"const RAMP = \[(.*?)\];", script, re.S)
    assert listed is not None
    assert json.loads(f"[{listed[1].rstrip().rstrip(',')}]") == RAMP.tolist()
    texts = [
        " a\n",
        "",
        "\t\x00\x7f",
        "\u202ex",
        "\u0301",
        "👩\u200d👧",
        "\u200d",
        "שלום",
        "y" * 99,
        "\u00a0",
        "<0xF0>",
        "<0xF0><0x9F>",
    ]
    seen = in_node("(texts) => texts.map((text) => js.visible(text))", texts, "frontend/text.js")
    assert seen == [visible(text) for text in texts]
    bytewise = ["a <0xF0><0x9F><0x99><0x82>!", "<0xF0>", "<0xf0>"]
    seen = in_node(
        "(texts) => texts.map((text) => js.readable(text))", bytewise, "frontend/text.js"
    )
    assert seen == [readable(text) for text in bytewise] == ["a 🙂!", "\ufffd", "<0xf0>"]


def test_both_halves_give_cells_the_same_width() -> None:
    for answer in (ANSWER, [*range(40, 60)], [7]):
        trace = Trace.record(diffusion_events(answer, top_k=3), decode=lambda t: "x" * (t % 11 + 1))
        tokens, counts = np.unique(
            np.concatenate([trace.tokens_in[: trace.offsets[1]], trace.tokens_out, trace.argmax]),
            return_counts=True,
        )
        lengths = [[int(t) % 11 + 1, int(n)] for t, n in zip(tokens, counts, strict=True)]
        seen = in_node("(lengths) => js.cellWidth(lengths)", lengths, "canvas/cells.js")
        assert seen == column_width(trace)


class Page(HTMLParser):
    """Collects what a page could ask for from outside, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_standalone_page_is_whole_and_escaped(trace: Trace, tmp_path: Path) -> None:
    path = Canvas(trace).to_html(tmp_path / "page.html")
    text = path.read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.asked == [] and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert page.tags.count("script") == 2 and "b" not in page.tags  # prompt and tokens stay text
    for name in ("canvas/rows.js", "canvas/canvas.css"):
        assert (LAB / name).read_text("utf-8") in text
    assert len(text) < 400_000


Shown = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What was displayed, or updated, and with which options."""
    seen: Shown = []
    for name in ("display", "update_display"):
        monkeypatch.setattr(still, name, lambda bundle, **options: seen.append((bundle, options)))
    monkeypatch.setattr(still, "get_ipython", lambda: "a kernel")
    return seen


def test_a_still_stands_before_the_widget(trace: Trace, shown: Shown) -> None:
    widget = Canvas(trace)
    widget._ipython_display_()
    (before, options), (data, _) = shown
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert "text/html" not in data and "image/png" not in data
    page = Page()
    page.feed(before["text/html"])
    assert page.asked == [] and "script" not in page.tags and options["display_id"]
    words = "".join(page.words)
    assert "A <b>bold</b> prompt" in words and "w33" in words
    assert "Run this cell to make it live" in words
    assert before["text/plain"] == repr(widget) == f"Canvas({trace!r})"


def test_the_still_of_a_live_run_is_put_in_when_it_is_over(shown: Shown) -> None:
    widget = Canvas()
    widget._ipython_display_()
    begun, options = shown[0]
    assert "w33" not in begun["text/html"] and "Run this cell" not in begun["text/html"]
    widget.begin()
    widget.finish(make())
    ended, again = shown[-1]
    assert "w33" in ended["text/html"] and again["display_id"] == options["display_id"]


def test_what_is_made_for_readers_holds_no_widget(
    trace: Trace, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGEMMA_STATIC", "1")
    Canvas(trace)._ipython_display_()
    ((bundle, _),) = shown
    assert sorted(bundle) == ["image/png", "text/html", "text/plain"]
    picture = Image.open(io.BytesIO(bundle["image/png"]))
    assert picture.format == "PNG" and picture.width == 1920
    assert picture.convert("RGBA").getpixel((0, 0))[3] == 0, "no ground of its own"


@pytest.mark.slow
def test_pictures_differ_by_step_and_animations_hold_every_step(
    trace: Trace, tmp_path: Path
) -> None:
    widget = Canvas(trace)
    assert widget.to_png(step=1) != widget.to_png(step=2)
    widget.to_png(tmp_path / "last.png")
    assert (tmp_path / "last.png").read_bytes() == widget.to_png()
    for kind in ("webp", "gif"):
        path = getattr(widget, f"to_{kind}")(tmp_path / f"run.{kind}", seconds_a_step=0.1)
        with Image.open(path) as picture:
            assert picture.n_frames == len(trace) + 1
            assert picture.size[0] == 960
        assert path.stat().st_size < 1_500_000
    with pytest.raises(DgemmaError, match="above 0"):
        widget.to_gif(tmp_path / "x.gif", seconds_a_step=0)


@pytest.mark.parametrize("by", ["confidence", "entropy", "settled"])
def test_pictures_in_every_colouring(trace: Trace, by: str) -> None:
    assert len(png(trace, colour_by=by, step=5)) > 1000
    assert len(png(Trace.record(token_events(ANSWER)), colour_by=by)) > 1000


def test_bad_use_is_one_clear_error(trace: Trace) -> None:
    with pytest.raises(DgemmaError, match="no trace yet"):
        Canvas().to_html("never.html")
    with pytest.raises(DgemmaError, match="steps 0 to 16, not 17"):
        Canvas(trace).to_png(step=17)
    with pytest.raises(DgemmaError, match="colour_by"):
        frame(trace, 1, colour_by="mood")
    with pytest.raises(DgemmaError, match="alternatives must be at least 1"):
        Canvas(trace, alternatives=0)


def test_an_empty_trace_can_be_shown() -> None:
    first = next(iter(diffusion_events(ANSWER)))
    widget = Canvas(Trace.record([first]))
    assert widget.step == -1 and widget._rows == b"" and len(widget.to_png()) > 100


def test_a_pin_shows_itself_and_what_the_model_would_have_said() -> None:
    events = list(diffusion_events(ANSWER, top_k=3, pins=(2,)))
    for i, event in enumerate(events):
        if isinstance(event, StepEvent) and event.canvas == 0:
            top = event.observed.top_ids.copy()
            top[2] = [40, 41, 42]  # not the pin
            shares = event.observed.top_probabilities.copy()
            shares[2] = [0.5, 0.3, 0.1]
            observed = replace(event.observed, top_ids=top, top_probabilities=shares)
            events[i] = replace(event, observed=observed)
    trace = Trace.record(events, decode=decode)
    widget = Canvas(trace)
    ids = widget._tokens["ids"]
    row = unpack(widget._rows)[3]
    assert [ids[t] for t in row["alternatives"][2]] == [40, 41, 42]
    listed = np.sin(np.pi / 2 * row["p"][2] / 255) ** 2
    np.testing.assert_allclose(listed, [0.5, 0.3, 0.1], atol=0.01)
    assert ids[row["out"][2]] == ANSWER[2]
    for step in (1, len(trace)):
        assert frame(trace, step)[0][2].token == ANSWER[2]


def test_the_static_page_is_coloured_as_the_widget_is(trace: Trace) -> None:
    pages = {by: static_html(trace, colour_by=by) for by in ("confidence", "settled")}
    assert pages["confidence"] != pages["settled"]
    for by, page in pages.items():
        assert Canvas(trace, colour_by=by).still_html() == page


@pytest.mark.parametrize("converge", [True, False])
def test_the_draft_ends_on_what_is_committed(converge: bool) -> None:
    trace = make(converge=converge)
    cells = frame(trace, len(trace), "draft")
    for commit, shown in zip(trace.commits, cells, strict=True):
        assert [cell.token for cell in shown] == commit.ids.tolist()
