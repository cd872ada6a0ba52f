"""All ways of writing keep to the constraint, and say at once where none can."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma_core import BlockRefinement, Constraint, DiscreteDDIM, Observe, RequestError
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.events import CanvasEvent, FinishEvent, StepEvent
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import Chat, generate
from dgemma_core.generation.settings import DiffusionSettings
from dgemma_core.request import Request
from tests.core import tiny

LISTED = Constraint.regex(r"\[[a-z]{1,6}(, [a-z]{1,6}){0,4}\]")
PATTERN = re.compile(r"\[[a-z]{1,6}(, [a-z]{1,6}){0,4}\]")
PROMPT = [7, 8, 9]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Random weights over nano's vocabulary; canvases of 8."""
    return tiny.loaded(max_new_tokens=24)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 1},
        {"soft_top_k": 3},
        {"sampler": BlockRefinement()},
        {"sampler": BlockRefinement(temperature=0.8, top_k=4, top_p=0.9)},
        {"sampler": DiscreteDDIM(temperature=0.7)},
        {"sampler": DiscreteDDIM(corrector_steps=1, corrector_k=2), "steps": 8},
        {"mode": "autoregressive"},
        {"mode": "autoregressive", "temperature": 1.0, "top_k": 5, "top_p": 0.9},
        {"mode": "speculative", "temperature": 1.0},
    ],
    ids=str,
)
def test_every_way_of_writing_keeps_to_the_language(
    loaded: Loaded, options: dict[str, Any]
) -> None:
    texts = generate(loaded, [PROMPT] * 4, constraint=LISTED, **options)
    for found in texts:
        assert PATTERN.fullmatch(found.text), found.text
        assert found.kept_tokens <= 24


def test_joint_draws_are_texts_of_the_language(loaded: Loaded) -> None:
    """Asked for, every step's samples are a text from the first canvas to the last; else one token a position."""
    assert loaded.tokenizer is not None
    decode, ends = loaded.tokenizer.decode, {*loaded.generation.eos_token_ids, 0}
    whole = {}
    for joint in (False, True):
        automaton = replace(LISTED, joint=joint).compile(loaded)
        assert automaton is replace(LISTED, joint=joint).compile(loaded)
        drawn = []
        for seed in range(6):
            request = Request(PROMPT, seed=seed, constraint=automaton, max_new_tokens=8)
            for event in canvases(loaded, request)[0]:
                if isinstance(event, StepEvent):
                    ids = event.sample.tolist()
                    kept = next((i for i, token in enumerate(ids) if token in ends), len(ids))
                    drawn.append(PATTERN.fullmatch(decode(ids[:kept])) is not None)
        whole[joint] = drawn
    assert all(whole[True]) and not all(whole[False])


@pytest.mark.parametrize("limit", range(3, 12))
def test_texts_end_within_any_limit(loaded: Loaded, limit: int) -> None:
    """Also where the limit falls on the middle or the edge of a canvas of 8."""
    for mode in ("diffusion", "autoregressive"):
        (found,) = generate(
            loaded, PROMPT, mode=mode, seed=limit, max_new_tokens=limit, constraint=LISTED
        )
        assert PATTERN.fullmatch(found.text) and found.kept_tokens <= limit


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_speculation_writes_constrained_autoregression(loaded: Loaded, temperature: float) -> None:
    options: dict[str, Any] = {"temperature": temperature, "constraint": LISTED, "seed": 3}
    one = generate(loaded, [PROMPT] * 6, mode="autoregressive", **options)
    for draft in ({"draft": "fixed"}, {"draft": "adaptive", "draft_steps": 2}):
        other = generate(loaded, [PROMPT] * 6, mode="speculative", **draft, **options)
        assert [text.ids for text in other] == [text.ids for text in one]
        for a, b in zip(one, other, strict=True):
            assert a.token_probabilities == pytest.approx(b.token_probabilities, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive", "speculative"])
def test_rows_of_a_batch_have_their_own_constraints(loaded: Loaded, mode: Any) -> None:
    kinds = [LISTED, None, Constraint.choices(["yes", "no", "perhaps not"]), LISTED]
    together = generate(loaded, [PROMPT] * 4, mode=mode, constraint=kinds)
    for i, kind in enumerate(kinds):
        (alone,) = generate(loaded, PROMPT, mode=mode, seed=i, constraint=kind)
        assert together[i].ids == alone.ids
    assert together[2].text in ("yes", "no", "perhaps not")


def canvases(loaded: Loaded, request: Request, **options: Any) -> tuple[list[Any], FinishEvent]:
    events = list(
        denoise_canvases(
            loaded.model, [request], eos=loaded.generation.eos_token_ids, steps=3, **options
        )
    )
    finish = events[-1]
    assert isinstance(finish, FinishEvent)
    return events, finish


def test_behind_the_end_stands_pad(loaded: Loaded) -> None:
    automaton = Constraint.choices(["yes", "no"]).compile(loaded)
    events, finish = canvases(loaded, Request(PROMPT, constraint=automaton))
    (canvas,) = [event for event in events if isinstance(event, CanvasEvent)]
    kept = len(finish.ids)
    assert finish.ids[-1] in loaded.generation.eos_token_ids
    assert canvas.ids[kept:] == (0,) * (8 - kept)


def test_pins_are_held_within_the_language(loaded: Loaded) -> None:
    """One on the first canvas, one on the second: the text goes on until both stand."""
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    (comma,), (a,) = tokenizer.encode(","), tokenizer.encode("a")
    automaton = LISTED.compile(loaded)
    for seed in range(4):
        request = Request(PROMPT, seed=seed, pins={3: comma, 12: a}, constraint=automaton)
        _, finish = canvases(loaded, request)
        assert finish.ids[3] == comma and finish.ids[12] == a
        assert PATTERN.fullmatch(tokenizer.decode(finish.ids))


def test_a_state_goes_on_exactly(loaded: Loaded) -> None:
    automaton = LISTED.compile(loaded)
    request = Request(PROMPT, seed=5, constraint=automaton)
    events, whole = canvases(loaded, request)
    steps = [event for event in events if isinstance(event, StepEvent)]
    for event in steps[:-1:2]:
        _, again = canvases(loaded, replace(request, state=event.state))
        assert again.ids == whole.ids


@pytest.mark.slow
def test_a_free_state_can_be_constrained_from_there_on(loaded: Loaded) -> None:
    automaton = LISTED.compile(loaded)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    events, _ = canvases(loaded, Request(PROMPT, seed=5))
    steps = [event for event in events if isinstance(event, StepEvent)]
    _, finish = canvases(loaded, Request(PROMPT, state=steps[0].state, constraint=automaton))
    assert PATTERN.fullmatch(tokenizer.decode(finish.ids))
    decided = next(event.state for event in steps if event.step == 2)
    with pytest.raises(RequestError, match="is decided, and not in the constraint's language"):
        canvases(loaded, Request(PROMPT, state=decided, constraint=automaton))


def test_a_chat_keeps_to_its_constraint() -> None:
    loaded = tiny.loaded(max_new_tokens=24)
    chat = Chat(loaded, DiffusionSettings(constraint=LISTED, steps=2))
    for turn in range(2):
        assert PATTERN.fullmatch(chat.say("Hello", seed=turn).text)


@pytest.mark.slow
def test_what_a_widget_needs_is_observed(loaded: Loaded) -> None:
    """The forbidden mass, the automaton's states, and the top tokens before and after."""
    automaton = LISTED.compile(loaded)
    request = Request(PROMPT, constraint=automaton)
    events, _ = canvases(loaded, request, observe=Observe(top_k=3))
    for event in events:
        if not isinstance(event, StepEvent):
            continue
        seen = event.observed
        assert seen is not None and seen.forbidden is not None and seen.automaton_states is not None
        assert seen.forbidden.shape == seen.automaton_states.shape == (8,)
        assert 0 < float(seen.forbidden[0]) < 1
        state = automaton.start if event.canvas == 0 else automaton.after(event.state.committed)
        for place, token in enumerate(event.argmax.tolist()):
            assert int(seen.automaton_states[place]) == state
            state = automaton.after([token], state)
        assert seen.free_top_ids is not None and seen.free_top_probabilities is not None
        assert seen.free_top_ids.shape == seen.free_top_probabilities.shape == (8, 3)
        assert seen.top_probabilities is not None
        assert torch.isfinite(seen.top_probabilities[:, 0]).all()
    plain = Request(PROMPT)
    events, _ = canvases(loaded, plain, observe=Observe(top_k=3))
    free = next(event.observed for event in events if isinstance(event, StepEvent))
    assert free is not None and free.forbidden is None and free.free_top_ids is None


class Untouched:
    """Stands in for a model: any pass fails the test."""

    def __init__(self, loaded: Loaded) -> None:
        self.config, self.device = loaded.model.config, torch.device("cpu")
        self.backend = self

    def refresh(self) -> None: ...

    def encode(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a pass was made")


@pytest.mark.parametrize(
    ("constraint", "options", "message"),
    [
        (Constraint.regex("[^\\s\\S]"), {}, "its language is empty"),
        (Constraint.regex("a{40}"), {}, "shortest text .* takes .* tokens more, the limit leaves 24"),
        (Constraint.regex("(a)\\1"), {}, "without look-around and backreferences"),
        (Constraint.choices(["yes"]), {"pins": {0: 12}}, "pins and constraint contradict"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_one_line_before_any_pass(
    loaded: Loaded, constraint: Constraint, options: dict[str, Any], message: str
) -> None:
    untouched = replace(loaded, model=Untouched(loaded))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message) as caught:
        generate(untouched, PROMPT, constraint=constraint, **options)
    assert "\n" not in str(caught.value)


def test_tokens_that_cannot_spell_a_language_are_told() -> None:
    from dgemma_core.constraints.index import indexed
    from dgemma_core.constraints.patterns import compiled

    with pytest.raises(RequestError, match="the tokens cannot spell it"):
        indexed(compiled("a+b"), [b"", b"", b"a", b"ac"], eos=(0,), pad=1)


@pytest.mark.parametrize("given", ["[a-z]", 3, {"type": "null"}])
def test_a_constraint_must_be_one(loaded: Loaded, given: Any) -> None:
    with pytest.raises(RequestError, match="constraint"):
        generate(loaded, PROMPT, constraint=given)


def test_constraints_are_one_or_one_a_prompt(loaded: Loaded) -> None:
    with pytest.raises(RequestError, match="2 constraints for 1 prompts"):
        generate(loaded, PROMPT, constraint=[LISTED, LISTED])


def test_a_constraint_has_no_thought(loaded: Loaded) -> None:
    with pytest.raises(RequestError, match="leave thinking off"):
        generate(loaded, "Hello", constraint=LISTED, thinking=True)


def test_large_classes_say_what_small_ones_say(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes with heads of their own, as in large vocabularies, and all tokens side by side."""
    from dgemma_core.constraints import head

    answers: list[Sequence[Any]] = []
    for large in (10**6, 1):
        monkeypatch.setattr(head, "LARGE", large)
        loaded.model.use("torch")
        LISTED.compile(loaded).memory.clear()
        answers.append(generate(loaded, [PROMPT] * 3, constraint=LISTED, observe=Observe(top_k=4)))
    LISTED.compile(loaded).memory.clear()
    for one, other in zip(*answers, strict=True):
        assert one.ids == other.ids
        assert one.token_entropies == pytest.approx(other.token_entropies, abs=1e-4)
        assert one.token_probabilities == pytest.approx(other.token_probabilities, abs=1e-4)
