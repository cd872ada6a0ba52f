"""The playground: controls made from the samplers' fields, columns run in turn, scrubbed together."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import pytest

from dgemma_core import load
from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.samplers import SAMPLERS, BlockRefinement, DiscreteDDIM, EntropyBound, StopRule
from dgemma_lab.playground.playground import Playground, controls, options_from
from dgemma_lab.session.session import Session
from tests.lab import runs
from tests.lab.runs import PROMPT


def test_every_setting_of_every_sampler_has_a_control() -> None:
    made, values = controls()
    names = {field["name"]: field for field in made}
    assert set(names) == set(values)
    for rule, kind in SAMPLERS.items():
        for item in fields(kind):
            field = names[f"{rule}.{item.name}"]
            assert (
                field["when"] == {"rule": [rule]} and values[f"{rule}.{item.name}"] == item.default
            )
    assert (
        names["block_refinement.top_k"]["kind"] == "int"
        and names["block_refinement.top_k"]["placeholder"] == "none"
    )
    assert names["block_refinement.top_p"]["kind"] == "float"
    assert names["discrete_ddim.corrector_steps"]["kind"] == "int"
    assert [option["value"] for option in names["rule"]["options"]] == [
        *SAMPLERS, "autoregressive", "speculative",
    ]  # fmt: skip
    open_at_first = [field["name"] for field in made if not field.get("advanced")]
    assert open_at_first == ["rule", "steps"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"sampler": EntropyBound(), "steps": 48, "stop_rule": StopRule()}),
        (
            {
                "rule": "block_refinement",
                "block_refinement.temperature": 0.5,
                "block_refinement.top_k": 3,
                "stop": False,
            },
            {"sampler": BlockRefinement(temperature=0.5, top_k=3), "steps": 48, "stop_rule": None},
        ),
        (
            {
                "rule": "discrete_ddim",
                "discrete_ddim.corrector_steps": 2,
                "steps": 12,
                "stop.confidence": 0.1,
            },
            {
                "sampler": DiscreteDDIM(corrector_steps=2),
                "steps": 12,
                "stop_rule": StopRule(confidence=0.1),
            },
        ),
        (
            {"rule": "autoregressive", "autoregressive.temperature": 0.7},
            {"mode": "autoregressive", "temperature": 0.7},
        ),
        (
            {"rule": "speculative", "speculative.draft_positions": 6},
            {"mode": "speculative", "temperature": 0.0, "draft_positions": 6, "draft_steps": 1},
        ),
    ],
)
def test_controls_say_options(changes: dict[str, Any], options: dict[str, Any]) -> None:
    assert options_from({**controls()[1], **changes}) == options


def test_settings_without_meaning_are_refused_by_the_rule_itself() -> None:
    values = {**controls()[1], "rule": "block_refinement", "block_refinement.top_k": 3}
    with pytest.raises(RequestError, match="no effect at temperature 0"):
        options_from(values)
    with pytest.raises(RequestError, match="steps is empty"):
        options_from({**controls()[1], "steps": None})
    with pytest.raises(RequestError, match="entropy_bound must be a finite number"):
        options_from({**controls()[1], "entropy_bound.entropy_bound": None})


@pytest.mark.slow
def test_columns_run_with_one_seed_and_are_tied_together() -> None:
    columns = [{"steps": 3}, {"rule": "block_refinement", "steps": 4}, {"rule": "autoregressive"}]
    play = Playground(
        Session(runs.loaded(eos_token_ids=())), PROMPT, columns=columns, seed=5, max_new_tokens=12
    )
    play.form._receive(play.form, {"type": "press", "name": "run"}, [])
    play.wait(30)
    traces = play.traces
    assert [len(trace) for trace in traces.values()] == [6, 8, 12]
    assert {trace.seed for trace in traces.values()} == {5}
    assert [column.canvas.trace for column in play.columns] == list(traces.values())
    assert [column.canvas.step for column in play.columns] == [-1, -1, -1], "each at its end"
    assert play.transport.last == 12 and play.transport.plays == 1
    assert len(play.transport._links) == 3 * 3
    for column in play.columns[1:]:
        assert column.canvas._against["name"] == "A"
    assert play.form.message.count("A and ") == 2 and play.form.disabled == ["stop"]
    first = play.transport._links
    play.run()
    play.wait(30)
    assert {link.comm for link in first} == {None}, "old links are let go"


def test_pressing_again_starts_over() -> None:
    loaded = runs.loaded(eos_token_ids=())
    runs.slow(loaded.model, 0.01)
    play = Playground(Session(loaded), PROMPT, columns=[{"stop": False, "steps": 60}, {"steps": 2}])
    play.run()
    time.sleep(0.05)
    play.columns[0].form.values = {**play.columns[0].form.values, "steps": 2}
    play.run()
    play.wait(30)
    assert [len(trace) for trace in play.traces.values()] == [4, 4]


def test_stop_ends_the_column_and_those_after_it() -> None:
    loaded = runs.loaded(eos_token_ids=())
    runs.slow(loaded.model, 0.01)
    play = Playground(
        Session(loaded), PROMPT, columns=[{"stop": False, "steps": 100}, {"steps": 2}]
    )
    play.run()
    play.form._receive(play.form, {"type": "press", "name": "stop"}, [])
    play.wait(30)
    assert list(play.traces) == ["A"] and play.traces["A"].stop_reason is None


def test_enter_in_a_field_of_a_column_runs_all() -> None:
    play = Playground(Session(runs.loaded()), PROMPT, columns=[{"steps": 2}])
    play.columns[0].form._receive(play.columns[0].form, {"type": "press", "name": ""}, [])
    play.wait(30)
    assert list(play.traces) == ["A"]


def test_what_is_wrong_is_said_where_it_is() -> None:
    play = Playground(
        Session(runs.loaded()),
        PROMPT,
        columns=[{}, {"rule": "block_refinement", "block_refinement.top_p": 0.5}],
    )
    play.run()
    assert play.columns[1].form.alert and "no effect" in play.columns[1].form.message
    assert play.columns[0].run is None
    with pytest.raises(RequestError, match="no control 'colour'"):
        Playground(Session(runs.loaded()), PROMPT, columns=[{"colour": 3}])
    with pytest.raises(DgemmaError, match="1 to 3 columns"):
        Playground(Session(runs.loaded()), PROMPT, columns=[{}] * 4)


def test_a_column_drafts_and_verifies() -> None:
    columns = [
        {"rule": "speculative", "speculative.draft_positions": 4},
        {"rule": "autoregressive"},
    ]
    play = Playground(
        Session(runs.loaded(eos_token_ids=())), PROMPT, columns=columns, max_new_tokens=10
    )
    play.run()
    play.wait(30)
    one, two = play.traces.values()
    assert one.mode == "speculative" and one.ids.tolist() == two.ids.tolist()
    rounds = play.columns[0].canvas._meta["rounds"]
    assert len(rounds) == len(one.rounds) and rounds[0]["start"] == 0
    texts = play.columns[0].canvas._tokens["texts"]
    drafted = [texts[token] for token in rounds[0]["tokens"]]
    assert drafted == [one.text(token) for token in one.rounds[0].tokens.tolist()]


def test_without_a_prompt_it_takes_an_unseen_problem_on_which_the_rules_differ() -> None:
    nano = load("nano")
    play = Playground(Session(nano))
    assert play.form.values["prompt"].startswith("Sort words")
    play.run()
    play.wait(60)
    texts = {tuple(trace.ids.tolist()) for trace in play.traces.values()}
    assert len(texts) > 1
    assert Playground(Session(runs.loaded())).form.values["prompt"] == ""
