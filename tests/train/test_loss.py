"""The loss against a plain computation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.experts import Routing
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.batches import IGNORED
from dgemma_core.train.loss import balance_loss, canvas_targets, loss
from dgemma_core.train.noise import noisy_canvases
from dgemma_core.train.packed_pass import PackedPass
from tests.core import tiny
from tests.train.copying import RECIPE, close, noise, uneven


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny.model(2).requires_grad_(True)


def test_every_noising_counts(model: DiffusionGemma) -> None:
    """The canvas loss is the mean over the noisings, the causal loss is read once."""
    single_batch, recipe = uneven(), replace(RECIPE, self_conditioning=0.5, noisings=3)
    canvases = single_batch.canvases[0]
    batch = replace(single_batch, canvases=(canvases,) * 3)
    with torch.no_grad():
        ours = loss(model, batch, recipe, torch.Generator().manual_seed(7))
        both, single = PackedPass(model, batch), []
        for noisy, before in noisy_canvases(batch, recipe, 48, torch.Generator().manual_seed(7)):
            (look,) = both.look(((0, before, None),), len(before))
            p = model.logits(look).softmax(-1)
            soft = p @ model.embed_tokens.weight * 16**0.5
            soft = torch.cat((soft, torch.zeros(len(noisy) - len(before), *soft.shape[1:])))
            logits = model.logits(both.run(((0, noisy, soft),))[1])
            single.append(F.cross_entropy(logits.flatten(0, 1), canvases.tokens.flatten()))
        once = loss(model, single_batch, recipe, torch.Generator().manual_seed(7))
    assert len({float(value) for value in single}) == 3
    close(ours.canvas, torch.stack(single).mean())
    close(ours.autoregressive, once.autoregressive)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_loss_is_the_plain_one(model: DiffusionGemma, share: float) -> None:
    """Row by row through `encode` and `denoise`; all positions count alike, the filled tail too."""
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=share)
    with torch.no_grad():
        ours = loss(model, batch, recipe, torch.Generator().manual_seed(7))
    canvas = noise(batch.canvases[0].tokens, 48, torch.Generator().manual_seed(7))
    causal, denoised, fed = [], [], torch.zeros(*canvas.shape, 16)
    for row, prefix in enumerate(batch.canvases[0].prefix.tolist()):
        clean, counted = batch.clean[row : row + 1], batch.targets[row] != -100
        hidden = model.encode(clean).hidden[0, counted]
        causal.append(
            F.cross_entropy(model.logits(hidden), batch.targets[row, counted], reduction="none")
        )
        cache, noisy = model.encode(clean[:, :prefix]), canvas[row : row + 1]
        soft = None
        if row < math.ceil(share * len(canvas)):
            p = model.logits(model.denoise(noisy, cache)).softmax(-1)
            soft = p @ model.embed_tokens.weight * 16**0.5
            fed[row] = soft[0]
        logits = model.logits(model.denoise(noisy, cache, soft))[0]
        denoised.append(F.cross_entropy(logits, batch.canvases[0].tokens[row], reduction="none"))
    close(ours.autoregressive, torch.cat(causal).mean())
    close(ours.canvas, torch.cat(denoised).mean())
    both = PackedPass(model, batch)
    with torch.no_grad():
        both.run(((0, canvas, fed),))
    close(ours.balance, balance_loss(both.routings))  # the first look is left out
    total = ours.canvas + recipe.autoregressive * ours.autoregressive + 0.01 * ours.balance
    close(ours.total(recipe), total)
    assert float(ours.total(replace(recipe, autoregressive=0.0, balance=0.0))) == float(ours.canvas)


@pytest.mark.parametrize(("share", "conditioned"), [(0.0, 0), (0.4, 3), (0.5, 3), (1.0, 6)])
def test_the_share_of_self_conditioning(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch, share: float, conditioned: int
) -> None:
    seen = []

    def note(name: str) -> None:
        plain = getattr(PackedPass, name)

        def noted(self: PackedPass, noised: Any, *rows: int) -> list[Tensor]:
            ((_, canvas, soft),) = noised
            fed = 0 if soft is None else int((soft != 0).any(-1).all(-1).sum())
            found: list[Tensor] = plain(self, noised, *rows)
            seen.append((len(canvas), fed, found[-1].requires_grad))
            return found

        monkeypatch.setattr(PackedPass, name, noted)

    note("look")
    note("run")
    loss(model, uneven(), replace(RECIPE, self_conditioning=share), torch.Generator())
    first = [(conditioned, 0, False)] if conditioned else []
    assert seen == [*first, (6, conditioned, True)]


def gradients(model: DiffusionGemma, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_both_losses_meet_in_the_weights() -> None:
    model = tiny.model(2).requires_grad_(True)
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=1.0)
    parts = loss(model, batch, recipe, torch.Generator().manual_seed(7))
    of_total = gradients(model, parts.total(recipe))
    assert of_total.keys() == dict(model.named_parameters()).keys()
    # The last layer's scalar is normed away: its gradient is what rounding leaves.
    last = f"layers.{len(model.layers) - 1}.layer_scalar"
    assert all(gradient.any() for name, gradient in of_total.items() if name != last)
    of_causal = gradients(model, loss(model, batch, recipe, torch.Generator()).autoregressive)
    assert not {
        name
        for name, gradient in of_causal.items()
        if ("self_conditioning" in name or "layer_scalar" in name) and gradient.any()
    } - {"encoder_layer_scalars"}
    parts = loss(model, batch, recipe, torch.Generator().manual_seed(7))
    of_canvas = gradients(model, parts.canvas)
    # The canvas learns through the prefix's keys: those of the last layer come before its scalar.
    assert of_canvas["encoder_layer_scalars"].tolist()[0] != 0
    assert of_canvas["encoder_layer_scalars"].tolist()[-1] == 0


def test_no_gradient_flows_through_the_soft_embedding() -> None:
    """The gradient is that of the second pass with the soft embedding as a constant."""
    model = tiny.model(2).requires_grad_(True)
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=1.0)
    ours = gradients(model, loss(model, batch, recipe, torch.Generator().manual_seed(7)).canvas)
    canvas = noise(batch.canvases[0].tokens, 48, torch.Generator().manual_seed(7))
    both = PackedPass(model, batch)
    p = model.logits(both.run(((0, canvas, None),))[1].detach()).softmax(-1)
    soft = (p @ model.embed_tokens.weight * 4).detach()
    hidden = both.run(((0, canvas, soft),))[1]
    predicted = 30 * torch.tanh(hidden @ model.embed_tokens.weight.T / 30)
    plain = gradients(
        model, F.cross_entropy(predicted.flatten(0, 1), batch.canvases[0].tokens.flatten())
    )
    for name, gradient in plain.items():
        close(ours[name], gradient, 1e-4)


def test_balance_by_hand() -> None:
    def routing(chosen: list[list[int]], probabilities: list[list[float]]) -> Routing:
        p = torch.tensor(probabilities)
        return Routing(torch.ones(len(p), 1), torch.tensor(chosen), p)

    even = routing([[0], [1]], [[0.6, 0.4], [0.4, 0.6]])
    lopsided = routing([[0], [0]], [[0.9, 0.1], [0.7, 0.3]])
    assert float(balance_loss([even])) == pytest.approx(1.0)
    assert float(balance_loss([lopsided])) == pytest.approx(2 * 1.0 * 0.8)
    assert float(balance_loss([even, lopsided])) == pytest.approx(1.3)


def test_few_of_the_last_end_marks_count() -> None:
    """Of the end marks behind the first two a fifth is learnt from; what stands before them always is."""
    batch = uneven()
    recipe = replace(RECIPE, end_marks=2, tail=0.2)
    group = batch.canvases[0]
    assert group.ends.tolist() == [3, 8, 2, 3, 0, 5]
    assert canvas_targets(group, RECIPE, torch.Generator()) is group.tokens
    places = torch.arange(8)
    always = places < group.ends.unsqueeze(1) + 2
    drawn = torch.Generator().manual_seed(0)
    targets = torch.stack([canvas_targets(group, recipe, drawn) for _ in range(400)])
    assert torch.equal(targets[:, always], group.tokens[always].expand(400, -1))
    counted = targets[:, ~always] != IGNORED
    assert 0.17 < float(counted.double().mean()) < 0.23
    assert (targets[:, ~always][counted] == 1).all()
    with torch.no_grad():
        whole = loss(tiny.model(2), batch, RECIPE, torch.Generator().manual_seed(7))
        part = loss(
            tiny.model(2), batch, replace(recipe, tail=0.0), torch.Generator().manual_seed(7)
        )
    assert float(whole.canvas) != float(part.canvas)
    assert float(whole.autoregressive) == float(part.autoregressive)
