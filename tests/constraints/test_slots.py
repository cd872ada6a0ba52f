"""Forms, their automata and their posteriors, against enumeration of all assignments."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.special import logsumexp

from dgemma_core.constraints.automaton import NOWHERE
from dgemma_core.constraints.form import Form, Part, form, form_of_tokens
from dgemma_core.constraints.predicting import CanvasChain, Condition
from dgemma_core.constraints.slots import Reading, automaton, held
from dgemma_core.errors import RequestError
from tests.core import tiny

EOS, PAD, VOCAB = (0, 2), 1, 9


def drawn(seed: int) -> tuple[Form, int]:
    """A form of up to four parts over a few tokens, no two of whose assignments are the same text; canvas length."""
    rng = np.random.default_rng(seed)
    while True:
        parts, choices = [], []
        for _ in range(rng.integers(1, 5)):
            count = int(rng.integers(1, 4))
            tokens = {
                tuple(int(t) for t in rng.integers(3, VOCAB, rng.integers(0, 4)))
                for _ in range(count)
            }
            if len(tokens) == 1:
                parts.append(Part((), tuple(tokens), ((),)))
                continue
            decisions = tuple((i,) for i in range(len(tokens)))
            parts.append(Part((len(choices),), tuple(sorted(tokens)), decisions))
            choices.append(tuple(map(str, range(len(tokens)))))
        names = tuple(f"s{i}" for i in range(len(choices)))
        found = Form(names, tuple(choices), ("",) * (len(choices) + 1), tuple(parts))
        texts = [found.tokens(own) for own in found.assignments()]
        if choices and len(set(texts)) == len(texts) and found.longest > 0:
            return found, found.longest + int(rng.integers(0, 3))


def enumerated(found: Form, logp: np.ndarray, pins: dict[int, int]) -> dict[tuple[int, ...], float]:
    """Log-weights of all assignments, position by position."""
    logs = logp.copy()
    end, behind = logsumexp(logs[:, EOS], axis=1), logsumexp(logs[:, [*EOS, PAD]], axis=1)
    weights = {}
    for own in found.assignments():
        total = 0.0
        tokens = found.tokens(own)
        for i in range(len(logs)):
            if i in pins:
                continue
            if i < len(tokens):
                total += logs[i, tokens[i]]
            else:
                total += end[i] if i == len(tokens) else behind[i]
        weights[own] = total
    return weights


def reading(found: Form, logp: np.ndarray, pins: dict[int, int]) -> Reading:
    end, behind = logsumexp(logp[:, EOS], axis=1), logsumexp(logp[:, [*EOS, PAD]], axis=1)
    return Reading(found.parts, {t: t for t in range(VOCAB)}, logp, end, behind, pins)


@pytest.mark.parametrize("seed", range(200))
def test_the_posterior_is_that_of_enumeration(seed: int) -> None:
    """Marginals, all joint probabilities and their order, and the mass, with and without pins."""
    found, length = drawn(seed)
    rng = np.random.default_rng(1000 + seed)
    logits = rng.normal(0, rng.choice([0.3, 3.0]), (length, VOCAB))
    logp = logits - logsumexp(logits, axis=1, keepdims=True)
    pins = held(found.parts, length, EOS[1]) if seed % 2 else {}
    weights = enumerated(found, logp, pins)
    total = logsumexp(list(weights.values()))
    read = reading(found, logp, pins)
    assert read.log_mass == pytest.approx(total, abs=1e-9)
    for part, marginal in zip(found.parts, read.marginals(), strict=True):
        assert marginal.sum() == pytest.approx(1)
        for own, probability in zip(part.decisions, marginal, strict=True):
            wanted = [
                weight
                for decisions, weight in weights.items()
                if tuple(decisions[slot] for slot in part.slots) == own
            ]
            assert probability == pytest.approx(np.exp(logsumexp(wanted) - total), abs=1e-9)
    ranked = sorted(weights.values(), reverse=True)
    for count in (1, 3, len(ranked) + 1):
        best = [weight for weight, _ in read.best(count)]
        assert best == pytest.approx([w - total for w in ranked[:count]], abs=1e-9)


@pytest.mark.parametrize("seed", range(100))
def test_the_automaton_holds_the_texts_and_no_others(seed: int) -> None:
    found, _ = drawn(seed)
    machine = automaton(found.parts, VOCAB, EOS, PAD)
    texts = {found.tokens(own) for own in found.assignments()}
    for tokens in texts:
        state = machine.after(tokens)
        assert state != NOWHERE and machine.accepting[state]
    rng = np.random.default_rng(seed)
    for tokens in texts:
        for _ in range(10):
            changed = list(tokens)
            changed.insert(int(rng.integers(0, len(tokens) + 1)), int(rng.integers(3, VOCAB)))
            state = machine.after(changed)
            accepted = state != NOWHERE and bool(machine.accepting[state])
            assert accepted == (tuple(changed) in texts)


@pytest.mark.parametrize("seed", range(60))
def test_the_posterior_is_the_chains_over_the_automaton(seed: int) -> None:
    """The mass that the reading sums over parts is what the constraint's chain sums over states, pins included."""
    found, length = drawn(seed)
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.0, (length, VOCAB))
    logp = logits - logsumexp(logits, axis=1, keepdims=True)
    pins = held(found.parts, length, EOS[1])
    machine = automaton(found.parts, VOCAB, EOS, PAD)
    mass = np.full((length, machine.class_count), -np.inf)
    for token, kind in enumerate(machine.classes):
        mass[:, kind] = np.logaddexp(mass[:, kind], logp[:, token])
    chain = CanvasChain(Condition(machine, machine.start, length, pins), mass)
    read = reading(found, logp, pins)
    assert chain.chain.log_probability == pytest.approx(read.log_mass, abs=1e-9)


# --- from a template's text


def test_a_form_spells_every_assignment_as_the_tokenizer_does() -> None:
    tokenizer = tiny.tokenizer()
    slots = {
        "who": ["Ann", "Bob", "Christopher"],
        "verb": ["is", " was", ""],
        "age": ["3", "14", "150"],
        "sure": ["yes"],
    }
    found = form('{"{who}{verb} {age}": {sure}} \\{age}', slots, tokenizer)
    assert found.count == 27 and found.names == ("who", "verb", "age", "sure")
    for own in found.assignments():
        text = found.text(own)
        assert list(found.tokens(own)) == tokenizer.encode(text)
        assert tokenizer.decode(found.tokens(own)) == text
    assert found.text((0, 1, 1, 0)) == '{"Ann was 14": yes} {age}'
    assert found.longest == max(len(found.tokens(own)) for own in found.assignments())


def test_slots_without_text_between_them_are_decided_together() -> None:
    tokenizer = tiny.tokenizer()
    slots = {"a": ["he", "s"], "b": ["llo", "he", "t"]}
    found = form("{a}{b}", slots, tokenizer)
    for own in product(range(2), range(3)):
        assert list(found.tokens(own)) == tokenizer.encode(found.text(own))


def test_positions_that_all_texts_share_are_held() -> None:
    parts = [
        Part((), ((3, 4),), ((),)),
        Part((0,), ((5,), (6,)), ((0,), (1,))),
        Part((), ((7,),), ((),)),
    ]
    assert held(parts, 6, 0) == {0: 3, 1: 4, 3: 7, 4: 0, 5: 0}
    parts[1] = Part((0,), ((5,), (6, 8)), ((0,), (1,)))  # what is behind moves
    assert held(parts, 6, 0) == {0: 3, 1: 4, 5: 0}


@pytest.mark.parametrize(
    ("template", "slots", "message"),
    [
        ("{a}", {}, "slot a has no choices"),
        ("{a}", {"a": []}, "at least one text"),
        ("{a}", {"a": "xy"}, "at least one text"),
        ("{a}", {"a": ["x", "y"], "b": ["x"]}, "unknown slot b: the template has a"),
        ("nothing", {"b": ["x", "y"]}, "unknown slot b: the template has no slots"),
        ("{a}", {"a": ["x", "y", "x"]}, "slot a: the choice 'x' is there twice"),
        ("{a} {a}", {"a": ["x", "y"]}, "stands twice"),
        ("{a}", {"a": ["x"]}, "nothing to decide"),
        ("{a}", {"a": ["x", "<turn|>"]}, "cannot spell"),
        ("{a}{b}", {"a": ["x", "xy"], "b": ["yz", "z"]}, "make the same text"),
        (3, {"a": ["x"]}, "a template must be a text"),
        ("{a}", [("a", "x")], "slots must map names"),
    ],
)
def test_what_cannot_be_a_form_is_one_line(template: object, slots: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        found = form(template, slots, tiny.tokenizer())  # type: ignore[arg-type]
        automaton(found.parts, tiny.tokenizer().vocab_size, (1, 5), 0)
    assert "\n" not in str(caught.value)


def test_choices_given_as_tokens_differ() -> None:
    with pytest.raises(RequestError, match="different texts"):
        form_of_tokens("choice", ["a", "b"], [[3], [3]])
