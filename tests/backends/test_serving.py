"""The table of tests/backends/serving.py is what the backends do: no parity test is left out unnoticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dgemma_core import backends, load
from dgemma_core.errors import RequestError
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.finding import NANO
from dgemma_core.model import DiffusionGemma
from tests.backends.serving import BACKEND, SERVED, choose, implementation, put
from tests.core import tiny

ALIGNED = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "layers": tuple(replace(layer, head_dim=32) for layer in (tiny.SLIDING, tiny.FULL)),
}


def of_kind(kind: str) -> DiffusionGemma:
    if kind == "int8":
        return load_model(NANO, device="cpu", dtype="float32", quantize="int8")
    name, _, widths = kind.partition(", ")
    changes = ALIGNED if widths else {}
    if name == "no denoiser":
        return tiny.model(can_denoise=False, **changes)
    return tiny.model(dtype=getattr(torch, name), **changes)


@pytest.mark.parametrize("name", BACKEND)
@pytest.mark.parametrize("kind", SERVED)
def test_the_table_of_served_models(kind: str, name: str) -> None:
    model = choose(of_kind(kind), name)
    assert (implementation(model) == name) == (name in SERVED[kind])
    assert model.backend.name == BACKEND[name]


def test_every_backend_has_parity_tests() -> None:
    assert set(BACKEND.values()) == set(backends.names())


def test_a_model_built_by_hand_runs_on_torch_and_a_loaded_one_on_the_fastest() -> None:
    assert tiny.model().backend.name == "torch"
    loaded = load("nano", device="cpu").model
    assert loaded.backend.name == "cpu" and implementation(loaded) == "C"
    for name in ("torch", "cpu"):
        assert load("nano", device="cpu", backend=name).model.backend.name == name


def test_an_unknown_backend_is_refused() -> None:
    model = tiny.model()
    for chosen in (model.use, lambda name: load("nano", backend=name)):
        with pytest.raises(RequestError, match=r"unknown backend 'tpu': choose one of auto, torch"):
            chosen("tpu")
    assert model.backend.name == "torch"


@pytest.mark.parametrize("name", SERVED["float32, aligned"])
def test_the_backend_can_be_chosen_anew_between_turns(name: str) -> None:
    """A prefix that one backend has encoded is read by another."""
    model = of_kind("float32, aligned")
    prompt, canvas = [[5, 3, 8, 1, 4, 4, 9, 2]], torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    expected = model.denoise(canvas, model.encode(prompt))
    cache = put(model, name).encode([prompt[0][:5]])
    cache = model.use("torch").encode([prompt[0][5:]], cache)
    hidden = put(model, name).denoise(canvas, cache)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=2e-5)
