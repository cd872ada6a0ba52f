"""A canvas's first step taken in the causal pass over the tokens before it, on every backend: numbers and caches are
those of the two passes by themselves."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from dgemma_core.model import DiffusionGemma
from tests.backends.serving import SERVED, put
from tests.backends.test_serving import of_kind

SERVING = [(kind, name) for kind in SERVED if "no denoiser" not in kind for name in SERVED[kind]]
PREFIXES = ([5, 3, 8, 1, 4, 4, 9, 2, 7, 7], [6], [2, 2, 3])
NEW = ([9, 1, 4], [3], [7, 8, 1, 1, 2, 6, 5, 3, 9, 4])
CANVASES = ([1, 2, 3, 4, 5, 6, 7, 8], [], [8, 3, 1])


def scalars_apart(model: DiffusionGemma) -> DiffusionGemma:
    """The released modes have equal layer scalars; here they must not, or a mix-up would go unseen."""
    with torch.no_grad():
        model.encoder_layer_scalars.mul_(0.7)
    return model


@pytest.mark.parametrize(("kind", "name"), SERVING)
def test_both_in_one_pass_are_each_by_itself(kind: str, name: str) -> None:
    model = scalars_apart(of_kind(kind))
    reference = put(copy.deepcopy(model), "torch")
    put(model, name)
    close = {"rtol": 0, "atol": 0.15 if "bfloat16" in kind else 5e-4 if kind == "int8" else 2e-5}
    before, plain = model.encode(PREFIXES), reference.encode(PREFIXES)
    one = model.encode(NEW, before, canvas=CANVASES)
    causal = reference.encode(NEW, plain)
    torch.testing.assert_close(one.hidden, causal.hidden, **close)
    assert one.lengths == causal.lengths
    for i, canvas in enumerate(CANVASES):
        if canvas:
            alone = reference.denoise(torch.tensor([canvas]), causal[i])
            torch.testing.assert_close(one.canvas[i], alone[0], **close)
    again, expected = model.encode([[4]] * 3, one), reference.encode([[4]] * 3, causal)
    torch.testing.assert_close(again.hidden, expected.hidden, **close)
    assert not torch.allclose(one.canvas[0], causal.hidden[0, :1], atol=0.01)


def test_c_gives_the_very_numbers_of_two_passes() -> None:
    model = put(scalars_apart(of_kind("float32, aligned")), "C")
    before = model.encode(PREFIXES)
    one, causal = model.encode(NEW, before, canvas=CANVASES), model.encode(NEW, before)
    assert torch.equal(one.hidden, causal.hidden)
    alone = model.denoise(torch.tensor([CANVASES[0]]), causal[0])
    assert torch.equal(one.canvas[0], alone[0])


def part(model: DiffusionGemma) -> DiffusionGemma:
    """The model with layers of its own for the causal mode, as an adapter of one mode leaves it."""
    drawn = torch.Generator().manual_seed(0)
    model.causal_layers = copy.deepcopy(model.layers)
    with torch.no_grad():
        for layer in model.causal_layers:
            for part in (layer.mlp.up_proj, layer.self_attn.o_proj):
                part.weight.add_(0.3 * torch.randn(part.weight.shape, generator=drawn))
    return model


@pytest.mark.parametrize("name", SERVED["float32, aligned"])
def test_modes_that_an_adapter_has_parted_share_a_pass(name: str) -> None:
    model = part(scalars_apart(of_kind("float32, aligned")))
    reference = put(copy.deepcopy(model), "torch")
    put(model, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a backend hands to the reference, it says
        one = model.encode(NEW, model.encode(PREFIXES), canvas=CANVASES)
    causal = reference.encode(NEW, reference.encode(PREFIXES))
    torch.testing.assert_close(one.hidden, causal.hidden, rtol=0, atol=2e-5)
    for i in (0, 2):
        alone = reference.denoise(torch.tensor([CANVASES[i]]), causal[i])
        torch.testing.assert_close(one.canvas[i], alone[0], rtol=0, atol=2e-5)
    shared = of_kind("float32, aligned")
    with torch.no_grad():
        shared.encoder_layer_scalars.mul_(0.7)
    other = shared.encode(NEW, shared.encode(PREFIXES), canvas=CANVASES)
    assert not torch.allclose(one.hidden, other.hidden, atol=1e-3)
