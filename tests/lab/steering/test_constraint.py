"""Steering a constrained run: every edit stays in the language, and one that cannot is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from dgemma_core import Constraint, RequestError
from dgemma_lab.session.run import Run
from dgemma_lab.session.session import Session
from dgemma_lab.steering.edits import another, blank, hold, release
from dgemma_lab.steering.steering import Steering
from tests.lab import runs
from tests.lab.runs import PROMPT

PATTERN = r"\[[a-z]{1,6}(, [a-z]{1,6}){1,3}\]"


@pytest.fixture
def tree() -> Steering:
    made = Steering(Session(runs.loaded()), PROMPT, constraint=Constraint.regex(PATTERN), seed=3)
    made.settle()
    return made


def obeys(run: Run) -> bool:
    return re.fullmatch(PATTERN, run.result().text) is not None


def token(tree: Steering, text: str) -> int:
    tokenizer = tree.session.loaded.tokenizer
    assert tokenizer is not None
    (found,) = tokenizer.encode(text)
    return int(found)


@pytest.mark.slow
def test_pins_replacements_blanks_and_branches_stay_in_the_language(tree: Steering) -> None:
    root = tree.run
    assert obeys(root)
    pinned = tree.apply(hold(root.trace, 0, 1, [token(tree, "a")], {})).wait()
    assert obeys(pinned) and pinned.trace.ids[1] == token(tree, "a")
    late = tree.apply(hold(pinned.trace, 2, 2, [token(tree, "b")], pinned.pins_at(2))).wait()
    assert obeys(late) and late.trace.ids[1:3].tolist() == [token(tree, "a"), token(tree, "b")]
    freed = tree.apply(release(late.trace, 0, 2, late.pins_at(2))).wait()
    assert obeys(freed) and 2 not in freed.pins_at(0)
    end = len(freed.trace)
    infilled = tree.apply(blank(freed.trace, end, 1, 2)).wait()
    assert obeys(infilled)
    kept = [i for i in range(len(infilled.trace.ids)) if i != 1 and i < freed.trace.canvas_length]
    assert infilled.trace.ids[kept].tolist() == freed.trace.ids[kept].tolist()
    other = tree.apply(another(root.trace, 1, {}, seed=9))
    assert obeys(other.wait())


def test_a_branch_s_trace_is_whole(tree: Steering) -> None:
    """The passes that it inherits come with what was forbidden in them."""
    root = tree.run
    same = tree.apply(another(root.trace, 3, {})).wait()
    assert same.trace.digest() == root.trace.digest()
    for name in ("forbidden", "automaton_states", "free_top_ids"):
        np.testing.assert_array_equal(getattr(same.trace, name), getattr(root.trace, name))
    assert same.trace.onward == root.trace.onward


def test_an_edit_that_leaves_no_text_says_so_and_nothing_is_lost(tree: Steering) -> None:
    root = tree.run
    with pytest.raises(RequestError, match="pins and constraint contradict") as caught:
        tree.apply(hold(root.trace, 0, 0, [token(tree, "7")], {}))
    assert "\n" not in str(caught.value) and "step 0: pin 0 = “7”" in str(caught.value)
    before = (list(tree.nodes), root.trace.digest(), tree.columns.children)

    def ask(action: str, **more: Any) -> None:
        message = {
            "type": "steer",
            "action": action,
            "step": 0,
            "position": 0,
            "start": 0,
            "stop": 1,
        }
        root.canvas._receive(root.canvas, {**message, **more}, [])

    ask("replace", text="7")
    assert tree.form.alert and tree.form.message.endswith("Nothing has changed.")
    assert (list(tree.nodes), root.trace.digest(), tree.columns.children) == before
    ask("replace", position=1, text="a")  # the next one goes through
    tree.settle()
    assert len(tree.nodes) == 2 and not tree.form.alert and obeys(tree.run)


def test_a_run_with_pins_outside_the_language_does_not_start() -> None:
    session = Session(runs.loaded())
    with pytest.raises(RequestError, match="pins and constraint contradict"):
        session.run(PROMPT, constraint=Constraint.choices(["yes"]), pins={0: "n"})
    with pytest.raises(RequestError, match="leave thinking off"):
        session.run(PROMPT, constraint=Constraint.choices(["yes"]), thinking=True)
    assert session.current is None
