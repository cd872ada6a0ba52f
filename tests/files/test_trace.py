"""Trace: recorded right, read right, kept on disk right, and refused when it is not a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_core.files import trace as module
from dgemma_core.files import trace_file
from dgemma_core.files.recording import TraceRecorder
from dgemma_core.files.trace import (
    ACCEPTED,
    AFTER_EOS,
    CANDIDATE,
    NOISE,
    PINNED,
    REMELTED,
    Trace,
)

from ..core import tiny
from .fake_events import (
    EOS,
    PROMPT,
    STEP_SECONDS,
    CanvasEvent,
    FinishEvent,
    PromptEvent,
    StepEvent,
    diffusion_events,
    draft_events,
    token_events,
)

ANSWER = [*range(10, 34), EOS]  # 24 tokens and EOS: two canvases of 16


def decode(token: int) -> str:
    return f"w{token}"


@pytest.fixture
def trace() -> Trace:
    events = diffusion_events(ANSWER, top_k=3, router=True, pins=(2, 20))
    return Trace.record(
        events, metadata={"model": "fake", "sampler": {"name": "entropy_bound"}}, decode=decode
    )


def hand_made() -> Iterator[Any]:
    """Four positions, three steps, everything known by heart. Position 0 is pinned."""
    rows = [
        # tokens_in,      tokens_out,       argmax,           accepted
        ([5, 6, 7, 8], [5, 21, 33, 34], [5, 21, 22, 23], [0, 1, 0, 0]),
        ([5, 21, 33, 34], [5, 35, 24, 36], [5, 21, 24, EOS], [0, 0, 1, 0]),
        ([5, 35, 24, 36], [5, 21, EOS, EOS], [5, 21, EOS, EOS], [0, 1, 1, 1]),
    ]
    yield PromptEvent("h", PROMPT, 3, 0.5)
    for step, (before, out, argmax, accepted) in enumerate(rows):
        half = np.full(4, 0.5, np.float32)
        yield StepEvent(
            "h",
            0,
            step,
            48,
            "predict",
            0.75,
            np.array(before),
            np.array(out),
            np.array(out),
            np.array(argmax),
            np.array(accepted, bool),
            np.array([1, 0, 0, 0], bool),
            half,
            half,
            np.array([9, 1, 2, 3], np.float32),
            step == 2,
            1.0 + step,
        )
    yield CanvasEvent("h", 0, (5, 21, EOS, EOS), 3, True, half, half, 3.5)
    yield FinishEvent("h", (5, 21, EOS), "eos", 3, 4, 1, 4.0)


def test_records_what_the_events_said(trace: Trace) -> None:
    events = list(diffusion_events(ANSWER, top_k=3, router=True, pins=(2, 20)))
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert len(trace) == len(steps) == 16
    for r, event in enumerate(steps):
        cut = slice(trace.offsets[r], trace.offsets[r + 1])
        for ours, theirs in [
            ("tokens_in",) * 2,
            ("tokens_out",) * 2,
            ("argmax",) * 2,
            ("accepted",) * 2,
            ("entropy",) * 2,
            ("probability", "argmax_probability"),
        ]:
            np.testing.assert_array_equal(getattr(trace, ours)[cut], getattr(event, theirs))
        assert (trace.canvas[r], trace.step[r], trace.seconds[r]) == (
            event.canvas,
            event.step,
            event.seconds,
        )
        np.testing.assert_array_equal(trace.top_ids[cut], event.observed.top_ids)
        np.testing.assert_array_equal(
            trace.router_ids[cut], event.observed.router_ids.transpose(1, 0, 2)
        )
    assert trace.ids.tolist() == ANSWER and trace.stop_reason == "eos"
    assert trace.prompt_ids.tolist() == list(PROMPT)
    assert [(c.canvas, c.kept, c.converged) for c in trace.commits] == [(0, 16, True), (1, 9, True)]
    assert trace.passes == 18 and trace.denoising_steps == 16 and trace.canvases == 2
    assert trace.positions()[trace.offsets[8]] == 16 and trace.positions()[-1] == 31
    assert set(trace.strings) >= set(ANSWER) | set(PROMPT) | set(np.unique(trace.top_ids).tolist())
    assert trace.text(12) == "w12" and trace.text(59_999) == "<59999>"


def test_words_by_hand() -> None:
    trace = Trace.record(hand_made())
    assert trace.settled_step()[0].tolist() == [0, 0, 2, 1]
    assert trace.rows("accepted").shape == (3, 4)
    remelted = trace.remelted().reshape(3, 4)
    assert remelted.tolist() == [[False] * 4, [False, True, False, False], [False] * 4]
    assert trace.states().reshape(3, 4).tolist() == [
        [PINNED, ACCEPTED, NOISE, NOISE],
        [PINNED, REMELTED, ACCEPTED, NOISE],
        [PINNED, ACCEPTED, ACCEPTED, AFTER_EOS],
    ]
    assert trace.accepted_count().tolist() == [1, 1, 3]
    assert trace.mean_entropy().tolist() == [
        2.0,
        2.0,
        2.0,
    ]  # the pinned position's 9 nats are left out
    assert (trace.prompt_seconds, trace.total_seconds, trace.seed, trace.steps) == (0.5, 4.0, 3, 48)


def test_candidate_is_a_steady_guess() -> None:
    events = list(hand_made())
    second = events[2]
    events[2] = replace(
        second, argmax=np.array([5, 21, 22, 24]), accepted=np.array([0, 0, 0, 0], bool)
    )
    assert Trace.record(events).states().reshape(3, 4)[1].tolist() == [
        PINNED,
        REMELTED,
        CANDIDATE,
        NOISE,
    ]


def test_autoregression_is_the_same_record() -> None:
    trace = Trace.record(token_events([11, 12, 13, EOS], top_k=2), decode=decode)
    assert trace.mode == "autoregressive" and trace.canvas_length == 1
    assert trace.positions().tolist() == [0, 1, 2, 3]
    assert trace.argmax.tolist() == trace.ids.tolist() == [11, 12, 13, EOS]
    assert trace.settled_step()[0].tolist() == [0, 1, 2, 3]
    assert trace.states().tolist() == [ACCEPTED] * 4 and not trace.remelted().any()
    assert trace.top_ids.shape == (4, 2) and trace.rows("top_ids").shape == (4, 1, 2)
    assert trace.to_frame().kind.tolist() == ["token"] * 4


def test_speculation_records_its_rounds_beside_its_tokens(tmp_path: Path) -> None:
    answer = [11, 12, 13, 14, 15, 16, EOS]
    events = list(draft_events(answer, [2, 0, 1]))
    trace = Trace.record(events, decode=decode)
    assert trace.mode == "speculative" and trace.canvas_length == 1 and len(trace) == 7
    assert trace.ids.tolist() == trace.tokens_out.tolist() == answer
    assert (trace.canvases, trace.denoising_steps, trace.passes) == (3, 3, 7)
    first, second, third = trace.rounds
    assert [r.start for r in trace.rounds] == [0, 3, 4]
    assert first.tokens.tolist() == [11, 12, 13, 59, 58, 57]
    np.testing.assert_allclose(first.probability, [1, 0.8, 0.7, 0.6, 0.5, 0.4], rtol=1e-6)
    assert (first.steps, first.verified, first.accepted, first.replacement) == (1, 4, 2, 14)
    assert (first.replaced, second.replaced, third.replaced) == (59, 59, 59)
    assert second.seconds == pytest.approx(3 * STEP_SECONDS)
    assert set(trace.strings) >= {59, 58, 57}
    assert first._replace(replacement=59).replaced is None
    assert first._replace(accepted=5, verified=6).replaced is None
    again = Trace.load(trace.save(tmp_path / "run"))
    assert again.digest() == trace.digest() and repr(again.rounds) == repr(trace.rounds)
    assert replace(trace, round_probability=trace.round_probability * 2).digest() == trace.digest()
    assert replace(trace, round_replacement=trace.round_replacement + 1).digest() != trace.digest()


def test_a_run_of_speculation_can_be_read_before_it_ends() -> None:
    events = list(draft_events([11, 12, 13, 14, EOS], [1, 1]))
    recorder = TraceRecorder(mode="speculative")
    counts = []
    for event in events[:-1]:
        recorder.add(event)
        trace = Trace(**recorder.fields())
        assert trace.mode == "speculative"
        counts.append((trace.canvases, trace.denoising_steps, trace.passes))
    assert counts[1] == (0, 0, 1) and counts[-1] == (2, 2, 5)
    with pytest.raises(DgemmaError, match="both autoregressive and speculative"):
        strict = TraceRecorder(mode="autoregressive")
        for event in events:
            strict.add(event)


def test_an_end_at_the_first_token_is_of_the_mode_that_was_said() -> None:
    events = list(draft_events([EOS], []))
    assert Trace.record(events, mode="speculative").mode == "speculative"
    assert Trace.record(events).mode == "autoregressive" and Trace.record(events).rounds == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"round_verified": [7, 2, 3]}, "round_verified is beyond"),
        ({"round_verified": [0, 2, 3]}, "round_verified is beyond"),
        ({"round_accepted": [4, 0, 1]}, "round_accepted is beyond"),
        ({"round_accepted": [-1, 0, 1]}, "round_accepted is beyond"),
        ({"round_start": [0, 4, 3]}, "rounds are not in order"),
        ({"round_start": [-1, 3, 4]}, "starts below 0"),
        ({"round_steps": [1, 0, 1]}, "no denoising step"),
        ({"round_replacement": [1, 2]}, "round_replacement has 2 entries, expected 3"),
        ({"mode": "autoregressive"}, "rounds belong to speculation"),
    ],
)
def test_rounds_that_cannot_be_are_refused(change: dict[str, Any], match: str) -> None:
    trace = Trace.record(draft_events([11, 12, 13, 14, 15, 16, EOS], [2, 0, 1]))
    arrays = {k: np.array(v, np.int32) if isinstance(v, list) else v for k, v in change.items()}
    with pytest.raises(DgemmaError, match=match):
        replace(trace, **arrays)


def test_a_file_of_schema_1_is_a_trace_without_rounds(trace: Trace, tmp_path: Path) -> None:
    with np.load(trace.save(tmp_path / "new")) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("round_")}
    header = json.loads(arrays["header"].tobytes())
    assert header["schema"] == 3
    old = json.dumps({**header, "schema": 1}).encode()
    np.savez(tmp_path / "old.npz", **{**arrays, "header": np.frombuffer(old, np.uint8)})
    again = Trace.load(tmp_path / "old.npz")
    assert again.digest() == trace.digest() and again.rounds == []


def test_several_requests() -> None:
    first, second = list(diffusion_events(ANSWER)), list(token_events([11, EOS]))
    mixed = [
        event
        for pair in zip(first, second + [None] * len(first), strict=False)
        for event in pair
        if event is not None
    ]
    traces = Trace.record_all(mixed)
    assert list(traces) == ["a", "t"]
    assert traces["a"].digest() == Trace.record(first).digest()
    with pytest.raises(DgemmaError, match="record_all"):
        Trace.record(mixed)
    with pytest.raises(DgemmaError, match="no event"):
        Trace.record([])
    recorder = TraceRecorder()
    recorder.add(first[0])
    with pytest.raises(DgemmaError, match="holds a, not t"):
        recorder.add(second[0])
    with pytest.raises(DgemmaError, match="not an event"):
        Trace.record([replace_name(first[0])])
    with pytest.raises(DgemmaError, match="both diffusion and autoregressive"):
        Trace.record([first[1], replace(second[1], request="a")])


def replace_name(event: Any) -> Any:
    class Other:
        request, seconds = event.request, 0.0

    return Other()


def test_a_recorder_can_be_read_at_any_time() -> None:
    recorder = TraceRecorder(decode=decode)
    assert len(Trace(**recorder.fields())) == 0 and Trace(**recorder.fields()).settled_step() == {}
    events = list(diffusion_events(ANSWER))
    for event in events[:5]:
        recorder.add(event)
    part = Trace(**recorder.fields())
    assert len(part) == 4 and part.stop_reason is None and len(part.ids) == 0 and part.passes == 5
    for event in events[5:]:
        recorder.add(event)
    assert Trace(**recorder.fields()).digest() == Trace.record(events).digest()


def test_torch_tensors_leave_the_device_and_bfloat16_is_read() -> None:
    torch = pytest.importorskip("torch")
    events = list(diffusion_events(ANSWER))
    numpy_trace = Trace.record(events)
    for i, event in enumerate(events):
        if isinstance(event, StepEvent):
            tensors = {
                item.name: torch.as_tensor(getattr(event, item.name))
                for item in fields(event)
                if isinstance(getattr(event, item.name), np.ndarray)
            }
            events[i] = replace(
                event, **{**tensors, "entropy": tensors["entropy"].to(torch.bfloat16)}
            )
    trace = Trace.record(events)
    assert trace.digest() == numpy_trace.digest()
    np.testing.assert_allclose(trace.entropy, numpy_trace.entropy, rtol=0.01)


def test_a_pass_that_was_not_observed_is_marked() -> None:
    events = list(diffusion_events(ANSWER[-1:], top_k=3, steps=3))
    events[1] = replace(events[1], observed=None)
    trace = Trace.record(events)
    assert (trace.rows("top_ids")[0] == -1).all() and (
        trace.rows("top_probabilities")[0] == 0
    ).all()
    assert (trace.rows("top_ids")[1] >= 0).all()
    with pytest.raises(DgemmaError, match="not observed"):
        trace.rows("router_ids")
    with pytest.raises(DgemmaError, match="no pass of canvas 4"):
        trace.rows("argmax", 4)


def test_save_and_load(trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / "run.trace")
    assert [p.name for p in tmp_path.iterdir()] == [
        "run.trace"
    ]  # no suffix added, nothing left behind
    again = Trace.load(path)
    for item in fields(Trace):
        ours, theirs = getattr(trace, item.name), getattr(again, item.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, item.name
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs, item.name
    assert again.digest() == trace.digest()


def test_attention_survives_the_disk(tmp_path: Path) -> None:
    events = list(diffusion_events(ANSWER, top_k=2, steps=3))
    rng = np.random.default_rng(0)
    for i in (1, 3):  # the prefix has grown at later canvases: shapes differ
        seen = rng.random((2, 1, 4, 20 + i)).astype(np.float32)
        events[i] = replace(events[i], observed=replace(events[i].observed, attention=seen))
    trace = Trace.record(events)
    again = Trace.load(trace.save(tmp_path / "x.npz"))
    assert [part.shape for part in again.attention][:3] == [
        (2, 1, 4, 21),
        (0, 0, 0, 0),
        (2, 1, 4, 23),
    ]
    np.testing.assert_array_equal(again.attention[2], trace.attention[2])


def test_digest_reads_integers_only(trace: Trace) -> None:
    assert (
        replace(trace, entropy=trace.entropy + 1e-3, seconds=trace.seconds * 2).digest()
        == trace.digest()
    )
    assert replace(trace, argmax=trace.argmax + 1).digest() != trace.digest()
    assert replace(trace, accepted=~trace.accepted).digest() != trace.digest()
    assert replace(trace, stop_reason="length").digest() != trace.digest()


def test_to_frame_is_tidy(trace: Trace) -> None:
    frame = trace.to_frame()
    assert len(frame) == 16 * 16
    assert not frame.duplicated(["canvas", "step", "position"]).any()
    assert frame.step.min() == 1 and frame.step.max() == 8  # as the views count them
    last = frame[(frame.canvas == 1) & (frame.step == 8) & (frame.position == 23)].iloc[0]
    assert (last.text, last.argmax_id, last.state) == ("w33", 33, "accepted")
    assert (frame[frame.pinned].state == "pinned").all() and set(frame[frame.pinned].position) == {
        2,
        20,
    }


def test_unsuitable_files_are_refused_in_one_line(trace: Trace, tmp_path: Path) -> None:
    good = trace.save(tmp_path / "good.npz")
    whole = good.read_bytes()
    bad = tmp_path / "bad.npz"

    def refused(match: str) -> None:
        with pytest.raises(DgemmaError, match=match) as caught:
            Trace.load(bad)
        assert "\n" not in str(caught.value)

    refused("no trace file")
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        refused("not a whole trace file")
    bad.write_text("hello")
    refused("not a whole trace file")
    np.savez(bad, a=np.zeros(3))
    refused("no header")
    np.save(tmp_path / "array.npy", np.zeros(3))
    bad.write_bytes((tmp_path / "array.npy").read_bytes())
    refused("trace")
    np.savez(bad, header=np.frombuffer(b'{"format": "other"}', np.uint8))
    refused("not a trace")
    np.savez(
        bad,
        header=np.frombuffer(
            json.dumps({"format": module.FORMAT, "schema": 99}).encode(), np.uint8
        ),
    )
    refused("schema 99.*update")
    np.savez(
        bad,
        header=np.frombuffer(json.dumps({"format": module.FORMAT, "schema": 1}).encode(), np.uint8),
    )
    refused("lacks parts")
    np.savez(bad, header=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("not a whole trace file")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            if name == "entropy.npy":
                np.lib.format.write_array(target.open(name, "w"), np.zeros(3, np.float32))
            else:
                target.writestr(name, source.read(name))
    refused("entropy has 3 entries, expected 256")


CANVAS = np.zeros(16, np.int32)
FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    # part of the file → what stands there instead; the error
    "other dtype": ({"entropy": np.zeros(256)}, "entropy.npy: expected float32"),
    "other rank": ({"entropy": np.zeros((256, 1), np.float32)}, "entropy.npy: expected float32"),
    "no array": ({"ids": np.int32(3)}, "ids.npy: expected int32"),
    "texts": ({"ids": np.array(["a", "b"])}, "ids.npy"),
    "NaN": ({"entropy": np.full(256, np.nan, np.float32)}, "entropy holds NaN"),
    "kind": ({"kind": np.full(16, 9, np.uint8)}, "kind is beyond"),
    "canvases out of order": ({"canvas": CANVAS - np.arange(16, dtype=np.int32)}, "below 0"),
    "falling offsets": ({"offsets": np.arange(17)[::-1].copy()}, "offsets must rise"),
    "uneven canvas": ({"offsets": np.r_[0, 1, 32:272:16]}, "one canvas has two lengths"),
    "kept": ({"commit_kept": np.array([99, 0], np.int32)}, "commit_kept is beyond"),
    "mode": ({"header": {"mode": "both"}}, "mode: expected diffusion, autoregressive, spec"),
    "mode of a list": ({"header": {"mode": ["diffusion"]}}, "mode: expected"),
    "strings of a list": ({"header": {"strings": [1]}}, "strings is no mapping"),
    "strings of names": ({"header": {"strings": {"x": "y"}}}, "strings is no mapping"),
    "strings of digits": ({"header": {"strings": {"9" * 5000: "y"}}}, "strings is no mapping"),
    "strings of half characters": ({"header": {"strings": {"1": "\ud800"}}}, "strings is no map"),
    "strings of numbers": ({"header": {"strings": {"1": 2}}}, "strings is no mapping"),
    "metadata of a text": ({"header": {"metadata": "x"}}, "metadata is no mapping"),
    "ends of a text": ({"header": {"metadata": {"eos_token_ids": ["x"]}}}, "eos_token_ids"),
    "attention of a text": ({"header": {"attention": "x"}}, "attention is no count"),
    "attention of many": ({"header": {"attention": 10**9}}, "attention is no count"),
    "attention that is not there": ({"header": {"attention": 1}}, "attention_0"),
    "attention of one pass": (
        {"header": {"attention": 1}, "attention_0": np.zeros((1, 1, 1, 1), np.float32)},
        "attention has not 16",
    ),
    "seed": ({"header": {"seed": "x"}}, "seed is no seed"),
    "steps": ({"header": {"steps": -1}}, "steps is no count"),
    "seconds": ({"header": {"total_seconds": None}}, "total_seconds is no number"),
    "infinite seconds": ({"header": {"total_seconds": float("inf")}}, "total_seconds is no number"),
    "stop": ({"header": {"stop_reason": {}}}, "stop_reason is"),
    "schema": ({"header": {"schema": True}}, "trace schema True"),
    "deep header": ({"header": b"[" * 100_000}, "not a whole trace file"),
    "long number": ({"header": b"9" * 5000}, "not a whole trace file"),
}


@pytest.mark.parametrize(
    "value", [None, 5, b"x", [], object()], ids=lambda value: type(value).__name__
)
def test_a_file_is_named_by_a_text_or_a_path(value: Any, trace: Trace) -> None:
    for use in (Trace.load, trace.save):
        with pytest.raises(DgemmaError, match="a trace's file is a text or a path"):
            use(value)


@pytest.mark.parametrize("value", [None, 5, [5], ["x"], [None]], ids=repr)
def test_what_are_no_events(value: Any) -> None:
    for record in (Trace.record, Trace.record_all):
        with pytest.raises(DgemmaError, match=r"events must be|not an event of a decode loop"):
            record(value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "x"},
        {"mode": []},
        {"metadata": 5},
        {"metadata": ["x"]},
        {"decode": 5},
        {"onward": "x"},
    ],
    ids=str,
)
def test_what_cannot_be_recorded_with(options: dict[str, Any]) -> None:
    with pytest.raises(DgemmaError):
        TraceRecorder(**options)


@pytest.mark.parametrize(
    "read",
    [
        lambda trace: trace.rows("digest"), lambda trace: trace.rows("x"), lambda trace: trace.rows(5),
        lambda trace: trace.rows("argmax", "x"), lambda trace: trace.passes_of(None),
        lambda trace: trace.text("x"), lambda trace: trace.text(None),
    ],
)  # fmt: skip
def test_what_a_trace_has_not_is_one_line(read: Any, trace: Trace) -> None:
    with pytest.raises(DgemmaError):
        read(trace)


@pytest.mark.parametrize("case", FOREIGN)
def test_a_trace_is_checked_as_a_whole_at_load(case: str, trace: Trace, tmp_path: Path) -> None:
    changes, match = FOREIGN[case]
    with np.load(trace.save(tmp_path / "good")) as file:
        arrays = dict(file)
    if isinstance(header := changes.get("header", {}), dict):
        header = json.dumps({**json.loads(arrays["header"].tobytes()), **header}).encode()
    np.savez(
        tmp_path / "bad.npz", **{**arrays, **changes, "header": np.frombuffer(header, np.uint8)}
    )
    with pytest.raises(DgemmaError, match=match) as caught:
        Trace.load(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_gigabytes_is_refused_before(trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / "run")
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file,
        file.open("more.npy", "w") as out,
    ):
        for _ in range(80):
            out.write(bytes(2**20))
    with pytest.raises(DgemmaError, match=r"would unpack from 0\.1 MB to 84 MB"):
        Trace.load(path)


def test_an_array_cannot_claim_more_than_its_bytes(trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / "run")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bad", "w") as target:
        for name in source.namelist():
            raw = source.read(name)
            if name == "entropy.npy":
                raw = raw.replace(b"(256,)", b"(25600000000000,)")
            target.writestr(name, raw)
    with pytest.raises(DgemmaError, match="does not fill its bytes"):
        Trace.load(tmp_path / "bad")


def test_a_pipe_is_no_trace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DgemmaError, match="expected a regular file"):
            Trace.load(path)


def test_only_traces_are_replaced(trace: Trace, tmp_path: Path) -> None:
    """Never devices, pipes, folders, other files, nor what a link to one of them points to."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes.txt").write_text("precious")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "notes.txt", "other.npz", "folder"):
        (tmp_path / f"to-{name}").symlink_to(tmp_path / name)
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = {file.name: os.lstat(file) for file in tmp_path.iterdir()}
    for name in before:
        with pytest.raises(DgemmaError) as caught:
            trace.save(tmp_path / name)
        assert "\n" not in str(caught.value)
    for bad in ("/dev/null", "/dev/full", tmp_path / "no/such", "x" * 5000, "a\0b"):
        with pytest.raises(DgemmaError):
            trace.save(bad)
    assert {file.name: os.lstat(file) for file in tmp_path.iterdir()} == before
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_new_files_empty_ones_and_links_to_traces_are_written(trace: Trace, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    trace.save(tmp_path / "run")
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    (tmp_path / "next").symlink_to(tmp_path / "to come")
    other = replace(trace, stop_reason="length")
    for name in ("run", "empty", "latest", "next", "new"):
        other.save(tmp_path / name)
        assert Trace.load(tmp_path / name).digest() == other.digest()
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "next").is_symlink()
    assert (tmp_path / "to come").is_file() and len(list(tmp_path.iterdir())) == 6


def test_a_full_disk_is_one_line(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace_file.np, "savez_compressed", full)
    with pytest.raises(DgemmaError, match=r"cannot be written .No space left"):
        trace.save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_refused_or_harmless(trace: Trace, tmp_path: Path) -> None:
    whole = trace.save(tmp_path / "good.npz").read_bytes()
    bad = tmp_path / "bad.npz"
    refused = 0
    for place in range(0, len(whole), len(whole) // 60):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        bad.write_bytes(flipped)
        try:
            again = Trace.load(bad)
        except DgemmaError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert again.digest() == trace.digest() and again.strings == trace.strings
    assert refused > 40


def test_a_failed_save_leaves_the_old_file(trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / "run.npz")
    before = path.read_bytes()
    with pytest.raises(DgemmaError, match="json values"):
        replace(trace, metadata={"model": object()}).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.subprocess
def test_reading_needs_no_torch() -> None:
    code = "import sys\n"
    code += "sys.modules['torch'] = None\n"
    code += "import types; sys.modules['dgemma_core'] = p = types.ModuleType('dgemma_core'); "
    code += f"p.__path__ = [{str(Path(module.__file__).parents[1])!r}]\n"
    code += "from dgemma_core.files import recording, trace, trace_file"
    subprocess.run([sys.executable, "-c", code], check=True)


# the real loops, on a small random model


def real(**options: Any) -> tuple[list[Any], Trace]:
    """Events and trace of a run of the real loop: three canvases, steps enough for re-melts."""
    from dgemma_core.diffusion import denoise_canvases
    from dgemma_core.observe import Observe
    from dgemma_core.request import Request

    model = tiny.model()
    observe = Observe(top_k=4, router=True, attention_positions=(0, 5))
    request = Request(ids=[2, 7, 9], seed=3, max_new_tokens=24, pins={1: 11, 9: 12})
    options = {"steps": 10, "eos": (), "observe": observe, **options}
    events = list(denoise_canvases(model, [request], **options))
    return events, Trace.record(events)


@pytest.mark.parametrize("name", ["entropy_bound", "block_refinement", "discrete_ddim"])
def test_real_denoising(name: str, tmp_path: Path) -> None:
    from dgemma_core.samplers import DiscreteDDIM, EntropyBound, sampler_from

    loose = {
        "entropy_bound": EntropyBound(entropy_bound=8.0),
        "discrete_ddim": DiscreteDDIM(corrector_steps=1, corrector_k=2, temperature=1.0),
    }
    events, trace = real(sampler=loose.get(name) or sampler_from(name), stop_rule=None)
    finish = events[-1]
    assert len(trace) == finish.denoising_steps == 30 and trace.passes == finish.passes
    assert trace.ids.tolist() == list(finish.ids) and len(trace.ids) == 24
    assert set(trace.kind.tolist()) == ({0, 1} if name == "discrete_ddim" else {0})
    for canvas, commit in enumerate(trace.commits):
        tokens_in, out = trace.rows("tokens_in", canvas), trace.rows("tokens_out", canvas)
        np.testing.assert_array_equal(tokens_in[1:], out[:-1])
        predicted = trace.kind[trace.passes_of(canvas).start : trace.passes_of(canvas).stop] == 0
        np.testing.assert_array_equal(commit.ids, trace.rows("argmax", canvas)[predicted][-1])
        kept = trace.rows("accepted", canvas) & ~trace.rows("pinned", canvas)
        if name == "entropy_bound":
            np.testing.assert_array_equal(out[kept], trace.rows("sample", canvas)[kept])
    assert trace.tokens_out[trace.pinned].tolist() == [11] * 10 + [12] * 10
    if name != "block_refinement":  # what that rule keeps, it keeps
        assert trace.remelted().any()
    assert trace.top_ids.shape == (240, 4)
    np.testing.assert_array_equal(trace.top_ids[~trace.pinned, 0], trace.argmax[~trace.pinned])
    assert trace.router_ids.shape == (240, 2, 2) and trace.router_weights.shape == (240, 2, 2)
    assert [part.shape for part in trace.attention[::10]] == [(2, 2, 4, p + 8) for p in (3, 11, 19)]
    assert Trace.load(trace.save(tmp_path / "x")).digest() == trace.digest()
    assert len(trace.to_frame()) == 240


def test_real_autoregression() -> None:
    from dgemma_core.autoregression import decode_tokens
    from dgemma_core.observe import Observe
    from dgemma_core.request import Request

    request = Request(ids=[2, 7, 9], max_new_tokens=6)
    events = list(decode_tokens(tiny.model(), [request], eos=(), observe=Observe(top_k=3)))
    trace = Trace.record(events)
    assert trace.mode == "autoregressive" and len(trace) == 6
    assert trace.ids.tolist() == trace.tokens_out.tolist() == list(events[-1].ids)
    assert trace.top_ids[:, 0].tolist() == trace.argmax.tolist()
    np.testing.assert_allclose(trace.top_probabilities[:, 0], trace.probability, atol=1e-5)


def test_real_speculation(tmp_path: Path) -> None:
    from dgemma_core.generation.drafting import FixedDraft
    from dgemma_core.request import Request
    from dgemma_core.speculation import decode_speculative

    request = Request(ids=[2, 7, 9], max_new_tokens=6)
    rule = FixedDraft(positions=4)
    events = list(decode_speculative(tiny.model(), [request], draft=rule, eos=()))
    trace = Trace.record(events)
    assert trace.ids.tolist() == trace.tokens_out.tolist() == list(events[-1].ids)
    told = [event for event in events if type(event).__name__ == "DraftEvent"]
    rounds = Trace.load(trace.save(tmp_path / "x")).rounds
    assert len(rounds) == len(told) == trace.canvases > 0
    for made, event in zip(rounds, told, strict=True):
        assert tuple(made.tokens) == event.tokens and made.start == event.start
        assert (made.verified, made.accepted) == (event.verified, event.accepted)
        after = made.start + 1 + made.accepted
        assert after == len(trace.ids) or trace.ids[after] == made.replacement


def test_two_equal_runs_have_one_digest() -> None:
    assert real()[1].digest() == real()[1].digest()
