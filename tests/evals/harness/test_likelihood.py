"""The denoiser's bound, on distributions small enough to enumerate."""

import itertools
import math

import pytest
import torch

from dgemma_core import RequestError
from dgemma_evals.harness.likelihood import canvas_bound, nelbo, nelbo_terms
from tests.core import tiny

SIZE, LENGTH = 4, 3


def small(**changes):
    return tiny.model(vocab_size=5, canvas_length=3, **changes)


# --- the bound, with the exact posterior of a joint distribution as its denoiser


@pytest.fixture(scope="module")
def joint():
    """A random distribution over SIZE ** LENGTH texts."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn([SIZE] * LENGTH, generator=generator, dtype=torch.float64)
    return (1.5 * weights).flatten().softmax(0).view([SIZE] * LENGTH)


def posterior(joint, noised, alpha):
    """(LENGTH, SIZE) log p(token | noised canvas, α), by enumeration."""
    likelihood = joint.clone()
    for place, seen in enumerate(noised.tolist()):
        factor = torch.full([SIZE], (1 - alpha) / SIZE, dtype=torch.float64)
        factor[seen] += alpha
        shape = [1] * LENGTH
        shape[place] = SIZE
        likelihood = likelihood * factor.view(shape)
    others = [tuple(set(range(LENGTH)) - {place}) for place in range(LENGTH)]
    return torch.stack([likelihood.sum(dim=other) for other in others]).log()


def expected_bound(joint, levels=12, leave_one_out=True):
    """E over texts, noise and midpoints of u of the bound, all noised canvases enumerated."""
    texts = torch.tensor(list(itertools.product(range(SIZE), repeat=LENGTH)))  # (T, LENGTH)
    total = 0.0
    for u in (torch.arange(levels, dtype=torch.float64) + 0.5) / levels:
        alpha = float(1 - u**2)
        for noised in texts:
            logits = posterior(joint, noised, alpha)
            if not leave_one_out:  # undoes the correction that nelbo_terms makes
                extra = math.log1p(SIZE * alpha / (1 - alpha))
                logits[torch.arange(LENGTH), noised] += extra
            rows = logits.repeat(len(texts), 1)
            terms = nelbo_terms(rows, texts.flatten(), noised.repeat(len(texts)), alpha)
            bound = terms.view(len(texts), LENGTH).sum(1)
            chance = (alpha * (texts == noised) + (1 - alpha) / SIZE).prod(1)
            total += float((joint.flatten() * chance * bound).sum() * 2 * u / levels)
    return total


@pytest.mark.slow
def test_with_the_exact_denoiser_the_bound_is_the_entropy(joint):
    entropy = -float((joint * joint.log()).sum())
    assert expected_bound(joint) == pytest.approx(entropy, rel=1e-2)
    assert expected_bound(joint, leave_one_out=False) > 1.2 * entropy


def test_the_estimate_agrees_with_its_standard_error(joint):
    text = (1, 3, 0)
    clean = torch.tensor(text)

    # A denoiser that does not know α, as the model: any p gives a bound.
    def blind(noised):
        return posterior(joint, noised, 0.5)

    estimates = [canvas_bound(blind, clean, SIZE, samples=64, seed=s) for s in range(12)]
    values = torch.tensor([e.nats for e in estimates])
    spread = float(values.std())
    reported = sum(e.standard_error for e in estimates) / len(estimates)
    assert 0.4 < spread / reported < 2.5
    mean, error = float(values.mean()), spread / math.sqrt(len(values))
    assert mean > -math.log(float(joint[text])) - 4 * error


@pytest.mark.slow
def test_the_bound_of_a_model_leaves_no_probability_over():
    """p(x) ≥ exp(−bound(x)), so the exponentials over all canvases sum to at most 1."""
    model = small()
    total = 0.0
    for text in itertools.product(range(5), repeat=2):  # the third position is the end token
        bound = nelbo(model, (1, 2), text, end=0, samples=16)
        total += math.exp(-bound.nats)
    assert 0 < total < 1.05


def test_a_long_text_takes_several_canvases():
    model = small()
    whole = nelbo(model, (1, 2), (3, 4, 2), end=0, samples=8)
    parts = [
        canvas_bound(
            lambda noised, prefix=prefix: model.logits(
                model.denoise(noised[None], model.encode([prefix]))[0]
            ),
            torch.tensor(canvas),
            5,
            samples=8,
            seed=seed,
        )
        for seed, prefix, canvas in ((0, [1, 2], [3, 4, 2]), (1, [1, 2, 3, 4, 2], [0, 0, 0]))
    ]
    assert whole.nats == pytest.approx(sum(part.nats for part in parts), abs=1e-4)
    assert whole.standard_error == pytest.approx(
        math.hypot(*(part.standard_error for part in parts)), abs=1e-4
    )


def test_the_bound_needs_a_denoiser():
    with pytest.raises(RequestError, match="no denoiser"):
        nelbo(small(can_denoise=False), (1,), (2,), end=0)
