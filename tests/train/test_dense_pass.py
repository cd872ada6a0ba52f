"""The passes of training are the inference path, and one another."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dgemma_core.backends.cpu import bindings
from dgemma_core.config import LayerConfig
from dgemma_core.model import DiffusionGemma
from dgemma_core.train import attention, functions, mixture
from dgemma_core.train import loss as loss_module
from dgemma_core.train.batches import Batch
from dgemma_core.train.dense_pass import DensePass
from dgemma_core.train.initial import initialise
from dgemma_core.train.loss import loss
from dgemma_core.train.packed_pass import PackedPass, packs
from dgemma_core.train.recipe import Recipe
from tests.core import tiny
from tests.train.copying import close, noise, uneven

Passes = pytest.mark.parametrize("kind", [DensePass, PackedPass])


@Passes
def test_a_pass_is_the_inference_path(kind: type[DensePass | PackedPass]) -> None:
    model, batch = tiny.model(2), uneven()
    assert batch.canvases[0].prefix.tolist() == [1, 5, 6, 20, 15, 11]
    both = kind(model, batch)
    canvas = noise(batch.canvases[0].tokens, 48, torch.Generator().manual_seed(0))
    soft = torch.randn(*canvas.shape, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both.begin()
        (encoded,) = both.run(())
        _, plain = both.run(((0, canvas, None),))
        _, fed = both.run(((0, canvas, soft),))
        (some,) = both.look(((0, canvas[:2], None),), 2)
        (more,) = both.look(((0, canvas[:3], soft[:3]),), 3)
    for row, prefix in enumerate(batch.canvases[0].prefix.tolist()):
        clean = batch.clean[row : row + 1]
        cache = model.encode(clean[:, :prefix])
        close(encoded[row], model.encode(clean).hidden[0])
        close(plain[row], model.denoise(canvas[row : row + 1], cache)[0])
        close(fed[row], model.denoise(canvas[row : row + 1], cache, soft[row : row + 1])[0])
    close(some, plain[:2])
    close(more, fed[:3])


@pytest.mark.slow
@Passes
def test_both_groups_in_one_pass(kind: type[DensePass | PackedPass]) -> None:
    """A row that holds two canvases is what it would be with each of them alone."""
    model, batch = tiny.model(2), uneven(drafts=True)
    both = kind(model, batch)
    generator = torch.Generator().manual_seed(0)
    canvases = [noise(group.tokens, 48, generator) for group in batch.canvases]
    soft = torch.randn(*canvases[0].shape, 16, generator=generator)
    with torch.no_grad():
        both.begin()
        clean, first, second = both.run(((0, canvases[0], soft), (1, canvases[1], None)))
        close(clean, both.run(())[0])
        close(first, both.run(((0, canvases[0], soft),))[1])
        close(second, both.run(((1, canvases[1], None),))[1])
        looks = both.look(((0, canvases[0][:4], soft[:4]), (1, canvases[1][:4], None)), 4)
        close(looks[0], first[:4])
        close(looks[1], second[:4])


def test_the_packed_pass_learns_what_the_dense_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients; a model with an adapter or a frozen weight is not packed."""
    model, batch = wide_model(), uneven(drafts=True)
    recipe = Recipe(steps=1, self_conditioning=0.5)
    packed = gradients(model, batch, recipe, half=False)
    with monkeypatch.context() as patch:
        patch.setattr(loss_module, "packs", lambda model: False)
        dense = gradients(model, batch, recipe, half=False)
    scale = max(float(g.norm()) for g in dense.values())
    for name, wanted in dense.items():
        # The balance of the experts is counted over all parts of a row, or part by part.
        off = float((packed[name] - wanted).norm())
        assert off <= 2e-2 * float(wanted.norm()) + 1e-3 * scale, name
    no_balance = replace(recipe, balance=0.0)
    packed = gradients(model, batch, no_balance, half=False)
    with monkeypatch.context() as patch:
        patch.setattr(loss_module, "packs", lambda model: False)
        dense = gradients(model, batch, no_balance, half=False)
    for name, wanted in dense.items():
        off = float((packed[name] - wanted).norm())
        assert off <= 1e-4 * (float(wanted.norm()) + scale), name
    assert packs(model)
    next(model.parameters()).requires_grad_(False)
    assert not packs(model)


@pytest.mark.parametrize("half", [False, True])
def test_c_and_torch_agree(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and every parameter's gradient, of a model whose widths C serves."""
    if bindings.gradients() is None:
        pytest.skip("no C compiler")
    # In bfloat16 a router may choose otherwise, by torch, too; where all experts are chosen, none can.
    model, batch = wide_model(5 if half else 2), uneven(drafts=True)
    recipe = Recipe(steps=1, self_conditioning=0.5)
    reference = gradients(model, batch, recipe, half=False)
    found = gradients(model, batch, recipe, half=half)
    called: list[str] = []
    for name in ("_Attention", "_Mixture", "_AddedNorm", "_CappedLoss"):
        for module in (attention, functions, mixture):
            if hasattr(module, name):
                forward = getattr(module, name).apply
                spied = lambda *a, _f=forward, _n=name: called.append(_n) or _f(*a)  # noqa: E731
                monkeypatch.setattr(getattr(module, name), "apply", spied)
    gradients(model, batch, recipe, half=half)
    assert set(called) == {"_Attention", "_Mixture", "_AddedNorm", "_CappedLoss"}
    called.clear()
    monkeypatch.setattr(functions.bindings, "gradients", lambda: None)
    plain = gradients(model, batch, recipe, half=half)
    assert not called
    scale = max(float(g.norm()) for g in reference.values())
    for name, wanted in reference.items():
        off, plain_off = (float((each[name].float() - wanted).norm()) for each in (found, plain))
        size = float(wanted.norm())
        allowed = max(3 * plain_off, 0.05 * size) if half else 1e-4 * size
        assert off <= allowed + 1e-4 * scale, (name, off, plain_off, size)


def wide_model(chosen: int = 2) -> DiffusionGemma:
    """Widths that are multiples of 16, heads of 32 and 64; drawn weights, vectors included. chosen: of 5 experts."""
    sliding = LayerConfig(
        full=False, num_key_value_heads=2, head_dim=32, rope_theta=1e4, rotary_fraction=1.0
    )
    full = LayerConfig(
        full=True, num_key_value_heads=1, head_dim=64, rope_theta=1e6, rotary_fraction=0.25
    )
    base = tiny.config()
    text = replace(
        base.text, hidden_size=48, intermediate_size=64, num_attention_heads=4, num_experts=5,
        top_k_experts=chosen, moe_intermediate_size=16, layers=(sliding, full, sliding),
    )  # fmt: skip
    model = DiffusionGemma(replace(base, text=text))
    initialise(model, 3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        parameter.requires_grad_(True)
    return model


def gradients(
    model: DiffusionGemma, batch: Batch, recipe: Recipe, *, half: bool
) -> dict[str, Tensor]:
    """Of the loss: every parameter's gradient."""
    if half:
        model = copy.deepcopy(model)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half, cache_enabled=False):
        total = loss(model, batch, recipe, torch.Generator().manual_seed(5)).total(recipe)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))
