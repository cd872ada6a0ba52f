"""Live runs: at once, to the end, stopped, replaced, failed; and the states behind them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch

from dgemma_core import load
from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.events import Mode
from dgemma_core.nano.problems import Known
from dgemma_core.observe import Observe
from dgemma_core.samplers import BlockRefinement
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.canvas.packing import TokenTable, pack_trace
from dgemma_lab.frontend import still
from dgemma_lab.session.plan import plan, record
from dgemma_lab.session.run import Run
from dgemma_lab.session.session import Session
from dgemma_lab.session.states import StateCache
from tests.lab import runs
from tests.lab.runs import PROMPT


@pytest.mark.slow
def test_a_run_returns_at_once_and_ends_with_what_a_plain_recording_gives() -> None:
    loaded = runs.loaded()
    runs.slow(loaded.model, 0.02)
    run = Session(loaded).run(PROMPT, seed=3)
    assert run.running
    assert run.trace.digest() == record(loaded, PROMPT, seed=3, observe=Observe(top_k=5)).digest()
    assert not run.running
    assert run.result().ids == tuple(run.trace.ids.tolist())
    assert run.canvas.trace is run.trace
    assert run.canvas.status == "" and f"{run.trace.passes} passes" in run.canvas._meta["facts"]
    assert run.trace.top_ids is not None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_the_browser_gets_30_rows_a_second_and_everything_at_the_end(mode: Any) -> None:
    loaded = runs.loaded(max_denoising_steps=48, eos_token_ids=(), max_new_tokens=24)
    session = Session(loaded)
    options = {"stop_rule": None} if mode == "diffusion" else {"mode": mode, "max_new_tokens": 300}
    run = Run(loaded, *plan(loaded, PROMPT, **options), observe=session.observe)
    sent: list[float] = []
    run.canvas.observe(
        lambda change: sent.extend(time.monotonic() for _ in change["new"].get("rows", ())), "_tail"
    )
    run.start().wait()
    passes = len(run.trace)
    assert passes == (144 if mode == "diffusion" else 300)
    assert 0 < len(sent) <= passes
    for i, begin in enumerate(sent):
        # A row may have become due just before it was counted.
        assert sum(at < begin + 0.99 for at in sent[i:]) <= 30
    assert run.canvas.trace is run.trace
    whole = pack_trace(run.trace, TokenTable(run.trace.text))
    assert run.canvas._rows == b"".join(whole) and len(whole) == passes


def test_stop_takes_effect_within_a_pass_and_keeps_what_there_is() -> None:
    loaded = runs.loaded(max_denoising_steps=200, eos_token_ids=())
    runs.slow(loaded.model, 0.02)
    run = Session(loaded).run(PROMPT, stop_rule=None)
    while run.canvas._live is None or run.canvas._live.passes < 3:
        time.sleep(0.005)
    before = len(run._recorder)
    run.stop()
    run.wait(10)
    assert before <= len(run.trace) <= before + 1
    assert run.trace.stop_reason is None
    assert run.canvas.status.startswith(f"stopped after {len(run.trace)} passes")
    with pytest.raises(DgemmaError, match="stopped before its text ended"):
        run.result()


def test_the_button_stops_too_and_is_gone_afterwards() -> None:
    loaded = runs.loaded(max_denoising_steps=200, eos_token_ids=())
    runs.slow(loaded.model, 0.02)
    run = Session(loaded).run(PROMPT, stop_rule=None)
    while not run.canvas._stoppable:
        time.sleep(0.005)
    run.canvas._receive(run.canvas, {"type": "stop"}, [])
    assert run.wait(10).trace.stop_reason is None
    assert not run.canvas._stoppable


RUNS: dict[str, Any] = {
    **{f"canvas {canvas!r}": {"canvas": canvas} for canvas in (5, "x", -1, 0, [])},
    **{f"observe {observe!r}": {"observe": observe} for observe in (5, "x", [], 0)},
    **{f"box {box!r}": {"box": box} for box in ([], {})},
    **{f"pins {pins!r}": {"pins": pins} for pins in (5, 0, "", [], {"x": 1}, {0: 1.5}, {0: None})},
    **{f"stop {stop!r}": {"stop": stop} for stop in (5, [5])},
    **{f"raw {raw!r}": {"raw": raw} for raw in (0, "", [])},
    **{f"thinking {value!r}": {"thinking": value} for value in (0, "yes")},
    "constraint": {"constraint": "x"},
}


@pytest.mark.parametrize("case", RUNS)
def test_what_is_wrong_with_a_run_is_refused_before_it_replaces_another(case: str) -> None:
    loaded = runs.loaded(max_denoising_steps=200, eos_token_ids=())
    runs.slow(loaded.model, 0.01)
    session = Session(loaded)
    first = session.run(PROMPT, stop_rule=None)
    with pytest.raises(RequestError) as caught:
        session.run(PROMPT, **RUNS[case])
    assert "\n" not in str(caught.value)
    assert session.current is first and not first._halt.is_set()
    first.stop()
    first.wait(20)


@pytest.mark.parametrize(
    "value", [5, "x", [], -1, object()], ids=lambda value: type(value).__name__
)
def test_sessions_and_what_is_asked_of_a_run(value: Any) -> None:
    loaded = runs.loaded()
    calls = [
        lambda: Session(value), lambda: Session(loaded, observe=value), lambda: record(value, PROMPT),
        lambda: record(loaded, PROMPT, observe=value), lambda: Session(loaded).ask(value),
        lambda: Session(loaded).ask(PROMPT, constraint=value), lambda: Run(value, None, None),
    ]  # fmt: skip
    if value != 5:
        run = Session(loaded).run(PROMPT).wait(20)
        calls += [lambda: run.state_at(value), lambda: run.pins_at(value), lambda: run.wait(value)]
        calls += [lambda: Session(loaded, keep_bytes=value), lambda: run.on_finish(value)]
    for i, call in enumerate(calls):
        if (i, value) == (4, "x"):
            continue  # a prompt
        with pytest.raises(RequestError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_states_after_half_a_pass_and_long_waits() -> None:
    run = Session(runs.loaded()).run(PROMPT)
    assert run.wait(1e300) is run
    with pytest.raises(RequestError, match=r"passes must be a whole number, got 1\.5"):
        run.state_at(1.5)  # type: ignore[arg-type]


def test_a_run_ends_where_its_canvas_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas()
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    monkeypatch.setattr(canvas, "say", lambda *_, **__: 1 / 0)
    assert Session(runs.loaded()).run(PROMPT, canvas=canvas).wait(20).failed


def test_a_stop_string_may_stand_alone() -> None:
    _, request = plan(runs.loaded(), PROMPT, stop="end", pins={np.int64(1): np.int64(7), 2: "a"})
    assert request.stop == ("end",) and request.pins[1] == 7 and 2 in request.pins


def test_a_second_run_replaces_the_first() -> None:
    loaded = runs.loaded(max_denoising_steps=200, eos_token_ids=())
    runs.slow(loaded.model, 0.01)
    session = Session(loaded)
    first = session.run(PROMPT, stop_rule=None)
    second = session.run(PROMPT, canvas=first.canvas, steps=2)
    assert second.trace.stop_reason == "length"
    assert first.trace.stop_reason is None and len(first.trace) < 400
    assert second.canvas.trace is second.trace
    assert session.current is second


@pytest.mark.slow
def test_boxes_take_turns_and_each_replaces_only_its_own() -> None:
    loaded = runs.loaded(eos_token_ids=())
    runs.slow(loaded.model, 0.005)
    session = Session(loaded)
    long, short = {"steps": 60, "stop_rule": None}, {"steps": 2}
    boxes = [session.ask(PROMPT, **options) for options in (long, short, short)]
    firsts = [box.run() for box in boxes]
    assert all(run is not None for run in firsts)
    again = boxes[1].run()
    assert again is not None and len(again.trace) == 4
    assert [run.failed for run in firsts if run] == [False, True, False]
    assert [len(run.trace) for run in (firsts[0], firsts[2]) if run] == [120, 4]
    with pytest.raises(DgemmaError, match="stopped before its turn"):
        firsts[1].result()  # type: ignore[union-attr]
    assert boxes[1].canvas.trace is again.trace


@pytest.mark.slow
def test_only_one_run_is_at_work_at_a_time() -> None:
    loaded = runs.loaded(max_denoising_steps=20, eos_token_ids=())
    at_work = threading.Lock()
    collisions = []
    denoise = loaded.model.denoise

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        collisions.append(not at_work.acquire(blocking=False))
        time.sleep(0.005)
        if not collisions[-1]:
            at_work.release()
        return denoise(*args, **options)

    loaded.model.denoise = watched  # type: ignore[method-assign]
    session = Session(loaded)
    last = [session.run(PROMPT, stop_rule=None) for _ in range(4)][-1]
    last.wait()
    assert collisions and not any(collisions)


def test_an_error_is_raised_where_the_result_is_read() -> None:
    loaded = runs.loaded()

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("the weights are wet")

    loaded.model.denoise = broken  # type: ignore[assignment]
    run = Session(loaded).run(PROMPT)
    run.wait()
    assert run.failed
    for read in (lambda: run.trace, run.result):
        with pytest.raises(RuntimeError, match="the weights are wet"):
            read()
    assert run.canvas.alert and "the weights are wet" in run.canvas.status


def test_bad_options_are_refused_before_a_thread_starts() -> None:
    session = Session(runs.loaded())
    threads = threading.active_count()
    with pytest.raises(RequestError, match="temperature"):
        session.run(PROMPT, temperature=0.5)
    with pytest.raises(RequestError, match="pins have no meaning"):
        session.run(PROMPT, mode="autoregressive", pins={0: 1})
    with pytest.raises(RequestError, match="pins have no meaning in mode 'speculative'"):
        session.run(PROMPT, mode="speculative", pins={0: 1})
    assert session.current is None and threading.active_count() == threads


def test_pins_may_be_texts() -> None:
    loaded = runs.loaded()
    ids = loaded.tokenizer.encode("[1,2]")
    assert len(ids) > 1
    _, request = plan(loaded, PROMPT, pins={2: "[1,2]", 9: 7})
    assert request.pins == {**{2 + i: token for i, token in enumerate(ids)}, 9: 7}
    run = Session(loaded).run(PROMPT, pins={2: "[1,2]"})
    for row in run.trace.rows("tokens_out", 0):
        assert row[2 : 2 + len(ids)].tolist() == ids


def test_waiting_has_a_limit() -> None:
    loaded = runs.loaded(max_denoising_steps=200, eos_token_ids=())
    runs.slow(loaded.model, 0.02)
    run = Session(loaded).run(PROMPT, stop_rule=None)
    with pytest.raises(DgemmaError, match="not over after"):
        run.wait(0.05)
    run.stop()
    run.wait(10)


def test_finish_callbacks_run_once_whenever_registered() -> None:
    run = Session(runs.loaded()).run(PROMPT)
    heard: list[Run] = []
    run.on_finish(heard.append)
    run.wait()
    deadline = time.monotonic() + 5
    while not heard and time.monotonic() < deadline:
        time.sleep(0.005)
    run.on_finish(heard.append)
    assert heard == [run, run]


@pytest.mark.parametrize("mode", ["autoregressive", "speculative"])
def test_runs_that_write_tokens_are_live_too(mode: Mode) -> None:
    run = Session(runs.loaded(eos_token_ids=())).run(PROMPT, mode=mode)
    assert run.trace.mode == mode and len(run.trace) == 16
    assert (len(run.trace.rounds) > 0) == (mode == "speculative")
    with pytest.raises(RequestError, match="no canvas to branch from"):
        run.state_at(3)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_a_state_from_the_store_or_replayed_is_the_same(limit: int) -> None:
    loaded = runs.loaded(eos_token_ids=())
    settings, request = plan(loaded, PROMPT, sampler=BlockRefinement(), stop_rule=None)
    every = Run(loaded, settings, request).start().wait()
    thin = Run(loaded, settings, request, states=StateCache(limit)).start().wait()
    assert len(every.trace) == 12
    for passes in range(1, 13):
        one, two = every.states.nearest(every, passes), thin.state_at(passes)
        assert one is not None and one[0] == passes and two is not None
        for name, value in vars(one[1]).items():
            other = getattr(two, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other), name
            elif name != "cache":
                assert value == other, name
    assert thin.state_at(0) is None
    with pytest.raises(RequestError, match="0 to 12 passes"):
        thin.state_at(13)


def test_the_backend_is_named_in_the_session_the_trace_and_beside_the_canvas() -> None:
    session = Session(runs.loaded())
    session.loaded.model.use("torch")
    run = session.run(PROMPT)
    assert run.trace.metadata["backend"] == "torch"
    name = session.loaded.name
    assert repr(session) == f"Session({name} on torch)"
    assert run.canvas._meta["facts"][0] == f"{name} on torch"


def test_the_states_of_all_runs_stay_within_keep_bytes() -> None:
    session = Session(runs.loaded(eos_token_ids=()), keep_bytes=1)
    run = session.run(PROMPT, stop_rule=None).wait()
    assert run.states is session.states and run.states.limit == 1
    assert len(run.states) == 1, "more than one byte holds the newest state alone"


def test_ask_runs_what_is_typed_and_says_what_is_wrong() -> None:
    session = Session(runs.loaded())
    box = session.ask(PROMPT, max_new_tokens=8)
    box.form._receive(box.form, {"type": "press", "name": "run"}, [])
    assert box.current is not None
    assert box.current.trace.metadata["prompt"] == PROMPT
    assert box.canvas.trace is box.current.trace
    box.form.values = {**box.form.values, "seed": -1}
    assert box.run() is None and box.form.alert
    assert "seed must be at least 0" in box.form.message


def verdict_of(box: Any) -> bool | None:
    """Waits for what the verifier says of the last run."""
    until = time.monotonic() + 30
    while box.verdict is None and time.monotonic() < until:
        time.sleep(0.005)
    return box.verdict


def test_examples_are_unseen_problems_with_a_verdict() -> None:
    nano = load("nano")
    box = Session(nano).ask("anything")
    names = [field["name"] for field in box.form.fields]
    assert names[:3] == ["prompt", "run", "seed"] and "example:mini_sudoku" in names
    (more,) = (field for field in box.form.fields if field["name"] == "more")
    shown = len([name for name in names if name.startswith("example:")])
    assert shown + len(more["options"]) - 1 == len(box.known.labels())

    box.form._receive(box.form, {"type": "press", "name": "example:spell_backward"}, [])
    first = box.known.problem("spell_backward", 0)
    assert box.form.values["prompt"] == first.prompt
    assert verdict_of(box) is first.accepts(box.current.result().text) is True
    assert box.form.message == "✓ The verifier accepts this answer."
    box.form.values = {**box.form.values, "more": "spell_backward"}
    box.form._receive(box.form, {"type": "press", "name": "more"}, [])
    assert box.form.values["prompt"] == box.known.problem("spell_backward", 1).prompt
    assert box.form.values["more"] == ""

    box._problem = replace(box._problem, accepts=lambda text: False)
    box.run()
    assert verdict_of(box) is False and box.form.message.startswith("✗")
    (more,) = (field for field in box._fields() if field["name"] == "more")
    labels = [option["label"] for option in more["options"]]
    assert "a word backward ✗" in labels


def test_an_example_of_a_chat_says_what_was_said_before() -> None:
    box = Session(runs.loaded(max_new_tokens=8)).ask("")
    box.known = Known(kinds=("chat",))
    run = box.try_example("chat")
    assert run is not None
    problem = box.known.problem("chat", 0)
    before = [message["content"] for message in problem.messages[:-1]]
    assert before and run.prompt == problem.messages
    assert run.trace.metadata["prompt"] == problem.prompt == box.form.values["prompt"]
    assert verdict_of(box) is False, "a random model remembers nothing"
    assert box.form.message.startswith("✗") and before[0] in box.form.message
    assert box.try_example("no such kind") is None


def test_a_prompt_outside_says_so_in_the_status_line() -> None:
    box = Session(load("nano")).ask("Write a haiku about the sea.")
    run = box.run()
    assert run is not None
    run.wait()
    until = time.monotonic() + 30
    while not box.form.message and time.monotonic() < until:
        time.sleep(0.005)
    assert box.form.message.startswith(
        "Outside what nano knows: it is worded like none of the tasks"
    )
    assert box.verdict is None
    bare = Session(runs.loaded()).ask(PROMPT)  # a model that says nothing of itself
    shown = [field["name"] for field in bare.form.fields if not field.get("advanced")]
    assert shown == ["prompt", "run", "seed"]


def test_what_a_replaced_run_says_does_not_stand_over_the_new_one() -> None:
    loaded = runs.loaded(max_denoising_steps=200, eos_token_ids=())
    runs.slow(loaded.model, 0.01)
    box = Session(loaded).ask(PROMPT, stop_rule=None)
    first = box.run()
    assert first is not None
    while box.canvas._live is None or box.canvas._live.passes < 1:
        time.sleep(0.005)
    box.options["steps"] = 2
    second = box.run()
    assert second is not None and second.wait(20).trace.stop_reason == "length"
    assert first.trace.stop_reason is None
    assert (box.canvas.status, box.form.message) == ("", "")


def test_a_box_that_runs_again_and_again_registers_no_more_widgets() -> None:
    box = Session(runs.loaded()).ask(PROMPT)
    counts = []
    for _ in range(3):
        run = box.run()
        assert run is not None
        run.wait()
        counts.append(len(ipywidgets.widgets.widget._instances))
    assert counts[0] == counts[1] == counts[2]


def test_a_view_carries_html_once_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGEMMA_STATIC", "1")
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(still, "display", lambda bundle, **options: shown.append(bundle))
    run = Session(runs.loaded()).run(PROMPT)
    run._ipython_display_()
    assert not run.running
    (bundle,) = shown
    assert "<span" in bundle["text/html"] and bundle["image/png"].startswith(b"\x89PNG")
    box = Session(runs.loaded()).ask(PROMPT)
    box.run()
    box._ipython_display_()
    assert "<span" in shown[1]["text/html"]
