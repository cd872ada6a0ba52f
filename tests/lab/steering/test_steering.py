"""Edits of runs: what they hold, what they leave alone, and that an untouched branch is the run itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.files.trace import Trace
from dgemma_core.observe import Observe
from dgemma_core.samplers import BlockRefinement, DiscreteDDIM, EntropyBound
from dgemma_lab.canvas.canvas import Steer
from dgemma_lab.canvas.compare import difference, tokens_at
from dgemma_lab.canvas.frames import frame
from dgemma_lab.frontend.text import visible
from dgemma_lab.session.plan import plan
from dgemma_lab.session.run import Run
from dgemma_lab.session.session import Session
from dgemma_lab.session.states import StateCache
from dgemma_lab.steering.branches import branch, edited, events_of, steered
from dgemma_lab.steering.edits import Edit, another, blank, hold, release
from dgemma_lab.steering.steering import Steering
from tests.lab import runs
from tests.lab.runs import PROMPT

C = 8


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(
        runs.loaded(eos_token_ids=()),
        observe=Observe(top_k=3, router=True, attention_positions=(2,)),
    )


@pytest.fixture(scope="module")
def run(session: Session) -> Run:
    """Two canvases of 8, six passes each."""
    return session.run(PROMPT, stop_rule=None).wait()


def follow(session: Session, parent: Run, edit: Edit) -> Run:
    request, opening = branch(parent, edit)
    settings = (
        parent.settings if edit.sampler is None else replace(parent.settings, sampler=edit.sampler)
    )
    return session.launch(
        settings, request, observe=parent.observe, parent=parent, opening=opening
    ).wait()


def frames_of(trace: Trace, position: int) -> np.ndarray:
    """What stands at an answer position after each pass of its canvas."""
    return trace.rows("tokens_out", position // C)[:, position % C]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [EntropyBound(), BlockRefinement(), DiscreteDDIM(temperature=1.0, corrector_steps=1)]
)
@pytest.mark.parametrize("limit", [1, 1 << 28])
def test_continuing_an_untouched_state_gives_the_identical_trace(
    session: Session, sampler: Any, limit: int
) -> None:
    settings, request = plan(session.loaded, PROMPT, sampler=sampler, stop_rule=None)
    whole = (
        Run(session.loaded, settings, request, observe=session.observe, states=StateCache(limit))
        .start()
        .wait()
    )
    assert len(whole.trace) == 12
    for passes in (0, 1, 5, 6, 7, 11):
        edit = another(whole.trace, passes, whole.pins_at(passes))
        again = follow(session, whole, edit).trace
        assert again.digest() == whole.trace.digest(), passes
        assert again.passes == whole.trace.passes
        for name in (
            "probability",
            "entropy",
            "top_ids",
            "top_probabilities",
            "router_ids",
            "router_weights",
        ):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole.trace, name), name)
        for one, two in zip(again.attention or (), whole.trace.attention or (), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_trace_played_back_as_events_is_the_trace(run: Run) -> None:
    events = list(events_of(run.trace, 7, "again"))
    assert [type(event).__name__ for event in events] == [
        "PromptEvent",
        *["StepEvent"] * 6,
        "CanvasEvent",
        "StepEvent",
    ]
    again = Trace.record(events)
    for name in ("tokens_in", "tokens_out", "entropy", "accepted", "router_ids", "top_ids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(run.trace, name)[: 7 * C], name)
    np.testing.assert_array_equal(again.seconds, run.trace.seconds[:7])


def test_another_seed_branches_from_the_step_in_view(session: Session, run: Run) -> None:
    child = follow(session, run, another(run.trace, 4, {}, seed=5)).trace
    assert difference(run.trace, child).startswith("alike for 4 passes")
    np.testing.assert_array_equal(child.tokens_out[: 4 * C], run.trace.tokens_out[: 4 * C])
    assert not np.array_equal(child.tokens_out[4 * C :], run.trace.tokens_out[4 * C :])
    assert child.metadata["branch"] == {"passes": 4, "seed": 5}


def test_another_sampler_takes_over(session: Session, run: Run) -> None:
    child = follow(session, run, another(run.trace, 3, {}, sampler=BlockRefinement())).trace
    np.testing.assert_array_equal(child.temperature, [*run.trace.temperature[:3], *[0.0] * 9])
    assert child.passes == run.trace.passes


def test_a_run_that_is_over_has_nothing_to_branch_from(run: Run) -> None:
    with pytest.raises(RequestError, match="the run is over at this step"):
        another(run.trace, len(run.trace), {})


@pytest.mark.parametrize(("frame", "starts"), [(3, 3), (6, 0), (9, 0), (12, 0)])
def test_a_pin_holds_from_the_open_step_or_the_canvas_start(
    session: Session, run: Run, frame: int, starts: int
) -> None:
    edit = hold(run.trace, frame, 2, [40, 41], {})
    assert (edit.frame, edit.canvas, edit.pins) == (starts, 0, {2: 40, 3: 41})
    child = follow(session, run, edit).trace
    for position, token in ((2, 40), (3, 41)):
        assert (frames_of(child, position)[starts:] == token).all()
        assert (
            frames_of(child, position)[:starts] == frames_of(run.trace, position)[:starts]
        ).all()
    assert child.ids[2:4].tolist() == [40, 41]
    assert (
        child.rows("pinned", 0)[starts:, 2:4].all() and not child.rows("pinned", 0)[:starts].any()
    )


def test_a_pin_on_the_second_canvas_leaves_the_first_alone(session: Session, run: Run) -> None:
    child = follow(session, run, hold(run.trace, 12, 11, [40], {})).trace
    np.testing.assert_array_equal(child.tokens_out[: 6 * C], run.trace.tokens_out[: 6 * C])
    assert (frames_of(child, 11) == 40).all()
    middle = follow(session, run, hold(run.trace, 8, 11, [40], {})).trace
    assert (frames_of(middle, 11)[2:] == 40).all()
    np.testing.assert_array_equal(middle.tokens_out[: 8 * C], run.trace.tokens_out[: 8 * C])


def test_the_model_sees_a_new_pin_as_it_sees_an_old_one(session: Session, run: Run) -> None:
    """Pinned at step 3 or carried through step 3: canvas, soft embedding and history of the pin are the same."""
    state = run.state_at(3)
    assert state is not None
    embed = session.loaded.model.embed
    new = edited(state, Edit(3, 0, {2: 40}), embed)
    assert new.canvas[2] == 40 and new.soft_embedding is not None
    assert torch.equal(new.soft_embedding[2], embed(torch.tensor([40]))[0])
    assert torch.equal(new.canvas[[0, 1, 3, 4, 5, 6, 7]], state.canvas[[0, 1, 3, 4, 5, 6, 7]])
    assert state.canvas[2] != 40 or dict(state.pins) == {}, (
        "the state that was edited stays as it was"
    )
    whole = session.run(PROMPT, stop_rule=None, pins={2: 40}).wait()
    carried = whole.state_at(3)
    assert carried is not None and carried.soft_embedding is not None
    assert torch.equal(carried.soft_embedding[2], new.soft_embedding[2])


def test_a_pin_makes_a_canvas_prove_itself_anew(session: Session) -> None:
    run = session.run(PROMPT).wait()
    state = run.state_at(2)
    assert state is not None and state.history is not None and (state.history >= 0).any()
    changed = edited(state, Edit(2, 0, {0: 40}), session.loaded.model.embed)
    assert changed.history is not None and (changed.history == -1).all()


def test_released_pins_are_free_again(session: Session) -> None:
    pinned = session.run(PROMPT, stop_rule=None, pins={1: 40, 2: 41}).wait()
    with pytest.raises(RequestError, match="position 5 is not pinned"):
        release(pinned.trace, 4, 5, pinned.pins_at(4))
    child = follow(session, pinned, release(pinned.trace, 3, 1, pinned.pins_at(3))).trace
    marks = child.rows("pinned", 0)
    assert marks[:3, 1].all() and not marks[3:, 1].any() and marks[:, 2].all()


def test_blank_writes_the_span_anew_and_nothing_else(session: Session, run: Run) -> None:
    edit = blank(run.trace, 12, 3, 5)
    before = tokens_at(run.trace, 12)
    assert edit.frame == 0 and sorted(edit.pins) == [*range(3), *range(5, 16)]
    child = follow(session, run, edit).trace
    after = tokens_at(child, len(child))
    assert all(after[at] == token for at, token in before.items() if not 3 <= at < 5)
    assert not child.rows("pinned", 0)[:, 3:5].any()
    second = blank(run.trace, 12, 9, 16)
    assert second.frame == 6 and sorted(second.pins) == [8]
    child = follow(session, run, second).trace
    np.testing.assert_array_equal(child.tokens_out[: 6 * C], run.trace.tokens_out[: 6 * C])
    with pytest.raises(RequestError, match="not all on the canvas"):
        blank(run.trace, 4, 9, 11)


def test_a_span_may_reach_over_two_canvases(session: Session, run: Run) -> None:
    edit = blank(run.trace, 12, 6, 10)
    assert edit.frame == 0 and sorted(edit.pins) == [*range(6), *range(10, 16)]
    child = follow(session, run, edit).trace
    before, after = tokens_at(run.trace, 12), tokens_at(child, len(child))
    assert all(after[at] == before[at] for at in edit.pins)


def test_branches_of_branches_reach_back_to_their_parents(session: Session, run: Run) -> None:
    child = follow(session, run, hold(run.trace, 4, 2, [40], {}))
    assert child.pins_at(4) == {2: 40} and child.pins_at(3) == {}
    grandchild = follow(session, child, hold(child.trace, 12, 5, [41], child.pins_at(12)))
    assert grandchild.opening_passes == 0, "the canvas was over: it is written anew, with both pins"
    assert grandchild.trace.ids[[2, 5]].tolist() == [40, 41]
    back = follow(session, child, another(child.trace, 2, child.pins_at(2)))
    assert back.trace.digest() == run.trace.digest(), "before its pin the branch is its parent"


def test_the_draft_is_what_the_canvas_shows(run: Run) -> None:
    for step in set(range(1, 13)) - {6, 12}:
        cells = [cell for canvas in frame(run.trace, step) for cell in canvas]
        shown = {cell.position: cell.token for cell in cells if cell.token is not None}
        assert tokens_at(run.trace, step) == shown, step
    at_the_end = tokens_at(run.trace, 12)
    assert [at_the_end[at] for at in range(16)] == run.trace.commit_ids.tolist()


def test_what_the_widget_asks_for_becomes_an_edit(run: Run) -> None:
    def ask(action: Any, step: int, **more: Any) -> Edit:
        return steered(run, Steer(action, step, step - 1 if step else None, **more), seed=7)

    assert ask("branch", 4) == Edit(4, 0, {}, seed=7, words="step 4: seed 7")
    pinned = ask("pin", 12, position=2, token=40)
    assert pinned.pins == {2: 40} and pinned.frame == 0
    assert pinned.words == f"step 12: pin 2 = “{visible(run.text_of(40))}”"
    replaced = ask("replace", 4, position=2, text="[1,2]")
    assert list(replaced.pins.values()) == run.loaded.tokenizer.encode("[1,2]")
    assert replaced.words == f"step 4: pin 2–{1 + len(replaced.pins)} = “[1,2]”"
    assert ask("blank", 12, position=4, start=3, stop=5).words == "step 12: blank 3–4"
    assert 4 not in ask("blank", 12, position=4).pins
    with pytest.raises(RequestError, match="choose a token first"):
        ask("pin", 4)
    with pytest.raises(RequestError, match="nothing stands at position 9 yet"):
        ask("pin", 4, position=9)
    with pytest.raises(RequestError, match="empty text"):
        ask("replace", 4, position=2, text="")
    with pytest.raises(DgemmaError, match="no pass of canvas 5"):
        ask("pin", 4, position=43, token=40)


def test_the_tree_grows_by_the_buttons_and_compares(session: Session) -> None:
    tree = Steering(session, PROMPT, stop_rule=None)
    tree.settle()
    token = int(tree.run.trace.argmax[3])
    tree.run.canvas._receive(tree.run.canvas, {"type": "steer", "action": "branch", "step": 4}, [])
    tree.settle()
    root = tree.nodes[0].run
    root.canvas._receive(
        root.canvas,
        {"type": "steer", "action": "pin", "step": 2, "position": 3, "start": 3, "stop": 4},
        [],
    )
    tree.settle()
    assert [node.words for node in tree.nodes][:2] == ["as it came", "step 4: seed 1"]
    assert tree.nodes[2].run.parent is root and tree.nodes[2].run.request.state is not None
    assert tree.run is tree.nodes[2].run and tree.form.values["node"] == "2"
    assert token >= 0 and tree.nodes[2].run.pins_at(12) == {
        3: root.canvas._token_at(root.trace, 2, 3)
    }
    _wait_for(lambda: all("passes" in option["note"] for option in tree.form.fields[0]["options"]))
    assert [option["indent"] for option in tree.form.fields[0]["options"]] == [0, 1, 1]
    tree.form.values = {**tree.form.values, "other": "0"}
    assert tree.columns.children == (tree.run.canvas, root.canvas) and len(tree._links) == 1
    assert tree.form.message == difference(tree.run.trace, root.trace)
    root.canvas._receive(root.canvas, {"type": "steer", "action": "branch", "step": 99}, [])
    assert tree.form.alert and "the run is over" in tree.form.message and len(tree.nodes) == 3


@pytest.mark.slow
def test_the_tree_says_what_was_edited_in_code_too(session: Session) -> None:
    tree = Steering(session, PROMPT, stop_rule=None)
    tree.settle()
    four = session.loaded.tokenizer.encode("4")
    assert four[0] not in tree.run.trace.strings or tree.run.trace.text(four[0]) == "4"

    def words(make: Any) -> str:
        """The label of what comes of an edit of the run in view."""
        tree.apply(make(tree.run.trace, tree.run.pins_at(3))).wait()
        return str(tree.form.fields[0]["options"][-1]["label"])

    assert words(lambda trace, pins: hold(trace, 0, 3, four, pins)) == "step 0: pin 3 = “4”"
    assert words(lambda trace, pins: hold(trace, 3, 4, four * 2, pins)) == "step 3: pin 4–5 = “44”"
    assert words(lambda trace, pins: release(trace, 3, 3, pins)) == "step 3: unpin 3"
    assert words(lambda trace, pins: another(trace, 3, pins, seed=9)) == "step 3: seed 9"
    assert (
        words(lambda trace, pins: another(trace, 3, pins, sampler=BlockRefinement()))
        == "step 3: sampler block_refinement"
    )
    assert words(lambda trace, pins: blank(trace, 12, 2, 5)) == "step 12: blank 2–4"
    assert words(lambda trace, pins: Edit(0, 0, {0: four[0], 6: four[0]}, seed=2)).startswith(
        "step 0: pin 0 = “4”, pin 6 = “4”"
    )
    own = Edit(0, 0, {0: four[0]}, words="as I like it")
    assert words(lambda trace, pins: own) == "as I like it"
    assert words(lambda trace, pins: another(trace, 3, pins)) == "step 3: the same again"


def test_runs_are_compared_in_words(session: Session, run: Run) -> None:
    again = session.run(PROMPT, stop_rule=None).trace
    assert difference(run.trace, again) == "the same run, pass by pass"
    other = session.run(PROMPT, stop_rule=None, seed=9).trace
    assert difference(run.trace, other).startswith("different from the first pass on; ")
    assert difference(run.trace, other).endswith(
        "of 16 tokens of the answer are equal; 14 against 14 passes"
    )


def _wait_for(true: Any) -> None:
    import time

    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()
