"""The random numbers of a run, addressed rather than consumed, and drawing from a distribution with one.

number = Philox(seed; canvas, step, stream, position), so a row's numbers never depend on the batch it travels in, on
its neighbours or on how many numbers were drawn before, and any step can be reached directly.

Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
Axes: B rows, C canvas positions, V vocabulary, K routes, k chosen positions, R of B·C positions.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dgemma_core.errors import RequestError, finite_number, whole_number

Device = torch.device | str
BELOW_ONE = 1 - 2.0**-53
"""The largest float64 below 1."""


class Stream(IntEnum):
    """What a number is for: each purpose has its own stream, so that none shifts another."""

    SAMPLE = 0  # the model's token at a position
    NOISE = 1  # the uniform token that replaces it
    ROUTE = 2  # a small categorical choice at a position
    SELECT = 3  # which positions the corrector takes
    RESAMPLE = 4  # the corrector's token at a position


@dataclass(frozen=True)
class RowKey:
    """Names the numbers of one row: its request's seed and its canvas's index, both from 0 and below 2**64."""

    seed: int
    canvas: int

    def __post_init__(self) -> None:
        for name, number in (("seed", self.seed), ("canvas", self.canvas)):
            whole_number(name, number)


class StepDraws(Protocol):
    """The numbers of one forward pass over B rows of C positions."""

    @property
    def uniform(self) -> Tensor:
        """(B, C) float64 in [0, 1) for samples by `inverse_cdf`."""

    def tokens(self, vocab_size: int) -> Tensor:
        """(B, C) int64, uniform over the vocabulary."""

    def choose(self, probabilities: Tensor) -> Tensor:
        """(B, C, K) float32, each row summing to 1 → (B, C) int64."""

    def gumbel(self) -> Tensor:
        """(B, C) float64 standard Gumbel noise."""

    def categorical_rows(self, probabilities: Tensor, positions: Tensor) -> Tensor:
        """(B, k, V) float64 distributions of the positions (B, k) → (B, k) int64."""


@runtime_checkable
class Draws(Protocol):
    """Where a decode loop gets its numbers; `rows` are those of the batch, in order."""

    def first_canvas(
        self, rows: Sequence[RowKey], canvas_length: int, vocab_size: int, device: Device = "cpu"
    ) -> Tensor:
        """(B, C) int64, uniform: the noise that a canvas starts from."""

    def step(
        self,
        rows: Sequence[RowKey],
        steps: Sequence[int],
        canvas_length: int,
        device: Device = "cpu",
    ) -> StepDraws:
        """The numbers of one pass; `steps` holds each row's pass within its canvas, from 0."""


def upload(values: Tensor, device: Device) -> Tensor:
    """Numbers made on the host, on `device`; nobody waits for the copy."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(…, V) non-negative weights, not all zero, and (…) uniforms in [0, 1) → (…) int64.

    The first index whose cumulative weight, summed in float64, exceeds uniform · total. An index of
    weight 0 is never taken.
    """
    cumulative = probabilities.double().cumsum(-1)
    # 53-bit numbers below 1 times the total are below the total: the search ends on an index
    target = uniform.double() * cumulative[..., -1]
    return torch.searchsorted(cumulative, target.unsqueeze(-1), right=True).squeeze(-1)


@dataclass(frozen=True)
class Filters:
    """Keep the `top_k` most probable tokens, then the smallest set that holds `top_p` of the mass."""

    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None:
            top_k = whole_number("top_k", self.top_k, low=1, high=2**31 - 1)
            object.__setattr__(self, "top_k", top_k)
        if self.top_p is not None:
            object.__setattr__(self, "top_p", finite_number("top_p", self.top_p))
            if not 0 < self.top_p <= 1:
                raise RequestError(f"top_p must lie above 0 and at most at 1, got {self.top_p}")


def found_in(masses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative masses (N, K), float64, first exceed `target` (N, 1) of their sum, in [0, 1): that place,
    and how far into its mass, in [0, 1) again, both (N, 1). A place of mass 0 is never found."""
    edges = masses.cumsum(dim=1)
    target = target * edges[:, -1:]
    place = torch.searchsorted(edges, target, right=True).clamp_max(masses.shape[1] - 1)
    mass = masses.gather(1, place)
    return place, ((target - (edges.gather(1, place) - mass)) / mass).clamp(0, BELOW_ONE)


def filtered(logits: Tensor, filters: Filters) -> Tensor:
    """Logits (R, V) with all tokens outside the filters at −inf. Ties at the top-k boundary stay."""
    if filters.top_k is not None and filters.top_k < logits.shape[-1]:
        least = logits.topk(filters.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if filters.top_p is not None and filters.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(
            -1, order, before > filters.top_p
        )
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


class _Philox(threading.local):
    """A thread's generator, made at its first draw (`numpy.random` takes 2 MB) and set anew: a third of making one."""

    @cached_property
    def parts(self) -> tuple[Any, Any, Any]:
        bits = np.random.Philox(key=0)
        return bits, bits.state, np.random.Generator(bits).random


_PHILOX = _Philox()


@dataclass(frozen=True)
class CounterDraws:
    """Draws addressed by (seed, canvas, step, stream, position): the same whatever the batch."""

    def first_canvas(
        self, rows: Sequence[RowKey], canvas_length: int, vocab_size: int, device: Device = "cpu"
    ) -> Tensor:
        return self.step(rows, [-1] * len(rows), canvas_length, device).tokens(vocab_size)

    def step(
        self,
        rows: Sequence[RowKey],
        steps: Sequence[int],
        canvas_length: int,
        device: Device = "cpu",
    ) -> "CounterStep":
        return CounterStep(tuple(rows), tuple(steps), canvas_length, device)


@dataclass(frozen=True)
class CounterStep:
    """One pass of `CounterDraws`. Every call gives the same numbers again: nothing is consumed."""

    rows: tuple[RowKey, ...]
    steps: tuple[int, ...]  # one a row; -1 is the first canvas
    canvas_length: int
    device: Device = "cpu"

    def numbers(self, stream: Stream) -> Tensor:
        """(B, C) float64 in [0, 1), 53 random bits each."""
        bits, state, random = _PHILOX.parts
        found = np.empty((len(self.rows), self.canvas_length))
        for line, row, step in zip(found, self.rows, self.steps, strict=True):
            # four 64-bit words, the lowest first; that one counts positions, four to a block
            counter = np.array([0, stream, step + 1, row.canvas], dtype=np.uint64)
            words = {"counter": counter, "key": np.array([row.seed, 0], dtype=np.uint64)}
            bits.state = state | {"state": words}
            random(out=line)
        return upload(torch.from_numpy(found), self.device)

    @cached_property
    def uniform(self) -> Tensor:
        return self.numbers(Stream.SAMPLE)

    def tokens(self, vocab_size: int) -> Tensor:
        return (self.numbers(Stream.NOISE) * vocab_size).long()

    def choose(self, probabilities: Tensor) -> Tensor:
        return inverse_cdf(probabilities, self.numbers(Stream.ROUTE))

    def gumbel(self) -> Tensor:
        return -(-self.numbers(Stream.SELECT).clamp(min=2.0**-54).log()).log()

    def categorical_rows(self, probabilities: Tensor, positions: Tensor) -> Tensor:
        return inverse_cdf(probabilities, self.numbers(Stream.RESAMPLE).gather(-1, positions))
