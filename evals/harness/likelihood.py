"""An upper bound on −log p of a text, by the denoiser (spec §6). How likely it is exactly, the causal mode says
(`generation.likelihood.causal_logprobs`).

- `nelbo`: of uniform diffusion, −log p(text, end | prefix), whose canvases are the text and end tokens up to the
  canvas's length, as in training. A Monte-Carlo mean with its standard error. It bounds; its exponential is no
  perplexity.

Axes: C canvas positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core import DiffusionGemma, PrefixCache, RequestError

Logits = Callable[[Tensor], Tensor]
"""A noised canvas (C,) → raw logits (C, V) of the clean tokens."""

_SLICE = 2**24
"""Entries of a float64 (positions, V) block that the bound holds at a time."""


@dataclass(frozen=True)
class Bound:
    """An estimate, in nats, of an upper bound on −log p, and the standard error of that estimate."""

    nats: float
    standard_error: float
    samples: int


def nelbo(
    model: DiffusionGemma,
    prefix: Sequence[int],
    text: Sequence[int],
    *,
    end: int,
    samples: int = 64,
    seed: int = 0,
) -> Bound:
    """The denoiser's bound on −log p(text, then the end | prefix), canvas by canvas.

    samples: noise levels a canvas, stratified (u in equal strata, α = 1 − u²). Without
    self-conditioning. Raises RequestError where the checkpoint cannot denoise.
    """
    if not prefix:
        raise RequestError("a likelihood needs a prefix of at least one token")
    length = model.config.canvas_length
    cache = model.encode([list(prefix)])
    parts = []
    count = len(text) // length + 1  # the end token included
    for j in range(count):
        clean = list(text[j * length : (j + 1) * length])
        canvas = torch.tensor(clean + [end] * (length - len(clean)), device=model.device)
        parts.append(
            canvas_bound(_denoiser(model, cache), canvas, model.config.text.vocab_size,
                         samples=samples, seed=seed + j)
        )  # fmt: skip
        if j + 1 < count:
            cache = model.encode([clean], cache)
    error = math.sqrt(math.fsum(part.standard_error**2 for part in parts))
    return Bound(math.fsum(part.nats for part in parts), error, samples)


def _denoiser(model: DiffusionGemma, cache: PrefixCache) -> Logits:
    return lambda noised: model.logits(model.denoise(noised.unsqueeze(0), cache)[0])


def canvas_bound(
    logits: Logits, canvas: Tensor, vocab_size: int, *, samples: int, seed: int
) -> Bound:
    """The bound for one clean canvas (C,), by `samples` stratified noise levels."""
    if samples < 2:
        raise RequestError(
            f"the bound needs at least 2 samples for a standard error, got {samples}"
        )
    generator = torch.Generator().manual_seed(seed)
    strata = torch.arange(samples, dtype=torch.float64)
    u = (strata + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples
    values = []
    for level in u.clamp(1e-4, 1 - 1e-4).tolist():
        alpha = 1 - level**2  # dα = 2u du, so 2u weighs a uniform u
        replaced = torch.rand(canvas.shape, generator=generator, dtype=torch.float64) >= alpha
        uniform = torch.randint(vocab_size, canvas.shape, generator=generator)
        noised = torch.where(replaced, uniform, canvas.cpu()).to(canvas.device)
        gaps = nelbo_terms(logits(noised), canvas, noised, alpha)
        values.append(2 * level * float(gaps.sum()))
    drawn = torch.tensor(values, dtype=torch.float64)
    # Neighbouring strata differ little, so their differences estimate what is left of the variance.
    within = float((drawn[1:] - drawn[:-1]).square().mean()) / 2
    return Bound(float(drawn.mean()), math.sqrt(within / samples), samples)


def nelbo_terms(logits: Tensor, clean: Tensor, noised: Tensor, alpha: float) -> Tensor:
    """g at each position, (C,) float64 nats: the bound's integrand at survival probability α.

    logits (C, V) are raw and of the posterior given all of `noised` (C,), the observed token
    included; its evidence, a factor 1 + Vα/(1 − α) for the token seen, is taken out first, which
    gives the leave-one-out prediction that the bound needs (spec §6).
    """
    rows = max(1, _SLICE // logits.shape[-1])
    parts = zip(logits.split(rows), clean.split(rows), noised.split(rows), strict=True)
    return torch.cat([_terms(z.double(), x, seen, alpha) for z, x, seen in parts])


def _terms(logits: Tensor, clean: Tensor, noised: Tensor, alpha: float) -> Tensor:
    size = logits.shape[-1]
    seen, given = noised.unsqueeze(1), clean.unsqueeze(1)
    evidence = logits.new_full(seen.shape, -math.log1p(size * alpha / (1 - alpha)))
    predicted = logits.scatter_add(1, seen, evidence).softmax(dim=1)
    p = size * alpha * predicted + (1 - alpha)  # p̄ (C, V)
    x = torch.full_like(p, 1 - alpha)
    x = x.scatter(1, given, 1 - alpha + size * alpha)  # x̄
    p_seen, x_seen = p.gather(1, seen), x.gather(1, seen)
    log_ratio = (p_seen.log() - p.log()) + (x.log() - x_seen.log())
    rest = (x / x_seen * log_ratio).sum(dim=1)
    bracket = size / x_seen.squeeze(1) - size / p_seen.squeeze(1) - rest
    return -bracket / (size * alpha)
