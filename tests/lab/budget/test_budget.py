"""The entropy budget: the ranking explains the sampler's own decisions, in chart and widget alike."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import Trace
from dgemma_core.samplers import BlockRefinement, EntropyBound
from dgemma_lab.budget.budget import Budget, packed, ranking, reasons
from dgemma_lab.canvas.canvas import Canvas
from tests.lab import runs


@pytest.fixture(scope="module")
def trace() -> Trace:
    return runs.diffusion(sampler=EntropyBound(entropy_bound=9.0), stop_rule=None, pins={3: 40})


def test_the_sums_explain_what_the_sampler_accepted(trace: Trace) -> None:
    some = 0
    for step in range(1, len(trace) + 1):
        found = ranking(trace, step)
        assert (np.diff(found.entropy) >= 0).all()
        np.testing.assert_array_equal(found.accepted, found.before <= 9.0)
        np.testing.assert_allclose(found.before[1:], np.cumsum(found.entropy)[:-1], rtol=1e-6)
        some += 0 < found.accepted.sum() < len(found.accepted)
    assert some > 6, "the bound must matter in this run"


def test_pins_stand_outside_the_budget(trace: Trace) -> None:
    assert sorted(ranking(trace, 1).positions) == [0, 1, 2, 4, 5, 6, 7]
    assert sorted(ranking(trace, 7).positions) == [*range(8, 16)]


def test_reasons_name_the_sum_and_the_bound(trace: Trace) -> None:
    words, found = reasons(trace, 2), ranking(trace, 2)
    assert words[0] == "accepted: the surest one always is"
    first_out = int(np.argmin(found.accepted))
    assert (
        words[first_out]
        == f"redrawn: those before it use {found.before[first_out]:.3g} nats, the bound is 9"
    )
    assert words[first_out - 1].startswith("accepted: those before it use")


def test_the_still_lists_what_fits_and_what_does_not(trace: Trace) -> None:
    accepted = int(ranking(trace, 1).accepted.sum())
    page = Budget(trace, step=1).still_html()
    assert f"Step 1: {accepted} of 7 positions fit the budget of 9 nats" in page
    assert page.count("<td>accepted: ") >= min(4, accepted) > 0
    assert page.count("<td>redrawn: ") == min(4, 7 - accepted)
    left_out = sum(int(count) for count in re.findall(r"… (\d+) more", page))
    assert page.count("<tr><td>") + left_out == 7
    assert Budget(trace).still_html() == Budget(trace, step=12).still_html()


def test_the_widget_gets_the_same_rankings_and_follows_the_canvas(trace: Trace) -> None:
    data = packed(trace)
    assert data["counts"] == [7] * 6 + [8] * 6 and data["bound"] == 9.0
    for name, kind in (("positions", "<u4"), ("entropy", "<f4"), ("accepted", "u1")):
        flat = np.frombuffer(base64.b64decode(data[name]), kind)
        expected = np.concatenate([getattr(ranking(trace, step), name) for step in range(1, 13)])
        np.testing.assert_array_equal(flat, expected)
    canvas = Canvas(trace)
    canvas.step = 4
    budget = Budget(canvas)
    assert budget.step == 4
    assert (budget._link.target, budget._link.source) == ((canvas, "step"), (budget, "step"))


def test_other_rules_have_no_budget(trace: Trace) -> None:
    other = runs.diffusion(sampler=BlockRefinement())
    with pytest.raises(DgemmaError, match="this run was block_refinement"):
        Budget(other)
    with pytest.raises(DgemmaError, match="steps 1 to 12, not 0"):
        Budget(trace, step=0)
    with pytest.raises(DgemmaError, match="no complete trace yet"):
        Budget(Canvas())
