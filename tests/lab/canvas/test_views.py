"""What a canvas gives its views besides rows: lines, rounds, another run to compare with, replays, files to share."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_core.events import Mode
from dgemma_core.files.trace import Trace
from dgemma_lab.canvas import pictures
from dgemma_lab.canvas.canvas import REPLAYED, Canvas
from dgemma_lab.canvas.compare import tokens_at
from dgemma_lab.canvas.frames import line_starts
from dgemma_lab.canvas.pictures import draw
from dgemma_lab.canvas.sharing import EXPLAINED, shared
from dgemma_lab.canvas.still import static_html
from tests.files.fake_events import EOS, diffusion_events, draft_events, token_events
from tests.lab.canvas.test_canvas import in_node

WORDS = {10: "1", 11: " 2", 12: "\n", 13: "x\n", 14: "\n\n", EOS: "<eos>"}
BOARD = [10, 11, 12, 11, 10, 12, 12, 10, 13, 11, EOS]

STARTS = """({ rows, texts, ends }) => {
  const run = new js.Run();
  for (const row of js.parseRows(Buffer.from(rows, "base64"))) run.add(row);
  return [...run.lineStarts(texts, new Set(ends))];
}"""


def text(token: int) -> str:
    return WORDS.get(token, f" w{token}")


def record(answer: list[int], causal: bool = False, **options: Any) -> Trace:
    made = token_events(answer) if causal else diffusion_events(answer, **options)
    return Trace.record(made, metadata={"eos_token_ids": [EOS], "prompt": "p"}, decode=text)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (BOARD, {3, 7, 9}),  # an empty line stays behind the line before it
        ([10, 11, 12, EOS], set()),  # one line and its break
        ([10, 11, 11, EOS], set()),
        ([13, 14, 10, EOS], {1, 2}),
    ],
)
def test_lines_of_the_text_begin_lines_of_the_grid(
    answer: list[int], lines: set[int], causal: bool
) -> None:
    trace = record(answer, causal)
    expected = lines | ({len(answer)} if lines and EOS in answer else set())
    assert line_starts(trace) == expected
    widget = Canvas(trace)
    ids, texts = widget._tokens["ids"], widget._tokens["texts"]
    given = {
        "rows": base64.b64encode(widget._rows).decode(),
        "texts": texts,
        "ends": [local for local, token in enumerate(ids) if token == EOS],
    }
    assert set(in_node(STARTS, given)) == expected


def test_pictures_and_stills_break_the_same_lines() -> None:
    board, line = record(BOARD), record([10] * 10 + [EOS])
    assert static_html(board).count("<br>") == 4 and "<br>" not in static_html(line)
    assert draw(board, len(board)).size[1] > draw(line, len(line)).size[1]
    assert len({draw(board, step).size for step in range(len(board) + 1)}) == 1


def test_rounds_travel_with_local_ids() -> None:
    trace = Trace.record(draft_events([*range(20, 30), EOS], [2, 0, 4, 0]), decode=text)
    widget = Canvas(trace)
    rounds, ids = widget._meta["rounds"], widget._tokens["ids"]
    assert len(rounds) == len(trace.rounds) > 2
    for packed, made in zip(rounds, trace.rounds, strict=True):
        assert [ids[token] for token in packed["tokens"]] == made.tokens.tolist()
        assert ids[packed["replacement"]] == made.replacement
        assert (packed["start"], packed["accepted"]) == (made.start, made.accepted)
    assert widget._tokens["texts"] == [text(token) for token in ids]
    assert Canvas(record(BOARD))._meta["rounds"] == []


@pytest.mark.parametrize("causal", [False, True])
def test_another_run_is_compared_step_by_step(causal: bool) -> None:
    one, other = record(BOARD, causal), record([*BOARD[:4], 30, *BOARD[5:]], causal)
    widget = Canvas(one)
    widget.compare(other, "A")
    found = widget._against
    assert found["name"] == "A" and len(found["frames"]) == len(other) + 1
    for step in range(1, len(other) + 1):
        shown = {at: token for at, token in enumerate(found["frames"][step]) if token >= 0}
        assert shown == tokens_at(other, step)
        assert all(found["texts"][token] for token in shown.values())
    widget.compare(None)
    assert widget._against == {}
    widget.compare(other)
    widget.trace = one
    assert widget._against == {}, "another run begins without"


def test_a_live_run_that_was_over_in_a_moment_is_replayed() -> None:
    for slower, replayed in ((False, True), (True, False)):
        widget = Canvas()
        widget.begin(decode=text)
        trace = record(BOARD)
        if slower:
            trace = Trace(**{**vars(trace), "total_seconds": REPLAYED + 1})
        widget.finish(trace)
        assert widget._meta["replay"] is replayed
        assert widget._meta["seconds"] == trace.total_seconds
    assert Canvas(trace)._meta["replay"] is False
    led = Canvas(transport=False)  # others lead it
    led.begin(decode=text)
    led.finish(record(BOARD))
    assert led._meta["replay"] is False


def test_a_run_is_shared_as_a_page_that_plays_or_a_picture_that_moves(tmp_path: Path) -> None:
    widget = Canvas(record(BOARD), title="A 2×2 Board, solved!")
    about, page = shared(widget, "html")
    assert about == {"name": "a-2-2-board-solved.html", "mime": "text/html"}
    text_of = page.decode("utf-8")
    assert '"replay": true' in text_of and "https://" not in text_of
    about, picture = shared(widget, "gif")
    assert about["name"].endswith(".gif") and picture.startswith(b"GIF8")
    with pytest.raises(DgemmaError, match="shared as html or gif"):
        shared(widget, "pdf")
    sent: list[tuple[Any, Any]] = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    widget._receive(widget, {"type": "share", "kind": "html"}, [])
    ((content, buffers),) = sent
    assert content["type"] == "shared" and buffers == [page]


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        ("diffusion", ("noise", "accepts", "take back")),
        ("autoregressive", ("one token after another", "in a frame")),
        ("speculative", ("drafts", "verifies", "heavy line")),
    ],
)
def test_a_page_explains_its_mode_in_three_sentences(
    mode: Mode, seen: tuple[str, ...], tmp_path: Path
) -> None:
    answer = [*range(20, 30), EOS]
    events = {
        "diffusion": lambda: diffusion_events(answer),
        "autoregressive": lambda: token_events(answer),
        "speculative": lambda: draft_events(answer, [2, 0, 4, 0]),
    }[mode]()
    trace = Trace.record(events, decode=text)
    assert trace.mode == mode
    page = Canvas(trace).to_html(tmp_path / "page.html").read_text("utf-8")
    assert f'<p class="intro">{html.escape(EXPLAINED[mode])}</p>' in page
    assert EXPLAINED[mode].count(". ") == 2 and "confidence" in EXPLAINED[mode]
    assert all(words in EXPLAINED[mode] for words in seen)


def test_a_picture_of_speculation_marks_what_the_causal_mode_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five of eleven tokens: the first, and the one behind each round's accepted ones."""
    events = draft_events([*range(20, 30), EOS], [2, 0, 4, 0])
    trace = Trace.record(events, metadata={"eos_token_ids": [EOS]}, decode=" w{}".format)
    marked = np.asarray(draw(trace, len(trace), scale=1))
    monkeypatch.setattr(pictures, "_chosen", lambda trace: set())
    plain = np.asarray(draw(trace, len(trace), scale=1))
    first_line = slice(pictures.MARGIN + 18, pictures.MARGIN + 18 + pictures.CELL_HEIGHT)
    differs = (marked != plain)[first_line].any(axis=(0, 2)).astype(int)
    assert (np.diff(differs, prepend=0) == 1).sum() == 5
    assert pictures._caption(trace, 0, 4) == "token 4 of 11 · round 1 of 4"
    assert pictures._caption(trace, 0, 0) == "token 0 of 11 · round 0 of 4"
