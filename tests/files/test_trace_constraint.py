"""What a trace holds of a constrained run, in memory, on disk, and in older files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_core import Constraint, DiscreteDDIM, Observe
from dgemma_core.constraints import building
from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import Trace
from dgemma_lab.session.plan import record
from tests.core import tiny

FIELDS = ("forbidden", "automaton_states", "free_top_ids", "free_top_probabilities")
LISTED = Constraint.regex(r"\[[a-z]{1,6}(, [a-z]{1,6}){0,4}\]")


@pytest.fixture(scope="module", autouse=True)
def automata(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("automata")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "folder", lambda: folder)
        yield


def run(constraint: Constraint | None = LISTED, **options: Any) -> Trace:
    options = {"observe": Observe(top_k=3), "steps": 3, **options}
    return record(
        tiny.loaded(max_new_tokens=16), "A list, please", constraint=constraint, **options
    )


@pytest.fixture(scope="module")
def trace() -> Trace:
    return run()


def test_it_tells_what_is_forbidden_and_what_may_follow(trace: Trace) -> None:
    count = int(trace.offsets[-1])
    assert trace.forbidden is not None and trace.automaton_states is not None
    assert trace.forbidden.shape == trace.automaton_states.shape == (count,)
    assert trace.free_top_ids is not None and trace.free_top_ids.shape == (count, 3)
    assert trace.forbidden[0] > 0  # random weights would begin otherwise
    automaton = LISTED.compile(tiny.loaded())
    first = trace.argmax[: trace.canvas_length].tolist()
    states = [automaton.after(first[:i]) for i in range(len(first))]
    assert trace.automaton_states[: len(first)].tolist() == states
    assert set(trace.onward) == set(np.unique(trace.automaton_states).tolist())
    assert trace.onward[automaton.start]["texts"] and not trace.onward[automaton.start]["end"]
    assert set(np.unique(trace.free_top_ids).tolist()) <= set(trace.strings)
    assert trace.metadata["constraint"]["source"] == LISTED.source


@pytest.mark.parametrize("mode", ["autoregressive", "speculative"])
def test_token_by_token_it_is_the_same_record(mode: Any) -> None:
    found = record(
        tiny.loaded(max_new_tokens=16), "A list", constraint=LISTED, mode=mode, observe=Observe(top_k=3)
    )  # fmt: skip
    automaton = LISTED.compile(tiny.loaded())
    ids = found.ids.tolist()
    assert found.automaton_states is not None and found.forbidden is not None
    assert found.automaton_states.tolist() == [automaton.after(ids[:i]) for i in range(len(ids))]
    assert ((found.forbidden >= 0) & (found.forbidden <= 1.001)).all()


def test_a_corrector_s_passes_have_as_many_top_tokens_as_were_asked_for() -> None:
    sampler = DiscreteDDIM(corrector_steps=1, corrector_k=2)
    found = run(sampler=sampler, steps=4, observe=Observe(top_k=1))
    assert found.top_ids is not None and found.free_top_ids is not None
    assert found.top_ids.shape == found.free_top_ids.shape and found.top_ids.shape[1] == 1


def test_a_free_run_holds_nothing_of_it(tmp_path: Path) -> None:
    free = run(None)
    assert all(getattr(free, name) is None for name in FIELDS) and free.onward == {}
    with np.load(free.save(tmp_path / "free")) as file:
        assert not set(FIELDS) & set(file.files)


def test_it_comes_back_from_its_file(trace: Trace, tmp_path: Path) -> None:
    again = Trace.load(trace.save(tmp_path / "run"))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name))
    assert again.onward == trace.onward and again.digest() == trace.digest()


def test_a_file_of_schema_2_is_a_trace_without_constraint(trace: Trace, tmp_path: Path) -> None:
    with np.load(trace.save(tmp_path / "new")) as file:
        arrays = {name: file[name] for name in file.files if name not in FIELDS}
    header = json.loads(arrays["header"].tobytes())
    del header["onward"]
    old = json.dumps({**header, "schema": 2}).encode()
    np.savez(tmp_path / "old.npz", **{**arrays, "header": np.frombuffer(old, np.uint8)})
    again = Trace.load(tmp_path / "old.npz")
    assert again.digest() == trace.digest()
    assert again.forbidden is None and again.onward == {}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "state": ({"automaton_states": -2}, "state is below -1"),
    "mass": ({"forbidden": 2.0}, "forbidden is no probability"),
    "NaN": ({"forbidden": np.nan}, "forbidden"),
    "list": ({"onward": [1]}, "onward is no mapping"),
    "names": ({"onward": {"x": {"tokens": 1, "texts": [], "end": True}}}, "onward is no mapping"),
    "lacking": ({"onward": {"1": {"tokens": 1, "texts": []}}}, "onward is no mapping"),
    "half": (
        {"onward": {"1": {"tokens": 1, "texts": ["\ud800"], "end": True}}},
        "onward is no map",
    ),
    "count": ({"onward": {"1": {"tokens": -1, "texts": [], "end": True}}}, "onward is no mapping"),
    "negative": ({"onward": {"-3": {"tokens": 1, "texts": [], "end": True}}}, "onward is no map"),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_is_checked_as_a_whole_at_load(case: str, trace: Trace, tmp_path: Path) -> None:
    (name, value), match = next(iter(WRONG[case][0].items())), WRONG[case][1]
    with np.load(trace.save(tmp_path / "good")) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    if name == "onward":
        header["onward"] = value
    else:
        arrays[name] = np.full_like(arrays[name], value)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DgemmaError, match=match) as caught:
        Trace.load(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_its_sizes_must_agree(trace: Trace) -> None:
    with pytest.raises(DgemmaError, match="free_top_ids has"):
        replace(trace, free_top_ids=trace.free_top_ids[:, :2])
