"""The vocabulary head of a captured step: one pass over slices of the vocabulary, with nothing asked of the host.

It computes what `VocabularyHead.predict` does for the entropy-bound sampler and for greedy autoregression: sample,
argmax, entropy, probabilities and soft embedding of softmax(cap · tanh(h Eᵀ / cap) / T). A slice's logits turn into
their weights in place (`kernels.fold_slice`), which the second product takes; no (C, V) array exists. For the sample
the sums of every 64 neighbouring tokens are kept: they say which 64 the uniform number falls on, and only these are
computed again.

Axes: N rows, D hidden size, V vocabulary, S slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core.backends.cuda.experts import on_kernels
from dgemma_core.backends.cuda.fused import _power, linear
from dgemma_core.head import found_among, found_in, soft_capped_
from dgemma_core.layers import rounded

CHUNK = 64
"""Neighbouring tokens whose sum is kept."""
NUMBERS = 2**22
"""Logits that exist at a time, at most."""
SLICE = 16384
"""Tokens of a slice, at most: what a program holds of a row."""
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Folded:
    """What one pass over the vocabulary leaves of N rows; float32 unless said otherwise."""

    sample: Tensor | None
    """(N,) int64; None where no uniform numbers were given."""
    sample_probability: Tensor | None
    argmax: Tensor
    """(N,) int64; of equals, the lowest index."""
    argmax_probability: Tensor
    entropy: Tensor
    logsumexp: Tensor
    soft_embedding: Tensor | None
    """(N, D) in the weights' dtype, times √D; None unless asked for."""


class _Sums:
    """Running sums of N rows."""

    def __init__(
        self, rows: int, vocab: int, width: int, size: int, soft: bool, device: torch.device
    ) -> None:
        self.peak = torch.full((rows,), LOWEST, device=device)
        self.best = torch.full((rows,), LOWEST, device=device)
        self.mass = torch.zeros(rows, device=device)
        self.weighted = torch.zeros(rows, device=device)
        self.argmax = torch.zeros(rows, dtype=torch.long, device=device)
        self.slice_peaks = torch.zeros(rows, -(-vocab // size), device=device)
        self.chunk_masses = torch.zeros(rows, -(-vocab // CHUNK), device=device)
        self.summed = torch.zeros(rows, width if soft else 1, device=device)


def fold(
    hidden: Tensor, weight: Tensor, cap: float, temperature: Tensor,
    uniform: Tensor | None = None, *, soft: bool = False, numbers: int = NUMBERS,
) -> Folded:  # fmt: skip
    """hidden (N, D), weight (V, D), temperature (N,) float32 above 0 → `Folded`.

    uniform (N,) float64 in [0, 1): where each row's sample lies in its cumulative distribution.
    """
    rows, width = hidden.shape
    vocab = len(weight)
    size = max(CHUNK, min(_power(vocab), SLICE, 1 << ((numbers // rows).bit_length() - 1)))
    sums = _Sums(rows, vocab, width, size, soft, hidden.device)
    for number, start in enumerate(range(0, vocab, size)):
        part = weight[start : start + size]
        logits = linear(hidden, part)
        _fold_slice(sums, logits, temperature, cap, start, number, size, soft)
        if soft:  # the logits have become weights
            sums.summed.add_(logits @ part)
    logmass = sums.mass.log()
    sample, probability = (
        (None, None)
        if uniform is None
        else _sampled(sums, hidden, weight, cap, temperature, uniform, size)
    )
    return Folded(
        sample=sample,
        sample_probability=probability,
        argmax=sums.argmax,
        argmax_probability=(sums.best - sums.peak).exp() / sums.mass,
        entropy=(logmass - sums.weighted / sums.mass).clamp_min(0),
        logsumexp=logmass + sums.peak,
        soft_embedding=_scaled(sums, hidden.dtype) if soft else None,
    )


def greedy(hidden: Tensor, weight: Tensor, cap: float) -> Tensor:
    """hidden (1, D), weight (V, D) → the token of the highest soft-capped logit (1,); of equals, the lowest."""
    logits = linear(hidden, weight).float()
    return soft_capped_(logits, cap).argmax(dim=1)


def _scaled(sums: _Sums, dtype: torch.dtype) -> Tensor:
    """The mean embedding times √D, each rounded to the weights' dtype."""
    mean = (sums.summed / sums.mass.unsqueeze(1)).to(dtype)
    return mean * rounded(mean.shape[1] ** 0.5, dtype)


def _fold_slice(
    sums: _Sums, logits: Tensor, temperature: Tensor, cap: float, start: int, number: int,
    size: int, soft: bool,
) -> None:  # fmt: skip
    """Takes logits (N, ≤ S) into the sums and leaves their weights in their place."""
    if on_kernels(logits):
        from dgemma_core.backends.cuda import kernels

        width = sums.summed.shape[1]
        kernels.fold_slice[(len(logits),)](
            logits, temperature, sums.peak, sums.mass, sums.weighted, sums.best, sums.argmax,
            sums.slice_peaks, sums.chunk_masses, sums.summed, start, logits.shape[1], number,
            sums.slice_peaks.shape[1], sums.chunk_masses.shape[1], cap, D=width, SOFT=soft, S=size,
            CHUNK=CHUNK, BLOCK_D=_power(width), num_warps=16 if size > 4096 else 4,
        )  # fmt: skip
        return
    z = soft_capped_(logits.float(), cap) / temperature.unsqueeze(1)
    highest, index = z.max(dim=1)
    better = highest > sums.best
    sums.argmax = torch.where(better, index + start, sums.argmax)
    sums.best = torch.where(better, highest, sums.best)
    raised = torch.maximum(sums.peak, highest)
    rise = raised - sums.peak
    shrink = (-rise).exp()
    z = z - raised.unsqueeze(1)
    weights = z.exp()
    left = torch.where(sums.mass > 0, sums.weighted - rise * sums.mass, 0.0)
    sums.weighted = left * shrink + (weights * z).sum(dim=1)
    sums.mass = sums.mass * shrink + weights.sum(dim=1)
    sums.peak = raised
    sums.slice_peaks[:, number] = raised
    padded = torch.nn.functional.pad(weights, (0, -weights.shape[1] % CHUNK))
    first = start // CHUNK
    found = padded.unflatten(1, (-1, CHUNK)).sum(dim=2)
    sums.chunk_masses[:, first : first + found.shape[1]] = found
    if soft:
        sums.summed *= shrink.unsqueeze(1)
    logits.copy_(weights)


def _sampled(
    sums: _Sums, hidden: Tensor, weight: Tensor, cap: float, temperature: Tensor, uniform: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The token at which the cumulative probability, in vocabulary order, first exceeds `uniform` (N,)."""
    vocab, chunks = len(weight), sums.chunk_masses.shape[1]
    shift = (sums.slice_peaks - sums.peak.unsqueeze(1)).double().exp()  # (N, slices)
    share = sums.chunk_masses.double() * shift.repeat_interleave(size // CHUNK, dim=1)[:, :chunks]
    slot, inside = found_in(share, uniform.unsqueeze(1))
    ids = slot * CHUNK + torch.arange(CHUNK, device=hidden.device)  # (N, CHUNK)
    rows = weight[ids.clamp_max(vocab - 1)]  # (N, CHUNK, D)
    place, logit = found_among(hidden, rows, ids >= vocab, cap, temperature.unsqueeze(1), inside)
    probability = (logit.squeeze(1) - sums.peak).exp() / sums.mass
    return ids.gather(1, place).squeeze(1), probability
