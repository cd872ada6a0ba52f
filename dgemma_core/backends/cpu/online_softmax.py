"""Softmax statistics of rows whose logits come in slices, by C: one pass over a slice, where torch makes about ten.

Serves float32 and bfloat16 on a CPU with a C compiler. Statistics and their meaning are those of
`head.OnlineSoftmax`, which runs elsewhere.

σ(2 · logit / cap) stands for a logit that is capped and divided by a temperature, (2σ − 1) · cap / T: the maximum is
the same one, and differences need one factor only.

Axes: N rows, S tokens of a slice, V vocabulary, D hidden size.
"""

from __future__ import annotations

from ctypes import CDLL, byref
from typing import NamedTuple

import torch
from torch import Tensor

from dgemma_core.backends.cpu import bindings, checks
from dgemma_core.head import GROUP, not_finite

DTYPES = (torch.float32, torch.bfloat16)
VECTOR = 16
"""Numbers of a row that C may take at once."""


def row_top(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row of z (N, S), largest first, and their places, (N, k) both.

    The k groups of the largest maxima hold them all: only these are looked at one by one.
    """
    rows, size = z.shape
    if not rows or size % GROUP or k >= size // GROUP:
        return z.topk(k, dim=1)
    groups = z.view(rows, -1, GROUP)
    best = groups.amax(dim=-1).topk(k, dim=1).indices  # (N, k)
    few = groups.gather(1, best.unsqueeze(-1).expand(-1, -1, GROUP)).flatten(1)  # (N, k · GROUP)
    values, place = few.topk(k, dim=1)
    return values, best.gather(1, place // GROUP) * GROUP + place % GROUP


class Slice(NamedTuple):
    """What a slice adds, all (N, …)."""

    weights: Tensor
    """(N, S) its exponentials, relative to its own maximum, in the logits' dtype."""
    factor: Tensor
    """(N, 1) what makes them relative to the largest logit so far."""
    mass: Tensor
    """(N, 1) their sum, relative to that."""
    shrink: Tensor
    """(N, 1) by what sums from before must shrink."""


def serves(hidden: Tensor) -> bool:
    """Whether C serves the logits of these hidden states."""
    return hidden.is_cpu and hidden.dtype in DTYPES and bindings.online_softmax() is not None


def _functions() -> CDLL:
    found = bindings.online_softmax()
    assert found is not None, "`serves` was not asked"
    return found


class COnlineSoftmax:
    """What the slices so far say of N rows."""

    def __init__(
        self, rows: int, cap: float, temperatures: Tensor | float, sampled: bool, top_k: int = 0
    ) -> None:
        """temperatures: (N, 1), or one for all rows. sampled: keep what samples are found from. top_k: keep so many of
        the most probable tokens."""
        self.cap, self.sampled, self.top_k = cap, sampled, top_k
        self.top: tuple[Tensor, Tensor] | None = None  # sigmoids and tokens, (N, k), largest first
        half = checks.capped_scale(cap, temperatures)  # a sigmoid of 1
        self.half = half.expand(rows, 1).contiguous()
        self.scale = 2 * self.half
        self.peak = torch.full((rows, 1), -1.0)  # below every sigmoid
        self.mass = torch.zeros(rows, 1)
        self.weighted = torch.zeros(rows, 1)  # Σ exp(z − peak) · (z − peak)
        self.argmax = torch.zeros(rows, 1, dtype=torch.long)
        self.group_mass: list[Tensor] = []  # of each slice: (N, groups), relative to its maximum …
        self.slice_logmass: list[Tensor] = []  # … and the log of their sum (N, 1)
        arrays = (self.peak, self.mass, self.weighted, self.argmax, self.scale)
        self.stats = bindings.RowStats(*(numbers.data_ptr() for numbers in arrays))

    def add(self, products: Tensor, start: int, keep: bool = True) -> Slice:
        """Takes the logits (N, S), before the soft cap, of tokens from `start` on, and overwrites them. Without `keep`
        nobody may use the slice's weights."""
        products = products.contiguous()
        rows, size = products.shape
        assert rows == len(self.peak) and products.is_cpu, "logits of other rows"
        assert products.dtype in DTYPES, f"logits of {products.dtype}"
        groups = torch.empty(rows, -(-size // GROUP)) if self.sampled else None
        mass, factor, shrink, logmass = torch.empty(4, rows, 1).unbind()
        sigmoids = torch.empty(rows, size) if self.top_k else None
        threads = max(1, min(torch.get_num_threads(), rows))
        scratch = torch.empty(threads * -(-size // GROUP) * GROUP)
        damaged = _functions().add_slice(
            rows, size, start, products.data_ptr(), products.dtype == torch.bfloat16, keep, self.cap,
            byref(self.stats), mass.data_ptr(), factor.data_ptr(), shrink.data_ptr(),
            None if groups is None else groups.data_ptr(), logmass.data_ptr(),
            None if sigmoids is None else sigmoids.data_ptr(), threads, scratch.data_ptr(),
        )  # fmt: skip
        if damaged:
            raise not_finite()
        if sigmoids is not None:
            self._take_top(sigmoids, start)
        if groups is not None:
            self.group_mass.append(groups)
            self.slice_logmass.append(logmass)
        return Slice(products, factor, mass, shrink)

    def blend(self, summed: Tensor, mean: Tensor, added: Slice) -> Tensor:
        """summed (N, D) float32, overwritten: what was in it, shrunk, plus `mean` (N, D), the slice's weights times
        something."""
        rows, width = mean.shape
        assert summed.shape == mean.shape and summed.dtype == torch.float32, "another sum"
        if width % VECTOR or mean.dtype not in DTYPES or not summed.is_contiguous():
            return summed.mul_(added.shrink).add_(mean * added.factor)
        mean = mean.contiguous()
        _functions().blend(
            rows, width, summed.data_ptr(), mean.data_ptr(), mean.dtype == torch.bfloat16, added.shrink.data_ptr(),
            added.factor.data_ptr(), max(1, min(torch.get_num_threads(), rows)),
        )  # fmt: skip
        return summed

    def _take_top(self, sigmoids: Tensor, start: int) -> None:
        """The k best of what was seen before and this slice (N, S)."""
        values, index = row_top(sigmoids, min(self.top_k, sigmoids.shape[1]))
        index = index + start
        if self.top is not None:
            seen, before = self.top
            both, indices = torch.cat((seen, values), dim=1), torch.cat((before, index), dim=1)
            values, order = both.topk(min(self.top_k, both.shape[1]), dim=1)
            index = indices.gather(1, order)
        self.top = values, index

    def logits(self, sigmoids: Tensor) -> Tensor:
        """(N, …) → logits."""
        return sigmoids * self.scale - self.half

    @property
    def logsumexp(self) -> Tensor:
        """(N, 1)"""
        return self.mass.log() + self.logits(self.peak)

    def groups(self) -> Tensor:
        """(N, V / GROUP rounded up): the mass of every group, relative to the whole, float64."""
        logmass = torch.cat(self.slice_logmass, dim=1).double()  # (N, slices)
        share = (logmass - logmass.logsumexp(dim=1, keepdim=True)).exp_()
        parts = [
            held.double().mul_(part.unsqueeze(1) / held.double().sum(dim=1, keepdim=True))
            for held, part in zip(self.group_mass, share.unbind(dim=1), strict=True)
        ]
        return torch.cat(parts, dim=1)

    def fields(self) -> dict[str, Tensor]:
        """What a `Prediction` has of them, (N,) each, and the top tokens (N, k)."""
        found = {
            "argmax": self.argmax,
            "argmax_probability": self.mass.reciprocal(),
            "entropy": (self.mass.log() - self.weighted / self.mass).clamp_min_(0),
            "logsumexp": self.logsumexp,
        }
        found = {name: value.squeeze(1) for name, value in found.items()}
        if self.top is not None:
            found["top_logits"], found["top_ids"] = self.logits(self.top[0]), self.top[1]
        return found


def sample_in_group(
    hidden: Tensor, weight: Tensor, cap: float, temperatures: Tensor, first: Tensor, end: Tensor, target: Tensor
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Where, among the GROUP tokens from `first` on and before `end`, the cumulative probability first exceeds `target`
    of their sum. hidden (N, D), weight (V, D), all others (N, 1) → tokens and logits (N, 1); None where C does not
    serve."""
    rows, width = hidden.shape
    same = weight.is_cpu and weight.dtype == hidden.dtype and weight.shape[1:] == (width,)
    if not serves(hidden) or width % VECTOR or not (same and weight.is_contiguous() and len(weight)):  # fmt: skip
        return None
    hidden = hidden.contiguous()
    temperatures = checks.floats("temperatures", temperatures, (rows, 1))
    target = checks.floats("cumulative probabilities", target, (rows, 1), torch.float64)
    first, end = (place.long().expand(rows, 1).contiguous() for place in (first, end))
    token, logit = torch.empty_like(first), torch.empty(rows, 1)
    _functions().sample_in_group(
        rows, width, len(weight), hidden.data_ptr(), weight.data_ptr(), hidden.dtype == torch.bfloat16, cap,
        temperatures.data_ptr(), first.data_ptr(), end.data_ptr(), target.data_ptr(), token.data_ptr(),
        logit.data_ptr(), max(1, min(torch.get_num_threads(), rows)),
    )  # fmt: skip
    return token, logit
