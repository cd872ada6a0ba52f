"""Noise: what a canvas is before the model denoises it.

Axes: B texts, C canvas length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dgemma_core.train.batches import Batch
from dgemma_core.train.recipe import Recipe


def noised(tokens: Tensor, t: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Replaces each token with its row's probability t (B, 1) by a uniform token. tokens (B, C) → (B, C)."""
    replaced = torch.rand(tokens.shape, generator=generator) < t
    uniform = torch.randint(vocab_size, tokens.shape, generator=generator)
    return torch.where(replaced, uniform, tokens)


def noisy_canvases(
    batch: Batch, recipe: Recipe, vocab_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group of canvases: those (B, C) to predict from, and those (rows, C) of the first rows whose prediction
    conditions the second pass. A sampler's snapshot takes the place of the first noise. Half of the canvases on which
    the model makes steps of its own are noise alone, as a sampler's first one is."""
    t = torch.rand(len(batch.clean), 1, generator=generator)
    for i, group in enumerate(batch.canvases):
        rate = (t + i / len(batch.canvases)) % 1.0
        if i == 0 and batch.steps is not None:
            rate = torch.where(batch.steps.unsqueeze(1) > 0, (2 * rate).clamp(max=1.0), rate)
        rate = recipe.noise_level(rate)
        if recipe.drafts_from_noise and i >= recipe.noisings:
            bare = torch.rand(rate.shape, generator=generator) < recipe.drafts_from_noise
            rate = rate.masked_fill(bare, 1.0)
        canvas = noised(group.tokens, rate, vocab_size, generator)
        canvas = torch.where(group.given, group.tokens, canvas)
        before = canvas[: math.ceil(recipe.self_conditioning * len(canvas))]
        if i == 0 and batch.snapshot is not None and batch.before is not None:
            drawn = batch.snapshot < 0
            canvas = torch.where(drawn, canvas, batch.snapshot)
            conditioned = math.ceil(recipe.self_conditioning * int(drawn[:, 0].sum()))
            before = torch.cat((batch.before, canvas[len(batch.before) :][:conditioned]))
        yield canvas, before
