"""A constrained run in the canvas widget: what travels of it, live and whole, and what does not when there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_core import Constraint, Observe
from dgemma_core.files.trace import Trace
from dgemma_lab.canvas import packing
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.canvas.conditioning import NO_STATE
from dgemma_lab.session.plan import follower, plan, record
from tests.lab import runs
from tests.lab.runs import PROMPT

LISTED = Constraint.regex(r"\[[a-z]{1,6}(, [a-z]{1,6}){0,4}\]")
OBSERVE = Observe(top_k=4)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return record(runs.loaded(), PROMPT, observe=OBSERVE, constraint=LISTED, pins={3: ","})


def barred(data: bytes) -> list[dict[str, Any]]:
    """What rows hold of a constraint, by the format of packing.py, read on its own terms."""
    found = []
    while data:
        length, n, width, k, *_, constrained, f = packing.HEADER.unpack_from(data)
        at = packing.HEADER.size + width * n * (1 + k) + n * (3 + k)
        at = -(-at // 4) * 4
        row: dict[str, Any] = {"constrained": constrained, "f": f, "bytes": length}
        if constrained:
            row["ids"] = np.frombuffer(data, f"<u{width}", n * f, at).reshape(n, f)
            row["states"] = np.frombuffer(data, "<u2", n, at + width * n * f)
            u8 = np.frombuffer(data, np.uint8, n * (f + 1), at + width * n * f + 2 * n)
            row["p"], row["mass"] = u8[: n * f].reshape(n, f), u8[n * f :]
        found.append(row)
        data = data[length:]
    return found


def test_rows_tell_what_is_forbidden(trace: Trace) -> None:
    canvas = Canvas(trace)
    ids = canvas._tokens["ids"]
    automaton = LISTED.compile(runs.loaded())
    assert trace.free_top_ids is not None and trace.forbidden is not None
    assert trace.automaton_states is not None and trace.free_top_probabilities is not None
    seen = 0
    for r, row in enumerate(barred(canvas._rows)):
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        assert row["constrained"] == 1
        assert row["states"].tolist() == trace.automaton_states[cut].tolist()
        for place in range(cut.stop - cut.start):
            at = cut.start + place
            shown = [ids[t] for t, p in zip(row["ids"][place], row["p"][place], strict=True) if p]
            if trace.pinned[at]:
                assert not shown and row["mass"][place] == 0
                continue
            mass = np.sin(np.pi / 2 * row["mass"][place] / 255) ** 2
            assert mass == pytest.approx(trace.forbidden[at], abs=0.004)
            free = dict(
                zip(trace.free_top_ids[at].tolist(), trace.free_top_probabilities[at], strict=True)
            )
            assert set(shown) <= set(free)
            # of the first position only what leads on from the start is allowed
            if trace.positions()[at] == 0:
                wanted = [token for token in free if automaton.after([token]) < 0]
                assert shown == [t for t in wanted if free[t] > 1e-4] or set(shown) <= set(wanted)
                seen += len(shown)
    assert seen > 0


def test_a_pinned_place_lists_what_the_model_would_have_written(trace: Trace) -> None:
    canvas = Canvas(trace, alternatives=4)
    assert trace.free_top_ids is not None
    passed = next(iter(packing.passes_from_trace(trace, 4)))
    assert passed.pinned[3] and canvas._rows
    assert passed.alternatives[3].tolist() == trace.free_top_ids[3].tolist()


def test_states_come_with_what_may_follow_and_a_page_keeps_it(trace: Trace, tmp_path: Path) -> None:
    canvas = Canvas(trace)
    assert {int(state) for state in canvas._states} == set(trace.onward)
    page = canvas.to_html(tmp_path / "page.html").read_text("utf-8")
    (state,) = re.findall(r'<script type="application/json" id="state">(.*)</script>', page)
    assert json.loads(state)["_states"] == canvas._states
    assert "obeys a regular expression" in canvas._meta["facts"]


def test_live_rows_are_those_of_the_trace_and_bring_their_states() -> None:
    loaded = runs.loaded()
    settings, request = plan(loaded, PROMPT, constraint=LISTED)
    canvas = Canvas()
    canvas.begin(decode=str, onward=follower(loaded, request))
    rows: dict[int, bytes] = {}

    def hear(change: Any) -> None:
        rows.update(zip(change["new"].get("ends", ()), change["new"].get("rows", ()), strict=True))
        for row in change["new"].get("rows", ()):
            states = {int(s) for s in barred(row)[0]["states"] if s != NO_STATE}
            assert states <= {int(state) for state in canvas._states}

    canvas.observe(hear, "_tail")
    recorder = record(loaded, PROMPT, constraint=LISTED, observe=OBSERVE)
    for event in settings.events(loaded, [request], observe=OBSERVE):
        canvas.push(event)
    assert rows
    whole = barred(Canvas(recorder)._rows)
    for end, row in rows.items():
        (live,) = barred(row)
        assert live["states"].tolist() == whole[end - 1]["states"].tolist()
        assert live["mass"].tolist() == whole[end - 1]["mass"].tolist()


def test_a_free_run_costs_no_byte() -> None:
    free = record(runs.loaded(), PROMPT, observe=OBSERVE)
    canvas = Canvas(free)
    assert canvas._states == {}
    for row in barred(canvas._rows):
        assert (row["constrained"], row["f"]) == (0, 0)
        assert row["bytes"] == packing.HEADER.size + 8 * (2 * 5 + 7)  # 8 positions, 4 alternatives


def test_tokens_of_autoregression_join_whatever_each_forbids() -> None:
    trace = record(runs.loaded(), PROMPT, mode="autoregressive", observe=OBSERVE, constraint=LISTED)
    passes = list(packing.passes_from_trace(trace, 4))
    one = packing.joined(passes)
    assert len(one.states) == len(trace) and one.barred.shape == (len(trace), 4)
    (row,) = barred(
        packing.pack(one, packing.marks(one, None, frozenset()), packing.TokenTable(str))
    )
    assert row["states"].tolist() == trace.automaton_states.tolist()  # type: ignore[union-attr]
