"""Statistics, against scipy and cases known by heart."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dgemma_core import RequestError
from dgemma_evals.comparison.stats import (
    mcnemar,
    mean_difference,
    paired_bootstrap,
    quantiles,
    ratio_of_rates,
)


def test_mcnemar_is_scipys_binomial_test():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(1, 60))
        first, second = rng.random(size) < 0.7, rng.random(size) < rng.random()
        found = mcnemar(first, second)
        a, b = int((first & ~second).sum()), int((second & ~first).sum())
        wanted = scipy_stats.binomtest(a, a + b).pvalue if a + b else 1.0
        assert (found.only_first, found.only_second) == (a, b)
        assert found.p == pytest.approx(wanted, rel=1e-9)
    assert mcnemar([True] * 10, [False] * 10).p == pytest.approx(2 / 2**10)
    with pytest.raises(RequestError, match="paired"):
        mcnemar([True], [])


def test_the_bootstrap_interval_is_scipys():
    rng = np.random.default_rng(1)
    first, second = rng.random(80), rng.random(80) * 0.8
    found = paired_bootstrap([first, second], mean_difference, samples=20_000)
    wanted = scipy_stats.bootstrap(
        (first - second,), np.mean, n_resamples=20_000, method="percentile", random_state=2
    ).confidence_interval
    assert found.estimate == pytest.approx((first - second).mean())
    assert found.low == pytest.approx(wanted.low, abs=0.005)
    assert found.high == pytest.approx(wanted.high, abs=0.005)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        pair = np.stack([rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)])
        found = paired_bootstrap(pair, mean_difference, samples=400, seed=trial)
        held += found.low <= 0.3 <= found.high
    assert 0.89 < held / 200 < 0.99


def test_documents_are_drawn_within_their_task():
    """Tasks that differ in level alone add no uncertainty."""
    first = np.array([0.0] * 20 + [1.0] * 20)
    found = paired_bootstrap([first, np.zeros(40)], mean_difference, strata=["a"] * 20 + ["b"] * 20)
    assert (found.estimate, found.low, found.high) == (0.5, 0.5, 0.5) and found.decided
    loose = paired_bootstrap([first, np.zeros(40)], mean_difference)
    assert loose.high - loose.low > 0.2


def test_a_ratio_of_rates_weighs_every_token_alike():
    table = np.array([[10.0, 30.0], [1.0, 1.0], [5.0, 5.0], [1.0, 4.0]])
    assert float(ratio_of_rates(table)) == pytest.approx((40 / 2) / (10 / 5))


def test_edges():
    with pytest.raises(RequestError, match="no documents"):
        paired_bootstrap(np.zeros((2, 0)), mean_difference)
    assert quantiles([1.0, 2.0, 3.0])[0] == 2.0
    assert all(math.isnan(value) for value in quantiles([]))
