"""The work of a pass: counted by hand, and against the weights of built models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dgemma_core.config import GenerationDefaults
from dgemma_core.facts.cost import Work, experts_touched, work
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.quantised import held_sizes
from dgemma_core.files.saving import save_model
from dgemma_core.model import DiffusionGemma
from tests.core import tiny

WEIGHTS = (
    "embedding",
    "attention",
    "dense MLP",
    "experts",
    "self-conditioning",
    "router and norms",
)


def weights_of(found: Work) -> float:
    return sum(found.read[part] for part in WEIGHTS)


def test_a_token_by_hand() -> None:
    """Every matrix of the tiny model by its shape, two operations a weight; what a window of 6 hides is not read."""
    model = tiny.model()
    text = model.config.text
    d = text.hidden_size
    found = work(model, prefix=10, tokens=1)
    attention = d * (16 + 8 + 8) + 16 * d  # sliding: q, k, v, o of 4 heads × 4 and 2 groups × 4
    attention += d * (32 + 8) + 32 * d  # full: q, k, o of 4 heads × 8 and 1 group × 8
    assert found.computed["attention"] == 2 * attention and found.read["attention"] == 4 * attention
    expert = 2 * 3 * d * text.moe_intermediate_size  # of both layers
    assert found.computed["experts"] == pytest.approx(2 * 2 * expert), "two of three"
    assert found.read["experts"] == pytest.approx(4 * 2 * expert)
    assert found.computed["dense MLP"] == 2 * 2 * 3 * d * text.intermediate_size
    assert found.computed["embedding"] == 2 * text.vocab_size * d
    assert found.read["self-conditioning"] == found.computed["self-conditioning"] == 0
    window = text.sliding_window - 1
    assert window < 10
    assert found.read["prefix"] == 4 * (2 * 2 * 4 * window + 2 * 1 * 8 * 10)
    assert found.computed["prefix"] == 4 * (4 * 4 * (window + 1) + 4 * 8 * 11)
    norms = (
        2 * (7 * d + d + 3 + 1) + 2 * (4 + 8) + d + 2
    )  # of two layers, of heads, the last one, and scalars
    assert found.computed["router and norms"] == 2 * (2 * 3 * d + norms)


def test_a_canvas_of_several_rows() -> None:
    """All weights are read once, keys a row; the vocabulary is multiplied with twice, for logits and soft embedding."""
    model = tiny.model()
    found = work(model, prefix=3, tokens=8, batch=2, touched=3)
    assert weights_of(found) == sum(p.nbytes for p in model.parameters())
    one = work(model, prefix=3, tokens=8, touched=3)
    assert found.read["prefix"] == 2 * one.read["prefix"]
    assert found.operations == 2 * one.operations
    assert one.computed["embedding"] == 2 * 8 * 2 * model.embed_tokens.weight.numel()
    assert one.computed["self-conditioning"] > 0
    assert found.floor(1e9, 1e30) == found.bytes / 1e9 and found.floor(1e30, 1e9) * 1e9 == (
        found.operations
    )


def test_a_quantised_model_counts_all_its_weights(tmp_path: Path) -> None:
    """The arithmetic of the plain one, and the bytes in which its weights lie."""
    plain = tiny.model()
    save_model(plain, tmp_path, generation=GenerationDefaults())
    one = work(plain, prefix=10, tokens=8, touched=3)
    for scheme in ("int8", "int4"):
        model = load_model(tmp_path, device="cpu", quantize=scheme)
        found = work(model, prefix=10, tokens=8, touched=3)
        assert found.computed == one.computed
        assert weights_of(found) == sum(held for _, held in held_sizes(model).values())
        assert weights_of(found) < weights_of(one) / 2


def test_the_released_shape_is_counted_as_published() -> None:
    """Parameters, bytes of a step and of a token, and what 44 experts fewer save."""
    model = DiffusionGemma(CONFIGS[DIFFUSION_26B], device="meta", dtype=torch.bfloat16)
    step = work(model, prefix=4096, tokens=256, touched=128)
    assert weights_of(step) == 2 * 25_250_986_812
    token = work(model, prefix=4096, tokens=1)
    assert token.bytes == pytest.approx(7.9e9, rel=0.02)
    assert step.operations == pytest.approx(2.66e12, rel=0.01)
    fewer = work(model, prefix=4096, tokens=256, touched=84)
    assert step.bytes - fewer.bytes == 30 * 44 * 3 * 2816 * 704 * 2


def test_experts_that_tokens_spread_over() -> None:
    text = tiny.CONFIG.text
    assert experts_touched(text, 1) == pytest.approx(2.0)
    assert experts_touched(text, 2) == pytest.approx(3 * (1 - (1 / 3) ** 2))
