"""The layers over a mirrored residual stream: the plain layers' numbers in fewer operations, and nothing passed over
that somebody changed or listens to."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dgemma_core import mirrored
from dgemma_core.cache import PrefixCache
from dgemma_core.checkpoint import load_model
from dgemma_core.experts import ExpertMixture, Routing
from dgemma_core.model import DiffusionGemma
from dgemma_core.recipes import NANO
from tests.core import tiny

LENGTHS = (9, 3, 14)


class Recorder:
    """Everything that a watcher is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def router(self, layer: int, routing: Routing) -> None:
        self.seen += [routing.weights, routing.probabilities, routing.chosen.float()]

    def attention(self, layer: int, row: int, queries: Tensor, keys: Tensor) -> None:
        self.seen += [queries.clone(), keys.clone()]


def passes(model: DiffusionGemma) -> list[Tensor]:
    """Both modes over rows of unlike length, one more token each, and two denoising passes; and what is watched."""
    generator = torch.Generator().manual_seed(0)
    size, length = model.config.text.vocab_size, model.config.canvas_length
    rows = [torch.randint(0, size, (n,), generator=generator) for n in LENGTHS]
    cache = model.encode(rows)
    longer = model.encode([[1], [2], [3]], cache)
    alone = model.encode([[4]], PrefixCache([longer.rows[1]]))
    canvas = torch.randint(0, size, (3, length), generator=generator)
    recorder = Recorder()
    first = model.denoise(canvas, longer)
    second = model.denoise(canvas, longer, first, watch=recorder)
    hidden = [made.hidden for made in (cache, longer, alone) if made.hidden is not None]
    return [*hidden, first, second, *recorder.seen]


def plain_passes(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(mirrored, "serves", lambda x: False)
        return passes(model)


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 5
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


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


@pytest.fixture(params=(True, False), ids=("packed", "own products"))
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether layers count as small, so that their matrices are copied."""
    if not request.param:
        monkeypatch.setattr(mirrored, "SMALL", 0)
    return bool(request.param)


@pytest.mark.parametrize("joined", (False, True))
def test_the_same_numbers(joined: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(1)
    if joined:
        model.join()
    close(passes(model), plain_passes(model, monkeypatch))
    assert model._mirrored is not None
    kinds = {type(layer) for layer in model._mirrored.layers}
    assert kinds == {mirrored.PackedLayer if packed else mirrored.MirroredLayer}


def test_the_same_numbers_of_a_trained_model(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(NANO, dtype="float32", device="cpu")
    for ours, theirs in zip(passes(model), plain_passes(model, monkeypatch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_copied_model_makes_its_own(packed: bool) -> None:
    model = tiny.model(1)
    before = passes(model)
    copied = copy.deepcopy(model)
    assert copied._mirrored is None
    close(passes(copied), before)


def test_fewer_operations(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(1).join()
    ours = operations(model)
    monkeypatch.setattr(mirrored, "serves", lambda x: False)
    plain = operations(model)
    layers = len(model.layers)
    assert ours["rms_norm"] == 1 + layers, "self-conditioning and heads"
    assert plain["rms_norm"] > 5 * layers
    assert packed or ours["linear"] == plain["linear"]
    assert ours.total() <= (0.7 if packed else 0.9) * plain.total()


CHANGED = (
    "input_layernorm.weight",
    "post_feedforward_layernorm_2.weight",
    "self_attn.k_norm.weight",
    "self_attn.q_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.up_proj.weight",
    "router.scale",
    "router.per_expert_scale",
    "experts.gate_up_proj",
    "experts.down_proj",
)


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("way", ("in place", "replaced", "through .data"))
def test_changed_weights_are_seen(
    name: str, way: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(1)
    before = passes(model)
    path, _, last = name.rpartition(".")
    module = model.layers[1].get_submodule(path)
    weight = getattr(module, last)
    # Not doubled: a scale may be normed away.
    if way == "in place":
        weight[:1].mul_(2.0)
    elif way == "replaced":
        changed = weight.clone()
        changed[:1] *= 2
        setattr(module, last, torch.nn.Parameter(changed, requires_grad=False))
    else:
        weight.data[:1].mul_(2.0)
    after = passes(model)
    assert not all(map(torch.allclose, after, before))
    close(after, plain_passes(model, monkeypatch))


@pytest.mark.parametrize(
    "name",
    ("layers.0", "layers.1.self_attn", "layers.0.input_layernorm", "norm", "layers.1.mlp.up_proj",
     "layers.0.experts", "layers.0.router"),
)  # fmt: skip
def test_hooks_are_called(name: str, packed: bool) -> None:
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
