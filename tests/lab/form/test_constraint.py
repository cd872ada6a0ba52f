"""The fields that ask for a constraint, in the prompt box and in the playground."""

from __future__ import annotations

import pytest

from dgemma_core import Constraint, RequestError
from dgemma_lab.form.constraint import constraint_fields, constraint_from, constraint_values
from dgemma_lab.playground.playground import Playground
from dgemma_lab.session.session import Session
from tests.lab import runs
from tests.lab.runs import PROMPT


def test_the_fields_are_folded_and_each_kind_keeps_its_text() -> None:
    fields = constraint_fields()
    assert all(field["advanced"] for field in fields)
    assert [field.get("when") for field in fields[1:]] == [
        {"constraint": [kind]} for kind in ("regex", "json_schema", "choices")
    ]
    assert {field["name"] for field in fields} == set(constraint_values())


@pytest.mark.parametrize(
    "constraint",
    [
        None, Constraint.regex("[a-z]+"), Constraint.choices(["yes", "a|b"]),
        Constraint.json_schema({"type": "integer"}),
    ],
)  # fmt: skip
def test_values_and_constraint_are_one(constraint: Constraint | None) -> None:
    assert constraint_from(constraint_values(constraint)) == constraint


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"constraint": "regex", "regex": " "}, "must be a regular expression: write it"),
        ({"constraint": "json_schema", "json_schema": "{"}, "is no JSON"),
    ],
)
def test_what_is_no_constraint_is_one_line(values: dict[str, str], match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        constraint_from({**constraint_values(), **values})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_box_writes_within_its_constraint_and_says_what_is_wrong() -> None:
    box = Session(runs.loaded()).ask(PROMPT)
    for text, message in (("(a", "cannot be an automaton"), ("a{60}", "raise max_new_tokens")):
        box.form.values = {**box.form.values, "constraint": "regex", "regex": text}
        assert box.run() is None
        assert box.form.alert and message in box.form.message and "\n" not in box.form.message
    box.form.values = {**box.form.values, "constraint": "choices", "choices": "yes|no"}
    run = box.run()
    assert run is not None and run.result().text in ("yes", "no")
    assert not box.form.alert
    assert run.trace.metadata["constraint"]["kind"] == "choices"
    box.form.values = {**box.form.values, "constraint": ""}
    free = box.run()
    assert free is not None and free.wait().request.constraint is None
    assert box.form.values["regex"] == "a{60}", "what was typed is still there"


def test_a_box_begins_with_the_constraint_of_its_cell() -> None:
    box = Session(runs.loaded()).ask(PROMPT, constraint=Constraint.choices(["yes", "no"]))
    assert box.form.values["choices"] == "yes|no"
    run = box.run()
    assert run is not None and run.result().text in ("yes", "no")


def test_all_columns_of_a_playground_obey_one_constraint() -> None:
    play = Playground(
        Session(runs.loaded()), PROMPT, columns=[{"steps": 4}, {"rule": "speculative"}]
    )
    play.form.values = {**play.form.values, "constraint": "regex", "regex": "("}
    play.run()
    assert play.wait(60).form.alert and "cannot be an automaton" in play.form.message
    play.form.values = {**play.form.values, "regex": "(yes|no)( please)?"}
    play.run()
    play.wait(60)
    texts = {trace.text(int(trace.ids[0])) for trace in play.traces.values()}
    assert len(play.traces) == 2 and not play.form.alert, play.form.message
    assert all(text[0] in "yn" for text in texts)
