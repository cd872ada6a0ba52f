"""Statistics, against scipy and cases known by heart."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dgemma_core import RequestError
from dgemma_evals.comparison.stats import (
    holm,
    mean_difference,
    paired_bootstrap,
    quantiles,
    rates_ratio,
    sign_flip,
)


def test_the_sign_flip_test_is_scipys_permutation_test():
    rng = np.random.default_rng(0)
    for size in (5, 9, 14):
        values = rng.normal(0.4, 1, size)
        wanted = scipy_stats.permutation_test(
            (values, np.zeros(size)), lambda x, y: np.sum(x - y), permutation_type="samples",
            n_resamples=np.inf, alternative="two-sided",
        )  # fmt: skip
        assert sign_flip(values) == pytest.approx(wanted.pvalue, rel=1e-9)
    many = rng.normal(0.15, 1, 200)  # by random patterns: near the t test of as many values
    assert sign_flip(many) == pytest.approx(scipy_stats.ttest_1samp(many, 0).pvalue, rel=0.1)
    with pytest.raises(RequestError, match="no documents"):
        sign_flip([])


def test_of_verdicts_the_sign_flip_test_is_mcnemars():
    for better, worse in ((10, 0), (7, 2), (3, 3), (0, 0)):
        values = [1.0] * better + [-1.0] * worse + [0.0] * 9
        count = better + worse
        wanted = scipy_stats.binomtest(better, count).pvalue if count else 1.0
        assert sign_flip(values) == pytest.approx(wanted, rel=1e-9)


def test_even_seeds_and_graded_scores_count():
    """Half of the seeds on every document: a vote of the majority would call all of them a draw."""
    assert sign_flip([0.5] * 12) == pytest.approx(2 / 2**12)


def test_the_sign_flip_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(3)
    values = [sign_flip(rng.choice([-1.0, 0.0, 0.5, -0.5, 1.0], 12)) for _ in range(400)]
    assert np.mean(np.asarray(values) <= 0.05) < 0.075


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


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
    one = rates_ratio([[10.0, 30.0]], [[1.0, 1.0]], [[5.0, 5.0]], [[1.0, 4.0]], strata="aa")
    assert one.estimate == pytest.approx((40 / 2) / (10 / 5))
    same = np.full((3, 6), 2.0)
    found = rates_ratio(2 * same, same, same, same, strata="aabbbb")
    assert (found.estimate, found.low, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.slow
def test_the_interval_of_a_speed_ratio_covers_the_blocks():
    """Where one process is as a whole faster than another, intervals over documents alone are far too short."""
    rng = np.random.default_rng(5)
    held = {"blocks": 0, "documents": 0}
    for trial in range(200):
        kept = rng.integers(10, 30, 40) * np.ones((5, 1))
        own = np.exp(rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.05, (5, 40))) * kept
        other = np.exp(rng.normal(0, 0.05, (5, 40))) * kept
        columns = [kept, own, kept, other]
        found = rates_ratio(*columns, strata=["t"] * 40, samples=400, seed=trial)
        held["blocks"] += found.low <= 1 <= found.high
        flat = [column.reshape(1, -1) for column in columns]
        found = rates_ratio(*flat, strata=["t"] * 200, samples=400, seed=trial)
        held["documents"] += found.low <= 1 <= found.high
    assert held["blocks"] > 150 and held["documents"] < 80


def test_edges():
    with pytest.raises(RequestError, match="no documents"):
        paired_bootstrap(np.zeros((2, 0)), mean_difference)
    assert quantiles([1.0, 2.0, 3.0])[0] == 2.0
    assert all(math.isnan(value) for value in quantiles([]))
