"""Faster forms of torch's functions: float32 all the way, whichever library computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu import functions, norms
from dgemma_core.backends.cpu.functions import FasterFunctions, linear
from tests.core import tiny

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


@pytest.mark.parametrize("shape", ((192,), (80, 192)))
@pytest.mark.parametrize("eps", (1e-6, None))
def test_rms_norm(shape: tuple[int, ...], eps: float | None) -> None:
    x, weight = numbers(3, 80, 192), numbers(*shape, seed=1)
    exact = F.rms_norm(x.double(), shape, weight.double(), eps)
    with torch.no_grad(), FasterFunctions():
        assert worst(F.rms_norm(x, shape, weight, eps), exact) <= 3e-6


def test_c_serves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN leads, a bfloat16 model's norms and GELUs go to C on "cpu", none on "torch"; the numbers are alike.
    Elsewhere none does."""
    called: list[str] = []

    def counted(name: str) -> Callable[..., Tensor | None]:
        plain = getattr(norms, name)
        return lambda *arguments: (called.append(name), plain(*arguments))[1]

    for name in ("gelu", "rms_norm"):
        monkeypatch.setattr(norms, name, counted(name))
    model = tiny.model(hidden_size=64, intermediate_size=96, moe_intermediate_size=32).bfloat16()
    ids = [[1, 2, 3] * 100]
    plain = model.use("torch").encode(ids).hidden
    assert not called and plain is not None
    monkeypatch.setattr(functions, "onednn_leads", lambda: False)
    assert torch.equal(plain, model.use("cpu").encode(ids).hidden) and not called
    monkeypatch.setattr(functions, "onednn_leads", lambda: True)
    found = model.use("cpu").encode(ids).hidden
    assert found is not None and {"gelu", "rms_norm"} == set(called)
    assert (found - plain).abs().float().mean() < 0.05
