"""Inside the model: the charts hold the recorded numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import Trace
from dgemma_core.observe import Observe
from dgemma_lab.charts.board import attention_board, lines_of
from dgemma_lab.charts.inside import (
    attention,
    balance,
    expert_load,
    expert_weights,
    experts_touched,
    self_conditioning,
    touched,
)
from dgemma_lab.frontend.text import visible
from tests.lab import runs


@pytest.fixture(scope="module")
def trace() -> Trace:
    return runs.diffusion(Observe(top_k=4, router=True, attention_positions=(2, 5)), stop_rule=None)


@pytest.fixture(scope="module")
def unobserved() -> Trace:
    return runs.diffusion()


def test_shares_are_the_router_weights_by_expert(trace: Trace) -> None:
    shares = expert_weights(trace)
    assert shares.shape == (12, 2, 3)
    np.testing.assert_allclose(shares.sum(-1), 1.0)
    assert trace.router_ids is not None and trace.router_weights is not None
    cut = slice(int(trace.offsets[4]), int(trace.offsets[5]))
    by_hand = np.zeros(3)
    for ids, weights in zip(trace.router_ids[cut, 1], trace.router_weights[cut, 1], strict=True):
        for expert, weight in zip(ids, weights, strict=True):
            by_hand[expert] += weight
    np.testing.assert_allclose(shares[4, 1], by_hand / by_hand.sum(), rtol=1e-5)
    assert touched(trace)[4, 1] == len(np.unique(trace.router_ids[cut, 1]))


def test_balance_counts_evenly_used_experts() -> None:
    np.testing.assert_allclose(
        balance(np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [1.0, 0, 0, 0]])), [4, 2, 1]
    )


def test_load_of_the_run_and_of_a_step(trace: Trace) -> None:
    whole, one = expert_load(trace), expert_load(trace, 5)
    np.testing.assert_allclose(np.array(whole.data[0].z), expert_weights(trace).mean(0) * 3)
    np.testing.assert_allclose(np.array(one.data[0].z), expert_weights(trace)[4] * 3)
    means = [part for part in experts_touched(trace).data if part.name == "mean"]
    np.testing.assert_allclose(means[0].y, touched(trace).mean(1))


def test_what_is_carried_over_adds_up(trace: Trace) -> None:
    figure = self_conditioning(trace, 3)
    heights = np.array([part.y for part in figure.data])
    np.testing.assert_allclose(heights.sum(0), 1.0, atol=1e-6)
    assert heights.shape == (5, 8)
    assert figure.data[0].customdata[2][1] == 2
    fewer = self_conditioning(trace, 3, most=3)
    assert (
        len(fewer.data[0].x) == 3 and "the 3 least sure of 8 positions" in fewer.layout.title.text
    )


def test_attention_covers_prompt_and_canvas(trace: Trace) -> None:
    prompt = len(trace.prompt_ids)
    figure = attention(trace, 2, 5)
    heat = next(part for part in figure.data if part.type == "heatmap")
    assert np.array(heat.z).shape == (2, prompt + 8)
    np.testing.assert_allclose(np.array(heat.z).sum(1), 1.0, atol=1e-5)
    assert trace.attention is not None
    np.testing.assert_allclose(np.array(heat.z), trace.attention[1][:, 1].mean(1))
    second = attention(trace, 12)
    heat = next(part for part in second.data if part.type == "heatmap")
    assert np.array(heat.z).shape == (2, prompt + 16), "the first canvas is part of the prefix now"


@pytest.mark.slow
def test_a_board_has_each_token_where_it_stands(trace: Trace) -> None:
    assert lines_of(["a", "b⏎", "c", "⏎", "⏎", "d"]) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (3, 0),
    ]
    assert lines_of(["x"] * 20)[-1] == (1, 3), "long lines go on in the next"
    figure = attention_board(trace, 2, 5)
    before, canvas = (np.array(part.z, float) for part in figure.data)
    assert trace.attention is not None
    mean = trace.attention[1][:, 1].mean((0, 1))
    prompt = len(trace.prompt_ids)
    np.testing.assert_allclose(before[~np.isnan(before)], mean[:prompt], rtol=1e-6)
    np.testing.assert_allclose(canvas[~np.isnan(canvas)], mean[prompt:], rtol=1e-6)
    assert len(before) > 1, "the prompt has two lines"
    words = [note.text for note in figure.layout.annotations]
    assert len(words) == 2 + prompt + 8
    (frame,) = figure.layout.shapes
    framed = ((frame.x0 + frame.x1) / 2, (frame.y0 + frame.y1) / 2)
    here = [n.text for n in figure.layout.annotations if (n.x, n.y, n.xref) == (*framed, "x2")]
    assert here == [visible(trace.text(trace.tokens_in[8 + 5]), 10).replace("<", "&lt;")]
    for step in (1, 3):  # the grid does not jump: it has the lines of the text that comes out
        (again,) = attention_board(trace, step, 5).layout.shapes
        assert (again.x0, again.y0) == (frame.x0, frame.y0)
    assert lines_of(["x"] * 9, 4)[-1] == (2, 0), "a narrower board"
    with pytest.raises(DgemmaError, match=r"only of \[2, 5\]"):
        attention_board(trace, 1, 3)


def test_what_was_not_observed_is_said(trace: Trace, unobserved: Trace) -> None:
    for view in (expert_load, experts_touched):
        with pytest.raises(DgemmaError, match="router=True"):
            view(unobserved)
    with pytest.raises(DgemmaError, match="top_k"):
        self_conditioning(unobserved, 1)
    with pytest.raises(DgemmaError, match="attention_positions"):
        attention(unobserved, 1)
    with pytest.raises(DgemmaError, match=r"only of \[2, 5\]"):
        attention(trace, 1, 3)
    with pytest.raises(DgemmaError, match="steps 1 to 12, not 13"):
        attention(trace, 13)
    with pytest.raises(DgemmaError, match="num_experts"):
        expert_load(replace(trace, metadata={}))
