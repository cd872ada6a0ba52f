"""Softmax statistics of rows whose logits come in slices (the online softmax, arXiv 1805.02867).

Two ways to the same numbers: plain torch, which makes about ten passes over a slice, and fold.c, which goes over it
once. The latter serves float32 and bfloat16 on a CPU that has a C compiler.

Axes: N rows, S tokens of a slice, V vocabulary.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu.compiling import library

GROUP = 64
"""Neighbouring tokens of which sums are kept, to sample from."""
LANES = 16
"""Numbers of a row that fold.c may take at once."""


def squashed_(logits: Tensor, cap: float) -> Tensor:
    """σ(2 · logits / cap), float32, in place."""
    return logits.mul_(2 / cap).sigmoid_()


def row_max(z: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each row of z (N, S) and its place, (N, 1) both; of equals, the lowest place.

    First by groups, then inside the best one: a CPU finds a maximum five times as fast as a place.
    """
    rows, size = z.shape
    if size % GROUP or size < GROUP**2:
        return z.max(dim=1, keepdim=True)
    groups = z.view(rows, -1, GROUP)
    peak, group = groups.amax(dim=-1).max(dim=1, keepdim=True)  # (N, 1)
    best = groups.gather(1, group.unsqueeze(-1).expand(-1, -1, GROUP)).squeeze(1)  # (N, GROUP)
    return peak, group * GROUP + best.argmax(dim=1, keepdim=True)


def row_top(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row of z (N, S), largest first, and their places, (N, k) both.

    The k groups of the largest maxima hold them all: only these are looked at one by one.
    """
    rows, size = z.shape
    if size % GROUP or k >= size // GROUP:
        return z.topk(k, dim=1)
    groups = z.view(rows, -1, GROUP)
    best = groups.amax(dim=-1).topk(k, dim=1).indices  # (N, k)
    few = groups.gather(1, best.unsqueeze(-1).expand(-1, -1, GROUP)).flatten(1)  # (N, k · GROUP)
    values, place = few.topk(k, dim=1)
    return values, best.gather(1, place // GROUP) * GROUP + place % GROUP


class Slice(NamedTuple):
    """What a slice adds, all (N, …)."""

    weights: Tensor
    """(N, S) its exponentials, by any scale of a row; float32 or in the logits' dtype."""
    factor: Tensor
    """(N, 1) what makes them relative to the largest logit so far."""
    mass: Tensor
    """(N, 1) their sum, relative to that."""
    shrink: Tensor
    """(N, 1) by what sums from before must shrink."""


class Running:
    """What the slices so far say of N rows.

    A slice comes as logits before the soft cap. σ(2 · logit / cap) stands for a logit that is capped and divided by a
    temperature, (2σ − 1) · cap / T: the maximum is the same one, and differences need one factor only.
    """

    def __init__(
        self,
        rows: int,
        cap: float,
        temperatures: Tensor | float,
        device: torch.device,
        sampled: bool,
        top_k: int = 0,
    ) -> None:
        """temperatures: (N, 1), or one for all rows. sampled: keep what samples are found from. top_k: keep so many of
        the most probable tokens."""
        self.cap, self.sampled, self.top_k = cap, sampled, top_k
        self.top: tuple[Tensor, Tensor] | None = (
            None  # sigmoids and tokens, (N, k), the largest first
        )
        self.half = cap / temperatures  # what a sigmoid of 1 stands for
        self.scale = 2 * self.half
        self.peak = torch.full((rows, 1), -1.0, device=device)  # below every sigmoid
        self.mass = torch.zeros(rows, 1, device=device)
        # Σ exp(z − peak) · (z − peak): small where the entropy is
        self.weighted = torch.zeros(rows, 1, device=device)
        self.argmax = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.slice_logmass: list[Tensor] = []
        # Of each slice, sums of every GROUP neighbours, by any scale of a row.
        self.groups: list[Tensor] = []

    def add(self, products: Tensor, start: int, keep: bool = True) -> Slice:
        """Takes the logits (N, S), before the soft cap, of tokens from `start` on, and overwrites them. Without `keep`
        nobody may use the slice's weights."""
        sigmoids = squashed_(products.float(), self.cap)
        self._take_top(sigmoids, start)
        peak, place = row_max(sigmoids)
        self.argmax = torch.where(peak > self.peak, place + start, self.argmax)
        raised = torch.maximum(self.peak, peak)
        rise = (raised - self.peak) * self.scale
        shrink = (-rise).exp()
        z = sigmoids.sub_(raised).mul_(self.scale)  # logits less their maximum
        weights = z.softmax(dim=1)
        mass = z.gather(1, place).exp_().div_(weights.gather(1, place))
        if self.sampled:
            padding = -weights.shape[1] % GROUP
            padded = F.pad(weights, (0, padding)) if padding else weights
            self.groups.append(padded.unflatten(1, (-1, GROUP)).sum(dim=2))
            self.slice_logmass.append(mass.log().add_(raised * self.scale))
        expected = torch.linalg.vecdot(weights, z).unsqueeze(1)
        self.weighted = (self.weighted - rise * self.mass) * shrink + mass * expected
        self.mass = self.mass * shrink + mass
        self.peak = raised
        return Slice(weights, mass, mass, shrink)

    def blend(self, summed: Tensor, mean: Tensor, added: Slice) -> Tensor:
        """summed (N, D) float32, overwritten: what was in it, shrunk, plus `mean` (N, D), the slice's weights times
        something."""
        return summed.mul_(added.shrink).add_(mean * added.factor)

    def _take_top(self, sigmoids: Tensor, start: int) -> None:
        """The k best of what was seen before and this slice (N, S)."""
        if not self.top_k:
            return
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

    def logsumexp(self) -> Tensor:
        """(N, 1)"""
        return self.mass.log() + self.logits(self.peak)

    def fields(self) -> dict[str, Tensor]:
        """What a `Prediction` has of them, (N,) each, and the top tokens (N, k)."""
        found = {
            "argmax": self.argmax,
            "argmax_probability": self.mass.reciprocal(),
            "entropy": (self.mass.log() - self.weighted / self.mass).clamp_min_(0),
            "logsumexp": self.logsumexp(),
        }
        found = {name: value.squeeze(1) for name, value in found.items()}
        if self.top is not None:
            found["top_logits"], found["top_ids"] = self.logits(self.top[0]), self.top[1]
        return found


class _Sums(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("peak", "mass", "weighted", "argmax", "scale")]


@cache
def _fold() -> ctypes.CDLL:
    """fold.c, where `folds` says that there is one."""
    found = library("fold")
    assert found is not None
    found.fold.argtypes = [
        c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64, c_float, POINTER(_Sums), c_void_p, c_void_p,
        c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p,
    ]  # fmt: skip
    found.fold.restype = None
    found.blend.argtypes = [
        c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64,
    ]  # fmt: skip
    found.blend.restype = None
    found.among.argtypes = [
        c_int64, c_int64, c_void_p, c_void_p, c_int64, c_float, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
        c_void_p, c_int64,
    ]  # fmt: skip
    found.among.restype = None
    return found


def folds(hidden: Tensor) -> bool:
    """Whether `Folded` serves the logits of these hidden states."""
    return (
        hidden.device.type == "cpu"
        and hidden.dtype in (torch.float32, torch.bfloat16)
        and library("fold") is not None
    )


class Folded(Running):
    """The same by fold.c."""

    @cached_property
    def scales(self) -> Tensor:
        """(N, 1)"""
        return torch.as_tensor(self.scale, dtype=torch.float32).expand_as(self.peak).contiguous()

    @cached_property
    def sums(self) -> _Sums:
        """Where C finds, and changes, what is known of the rows."""
        arrays = (self.peak, self.mass, self.weighted, self.argmax, self.scales)
        return _Sums(*(numbers.data_ptr() for numbers in arrays))

    def add(self, products: Tensor, start: int, keep: bool = True) -> Slice:
        products = products.contiguous()
        rows, size = products.shape
        groups = torch.empty(rows, -(-size // GROUP)) if self.sampled else None
        mass, factor, shrink, logmass = torch.empty(4, rows, 1).unbind()
        sigmoids = torch.empty(rows, size) if self.top_k else None
        threads = min(torch.get_num_threads(), rows)
        scratch = torch.empty(threads * -(-size // GROUP) * GROUP)
        _fold().fold(
            rows, size, start, products.data_ptr(), products.dtype == torch.bfloat16, keep, self.cap,
            byref(self.sums), mass.data_ptr(), factor.data_ptr(), shrink.data_ptr(),
            None if groups is None else groups.data_ptr(), logmass.data_ptr(),
            None if sigmoids is None else sigmoids.data_ptr(), threads, scratch.data_ptr(),
        )  # fmt: skip
        if sigmoids is not None:
            self._take_top(sigmoids, start)
        if groups is not None:
            self.groups.append(groups)
            self.slice_logmass.append(logmass)
        return Slice(products, factor, mass, shrink)

    def blend(self, summed: Tensor, mean: Tensor, added: Slice) -> Tensor:
        rows, width = mean.shape
        if width % LANES:
            return super().blend(summed, mean, added)
        mean = mean.contiguous()
        _fold().blend(
            rows, width, summed.data_ptr(), mean.data_ptr(), mean.dtype == torch.bfloat16, added.shrink.data_ptr(),
            added.factor.data_ptr(), min(torch.get_num_threads(), rows),
        )  # fmt: skip
        return summed


def among(
    hidden: Tensor, weight: Tensor, cap: float, temperatures: Tensor, first: Tensor, end: Tensor, target: Tensor
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Where, among the GROUP tokens from `first` on and before `end`, the cumulative probability first exceeds `target`
    of their sum. hidden (N, D), weight (V, D), all others (N, 1) → tokens and logits (N, 1); None where fold.c does not
    serve."""
    rows, width = hidden.shape
    if not folds(hidden) or width % LANES or not weight.is_contiguous():
        return None
    hidden, temperatures = hidden.contiguous(), temperatures.float().contiguous()
    first, end, target = first.contiguous(), end.contiguous(), target.double().contiguous()
    token, logit = torch.empty_like(first), torch.empty(rows, 1)
    _fold().among(
        rows, width, hidden.data_ptr(), weight.data_ptr(), hidden.dtype == torch.bfloat16, cap,
        temperatures.data_ptr(), first.data_ptr(), end.data_ptr(), target.data_ptr(), token.data_ptr(),
        logit.data_ptr(), min(torch.get_num_threads(), rows),
    )  # fmt: skip
    return token, logit
