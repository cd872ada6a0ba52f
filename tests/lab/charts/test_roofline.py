"""The roofline: work counted by hand, times of this machine, the published point marked as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgemma_core.errors import RequestError
from dgemma_core.facts.cost import work
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.saving import save_model
from dgemma_lab.charts.roofline import PUBLISHED, Machine, StepCost, break_even, measure, roofline
from dgemma_lab.charts.roofline import _cost as cost
from tests.lab import runs

MACHINE = Machine(
    name="a machine", model="tiny", dtype="float32", bandwidth=1e10, matrix_rate=1e11, prefix=10,
    token_steps=tuple(StepCost(b, b, 0.01 * (1 + b / 10), 1e6 * b, 1e7) for b in (1, 4, 16)),
    canvas_steps=tuple(StepCost(b, 8 * b, 0.02 * (1 + b / 2), 8e6 * b, 2e7) for b in (1, 4, 16)),
)  # fmt: skip


@pytest.mark.slow
def test_a_step_carries_its_work_and_its_times(tmp_path: Path) -> None:
    """What is counted, facts/cost.py says (tests/facts/test_cost.py)."""
    loaded = runs.loaded()
    one = cost(loaded.model, 2, 8, 10, [0.5, 0.7, 0.1], 3.0)
    needed = work(loaded.model, prefix=10, tokens=8, batch=2, touched=3.0)
    assert (one.flops, one.bytes) == (needed.operations, needed.bytes)
    assert (one.batch, one.tokens, one.seconds, one.rate) == (2, 16, 0.5, one.flops / 0.5)
    save_model(loaded.model, tmp_path, generation=loaded.generation)
    coded = replace(loaded, model=load_model(tmp_path, device="cpu", quantize="int4"))
    assert measure(coded, batches=(1,), passes=2, rounds=1).dtype == "float32, weights int4"


@pytest.mark.slow
def test_measuring_times_both_steps_at_each_batch() -> None:
    machine = measure(runs.loaded(), batches=(1, 3), passes=2, rounds=3)
    assert [step.batch for step in machine.token_steps] == [1, 3]
    assert [step.tokens for step in machine.canvas_steps] == [8, 24]
    assert all(step.seconds > 0 for step in (*machine.token_steps, *machine.canvas_steps))
    for step in (*machine.token_steps, *machine.canvas_steps):
        assert len(step.times) == 3 and step.seconds == sorted(step.times)[1]
    assert machine.bandwidth > 1e8 and machine.matrix_rate > 1e8
    for wrong in ({"batches": ()}, {"batches": (0,)}, {"passes": 1}, {"rounds": 0}):
        with pytest.raises(RequestError, match="at least"):
            measure(runs.loaded(), **wrong)


def test_the_break_even_is_the_ratio_of_the_steps() -> None:
    assert MACHINE.break_even() == pytest.approx((0.03 / 0.011, 0.06 / 0.014, 0.18 / 0.026))
    figure = break_even(MACHINE, tokens_per_forward=5.0)
    assert list(figure.data[0].y) == pytest.approx(MACHINE.break_even())
    assert "diffusion pays at batch 1, 4" in figure.layout.title.text
    assert "does not pay" in break_even(MACHINE, tokens_per_forward=1.5).layout.title.text


def test_a_verdict_holds_for_every_round_or_is_called_unclear() -> None:
    def timed(steps: tuple[StepCost, ...], *factors: float) -> tuple[StepCost, ...]:
        return tuple(replace(s, times=tuple(f * s.seconds for f in factors)) for s in steps)

    machine = replace(
        MACHINE,
        token_steps=timed(MACHINE.token_steps, 1.0, 1.0, 1.0),
        canvas_steps=timed(MACHINE.canvas_steps, 1.3, 0.8, 1.0),
    )
    assert machine.break_even() == MACHINE.break_even()
    low, high = machine.break_even_range()[1]
    assert (low, high) == pytest.approx((0.8 * 0.06 / 0.014, 1.3 * 0.06 / 0.014))
    figure = break_even(machine, tokens_per_forward=5.0)
    assert "diffusion pays at batch 1, unclear at batch 4" in figure.layout.title.text
    assert figure.data[0].error_y.array[1] == pytest.approx(high - machine.break_even()[1])
    assert "at rest" not in figure.layout.title.text
    busy = replace(machine, others=0.4)
    for drawn in (break_even(busy), roofline(busy)):
        assert "other programs used 40% of the machine" in drawn.layout.title.text


def test_the_published_points_are_marked_as_published() -> None:
    ratio, overtaken = [part for part in break_even(MACHINE).data if "published" in part.name]
    assert (list(ratio.x), list(ratio.y)) == ([1], [PUBLISHED.steps_ratio])
    assert (list(overtaken.x), list(overtaken.y)) == ([32], [PUBLISHED.tokens_per_forward])
    for claim in (ratio, overtaken):
        assert "not measured here" in claim.name and "not measured here" in claim.hovertemplate
    assert len(break_even(MACHINE, published=None).data) == 1


def test_no_words_stand_among_the_points() -> None:
    """Where the points lie the machine decides: names are told in the legend, which has room of its own."""
    for figure in (roofline(MACHINE), break_even(MACHINE, tokens_per_forward=3.2)):
        assert (
            all("text" not in part.mode for part in figure.data) and not figure.layout.annotations
        )
    kept = break_even(MACHINE, tokens_per_forward=3.2).layout.shapes[0]
    assert kept.y0 == kept.y1 == 3.2 and kept.showlegend
    assert kept.name == "kept level: 3.2 tokens a forward"


def test_the_roof_has_two_slopes() -> None:
    roof, tokens, canvases = roofline(MACHINE).data
    assert roof.y[1] == roof.y[2] == 1e11 and roof.x[1] == 10
    assert roof.y[0] == pytest.approx(roof.x[0] * 1e10)
    assert list(tokens.x) == pytest.approx([0.1, 0.4, 1.6]) and list(canvases.x) == pytest.approx(
        [0.4, 1.6, 6.4]
    )
    assert "10 GB/s, 100 GFLOP/s" in roofline(MACHINE).layout.title.text
    assert "1 TB/s" in roofline(replace(MACHINE, bandwidth=1e12)).layout.title.text
