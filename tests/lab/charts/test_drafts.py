"""The prediction of speculation: a round's passes by hand, break-evens where the lines cross 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dgemma_core.errors import RequestError
from dgemma_core.facts.cost import work
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.generation.drafting import AdaptiveDraft
from dgemma_core.model import DiffusionGemma
from dgemma_lab.charts.drafts import ACCEPTED, Card, least_acceptance, predicted_speculation
from dgemma_lab.charts.roofline import PUBLISHED

BIG = CONFIGS[DIFFUSION_26B]
SHAPE = DiffusionGemma(BIG, device="meta", dtype=torch.bfloat16)
CARD = Card()


def test_verifying_reads_what_drafting_reads_save_for_self_conditioning() -> None:
    verify, draft = (
        work(SHAPE, prefix=1000, tokens=16, touched=80.0, denoises=denoises)
        for denoises in (False, True)
    )
    text = BIG.text
    conditioning = 3 * text.hidden_size * text.intermediate_size + text.hidden_size
    assert draft.read["self-conditioning"] == 2 * conditioning
    assert draft.computed["embedding"] == 2 * verify.computed["embedding"]
    assert verify.read["self-conditioning"] == 0
    assert draft.bytes - verify.bytes == 2 * conditioning
    one = work(SHAPE, prefix=1000, tokens=1)
    assert one == work(SHAPE, prefix=1000, tokens=1, denoises=False)
    assert work(SHAPE, prefix=1000, tokens=16, touched=80.0) == draft


def test_a_round_is_a_draft_and_a_verification() -> None:
    """At one request a pass of the 26B waits for memory: its time is its bytes over the bandwidth."""

    def seconds(tokens: int, denoises: bool) -> float:
        needed = work(SHAPE, prefix=500, tokens=tokens, denoises=denoises)
        return needed.bytes / CARD.bandwidth

    expected = 6 * seconds(1, False) / (seconds(21, True) + seconds(20, False))
    assert CARD.speedup(BIG, 5, 20, prefix=500) == pytest.approx(expected)
    whole = 20 * seconds(1, False) / seconds(40, True)
    assert CARD.speedup(BIG, 19, 20, prefix=500) == pytest.approx(whole)
    slow = replace(
        CARD, matrix_rate=1e9
    )  # here it waits for arithmetic, and a canvas brings nothing
    assert slow.speedup(BIG, 5, 256) < 0.05


@pytest.mark.parametrize("drafted", [None, 256])
def test_break_even_is_where_speculation_is_as_fast(drafted: int | None) -> None:
    least = least_acceptance(CARD, BIG, drafted)
    few, enough = int(least), int(least) + 1
    margin = AdaptiveDraft().margin
    gains = [
        CARD.speedup(BIG, accepted, drafted or accepted + margin) for accepted in (few, enough)
    ]
    assert gains[0] < 1 <= gains[1]
    assert least_acceptance(replace(CARD, matrix_rate=1e9), BIG, drafted) == float("inf")


def test_the_figure_says_that_it_predicts() -> None:
    figure = predicted_speculation()
    assert figure.layout.title.text.startswith("Predicted, not measured")
    whole, more, canvas, published = figure.data
    assert list(more.x) == list(canvas.x) == list(ACCEPTED) == list(range(2, 33))
    for line, drafted in ((whole, 0), (more, None), (canvas, BIG.canvas_length)):
        assert all(a < b for a, b in zip(line.y, line.y[1:], strict=False))
        assert f"pays from {least_acceptance(CARD, BIG, drafted):.1f} accepted on" in line.name
        assert line.hovertemplate.startswith("predicted")
    assert published.y[0] == pytest.approx(3 / (2 * PUBLISHED.steps_ratio))
    assert "not measured here" in published.name and "not measured" not in more.name + canvas.name
    assert len(predicted_speculation(published=None).data) == 3


@pytest.mark.parametrize("accepted", [(), (4,), (2, 256), (-1, 4)])
def test_acceptances_that_no_canvas_holds_are_refused(accepted: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="accepted must be"):
        predicted_speculation(accepted=accepted)
