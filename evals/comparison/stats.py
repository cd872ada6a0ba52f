"""Paired statistics: what can be said of two models that answered the same questions.

Intervals are percentile bootstraps over documents (resampled within each task, so that every task
keeps its weight). The test flips the signs of per-document mean differences, so graded metrics and
any number of seeds count in full; over tasks its p values are corrected by Holm's method.
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
    groups = _by_stratum(strata if strata is not None else [0] * count)
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


def rates_ratio(
    kept: Array,
    seconds: Array,
    other_kept: Array,
    other_seconds: Array,
    *,
    strata: Sequence[object],
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The ratio of two writers' rates, each (blocks, documents), and its interval.

    Documents are drawn anew within their task, and blocks (each a process of its own) among themselves, both in every
    sample (the pigeonhole bootstrap, Owen 2007), so the interval covers what differs from process to process, too.
    Raises RequestError without documents.
    """
    columns = [np.asarray(c, dtype=np.float64) for c in (kept, seconds, other_kept, other_seconds)]
    blocks, count = columns[0].shape
    if not count:
        raise RequestError("no documents to compare: raise --limit")
    groups = _by_stratum(strata)
    rng = np.random.default_rng(seed)
    drawn = []
    step = max(1, 2**22 // count)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        times = np.zeros((rows, count))
        for group in groups:
            times[:, group] = rng.multinomial(len(group), [1 / len(group)] * len(group), size=rows)
        of_blocks = rng.multinomial(blocks, [1 / blocks] * blocks, size=rows)
        a, b, c, d = (((of_blocks @ column) * times).sum(axis=1) for column in columns)
        drawn.append((a / b) / (c / d))
    edges = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    a, b, c, d = (float(column.sum()) for column in columns)
    return Interval((a / b) / (c / d), float(edges[0]), float(edges[1]))


def mean_difference(table: Array) -> Array:
    """(2, …, documents) → mean of first minus second."""
    return np.asarray((table[0] - table[1]).mean(axis=-1))


_EXACT = 16
"""Differing documents up to which all patterns of signs are tried."""


def sign_flip(
    differences: Sequence[float] | Array, *, samples: int = 100_000, seed: int = 0
) -> float:
    """Two-sided p of the test that neither writer is better, by the sum of per-document mean differences.

    If neither is, each document's difference might as well have had the other sign. Signs are flipped document by
    document, so tasks keep their own. Exact up to `_EXACT` documents that differ, else by `samples` random patterns.
    Raises RequestError without documents.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        raise RequestError("no documents to compare: raise --limit")
    values = values[values != 0]
    count = len(values)
    observed = abs(values.sum()) - 1e-9 * np.abs(values).sum()  # equal sums differ by rounding
    if count <= _EXACT:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        sums = (1.0 - 2.0 * patterns) @ values
        return float((np.abs(sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    as_far = 0
    block = max(1, 2**22 // count)
    for start in range(0, samples, block):
        signs = rng.integers(0, 2, (min(block, samples - start), count), dtype=np.int8)
        as_far += int((np.abs((1.0 - 2.0 * signs) @ values) >= observed).sum())
    return (as_far + 1) / (samples + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): the chance of any false one stays below the level."""
    count, highest = len(values), 0.0
    corrected = [0.0] * count
    for rank, place in enumerate(np.argsort(np.asarray(values), kind="stable").tolist()):
        highest = max(highest, min(1.0, (count - rank) * values[place]))
        corrected[place] = highest
    return corrected


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


def _by_stratum(strata: Sequence[object]) -> list[NDArray[np.intp]]:
    """The places of each stratum's documents."""
    labels = np.unique([str(label) for label in strata], return_inverse=True)[1]
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]
