"""Decisions read from slots: their passes, their layout, and what the causal mode says beside them."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import dgemma_core as dg
from dgemma_core import RequestError
from dgemma_core.constraints.form import form, form_of_tokens
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import decide as _exported
from dgemma_core.generation.decide import Question, decisions, end_token
from dgemma_core.generation.likelihood import causal_logprobs
from tests.core import tiny

PROMPT = (7, 8, 9)
SLOTS = {"a": ["yes", "no", "never"], "b": ["1", "22"]}
TEMPLATE = "{a}: {b}."


deciding = importlib.import_module(
    "dgemma_core.generation.decide"
)  # the package has a function of that name


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Random weights over nano's vocabulary; canvases of 8."""
    return tiny.loaded()


@pytest.fixture(scope="module")
def wide() -> Loaded:
    """Likewise, canvases of 24."""
    return tiny.loaded(tiny.model(0, vocab_size=tiny.tokenizer().vocab_size, canvas_length=24))


def question(template: str, slots: dict[str, list[str]], seed: int = 0) -> Question:
    return Question(PROMPT, form(template, slots, tiny.tokenizer()), seed)


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_is_what_enumeration_of_all_assignments_says(wide: Loaded, seed: int) -> None:
    """Each canvas is laid out here by hand: the template and its end, and noise in the slots of that length."""
    asked = form(TEMPLATE, SLOTS, tiny.tokenizer())
    texts = {own: asked.tokens(own) for own in asked.assignments()}
    end = end_token(wide)
    weights, layouts = {}, set()
    for own, tokens in texts.items():
        canvas = CounterDraws().first_canvas([RowKey(seed, 0)], 24, 1024, torch.device("cpu"))
        free, at = [], 0
        for part in asked.parts:
            chosen = tuple(own[slot] for slot in part.slots)
            count = len(part.alternatives[part.decisions.index(chosen)])
            free += range(at, at + count) if part.slots else []
            at += count
        layouts.add(tuple(free))
        for i, token in enumerate((*tokens, *[end] * (24 - len(tokens)))):
            if i not in free:
                canvas[0, i] = token
        hidden = wide.model.denoise(canvas, wide.model.encode([PROMPT]))
        logp = wide.model.logits(hidden)[0].double().log_softmax(-1).numpy()
        weights[own] = sum(logp[i, tokens[i]] for i in free)
    total = logsumexp(list(weights.values()))
    (found,) = decisions(wide, [Question(PROMPT, asked, seed)], top=99)
    assert found.assignments == len(found.top) == 6 and found.denoising_steps == len(layouts) > 1
    for slot, (name, choices) in enumerate(zip(asked.names, asked.choices, strict=True)):
        assert math.fsum(found.slots[name].values()) == pytest.approx(1)
        for i, choice in enumerate(choices):
            wanted = [weight for own, weight in weights.items() if own[slot] == i]
            assert found.slots[name][choice] == pytest.approx(
                np.exp(logsumexp(wanted) - total), abs=1e-5
            )
    ranked = sorted(weights, key=lambda own: -weights[own])
    for assignment, own in zip(found.top, ranked, strict=True):
        assert assignment.probability == pytest.approx(math.exp(weights[own] - total), abs=1e-5)
        assert assignment.text == asked.text(own)
    assert found.top[0].choices == {
        name: choices[i]
        for name, choices, i in zip(asked.names, asked.choices, ranked[0], strict=True)
    }


@pytest.mark.parametrize("passes", [1, 3])
def test_the_order_of_slots_and_choices_is_no_matter(wide: Loaded, passes: int) -> None:
    one = dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, passes=passes)
    turned = {name: SLOTS[name][::-1] for name in reversed(SLOTS)}
    other = dg.decide(wide, TEMPLATE, turned, prompt=PROMPT, passes=passes)
    for name, shares in one.slots.items():
        for choice, probability in shares.items():
            assert other.slots[name][choice] == pytest.approx(probability, abs=1e-6)
    assert other.top[0].text == one.top[0].text


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 3])
def test_a_decision_does_not_depend_on_its_batch(wide: Loaded, passes: int) -> None:
    asked = [
        question(TEMPLATE, SLOTS, 3),
        question("{x}", {"x": ["up", "down", "left and right"]}, 4),
        question("It is {y} {z}, all of it", {"y": ["so", "not"], "z": ["a", "b"]}, 5),
    ]
    alone = [decisions(wide, [each], passes=passes, top=3)[0] for each in asked]
    for size in (1, 2, 3):
        together = decisions(wide, asked, passes=passes, top=3, batch_size=size)
        for one, other in zip(together, alone, strict=True):
            for name, shares in one.slots.items():
                assert list(shares.values()) == pytest.approx(
                    list(other.slots[name].values()), abs=1e-5
                )
            assert [each.text for each in one.top] == [each.text for each in other.top]


def test_seeds_repeat(wide: Loaded) -> None:
    found = [dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0].slots != found[2].slots


def test_beside_it_stands_the_exact_causal_likelihood(wide: Loaded) -> None:
    found = dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, top=6)
    asked = form(TEMPLATE, SLOTS, tiny.tokenizer())
    rows = [(PROMPT, (*asked.tokens(own), end_token(wide))) for own in asked.assignments()]
    totals = [row.total for row in causal_logprobs(wide.model, rows)]
    by_text = {asked.text(own): t for own, t in zip(asked.assignments(), totals, strict=True)}
    mass = logsumexp(totals)
    for assignment in found.top:
        wanted = by_text[assignment.text]
        assert assignment.causal_logprob == pytest.approx(wanted, abs=1e-4)
        assert assignment.causal_probability == pytest.approx(math.exp(wanted - mass), abs=1e-4)
    assert found.causal is not None
    for name in SLOTS:
        assert math.fsum(found.causal[name].values()) == pytest.approx(1)
    few = dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, top=2, causal=2)
    assert few.causal is None and few.top[1].causal_logprob == found.top[1].causal_logprob
    none = dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, causal=0)
    assert none.top[0].causal_logprob is None


def test_a_long_template_is_encoded_up_to_the_slots_canvas(loaded: Loaded) -> None:
    """Its whole canvases before the first slot are as good as a part of the prompt."""
    tokenizer = tiny.tokenizer()
    long = "one two three four five six seven"
    asked = form(f"{long} {{x}}", {"x": ["a", "b"]}, tokenizer)
    (head, body, *_), whole = asked.parts, len(asked.parts[0].alternatives[0]) // 8 * 8
    assert whole > 0 and body.slots == (0,)
    (one,) = decisions(loaded, [Question(PROMPT, asked)])
    tokens = head.alternatives[0]
    short = replace(asked, parts=(replace(head, alternatives=(tokens[whole:],)), body))
    (other,) = decisions(loaded, [Question((*PROMPT, *tokens[:whole]), short)])
    assert one.slots == other.slots


def test_texts_longer_than_a_canvas_are_scored_canvas_by_canvas(loaded: Loaded) -> None:
    """By hand: the first canvas for all, the second for each text behind its own beginning."""
    rng = np.random.default_rng(0)
    texts = [tuple(int(t) for t in rng.integers(50, 900, n)) for n in (3, 8, 12)]
    texts.append((*texts[2][:8], *texts[0]))
    asked = form_of_tokens("x", ["p", "q", "r", "s"], texts)
    (found,) = decisions(loaded, [Question(PROMPT, asked, 5)], top=4)

    def canvas(ids: tuple[int, ...], seed: int, count: int) -> np.ndarray:
        noise = CounterDraws().first_canvas([RowKey(seed, 0)], 8, 1024, torch.device("cpu"))
        noise[0, count:] = end_token(loaded)
        hidden = loaded.model.denoise(noise, loaded.model.encode([ids]))
        return loaded.model.logits(hidden)[0].double().log_softmax(-1).numpy()

    weights = []
    for text in texts:
        total = 0.0
        for begin in range(0, len(text), 8):
            part = text[begin : begin + 8]
            logp = canvas((*PROMPT, *text[:begin]), 5 + begin, len(part))
            total += sum(logp[i, token] for i, token in enumerate(part))
        weights.append(total)
    shares = np.exp(np.array(weights) - logsumexp(weights))
    assert list(found.slots["x"].values()) == pytest.approx(shares, abs=1e-5)
    # "p" alone; a whole canvas for the others; behind it one of four tokens for "r", one of three for "s"
    assert found.denoising_steps == 4


def test_too_many_layouts_share_a_canvas(wide: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: pinned is what all texts share, and the tail counts, too."""
    monkeypatch.setattr(deciding, "LAYOUTS", 1)
    asked = form(TEMPLATE, SLOTS, tiny.tokenizer())
    texts, end = [asked.tokens(own) for own in asked.assignments()], end_token(wide)
    eos, longest = list(wide.generation.eos_token_ids), max(map(len, texts))
    canvas = CounterDraws().first_canvas([RowKey(0, 0)], 24, 1024, torch.device("cpu"))
    filled = [(*tokens, *[end] * (24 - len(tokens))) for tokens in texts]
    shared = {i for i in range(24) if len({text[i] for text in filled}) == 1}
    for i in shared:
        canvas[0, i] = filled[0][i]
    hidden = wide.model.denoise(canvas, wide.model.encode([PROMPT]))
    logp = wide.model.logits(hidden)[0].double().log_softmax(-1).numpy()
    weights = []
    for tokens in texts:
        total = 0.0
        for i in set(range(longest)) - shared:
            if i < len(tokens):
                total += logp[i, tokens[i]]
            else:
                total += logsumexp(logp[i, eos if i == len(tokens) else [*eos, 0]])
        weights.append(total)
    (found,) = decisions(wide, [Question(PROMPT, asked)], top=6)
    shares = np.exp(np.array(weights) - logsumexp(weights))
    assert [each.probability for each in found.top] == pytest.approx(sorted(shares)[::-1], abs=1e-5)
    assert found.denoising_steps == 1


def test_more_passes_condition_on_the_language(wide: Loaded) -> None:
    wanted = dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT).denoising_steps
    for seed in range(3):
        found = dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, passes=4, seed=seed, top=6)
        assert found.denoising_steps == 4 * wanted
        assert math.fsum(each.probability for each in found.top) == pytest.approx(1)
        joint = math.fsum(each.probability for each in found.top if each.choices["a"] == "no")
        assert joint == pytest.approx(found.slots["a"]["no"], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes must be at least 1"),
        ({"top": 0}, "top must be at least 1"),
        ({"causal": -1}, "causal must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_options_are_checked(wide: Loaded, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        dg.decide(wide, TEMPLATE, SLOTS, prompt=PROMPT, **options)


def test_what_cannot_be_decided_is_one_line_before_any_pass(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(loaded.model), "encode", lambda *_: pytest.fail("a pass was made"))
    ten = [str(i) for i in range(100, 110)]
    with pytest.raises(RequestError, match=r"more than the canvas of 8, and there are 1000"):
        dg.decide(loaded, "{a} {b} {c}", {"a": ten, "b": ten, "c": ten}, prompt=PROMPT)
    causal = tiny.loaded(tiny.model(0, vocab_size=tiny.tokenizer().vocab_size, can_denoise=False))
    with pytest.raises(RequestError, match="has no denoiser, so it cannot fill slots"):
        dg.decide(causal, TEMPLATE, SLOTS, prompt=PROMPT)
    with pytest.raises(RequestError, match="has no tokenizer"):
        dg.decide(replace(loaded, tokenizer=None), TEMPLATE, SLOTS, prompt=PROMPT)


def test_it_is_public() -> None:
    assert dg.decide is _exported
