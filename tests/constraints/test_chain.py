"""The posterior of a constrained canvas against the enumeration of all canvases."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dgemma_core.constraints.predicting import CanvasChain, Conditions
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.head import Prediction, VocabularyHead
from tests.constraints import toys
from tests.constraints.toys import ENDED, EOS, PAD, Toy

CASES = [(seed, pinned) for seed in range(120) for pinned in (False, True)]


class Uniform:
    def __init__(self, uniform: torch.Tensor) -> None:
        self.uniform = uniform


def predicted(toy: Toy, temperature: float = 1.0, **options: object) -> Prediction:
    hidden = toys.hidden(toy.logits).unsqueeze(0)
    head = VocabularyHead(torch.eye(hidden.shape[-1]), 30.0)
    draws = Uniform(torch.rand(hidden.shape[:2], dtype=torch.float64)) if temperature else None
    return head.predict(
        hidden, temperature, draws, conditions=Conditions([toy.condition]), **options
    )  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(8))
def test_posterior_equals_the_enumeration(chunk: int) -> None:
    """Exact marginals, the most probable text, and what is restricted to the tokens that the language holds."""
    for seed, pinned in CASES[chunk::8]:
        toy = toys.drawn(seed, pinned)
        length, vocab = toy.logits.shape
        found = list(toy.canvases())
        total = math.fsum(mass for _, _, mass in found)
        marginal = np.zeros((length, vocab))
        texts: Counter[tuple[int | str, ...]] = Counter()
        for canvas, text, mass in found:
            texts[text] += mass / total
            for place in range(length):
                marginal[place, canvas[place]] += mass / total
        prediction = predicted(toy, 0.0)
        free = [place for place in range(length) if place not in toy.pins]
        assert prediction.posterior is not None and prediction.head is not None
        row = prediction.posterior.rows[0]
        assert row is not None
        logits = prediction.head.logits(prediction.hidden[0]).double().numpy()
        exact = np.exp(logits + row.exact[:, row.classes])
        exact /= exact.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(exact[free], marginal[free], atol=2e-6)
        # all else is of the model's distributions, restricted to what the language holds there
        p = np.where(marginal > 0, toy.probabilities(), 0.0)
        inside = [place for place in free if place < toy.remaining]
        p[inside] /= p[inside].sum(axis=1, keepdims=True)
        posterior = prediction.rows(0, torch.arange(length)).softmax(dim=-1).numpy()
        np.testing.assert_allclose(posterior[inside], p[inside], atol=2e-6)
        assert prediction.soft_embedding is not None
        soft = prediction.soft_embedding[0].numpy() / vocab**0.5
        np.testing.assert_allclose(soft[inside], p[inside], atol=2e-6)
        # the most probable text; where several are, one of them
        argmax = prediction.argmax[0].tolist()
        told = [argmax[place] for place in free]
        chosen = max(
            (text for text in texts
             if told == [PAD if text[place] is ENDED else text[place] for place in free]),
            key=texts.__getitem__,
        )  # fmt: skip
        assert texts[chosen] == pytest.approx(max(texts.values()), rel=1e-4)
        for place in inside:
            symbol = chosen[place]
            likely = p[place, [EOS, PAD]].sum() if symbol is ENDED else p[place, symbol]
            assert float(prediction.argmax_probability[0, place]) == pytest.approx(likely, abs=1e-5)
            held = toy.probabilities()[place][marginal[place] > 0].sum()
            assert row.forbidden[place] == pytest.approx(1 - held, abs=1e-5)
            # the entropy of what is held, and of whether it is
            shares = (*p[place], held, 1 - held)
            entropy = -math.fsum(q * math.log(q) for q in shares if q > 1e-12)
            if all(text[place] is ENDED for text in texts):
                entropy = 0.0
            assert float(prediction.entropy[0, place]) == pytest.approx(entropy, abs=2e-5)
            # an unlikely token of the most probable text is no token yet
            token, doubt = (each[0, place] for each in prediction.settling)
            torn = -math.log(likely) > entropy + 1e-4
            assert int(token) == (-1 if torn else argmax[place])
            assert float(doubt) == pytest.approx(max(entropy, -math.log(likely)), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(4))
def test_joint_samples_have_the_posterior_distribution(chunk: int) -> None:
    """χ² of whole texts, pooled over the cases."""
    count, statistic, freedom = 250, 0.0, 0
    rng = np.random.default_rng(chunk)
    for seed, pinned in CASES[chunk::4]:
        toy = toys.drawn(seed, pinned)
        texts: Counter[tuple[int | str, ...]] = Counter()
        for _, text, mass in toy.canvases():
            texts[text] += mass
        total = sum(texts.values())
        automaton = toy.automaton
        mass = np.full((len(toy.logits), automaton.class_count), -np.inf)
        for place, p in enumerate(toy.probabilities()):
            for token, one in enumerate(p):
                mass[place, automaton.classes[token]] = np.logaddexp(
                    mass[place, automaton.classes[token]], math.log(one) if one else -np.inf
                )
        chain = CanvasChain(toy.condition, mass)
        assert chain.chain.log_probability == pytest.approx(math.log(total), abs=1e-9)
        by_class: Counter[tuple[int, ...]] = Counter()
        after = automaton.class_count
        for text, share in texts.items():
            by_class[
                tuple(after if token is ENDED else int(automaton.classes[token]) for token in text)
            ] += share / total
        drawn = Counter(
            tuple(map(int, chain.sample(numbers)[0])) for numbers in rng.random((count, len(mass)))
        )
        assert drawn.keys() <= by_class.keys()
        few = {text for text, share in by_class.items() if share * count < 5}
        cells = [
            (drawn[text], share * count) for text, share in by_class.items() if text not in few
        ]
        rest = sum(by_class[text] for text in few) * count
        if rest >= 5:
            cells.append((sum(drawn[text] for text in few), rest))
        if len(cells) > 1:
            statistic += sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
            freedom += len(cells) - 1
    assert freedom > 50
    assert abs(statistic - freedom) / math.sqrt(2 * freedom) < 4


@pytest.mark.slow
@pytest.mark.parametrize("joint", (False, True))
def test_tokens_of_samples_have_their_distribution(joint: bool) -> None:
    """χ² of tokens, those behind the end included, and their probabilities as told; raw and tempered. Of joint draws it
    is the posterior; else the model's own, restricted to what the language holds at each position."""
    toy = toys.drawn(7)
    length, vocab = toy.logits.shape
    count, temperature = 3000, 0.7
    condition = replace(toy.condition, joint=joint)
    tempered = Toy(toy.leads, toy.accepting, 0, toy.logits / temperature, toy.remaining)
    marginal = np.zeros((length, vocab))
    for canvas, _, mass in tempered.canvases():
        marginal[np.arange(length), canvas] += mass
    marginal /= marginal.sum(axis=1, keepdims=True)
    hidden = toys.hidden(toy.logits).expand(count, -1, -1)
    head = VocabularyHead(torch.eye(vocab), 30.0)
    draws = CounterDraws().step([RowKey(seed, 0) for seed in range(count)], [0] * count, length)
    for reference in ("raw", "tempered"):
        prediction = head.predict(
            hidden, temperature, draws, reference=reference, conditions=Conditions([condition] * count)
        )  # fmt: skip
        for place in range(length):
            seen = prediction.sample[:, place].bincount(minlength=vocab).numpy()
            own = np.where(marginal[place] > 0, tempered.probabilities()[place], 0.0)
            own /= own.sum()
            p = marginal[place] if joint else own
            assert seen[p == 0].sum() == 0
            told = prediction.sample_probability[:, place].numpy()
            np.testing.assert_allclose(told, own[prediction.sample[:, place].numpy()], atol=1e-5)
            wanted = p[p * count >= 5] * count
            statistic = ((seen[p * count >= 5] - wanted) ** 2 / wanted).sum()
            freedom = max(1, len(wanted) - 1)
            assert (statistic - freedom) / math.sqrt(2 * freedom) < 5


def test_improbable_long_texts_do_not_underflow() -> None:
    """A text of 300 given tokens, each of probability e^-40: e^-12000 is no float64, the posterior is exact yet."""
    length = 300
    leads = np.full((3, length + 1), -1)
    leads[2, :-1] = np.arange(1, length + 1)
    accepting = np.arange(length + 1) == length
    logits = np.zeros((length + 20, 3))
    logits[:, 2] = -25.0
    logits[:, 1] = 15.0
    toy = Toy(leads, accepting, 0, logits, length + 20)
    prediction = predicted(toy, 1.0)
    assert prediction.sample[0, :length].tolist() == [2] * length
    assert prediction.argmax[0].tolist() == [2] * length + [0] + [1] * 19
    assert prediction.sample_probability[0, :length].min() > 0.999
