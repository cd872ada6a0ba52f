"""Order of thought: numbers worked by hand on made traces."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import Trace
from dgemma_lab.charts.order import (
    convergence,
    divergence,
    kendall,
    order_by_kind,
    orders,
    remelt_counts,
    remelts,
    settled_fraction,
    settling,
)
from tests.files.fake_events import (
    CanvasEvent,
    FinishEvent,
    Observed,
    PromptEvent,
    StepEvent,
    token_events,
)

EOS = 1


def made(
    argmax: list[list[int]], accepted: Any = None, observed: Any = None, pinned: Any = None
) -> Trace:
    """A run of one canvas with these best guesses, pass by pass."""
    count = len(argmax[0])
    accepted = accepted if accepted is not None else [[True] * count] * len(argmax)
    still = np.zeros(count, np.float32)
    events: list[Any] = [PromptEvent("a", (2, 3), 0, 0.0)]
    for step, row in enumerate(argmax):
        tokens, marks = np.array(row), np.array(accepted[step])
        events.append(
            StepEvent(
                "a", 0, step, len(argmax), "predict", 1.0, tokens, tokens, tokens, tokens, marks,
                np.array(pinned or [False] * count), still + 0.5, still + 0.5, still, False, float(step),
                observed[step] if observed else None,
            )
        )  # fmt: skip
    last = argmax[-1]
    kept = last.index(EOS) + 1 if EOS in last else count
    events.append(CanvasEvent("a", 0, tuple(last), kept, False, still, still, 9.0))
    events.append(
        FinishEvent(
            "a", tuple(last[:kept]), "eos" if EOS in last else "length", len(argmax), 1, 1, 9.0
        )
    )
    return Trace.record(events, metadata={"eos_token_ids": [EOS]})


def test_settling_ties_and_the_tail() -> None:
    """Positions 0 … 3 settle in passes 1, 3, 2, 2; what follows the EOS at 3 does not count."""
    trace = made([[10, 7, 7, 7, 1, 1], [10, 7, 12, 1, 1, 9], [10, 11, 12, 1, 9, 1]])
    (order,) = orders(trace)
    assert order.positions.tolist() == [0, 1, 2, 3]
    assert order.settled.tolist() == [1, 3, 2, 2]
    assert order.tied.tolist() == [False, False, True, True]
    # pairs: 0-1 up, 0-2 up, 0-3 up, 1-2 down, 1-3 down, 2-3 tied
    assert order.tau == pytest.approx((3 - 2) / math.sqrt(6 * 5))
    assert settled_fraction(trace).tolist() == [0.25, 0.75, 1.0]
    figure = settling(trace)
    assert {part.name: list(part.x) for part in figure.data} == {
        "alone in its pass": [0, 1],
        "tied with others": [2, 3],
    }
    assert "τ = 0.18; 2 of 4 positions are tied" in figure.layout.title.text


def test_pins_do_not_count() -> None:
    trace = made([[10, 7, 7], [10, 11, 7], [10, 11, 12]], pinned=[True, False, False])
    assert orders(trace)[0].positions.tolist() == [1, 2]


def test_tau_is_undefined_without_order() -> None:
    assert math.isnan(kendall(np.arange(1), np.arange(1)))
    assert math.isnan(kendall(np.arange(4), np.ones(4, int)))
    assert "τ undefined" in settling(made([[10, 11], [10, 11]])).layout.title.text


def test_autoregression_goes_from_left_to_right() -> None:
    trace = Trace.record(token_events([10, 11, 12, EOS]))
    (order,) = orders(trace)
    assert order.tau == pytest.approx(1.0) and order.settled.tolist() == [1, 2, 3, 4]
    with pytest.raises(DgemmaError, match="predicts each position once"):
        convergence(trace)


def test_remelts_are_counted_where_they_happen() -> None:
    accepted = [[True, False, True], [False, False, True], [True, True, False]]
    trace = made([[10, 11, 12]] * 3, accepted)
    by_pass, by_position = remelt_counts(trace)
    assert by_pass.tolist() == [0, 1, 1] and by_position.tolist() == [1, 0, 1]
    figure = remelts(trace)
    assert list(figure.data[0].y) == [0, 1, 1] and "2 times" in figure.layout.title.text


def top(*rows: list[tuple[int, float]]) -> Observed:
    return Observed(
        top_ids=np.array([[token for token, _ in row] for row in rows]),
        top_probabilities=np.array([[p for _, p in row] for row in rows], np.float32),
    )


def test_divergence_over_top_k_and_rest() -> None:
    """One position: (first pass) the same tokens in another order, exact; one missing, a lower bound; then final."""
    observed = [
        top([(11, 0.6), (10, 0.3)]),
        top([(12, 0.5), (10, 0.2)]),
        top([(10, 0.8), (11, 0.1)]),
    ]
    trace = made([[10], [10], [10]], observed=observed)
    same = 0.8 * math.log(0.8 / 0.3) + 0.1 * math.log(0.1 / 0.6)  # the rests are equal
    missing = 0.8 * math.log(0.8 / 0.2) + 0.1 * math.log(0.1 / 0.2) + 0.1 * math.log(0.1 / 0.3)
    np.testing.assert_allclose(divergence(trace)[:, 0], [same, missing, 0.0], atol=1e-6)


@pytest.mark.parametrize("listed", [1, 3, 12])
def test_divergence_is_at_most_the_truth_and_exact_where_all_is_listed(listed: int) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(12, 0.3), size=(4, 5))  # passes, positions, tokens
    best = np.argsort(-p, axis=-1)[..., :listed]
    chances = np.take_along_axis(p, best, -1).astype(np.float32)
    observed = [Observed(top_ids=best[s], top_probabilities=chances[s]) for s in range(4)]
    found = divergence(made([[10] * 5] * 4, observed=observed))
    true = (p[-1] * np.log(p[-1] / p)).sum(-1)
    assert (found <= true + 1e-5).all()
    if listed == 12:
        np.testing.assert_allclose(found, true, atol=1e-4)


def test_convergence_shows_both_and_needs_the_alternatives() -> None:
    observed = [top([(11, 0.6), (10, 0.3)]), top([(10, 0.8), (11, 0.1)])]
    figure = convergence(made([[11], [10]], observed=observed))
    settled = next(part for part in figure.data if part.name == "settled")
    assert list(settled.y) == [0.0, 1.0]
    with pytest.raises(DgemmaError, match="top_ids was not observed"):
        convergence(made([[11], [10]]))


def test_kinds_are_set_side_by_side() -> None:
    forward = made([[10, 7, 7], [10, 11, 7], [10, 11, 12]])
    backward = made([[7, 7, 12], [7, 11, 12], [10, 11, 12]])
    still = made([[10, 11, 12]] * 2)
    figure = order_by_kind({"up": [forward, forward], "down": [backward], "none": [still]})
    assert [list(part.x) for part in figure.data] == [[1.0, 1.0], [-1.0]]
    assert [note.text for note in figure.layout.annotations] == [
        "mean 1.00 of 2",
        "mean -1.00 of 1",
    ]
    assert list(figure.layout.yaxis.ticktext) == ["up", "down", "none"]


def test_an_empty_trace_has_no_order() -> None:
    empty = replace(Trace.record([PromptEvent("a", (2,), 0, 0.0)]))
    with pytest.raises(DgemmaError, match="nothing has settled"):
        settling(empty)
