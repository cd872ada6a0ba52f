"""Views and charts refuse what they cannot show in one clear error, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError

import dgemma_lab as lab
from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import Trace
from dgemma_core.observe import Observe
from tests.lab import runs

BAD: tuple[Any, ...] = (
    None, "x", -1, 0, 1.5, math.nan, math.inf, 10**30, True, [], {}, object(), b"x", [1, "a"], ("a",),
)  # fmt: skip
ALLOWED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("Budget", "step"): (None, -1),
    ("Canvas", "trace"): (None,),
    ("Canvas", "title"): ("x", b"x"),
    ("Canvas", "heading"): (True, 0),
    ("Canvas", "transport"): (True, 0),
    ("Playground", "prompt"): (None, "x"),
    ("Playground", "seed"): (0,),
    ("Playground", "max_new_tokens"): (None,),
    ("Race", "title"): (None, "x", b"x"),
    ("Session", "observe"): (None,),
    ("attention", "position"): (None, 0),
    ("attention_board", "position"): (None, 0),
    ("convergence", "canvas"): (0,),
    ("expert_load", "step"): (None,),
    ("hold", "frame"): (0,),
    ("hold", "position"): (0,),
    ("hold", "tokens"): ([], {}),
    ("hold", "pins"): ({},),
    ("order_by_kind", "traces"): ({},),
    ("predicted_speculation", "prefix"): (0,),
    ("predicted_speculation", "config"): (None,),
    ("predicted_speculation", "card"): (None,),
    ("predicted_speculation", "published"): (None,),
    ("record_race", "modes"): (None, [], {}),
    ("token_ids", "text"): ("x",),
}
"""What means something all the same."""
FREE = {("record_race", "prompt"), ("noising", "damaged")}
"""The core checks prompts, and every array has truth values."""


@pytest.fixture(scope="module")
def loaded() -> Any:
    return runs.loaded()


@pytest.fixture(scope="module")
def trace() -> Trace:
    return runs.diffusion(Observe(top_k=5, router=True, attention_positions=(0, 1)))


@pytest.fixture(scope="module")
def bases(loaded: Any, trace: Trace) -> dict[str, dict[str, Any]]:
    """Arguments with which each of the lab's names works."""
    session = lab.Session(loaded)
    columns = [{"steps": 2}]
    return {
        "Budget": {"of": trace, "step": 1},
        "Canvas": {"trace": trace, "alternatives": 3, "colour_by": "confidence", "show": "draft",
                   "title": "t", "heading": True, "transport": True},
        "Playground": {"session": session, "prompt": "x", "columns": columns, "seed": 0, "max_new_tokens": 8},
        "Race": {"traces": {"a": trace}, "title": "x"},
        "Session": {"loaded": loaded, "observe": None, "keep_bytes": 1000},
        "attention": {"trace": trace, "step": 1, "position": 0},
        "attention_board": {"trace": trace, "step": 1, "position": 0},
        "convergence": {"trace": trace, "canvas": 0},
        "expert_load": {"trace": trace, "step": 1},
        "experts_touched": {"trace": trace},
        "hold": {"trace": trace, "frame": 1, "position": 0, "tokens": [5], "pins": {}},
        "noising": {"levels": [0.1, 0.9], "masked": [["a"], ["b"]], "uniform": [["a"], ["b"]],
                    "damaged": [[False], [True]]},
        "order_by_kind": {"traces": {"a": [trace]}},
        "predicted_speculation": {"config": None, "card": None, "prefix": 1000, "accepted": [2, 3], "published": None},
        "record_race": {"loaded": loaded, "prompt": runs.PROMPT, "modes": ["autoregressive"], "repeats": 1},
        "remelts": {"trace": trace},
        "self_conditioning": {"trace": trace, "step": 1, "most": 5},
        "settling": {"trace": trace},
        "token_ids": {"loaded": loaded, "text": "abc"},
    }  # fmt: skip


NAMES = (
    "Budget", "Canvas", "Playground", "Race", "Session", "attention", "attention_board", "convergence", "expert_load",
    "experts_touched", "hold", "noising", "order_by_kind", "predicted_speculation", "record_race", "remelts",
    "self_conditioning", "settling", "token_ids",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_a_wrong_kind(name: str, bases: Mapping[str, dict[str, Any]]) -> None:
    make: Callable[..., Any] = getattr(lab, name)
    base = bases[name]
    make(**base)
    for parameter in base:
        if (name, parameter) in FREE:
            continue
        allowed = [repr(value) for value in ALLOWED.get((name, parameter), ())]
        for value in (value for value in BAD if repr(value) not in allowed):
            with pytest.raises((DgemmaError, TraitError)) as caught:
                make(**{**base, parameter: value})
            assert "\n" not in str(caught.value), (parameter, value)


def test_roofline_of_a_wrong_kind(loaded: Any) -> None:
    for value in BAD:
        with pytest.raises(DgemmaError, match="machine must be"):
            lab.roofline(value)
        with pytest.raises(DgemmaError, match="machine must be"):
            lab.break_even(value)
        if value is not None and value != 10**30:
            with pytest.raises(DgemmaError):
                lab.measure(loaded, passes=2, rounds=1, batches=value)
    with pytest.raises(DgemmaError, match="passes"):
        lab.measure(loaded, passes=1)


@pytest.mark.parametrize("kind", ["html", "png", "gif", "webp"])
def test_a_picture_that_cannot_be_written(kind: str, trace: Trace, tmp_path: Path) -> None:
    canvas = lab.Canvas(trace)
    export = getattr(canvas, f"to_{kind}")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "none" / "x", tmp_path / "file" / "x", "a\0b", 3.5):
        with pytest.raises(DgemmaError, match=r"cannot be written|a text or a path"):
            export(path)
    assert (tmp_path / "file").read_text() == "x"


def test_a_race_or_chart_that_cannot_be_written(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(DgemmaError, match="cannot be written"):
        lab.Race([trace]).to_html(tmp_path / "none" / "race.html")
    with pytest.raises(DgemmaError, match="cannot be written"):
        lab.settling(trace).write_html(tmp_path / "none" / "chart.html")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 1e9, "x", None])
def test_pauses_that_no_picture_has(seconds: Any, trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(DgemmaError, match="seconds_a_step"):
        lab.Canvas(trace).to_gif(tmp_path / "x.gif", seconds_a_step=seconds)


@pytest.mark.parametrize("option", ["prompt", "steps", "decode", "eos_token_ids"])
def test_a_live_run_of_a_wrong_kind(option: str, trace: Trace) -> None:
    canvas = lab.Canvas(trace)
    wrong = {"prompt": 5, "steps": 1.5, "decode": "x", "eos_token_ids": 1}
    with pytest.raises(DgemmaError, match=option):
        canvas.begin(**{option: wrong[option]})
    assert canvas.trace is trace, "nothing is lost"


def test_a_callback_that_is_none(trace: Trace) -> None:
    canvas = lab.Canvas(trace)
    with pytest.raises(DgemmaError, match="callback must be a function"):
        canvas.on_steer(None)
    with pytest.raises(DgemmaError, match="is not registered"):
        canvas.on_stop(print, remove=True)


def test_alternatives_that_a_row_cannot_hold() -> None:
    trace = runs.diffusion(Observe(top_k=300), steps=2)
    assert lab.Canvas(trace, alternatives=255).alternatives == 255
    with pytest.raises(DgemmaError, match="at most 255"):
        lab.Canvas(trace, alternatives=256)
