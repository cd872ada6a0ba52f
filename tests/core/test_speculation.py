"""Speculative decoding writes autoregression's text, whatever is drafted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma_core.autoregression import decode_tokens
from dgemma_core.draws import Filters
from dgemma_core.errors import RequestError
from dgemma_core.events import DraftEvent, Event, FinishEvent, TokenEvent
from dgemma_core.facts.cost import pass_tokens
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.files.checkpoint import Loaded, load
from dgemma_core.generation import Chat, generate
from dgemma_core.generation.drafting import AdaptiveDraft, FixedDraft, PayingDraft
from dgemma_core.generation.settings import AutoregressiveSettings, SpeculativeSettings
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano import families
from dgemma_core.request import Request
from dgemma_core.speculation import DraftPlan, decode_speculative
from tests.core import tiny


@pytest.fixture(scope="module")
def nano() -> Loaded:
    return load("nano")


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    """Random weights: the denoiser's drafts are nearly always wrong."""
    return tiny.model(3)


def finished(events: Sequence[Event]) -> dict[Any, FinishEvent]:
    return {event.request: event for event in events if isinstance(event, FinishEvent)}


def both(
    loaded: Loaded, requests: Sequence[Request], batch_size: int = 1, draft: Any = None, **options: Any
) -> tuple[list[Event], list[Event]]:  # fmt: skip
    """The events of autoregression, one text at a time, and of speculation."""
    assert loaded.tokenizer is not None
    options = {"eos": loaded.generation.eos_token_ids, "decode": loaded.tokenizer.decode, **options}
    plain = list(decode_tokens(loaded.model, requests, batch_size=1, **options))
    ours = decode_speculative(loaded.model, requests, draft=draft, batch_size=batch_size, **options)
    return plain, list(ours)


def problems(loaded: Loaded, count: int) -> list[Request]:
    assert loaded.tokenizer is not None
    names = [row.name for row in families.FAMILIES]
    prompts = [families.example(name, 900_000 + i).prompt for i in range(count) for name in names]
    return [
        Request(loaded.tokenizer.chat_ids(prompt), seed=i, max_new_tokens=60, id=i)
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.8, "filters": Filters(None, 0.95)},
     {"temperature": 0.8, "filters": Filters(8, 0.95)}, {"temperature": 1.3}],
)  # fmt: skip
def test_the_same_tokens_probabilities_and_ends(
    nano: Loaded, batch_size: int, options: dict[str, Any]
) -> None:
    plain, ours = both(nano, problems(nano, 1), batch_size, **options)
    expected, found = finished(plain), finished(ours)
    assert found.keys() == expected.keys()
    for name, end in expected.items():
        other = found[name]
        assert (other.ids, other.text, other.stop_reason) == (end.ids, end.text, end.stop_reason)
        assert other.cache.lengths == end.cache.lengths
        assert other.passes <= end.passes + other.denoising_steps

    def tokens(events: Sequence[Event]) -> dict[Any, tuple[int, float, float]]:
        return {
            (event.request, event.index): (event.token, event.probability, event.entropy)
            for event in events
            if isinstance(event, TokenEvent)
        }

    assert tokens(ours) == tokens(plain)  # bit for bit: C's numbers depend on nothing beside them


@pytest.mark.slow
@pytest.mark.parametrize("draft", [FixedDraft(), FixedDraft(positions=2), FixedDraft(steps=2),
                                   AdaptiveDraft(), PayingDraft(), FixedDraft(least_probability=0.5)])  # fmt: skip
def test_what_is_drafted_changes_no_text(nano: Loaded, draft: Any) -> None:
    plain, ours = both(nano, problems(nano, 1), 4, draft)
    assert {n: e.ids for n, e in finished(ours).items()} == {
        n: e.ids for n, e in finished(plain).items()
    }


@pytest.mark.slow
def test_drafts_save_passes(nano: Loaded) -> None:
    plain, ours = both(nano, problems(nano, 1), 1, FixedDraft())
    passes = [sum(end.passes for end in finished(events).values()) for events in (plain, ours)]
    assert passes[1] < passes[0] / 2


def test_one_pass_verifies_a_draft_and_drafts_the_next() -> None:
    """A model that is always sure: the prompt's pass drafts, and each pass behind it verifies what was drafted and
    drafts on, until a draft holds the end."""
    script = [*range(40, 60), 1]
    loaded = tiny.loaded(tiny.Scripted(script, prompt=3))
    events = list(
        decode_speculative(
            loaded.model, [Request((2, 3, 4))], draft=FixedDraft(positions=8), eos=(1,)
        )
    )
    (end,) = finished(events).values()
    assert end.ids == tuple(script) and end.stop_reason == "eos"
    rounds = [event for event in events if isinstance(event, DraftEvent)]
    assert [(r.start, len(r.tokens), r.verified, r.accepted) for r in rounds] == [
        (0, 8, 8, 7),
        (8, 8, 8, 7),
        (16, 8, 4, 3),
    ]
    assert end.passes == 1 + len(rounds) == 4
    assert end.denoising_steps == len(rounds), "nothing is drafted behind an end"


def test_a_canvas_that_begins_with_another_token_is_given_up() -> None:
    """The causal mode's choice and the canvas's first token are made in one pass; a second step would repair it."""

    class Disagreeing(tiny.Scripted):
        def _sure(self, start: int, count: int) -> torch.Tensor:
            shift = 1 if count == 8 else 0  # of canvases alone: they tell the token behind
            return super()._sure(start + shift, count)

    model = Disagreeing(list(range(40, 60)), prompt=3)
    request = Request((2, 3, 4), max_new_tokens=6)
    events = list(decode_speculative(model, [request], draft=FixedDraft(positions=8), eos=()))  # type: ignore[arg-type]
    (end,) = finished(events).values()
    assert end.ids == tuple(range(40, 46)) and end.passes == 6
    rounds = [event for event in events if isinstance(event, DraftEvent)]
    assert rounds and all((r.verified, r.accepted) == (1, 0) for r in rounds)


@pytest.mark.slow
def test_a_doubtful_draft_has_none_behind_it(nano: Loaded) -> None:
    """`ahead`: only behind what is likely accepted whole is the next one drafted in the same pass."""
    asked = problems(nano, 1)[:6]
    certain = both(nano, asked, 1, FixedDraft(positions=6, ahead=0.999999))[1]
    always = both(nano, asked, 1, FixedDraft(positions=6))[1]
    ends = [finished(events) for events in (certain, always)]
    assert [e.ids for e in ends[0].values()] == [e.ids for e in ends[1].values()]
    steps = [sum(end.denoising_steps for end in of_one.values()) for of_one in ends]
    passes = [sum(end.passes for end in of_one.values()) for of_one in ends]
    assert steps[0] < steps[1] and passes[0] > passes[1]
    with pytest.raises(RequestError, match="ahead must lie in"):
        FixedDraft(ahead=1.0)


@pytest.mark.slow
def test_an_adapter_of_the_denoiser_changes_drafts_and_no_text() -> None:
    """Modes that an adapter parts share a pass, each with layers of its own."""
    loaded = load("nano", device="cpu", dtype="float32")
    model = loaded.model
    model.causal_layers = copy.deepcopy(model.layers)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight.mul_(-1)
    model.use("cpu")
    asked = problems(loaded, 1)[:6]
    plain, ours = both(loaded, asked, 3, FixedDraft(positions=8))
    assert {n: e.ids for n, e in finished(ours).items()} == {
        n: e.ids for n, e in finished(plain).items()
    }
    _, better = both(load("nano", device="cpu", dtype="float32"), asked, 3, FixedDraft(positions=8))
    passes = [sum(end.passes for end in finished(events).values()) for events in (ours, better)]
    assert passes[0] > passes[1], "these drafts are worse"


def test_a_round_tells_what_was_drafted_and_kept(nano: Loaded) -> None:
    _, ours = both(nano, problems(nano, 1)[:3], 1, FixedDraft(positions=12))
    answers = {name: end.ids for name, end in finished(ours).items()}
    rounds = [event for event in ours if isinstance(event, DraftEvent)]
    assert rounds and any(event.accepted for event in rounds)
    for event in rounds:
        answer = answers[event.request]
        kept = event.tokens[: event.accepted + 1]
        assert answer[event.start : event.start + len(kept)] == kept
        after = event.start + len(kept)
        assert after == len(answer) or answer[after] == event.replacement
        assert event.accepted < event.verified <= len(event.tokens) == len(event.probability)
        if event.accepted + 1 < event.verified:
            assert event.tokens[event.accepted + 1] != event.replacement


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_token_limits_and_stop_strings(nano: Loaded, limit: int) -> None:
    requests = [
        Request(r.ids, r.seed, limit, stop=(" ",) if i % 2 else (), id=i)
        for i, r in enumerate(problems(nano, 1))
    ]
    plain, ours = both(nano, requests, 5)
    for name, end in finished(plain).items():
        other = finished(ours)[name]
        assert (other.ids, other.text, other.stop_reason) == (end.ids, end.text, end.stop_reason)


@pytest.mark.parametrize("chance", [{}, {"temperature": 0.8, "filters": Filters(8, 0.95)}])
def test_every_state_can_be_continued_in_both_modes(nano: Loaded, chance: dict[str, Any]) -> None:
    """Also while the run that it came from goes on behind it."""
    request = problems(nano, 1)[2]
    options: dict[str, Any] = {"eos": nano.generation.eos_token_ids, **chance}
    whole: list[int] = []
    for event in decode_speculative(nano.model, [request], draft=FixedDraft(), **options):
        if isinstance(event, FinishEvent):
            whole = list(event.ids)
        if isinstance(event, TokenEvent) and event.index % 3 == 0:
            resumed = Request(request.ids, max_new_tokens=60, state=event.state)
            for loop in (decode_tokens, decode_speculative):
                (end,) = finished(list(loop(nano.model, [resumed], **options))).values()
                plain = finished(list(decode_tokens(nano.model, [request], **options)))
                assert end.ids == next(iter(plain.values())).ids
    assert whole


def test_an_end_inside_a_draft(nano: Loaded) -> None:
    """The text stops there, whatever was drafted behind; one that the causal mode does not choose is replaced."""
    request = problems(nano, 1)[0]
    (whole,) = finished(list(decode_tokens(nano.model, [request], eos=()))).values()
    end = whole.ids[6]
    plain, ours = both(nano, [request], draft=FixedDraft(), eos=(end,))
    (expected,), (found,) = finished(plain).values(), finished(ours).values()
    assert (found.ids, found.stop_reason) == (expected.ids, "eos") and found.ids[-1] == end
    drafts = [event for event in ours if isinstance(event, DraftEvent)]
    assert all(end not in draft.tokens[1 : draft.verified] for draft in drafts)


def test_ends_that_are_drafted_wrongly(model: DiffusionGemma) -> None:
    """Random weights draft ends at random, and most of them are none of the causal mode's."""
    eos = tuple(range(0, model.config.text.vocab_size, 5))
    requests = [Request((1 + i, 2, 3), seed=i, max_new_tokens=24, id=i) for i in range(12)]
    options: dict[str, Any] = {"temperature": 1.0, "eos": eos}
    plain = finished(list(decode_tokens(model, requests, **options)))
    events = list(decode_speculative(model, requests, batch_size=3, **options))
    assert {n: (e.ids, e.stop_reason) for n, e in finished(events).items()} == {
        n: (e.ids, e.stop_reason) for n, e in plain.items()
    }
    cut_short = [e for e in events if isinstance(e, DraftEvent) and e.verified < len(e.tokens)]
    assert any(draft.tokens[draft.verified] in eos for draft in cut_short)
    assert any(end.stop_reason == "eos" and len(end.ids) > 1 for end in plain.values())
    assert any(draft.replacement not in eos for draft in cut_short), "a wrong end is replaced"


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_weights_on_the_reference(model: DiffusionGemma, temperature: float) -> None:
    """Plain torch sums in another order over more tokens, so a near-tie may fall otherwise; it is shown to be one."""
    requests = [Request((1 + i, 2, 3), seed=i, max_new_tokens=24, id=i) for i in range(12)]
    options = {"temperature": temperature, "eos": (0,)}
    plain = list(decode_tokens(model, requests, **options))
    ours = finished(list(decode_speculative(model, requests, batch_size=5, **options)))
    chosen = {
        (event.request, event.index): event for event in plain if isinstance(event, TokenEvent)
    }
    same = 0
    for name, end in finished(plain).items():
        differ = [
            i
            for i, pair in enumerate(zip(end.ids, ours[name].ids, strict=False))
            if len({*pair}) > 1
        ]
        if not differ:
            same += end.ids == ours[name].ids
            continue
        state = chosen[name, differ[0]].state
        logits = model.logits(state.hidden)
        pair = logits[[end.ids[differ[0]], ours[name].ids[differ[0]]]]
        assert temperature > 0 or abs(float(pair[0] - pair[1])) < 1e-4
    assert same >= 11


def test_generate_and_settings(nano: Loaded) -> None:
    prompts = ["Spell backward:\nSTEP", "Sort ascending: 30 10 20"]
    plain = generate(nano, prompts, mode="autoregressive")
    ours = generate(nano, prompts, mode="speculative", draft="fixed", draft_positions=8)
    assert [g.ids for g in ours] == [g.ids for g in plain]
    assert all(
        g.token_probabilities == p.token_probabilities for g, p in zip(ours, plain, strict=True)
    )
    assert all(g.denoising_steps > 0 and g.canvases > 0 for g in ours)


@pytest.mark.parametrize(("temperature", "thinking"), [(None, False), (0.9, True)])
def test_a_chat_says_the_same_in_both_modes(
    nano: Loaded, temperature: float | None, thinking: bool
) -> None:
    """Nothing ends a turn but the limit and a stop string, so that each turn has rounds."""
    nano = replace(nano, generation=replace(nano.generation, eos_token_ids=()))
    said = []
    for settings in (
        AutoregressiveSettings(temperature=temperature, max_new_tokens=40),
        SpeculativeSettings(temperature=temperature, max_new_tokens=40),
    ):
        chat = Chat(nano, settings, system="Be brief.", thinking=thinking)
        turns = []
        for turn, message in enumerate(
            ("Sort ascending: 30 10 20", "Spell backward:\nSTEP", "Again")
        ):
            answer = chat.say(message, seed=turn, stop="zz" if turn else "30")
            turns.append(
                (
                    answer.ids,
                    answer.text,
                    answer.thought,
                    answer.stop_reason,
                    chat.cache and chat.cache.lengths,
                )
            )
            assert (len(answer.accepted) > 0) == (chat.settings.mode == "speculative")
        said.append((turns, chat.ids))
    assert said[0] == said[1]


def test_refusals(model: DiffusionGemma) -> None:
    with pytest.raises(RequestError, match="pins have no meaning"):
        list(decode_speculative(model, [Request((1, 2), pins={0: 3})]))
    gemma = tiny.model(can_denoise=False, model_type="gemma4_text")
    with pytest.raises(RequestError, match="has no denoiser"):
        decode_speculative(gemma, [Request((1, 2))])
    with pytest.raises(RequestError, match="draft must be a rule"):
        decode_speculative(model, [Request((1, 2))], draft="adaptive")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="draws must be where numbers come from"):
        decode_speculative(model, [Request((1, 2))], draws=[0.5])  # type: ignore[arg-type]
    for options, words in (
        ({"draft": "clever"}, "choose fixed, adaptive or paying"),
        ({"draft": "adaptive", "draft_positions": 4}, "belongs to draft='fixed'"),
        ({"draft": FixedDraft(), "draft_steps": 2}, "give the rule its steps"),
        ({"draft_positions": 1, "draft": "fixed"}, "at least 2"),
    ):
        with pytest.raises(RequestError, match=words):
            SpeculativeSettings(**options)
    with pytest.raises(RequestError, match="least_probability"):
        FixedDraft(least_probability=1.0)


def test_the_adaptive_rule_follows_what_was_accepted() -> None:
    rule = AdaptiveDraft(first=10, least=4, margin=3, memory=2)
    assert rule.plan([], 32) == DraftPlan(10, 1, ahead=rule.ahead)
    assert rule.plan([0], 32) == DraftPlan(4, 1, ahead=rule.ahead)
    assert rule.plan([9, 2, 5], 32) == DraftPlan(8, 1, ahead=rule.ahead)
    assert rule.plan([40], 32) == DraftPlan(32, 1, ahead=rule.ahead)


def test_the_paying_rule_drafts_more_where_passes_cost_more_and_where_more_is_accepted() -> None:
    """By hand: with q = 1/2 and passes that cost 1, 2 positions bring 1.5 / 3, 3 bring 1.75 / 4."""
    assert PayingDraft(pass_tokens=1, expected=1).plan([], 32) == DraftPlan(2, 1, ahead=0.5)
    drafted = [PayingDraft(pass_tokens=cost).plan([6], 256).positions for cost in (2, 16, 200, 1e6)]
    assert drafted == sorted(set(drafted))
    assert PayingDraft(pass_tokens=1e6).plan([200] * 4, 256).positions == 256
    hopeful = [PayingDraft().plan([n] * 4, 64).positions for n in (0, 2, 8, 30)]
    assert hopeful == sorted(set(hopeful))
    assert PayingDraft(memory=1).plan([30, 0], 64) == PayingDraft(memory=1).plan([0], 64)
    for refused in ({"pass_tokens": float("nan")}, {"expected": -1}, {"memory": 0}, {"steps": 0}):
        with pytest.raises(RequestError):
            PayingDraft(**refused)


def test_what_a_pass_costs_follows_from_the_model_and_its_device(nano: Loaded) -> None:
    large = DiffusionGemma(CONFIGS[DIFFUSION_26B], device="meta", dtype=torch.bfloat16)
    assert pass_tokens(large) > 500 > 50 > pass_tokens(nano.model) > 2
    rule = SpeculativeSettings(draft="paying").resolved(nano).draft
    assert isinstance(rule, PayingDraft) and rule.pass_tokens == pass_tokens(nano.model)
    mine = PayingDraft(pass_tokens=3)
    assert SpeculativeSettings(draft=mine).resolved(nano).draft == mine


def test_rows_at_unlike_places_near_the_end_of_the_models_positions(model: DiffusionGemma) -> None:
    """A second denoising step goes over canvases of one length, which every row must have the positions for."""
    limit = model.config.text.max_position_embeddings
    requests = [Request((2,) * (limit - 5), max_new_tokens=5), Request((3, 4), max_new_tokens=20)]
    plain = finished(list(decode_tokens(model, requests, eos=())))
    rule = FixedDraft(steps=2)
    ours = finished(list(decode_speculative(model, requests, draft=rule, batch_size=2, eos=())))
    assert {n: end.ids for n, end in ours.items()} == {n: end.ids for n, end in plain.items()}


def test_a_draft_at_the_end_of_the_models_positions(model: DiffusionGemma) -> None:
    limit = model.config.text.max_position_embeddings
    ids = tuple(
        torch.randint(1, 40, (limit - 6,), generator=torch.Generator().manual_seed(0)).tolist()
    )
    request = Request(ids, max_new_tokens=6)
    (plain,) = finished(list(decode_tokens(model, [request], eos=()))).values()
    (ours,) = finished(list(decode_speculative(model, [request], eos=()))).values()
    assert len(plain.ids) == len(ours.ids) == 6
