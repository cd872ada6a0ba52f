"""Many requests at once: figures known by hand, and where one side overtakes."""

from __future__ import annotations

import pandas as pd
import pytest

from dgemma_evals.comparison import block
from dgemma_evals.comparison.compare import compare
from dgemma_evals.comparison.figures import load_front
from dgemma_evals.comparison.load import overtaking, traffic_points
from dgemma_evals.comparison.plan import Plan
from dgemma_evals.comparison.summary import summarise
from tests.evals.comparison.test_compare import TASK, Fake

FACTS = {"within": 2.0, "price": 3.6}


def rows(side, batch, *, seed=0, wall=4.0, rise=100.0, kept=10):
    return [
        {"side": side, "batch": batch, "rate": None, "seed": seed, "score": 1.0, "kept_tokens": kept,
         "seconds": seconds, "waited": 0.5, "first_seconds": 0.5, "first_tokens": 1.0, "wall": wall,
         "rise_bytes": rise, "cores_busy_with_others": None}
        for seconds in (1.0, 2.0)
    ]  # fmt: skip


def table(*parts):
    found = pd.DataFrame([row for part in parts for row in part])
    return found.astype({"rate": float, "cores_busy_with_others": float})


def test_the_figures_of_a_point():
    (point,) = traffic_points(table(rows("a", 1)), FACTS)
    assert point["tokens_per_second"] == 20 / 4
    assert point["tokens_per_second_a_user"] == pytest.approx((10 / 1.5 + 10 / 2.5) / 2)
    assert point["first_seconds"] == 1.0, "from arrival"
    assert point["seconds_per_further_token"] == pytest.approx((0.5 / 9 + 1.5 / 9) / 2)
    assert (point["p50"], point["p99"]) == (2.0, pytest.approx(2.49))
    assert point["good_share"] == 0.5, "1.5 s within 2, 2.5 s not"
    assert point["good_requests_per_second"] == 1 / 4
    assert point["good_tokens_per_second"] == 10 / 4
    assert point["cost_per_million_tokens"] == pytest.approx(3.6 / 3600 * 4 / 20 * 1e6)


def test_medians_and_ranges_are_over_blocks():
    parts = [rows("a", 2, seed=seed, wall=wall) for seed, wall in enumerate((1.0, 2.0, 4.0))]
    (point,) = traffic_points(table(*parts), FACTS)
    assert point["tokens_per_second"] == 10 and point["range_of_tokens_per_second"] == [5, 20]
    assert point["requests"] == 6


def test_memory_of_each_request_beside_the_first():
    parts = (rows("a", 1), rows("a", 5, rise=900.0))
    points = traffic_points(table(*parts), FACTS)
    assert [point["bytes_per_request"] for point in points] == [None, 200.0]
    assert traffic_points(None, FACTS) == []


def test_where_one_side_overtakes():
    def points(*pairs):
        return [
            {"side": side, "kind": "batch", "amount": 2.0**i, "tokens_per_second": rate}
            for i, pair in enumerate(pairs) for side, rate in zip(("a", "b"), pair, strict=True)
        ]  # fmt: skip

    assert overtaking(points((9, 1), (9, 5), (9, 12), (9, 20)), "a", "b")["amount"] == 4
    assert overtaking(points((9, 10), (9, 5), (9, 12)), "a", "b")["amount"] == 4, "from there on"
    assert overtaking(points((9, 1), (9, 5)), "a", "b") is None
    assert overtaking(points((1, 9), (1, 9)), "a", "b")["amount"] == 1


def test_every_side_gets_the_same_arrivals(tmp_path):
    plan = Plan(tasks=(TASK,), batches=(1, 4), rates=(5.0,))
    traffic = block._traffic(plan, {"rate": 5.0}, 200, 1)
    assert traffic == block._traffic(plan, {"rate": 5.0}, 200, 1)
    assert traffic.rows == 4 and traffic.arrivals[-1] == pytest.approx(200 / 5, rel=0.2)
    assert list(traffic.arrivals) == sorted(traffic.arrivals)
    assert traffic != block._traffic(plan, {"rate": 5.0}, 200, 2), "another block, other arrivals"
    assert block._traffic(plan, {"batch": 4.0}, 9, 0).arrivals is None


@pytest.mark.slow
def test_a_comparison_serves_many_at_once_and_goes_on(tmp_path):
    pair = [
        Fake(name, lambda doc, seed: True, tokens=8, seconds=seconds, deterministic=True)
        for name, seconds in (("fast", 0.5), ("slow", 2.0))
    ]
    plan = Plan(tasks=(TASK,), limit=4, seeds=2, batches=(1, 2), rates=(1000.0,), price=1.0)
    found = summarise(compare(plan, pair, tmp_path, quiet=True))
    points = {(p["side"], p["kind"], p["amount"]) for p in found["traffic"]}
    assert len(points) == 2 * 3 and ("slow", "rate", 1000.0) in points
    assert all(p["requests"] == 2 * 4 and p["score"] == 1 for p in found["traffic"])
    assert not any("at once" in line for line in found["not_measured"])
    assert found["sides"]["slow"]["cost_per_million_tokens"] == pytest.approx(1 / 3600 / 4 * 1e6)
    assert len(load_front(found).data) >= 2
    for side in pair:
        side.log.clear()
    again = summarise(compare(plan, pair, tmp_path, quiet=True))
    assert not pair[0].log and again["traffic"] == found["traffic"]
