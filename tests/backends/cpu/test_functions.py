"""Faster forms of torch's functions: float32 all the way, whichever library computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu import functions
from dgemma_core.backends.cpu.functions import FasterFunctions, linear

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def worst(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


@pytest.fixture(params=(pytest.param(True, marks=needs_onednn), False), ids=("onednn", "mkl"))
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(functions, "onednn_leads", lambda: request.param)
    monkeypatch.setattr(functions, "LONG", 8 * 192 * 80)
    return bool(request.param)


@pytest.mark.parametrize("rows", (1, 7, 8, 33, 256))
@pytest.mark.parametrize("layout", ("plain", "strided rows", "transposed weight", "3-D"))
def test_as_exact_as_float32(rows: int, layout: str, library: bool) -> None:
    x, weight = numbers(rows, 192), numbers(80, 192, seed=1)
    if layout == "strided rows":
        x = numbers(rows, 400)[:, 100:292]
    elif layout == "transposed weight":
        weight = numbers(192, 80, seed=1).mT
    elif layout == "3-D":
        x = numbers(rows, 2, 192)
    exact = x.double() @ weight.double().mT
    with torch.no_grad():
        found = linear(x, weight)
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert worst(found, exact) <= 6e-5 and worst(F.linear(x, weight), exact) <= 6e-5


def test_reduced_precision_would_be_noticed() -> None:
    x, weight = numbers(33, 192), numbers(80, 192, seed=1)
    rough = F.linear(x.bfloat16(), weight.bfloat16())
    assert worst(rough, x.double() @ weight.double().mT) > 1e-2


def test_no_rows(library: bool) -> None:
    with torch.no_grad():
        assert linear(numbers(0, 16), numbers(4, 16)).shape == (0, 4)


def test_gradients_and_bfloat16_go_the_usual_way(library: bool) -> None:
    projection = torch.nn.Linear(16, 4, bias=False)
    x = numbers(9, 16).requires_grad_()
    with FasterFunctions():
        projection(x).sum().backward()
    assert x.grad is not None and projection.weight.grad is not None
    torch.testing.assert_close(x.grad, projection.weight.detach().sum(0).expand(9, -1))
    a, b = numbers(9, 16).bfloat16(), numbers(4, 16).bfloat16()
    with torch.no_grad():
        assert torch.equal(linear(a, b), F.linear(a, b))


@pytest.mark.parametrize("rows", (1, 80))
@pytest.mark.parametrize("approximate", ("tanh", "none"))
def test_gelu(rows: int, approximate: str) -> None:
    x = 4 * numbers(rows, 192)
    exact = F.gelu(x.double(), approximate=approximate)
    with torch.no_grad(), FasterFunctions():
        assert worst(F.gelu(x, approximate=approximate), exact) <= 3e-6
