"""Many texts at once: rows that join as requests arrive, and what each one waited."""

from __future__ import annotations

import time

import pytest
from lm_eval.api.instance import Instance

from dgemma_core import RequestError
from dgemma_evals.writers.arrivals import Arrivals
from dgemma_evals.writers.base import Traffic
from dgemma_evals.writers.named import writer


def asking(doc, **gen_kwargs):
    given = {"until": [], "max_gen_toks": 12, **gen_kwargs}
    return Instance("generate_until", {}, (f"prompt {doc}", given), 0, ("t", doc, 1))


def test_an_item_comes_when_it_has_arrived():
    working = [0]
    arrivals = Arrivals("abc", (0.0, 0.05, 0.06), lambda: working[0])
    assert next(arrivals) == "a"
    working[0] = 1
    assert list(arrivals) == [], "not yet, and a row is at work"
    working[0] = 0
    start = time.perf_counter()
    assert next(arrivals) == "b" and time.perf_counter() - start > 0.01, "waited for"
    time.sleep(0.05)
    working[0] = 1
    assert next(arrivals) == "c" and arrivals.waited[2] > 0.02, "it had been there for a while"
    assert list(arrivals) == [] and arrivals.waited[0] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", ":ar", ":spec"])
def test_texts_are_those_of_a_text_alone(checkpoint, end):
    """Whether rows share a batch or come one by one; the loop neither ends early nor leaves one out."""
    side = writer(f"{checkpoint}{end}", device="cpu")
    requests = [asking(doc) for doc in range(5)]
    alone = [side.write(request, 3, {}).text for request in requests]
    for traffic in (
        Traffic(1), Traffic(4), Traffic(2, (0.0, 0.0, 0.01, 0.4, 0.41)), Traffic(8, (0.2,) * 5),
    ):  # fmt: skip
        served = side.serve(requests, 3, traffic)
        assert [one.written.text for one in served] == alone
        for one in served:
            assert one.seconds == one.waited + one.written.counts.seconds
            assert one.waited >= 0 and one.waited < one.first_seconds <= one.seconds


def test_a_request_waits_for_a_row(checkpoint):
    """Of requests that come at once, the second in a batch of one waits about as long as the first takes."""
    side = writer(f"{checkpoint}:ar", device="cpu")
    first, second = side.serve([asking(0), asking(1)], 0, Traffic(1, (0.0, 0.0)))
    assert first.waited < second.waited
    assert second.waited == pytest.approx(first.seconds, rel=0.5, abs=0.05)


def test_requests_served_together_ask_alike(checkpoint):
    side = writer(str(checkpoint), device="cpu")
    with pytest.raises(RequestError, match="same settings"):
        side.serve([asking(0), asking(1, steps=2)], 0, Traffic(2))
