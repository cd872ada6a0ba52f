"""The noise: its rate, its tokens, and that it comes from its generator alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dgemma_core.train.batches import Batch, Canvases
from dgemma_core.train.noise import noisy_canvases
from tests.train.copying import RECIPE, noise


@pytest.mark.parametrize("noisings", [1, 2, 3])
def test_noise_rates_are_uniform_and_evenly_spaced(noisings: int) -> None:
    """Of rows of 4096 tokens, the share that was replaced is t(1 − 1/V), t uniform on (0, 1); the noisings of a row
    lie 1/n apart, around the corner."""
    rows, vocab = 800, 48
    canvas = torch.full((rows, 4096), 5)
    none = torch.zeros(rows, dtype=torch.long)
    group = Canvases(none, canvas, torch.zeros_like(canvas, dtype=torch.bool), none)
    batch = Batch(canvas, canvas, (group,) * noisings)
    recipe = replace(RECIPE, noisings=noisings, self_conditioning=0.25)
    drawn = list(noisy_canvases(batch, recipe, vocab, torch.Generator().manual_seed(0)))
    assert len(drawn) == noisings
    rates = []
    for noisy, before in drawn:
        assert torch.equal(before, noisy[:200])
        t = (noisy != canvas).double().mean(1) / (1 - 1 / vocab)
        counts = torch.histc(t.clamp(0, 1), bins=8, min=0, max=1)
        assert ((counts - rows / 8) ** 2 / (rows / 8)).sum() < 7 + 5 * math.sqrt(14)
        assert abs(float(t.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / rows)
        assert t.min() < 0.02 and t.max() > 0.98
        rates.append(t)
    for i, t in enumerate(rates):
        apart = (t - rates[0] - i / noisings + 0.5) % 1 - 0.5
        assert apart.abs().max() < 0.06, "4096 tokens tell a rate to about 0.008"


def test_noise_is_any_token_at_any_position() -> None:
    vocab = 8
    canvas = torch.arange(6).expand(20_000, 6)
    noisy = noise(canvas, vocab, torch.Generator().manual_seed(1))
    changed = noisy != canvas
    share = changed.double().mean(0)
    assert ((share - 0.5 * (1 - 1 / vocab)).abs() < 0.02).all(), "no position is spared"
    for position in range(6):
        counts = noisy[changed[:, position], position].bincount(minlength=vocab).double()
        assert counts[position] == 0
        others = counts[torch.arange(vocab) != position]
        expected = others.sum() / (vocab - 1)
        assert ((others - expected) ** 2 / expected).sum() < 6 + 5 * math.sqrt(12)


def test_noise_comes_from_its_generator_alone() -> None:
    canvas = torch.arange(12).view(2, 6)
    first = noise(canvas, 50, torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    assert torch.equal(noise(canvas, 50, torch.Generator().manual_seed(3)), first)
    assert not torch.equal(noise(canvas, 50, torch.Generator().manual_seed(4)), first)


def test_given_tokens_are_never_noised() -> None:
    tokens = torch.randint(5, 40, (200, 8), generator=torch.Generator().manual_seed(0))
    given = torch.rand(200, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    none = torch.zeros(200, dtype=torch.long)
    batch = Batch(tokens, tokens, (Canvases(none, tokens, given, none),))
    ((canvas, before),) = noisy_canvases(batch, RECIPE, 48, torch.Generator().manual_seed(2))
    assert torch.equal(canvas[given], tokens[given]) and torch.equal(before, canvas[:100])
    changed = (canvas != tokens)[~given].double().mean()
    assert 0.4 < changed < 0.6


def test_a_share_of_the_drafts_is_noise_behind_the_first_token() -> None:
    """Drafts alone: the canvases beside them keep their rates, and what is given stays."""
    rows, vocab = 600, 400
    tokens = torch.full((rows, 256), 5)
    none = torch.zeros(rows, dtype=torch.long)
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    free = Canvases(none, tokens, torch.zeros_like(first), none)
    batch = Batch(tokens, tokens, (free, Canvases(none, tokens, first, none)))
    recipe = replace(RECIPE, drafts=(256,), drafts_from_noise=0.75, self_conditioning=0)
    (canvas, _), (draft, _) = noisy_canvases(batch, recipe, vocab, torch.Generator().manual_seed(5))
    assert (draft[:, 0] == 5).all()
    bare = ((draft[:, 1:] != 5).double().mean(1) > 0.98).double().mean()
    assert abs(float(bare) - (0.75 + 0.25 * 0.02)) < 0.07
    assert ((canvas != 5).double().mean(1) > 0.98).double().mean() < 0.06
