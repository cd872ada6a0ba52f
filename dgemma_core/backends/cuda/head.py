"""The vocabulary head in one pass over slices of the vocabulary, of launches that a CUDA graph can record.

It computes what `VocabularyHead.fields` does, for all but filtered distributions. A slice's logits turn into their
softmax weights in place (`kernels.fold_slice`), and the product for the soft embedding takes these; no (N, V) array
exists. For the sample, sums of every 64 neighbouring tokens are kept: they tell the 64 that the uniform number falls
on, and only these are computed again.

Axes: N rows, D hidden size, V vocabulary, S slice, k top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dgemma_core.backends.cuda.experts import on_kernels
from dgemma_core.backends.cuda.fused import linear, power
from dgemma_core.head import Matrix, dense, found_in, soft_capped, times_root

CHUNK = 64
"""Neighbouring tokens whose sum is kept."""
NUMBERS = 2**24
"""Logits, or numbers of embeddings, that exist at a time, at most."""
SLICE = 16384
"""Tokens of a slice, at most: what a program holds of a row."""
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Wanted:
    """What a prediction holds beyond argmax, its probability and the entropy."""

    sampled: bool
    """A sample; else the argmax stands for it."""
    two_distributions: bool
    """The sample comes from the tempered distribution, all else is of the raw one."""
    soft: bool
    """The soft embedding."""
    top_k: int
    """Most probable tokens."""


class Folded(NamedTuple):
    """What one pass over the vocabulary leaves of N rows."""

    ids: Tensor
    """(2, N) int64: sample, argmax (of equals, the lowest index)."""
    numbers: Tensor
    """(5, N) float32: the sample's probability under its distribution and log-probability under the reference
    distribution; the argmax's probability, the entropy and log Σ exp of the logits, of the reference distribution."""
    soft_embedding: Tensor | None
    """(N, D) in the weights' dtype, times √D."""
    top_ids: Tensor | None
    """(N, k), most probable first."""
    top_logits: Tensor | None
    """(N, k) float32, of the reference distribution."""

    def fields(self) -> dict[str, Tensor]:
        """By the names of `Prediction`."""
        names = "sample_probability", "sample_logprob", "argmax_probability", "entropy", "logsumexp"
        found = dict(zip(names, self.numbers, strict=True))
        found["sample"], found["argmax"] = self.ids
        for name in ("soft_embedding", "top_ids", "top_logits"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        return found


class _Sums:
    """Running softmax sums of N rows (online softmax, arXiv 1805.02867)."""

    def __init__(self, rows: int, vocab: int, width: int, size: int, device: torch.device) -> None:
        """width: of what is summed for the soft embedding, 0 for none. size: tokens of a slice."""
        self.size = size
        self.peak = torch.full((rows,), LOWEST, device=device)
        self.best = torch.full((rows,), LOWEST, device=device)
        self.mass = torch.zeros(rows, device=device)
        self.weighted = torch.zeros(rows, device=device)
        self.argmax = torch.zeros(rows, dtype=torch.long, device=device)
        self.slice_peaks = torch.zeros(rows, -(-vocab // size), device=device)
        self.chunk_masses = torch.zeros(rows, -(-vocab // CHUNK), device=device)
        self.summed = torch.zeros(rows, width, device=device)

    @property
    def logsumexp(self) -> Tensor:
        """(N,)"""
        return self.mass.log() + self.peak

    def chunks(self) -> Tensor:
        """(N, V / CHUNK rounded up): the mass of every chunk, relative to the peak, float64."""
        shift = (self.slice_peaks - self.peak.unsqueeze(1)).double().exp()  # (N, slices)
        per_chunk = shift.repeat_interleave(self.size // CHUNK, dim=1)
        return self.chunk_masses.double() * per_chunk[:, : self.chunk_masses.shape[1]]


def fold(
    hidden: Tensor, weight: Matrix, cap: float, temperature: Tensor, uniform: Tensor, wanted: Wanted,
    *, numbers: int = NUMBERS,
) -> Folded:  # fmt: skip
    """hidden (N, D), weight (V, D), temperature (N,) float32 above 0 → `Folded`.

    uniform (N,) float64 in [0, 1): where each row's sample lies in its cumulative distribution; not read unless a
    sample is wanted.
    """
    rows, width = hidden.shape
    vocab = int(weight.shape[0])
    size = max(CHUNK, min(power(vocab), SLICE, 1 << ((numbers // rows).bit_length() - 1)))
    sums = _Sums(rows, vocab, width if wanted.soft else 0, size, hidden.device)
    scale, sampling = temperature, sums
    if wanted.two_distributions:
        scale, sampling = (
            torch.ones_like(temperature),
            _Sums(rows, vocab, 0, size, hidden.device),
        )
    top: list[tuple[Tensor, Tensor]] = []
    for number, start in enumerate(range(0, vocab, size)):
        part = dense(weight[start : start + size], hidden.dtype)
        logits = linear(hidden, part)
        if wanted.top_k:
            values, places = logits.topk(min(wanted.top_k, logits.shape[1]), dim=1)
            top.append((values, places + start))
        if sampling is not sums:
            _fold_slice(sampling, logits.clone(), temperature, cap, start, number)
        _fold_slice(sums, logits, scale, cap, start, number)
        if wanted.soft:  # the logits have become weights
            sums.summed.add_(logits @ part)
    argmax_probability = (sums.best - sums.peak).exp() / sums.mass
    entropy = (sums.mass.log() - sums.weighted / sums.mass).clamp_min(0)
    if wanted.sampled:
        sample, logit = _sampled(sampling.chunks(), hidden, weight, cap, temperature, uniform)
        probability = (logit - sampling.logsumexp).exp()
        logprob = logit * (temperature / scale) - sums.logsumexp
    else:
        sample, probability, logprob = sums.argmax, argmax_probability, argmax_probability.log()
    top_ids, top_logits = _top(top, wanted.top_k, cap, scale) if top else (None, None)
    return Folded(
        ids=torch.stack((sample, sums.argmax)),
        numbers=torch.stack((probability, logprob, argmax_probability, entropy, sums.logsumexp)),
        soft_embedding=times_root((sums.summed / sums.mass.unsqueeze(1)).to(hidden.dtype))
        if wanted.soft
        else None,
        top_ids=top_ids,
        top_logits=top_logits,
    )


def _fold_slice(
    sums: _Sums, logits: Tensor, temperature: Tensor, cap: float, start: int, number: int
) -> None:
    """Takes logits (N, ≤ S) into the sums and leaves their weights in their place."""
    width = sums.summed.shape[1]
    if on_kernels(logits):
        from dgemma_core.backends.cuda import kernels

        kernels.fold_slice[(len(logits),)](
            logits, temperature, sums.peak, sums.mass, sums.weighted, sums.best, sums.argmax,
            sums.slice_peaks, sums.chunk_masses, sums.summed, start, logits.shape[1], number,
            sums.slice_peaks.shape[1], sums.chunk_masses.shape[1], cap, D=width, SOFT=width > 0,
            S=sums.size, CHUNK=CHUNK, BLOCK_D=power(max(1, width)),
            num_warps=16 if sums.size > 4096 else 4,
        )  # fmt: skip
        return
    z = soft_capped(logits, cap) / temperature.unsqueeze(1)
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
    sums.summed *= shrink.unsqueeze(1)
    logits.copy_(weights)


def _sampled(
    chunks: Tensor, hidden: Tensor, weight: Matrix, cap: float, temperature: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative probability, in vocabulary order, first exceeds `uniform` (N,).

    chunks (N, V / CHUNK): their masses. Returns tokens and their tempered logits, (N,) both.
    """
    vocab = int(weight.shape[0])
    chunk, inside = found_in(chunks, uniform.unsqueeze(1))
    ids = chunk * CHUNK + torch.arange(CHUNK, device=hidden.device)  # (N, CHUNK)
    tokens, logits = [], []
    count = max(1, NUMBERS // (CHUNK * hidden.shape[1]))
    for start in range(0, len(hidden), count):
        rows = slice(start, start + count)
        embeddings = dense(weight[ids[rows].clamp_max(vocab - 1)], hidden.dtype)  # (R, CHUNK, D)
        products = (embeddings @ hidden[rows].unsqueeze(2)).squeeze(2)
        z = soft_capped(products, cap) / temperature[rows].unsqueeze(1)
        z = z.masked_fill(ids[rows] >= vocab, -torch.inf)
        masses = (z - z.amax(dim=1, keepdim=True)).double().exp()
        place, _ = found_in(masses, inside[rows])
        tokens.append(ids[rows].gather(1, place))
        logits.append(z.gather(1, place))
    return torch.cat(tokens).squeeze(1), torch.cat(logits).squeeze(1)


def _top(
    parts: list[tuple[Tensor, Tensor]], k: int, cap: float, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of all slices: products and ids (N, ≤ k) of each → ids and logits (N, k)."""
    values, ids = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    values, places = values.topk(k, dim=1)
    return ids.gather(1, places), soft_capped(values, cap) / temperature.unsqueeze(1)
