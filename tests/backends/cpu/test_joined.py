"""Joined projections: the same numbers, and undone by whatever changes the weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from dgemma_core.files.checkpoint import load_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.recipes import NANO
from tests.core import tiny


def passes(model: DiffusionGemma) -> tuple[Tensor, Tensor]:
    """Both modes over fixed tokens; the first canvas with a soft embedding, so that every projection works."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 48, (2, 9), generator=generator)
    canvas = torch.randint(0, 48, (2, model.config.canvas_length), generator=generator)
    soft = torch.randn(*canvas.shape, model.config.text.hidden_size, generator=generator)
    cache = model.encode(ids)
    assert cache.hidden is not None
    return cache.hidden, model.denoise(canvas, cache, soft.to(model.dtype))


def close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def joined_parts(model: DiffusionGemma) -> int:
    """Modules whose joined matrix is in use."""
    x = torch.zeros(1, model.config.text.hidden_size, dtype=model.dtype)
    found = [getattr(module, "_joined", None) for module in model.modules()]
    return sum(joined is not None and joined(x) is not None for joined in found)


def test_the_same_numbers_in_the_same_memory() -> None:
    model = tiny.model(1)
    plain = passes(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.join()
    layers = len(model.config.text.layers)
    assert joined_parts(model) == 2 * layers + 1, (
        "attention and dense MLP of each layer, self-conditioning"
    )
    close(passes(model), plain)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    attention = model.layers[0].self_attn
    assert attention.k_proj.weight.untyped_storage().data_ptr() == (
        attention.q_proj.weight.untyped_storage().data_ptr()
    )


def test_new_weights_are_seen() -> None:
    model, other = tiny.model(1).join(), tiny.model(2)
    model.load_state_dict(other.state_dict())  # in place: still joined
    close(passes(model), passes(other))
    model.layers[0].self_attn.q_proj.weight.data = torch.zeros_like(
        model.layers[0].self_attn.q_proj.weight
    )
    other.layers[0].self_attn.q_proj.weight.data.zero_()
    close(passes(model), passes(other))


def test_a_move_undoes_it() -> None:
    model = tiny.model(1).join()
    plain = passes(copy.deepcopy(model))
    close(passes(model), plain)
    half = copy.deepcopy(model).to(torch.float64)
    assert joined_parts(half) == 0
    double = [x.float() for x in passes(half)]
    close((double[0], double[1]), plain)


def test_training_undoes_it() -> None:
    """Gradients reach the projections themselves."""
    model = tiny.model(1).join().requires_grad_(True)
    x = torch.randn(3, model.config.text.hidden_size)
    model.layers[0].mlp(x).sum().backward()
    assert model.layers[0].mlp.gate_proj.weight.grad is not None


def test_small_models_are_joined_when_loaded(tmp_path: Path) -> None:
    assert joined_parts(load_model(NANO, device="cpu")) == 2 * 5 + 1
