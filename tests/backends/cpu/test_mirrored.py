"""The layers over a mirrored residual stream: the plain layers' numbers in fewer operations, and nothing passed over
that somebody changed or listens to."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgemma_core.backends.cpu import mirrored
from dgemma_core.experts import ExpertMixture
from dgemma_core.model import DiffusionGemma
from tests.backends.cpu.passes import WAYS, change, close, passes, plain_passes, plainly
from tests.core import tiny


class Operations(TorchDispatchMode):
    """Counts what is asked of torch, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(model: DiffusionGemma) -> Counter[str]:
    """Of a first denoising pass behind a prefix."""
    cache = model.encode([list(range(5, 14))])
    canvas = torch.zeros(1, model.config.canvas_length, dtype=torch.long)
    model.denoise(canvas, cache)
    with Operations() as counted:
        model.denoise(canvas, cache)
    return counted.counts


@pytest.mark.parametrize("joined", (False, True))
def test_the_same_numbers(joined: bool) -> None:
    model = tiny.model(1)
    if joined:
        model.join()
    close(passes(model), plain_passes(model))
    assert model._mirrored is not None and model._native is None


def test_a_copied_model_makes_its_own() -> None:
    model = tiny.model(1)
    before = passes(model)
    copied = copy.deepcopy(model)
    assert copied._mirrored is None
    close(passes(copied), before)


def test_fewer_operations() -> None:
    model = tiny.model(1).join()
    ours = operations(model)
    with plainly():
        plain = operations(model)
    layers = len(model.layers)
    assert ours["rms_norm"] == 1 + layers, "self-conditioning and heads"
    assert plain["rms_norm"] > 5 * layers
    assert ours["linear"] == plain["linear"]
    assert ours.total() <= 0.9 * plain.total()


CHANGED = ("input_layernorm.weight", "post_feedforward_layernorm_2.weight", "self_attn.k_norm.weight",
           "self_attn.q_proj.weight", "router.scale", "experts.down_proj")  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_are_seen(name: str, way: str) -> None:
    model = tiny.model(1)
    before = passes(model)
    change(model, f"layers.1.{name}", way)
    after = passes(model)
    assert not all(map(torch.allclose, after, before))
    close(after, plain_passes(model))


@pytest.mark.parametrize(
    "name",
    ("layers.0", "layers.1.self_attn", "layers.0.input_layernorm", "norm", "layers.1.mlp.up_proj",
     "layers.0.experts", "layers.0.router"),
)  # fmt: skip
def test_hooks_are_called(name: str) -> None:
    model = tiny.model(1)
    called = []
    handle = model.get_submodule(name).register_forward_hook(lambda *of: called.append(name))
    heard = passes(model)
    assert called
    handle.remove()
    del called[:]
    close(passes(model), heard)
    assert not called


def test_many_tokens_other_dtypes_and_gradients_take_the_plain_layers() -> None:
    assert not mirrored.serves(torch.zeros(2, 4)), "gradients are on"
    with torch.no_grad():
        assert mirrored.serves(torch.zeros(2, 4))
        assert not mirrored.serves(torch.zeros(mirrored.FEW + 1, 4))
        assert not mirrored.serves(torch.zeros(2, 4, dtype=torch.bfloat16))
        assert not mirrored.serves(torch.zeros(2, 4, device="meta"))
        with torch.autocast("cpu"):
            assert not mirrored.serves(torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_single_token_goes_through_its_own_experts(dtype: torch.dtype) -> None:
    experts = tiny.model(2, dtype).layers[0].experts
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights, chosen = torch.tensor([[0.7, 0.2]]), torch.tensor([[2, 0]])
    with torch.no_grad():
        ours = experts(x, weights, chosen)
        sorted_ = ExpertMixture.forward(experts, x, weights, chosen)
    torch.testing.assert_close(ours, sorted_)
