"""Paired statistics: what can be said of two models that answered the same questions.

Intervals are percentile bootstraps over documents (resampled within each task, so that every task
keeps its weight); the test of paired verdicts is McNemar's, exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgemma_core import RequestError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Zero lies outside."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    values: Sequence[Sequence[float] | Array] | Array,
    statistic: Callable[[Array], Array],
    *,
    strata: Sequence[object] | None = None,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of per-document columns, and its interval.

    values: (columns, documents). statistic: (columns, …, documents) → (…), along the last axis.
    strata: the task of each document. Raises RequestError without documents.
    """
    table = np.asarray(values, dtype=np.float64)
    count = table.shape[-1]
    if not count:
        raise RequestError("no documents to compare: raise --limit")
    labels = np.zeros(count, dtype=int)
    if strata is not None:
        labels = np.unique([str(label) for label in strata], return_inverse=True)[1]
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    drawn = []
    block = max(1, 2**22 // count)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        picks = [rng.choice(group, size=(rows, len(group))) for group in groups]
        drawn.append(statistic(table[:, np.concatenate(picks, axis=1)]))
    spread = np.concatenate(drawn)
    edges = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(table)), float(edges[0]), float(edges[1]))


def mean_difference(table: Array) -> Array:
    """(2, …, documents) → mean of first minus second."""
    return np.asarray((table[0] - table[1]).mean(axis=-1))


def ratio_of_rates(table: Array) -> Array:
    """(4, …, documents): amounts and costs of the first, then of the second → ratio of the rates."""
    amounts, costs, other_amounts, other_costs = table.sum(axis=-1)
    return np.asarray((amounts / costs) / (other_amounts / other_costs))


@dataclass(frozen=True)
class McNemar:
    """Documents that the first alone, or the second alone, solved; the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """The exact test that both solve as many: the discordant pairs against a fair coin."""
    if len(first) != len(second):
        raise RequestError(f"{len(first)} verdicts against {len(second)}: they must be paired")
    a = sum(bool(x) and not y for x, y in zip(first, second, strict=True))
    b = sum(bool(y) and not x for x, y in zip(first, second, strict=True))
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    return McNemar(a, b, float(min(1.0, 2 * tail / 2 ** (a + b))))


def share(count: int, total: int, *, confidence: float = 0.95) -> Interval:
    """count / total with its exact (Clopper–Pearson) interval, which says something at 0 too."""
    from scipy.stats import binomtest

    if not total:
        raise RequestError("a share of nothing: raise --limit")
    found = binomtest(count, total).proportion_ci(confidence, method="exact")
    return Interval(count / total, float(found.low), float(found.high))


def quantiles(values: Sequence[float], levels: Sequence[float] = (0.5, 0.9, 0.99)) -> list[float]:
    """Of a sample, by linear interpolation; nan for an empty one."""
    if not len(values):
        return [math.nan] * len(levels)
    return [float(found) for found in np.quantile(np.asarray(values), levels)]
