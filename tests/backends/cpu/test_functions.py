"""What "cpu" puts in the place of torch's functions: float32 all the way, whichever library computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dgemma_core.backends.cpu import functions, norms
from dgemma_core.functions import TORCH, using
from dgemma_core.functions import functions as current
from dgemma_core.layers import Linear
from tests.core import tiny

FASTER = functions.Faster()
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
        found = FASTER.linear(x, weight)
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert worst(found, exact) <= 6e-5 and worst(F.linear(x, weight), exact) <= 6e-5


@needs_onednn
def test_few_numbers_of_rows_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps memory for each, and experts get any number of rows."""
    monkeypatch.setattr(functions, "onednn_leads", lambda: True)
    monkeypatch.setattr(functions, "LONG", 1)
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "_linear_pointwise" in func.name():
                seen.add(len(args[0]))
            return func(*args, **kwargs or {})

    weight = numbers(80, 192)
    with torch.no_grad(), Watch():
        for rows in range(1, 65):
            FASTER.linear(numbers(rows, 192), weight)
    assert seen == {1, 16, 32, 48, 64}


def test_reduced_precision_would_be_noticed() -> None:
    x, weight = numbers(33, 192), numbers(80, 192, seed=1)
    rough = F.linear(x.bfloat16(), weight.bfloat16())
    assert worst(rough, x.double() @ weight.double().mT) > 1e-2


def test_no_rows(library: bool) -> None:
    with torch.no_grad():
        assert FASTER.linear(numbers(0, 16), numbers(4, 16)).shape == (0, 4)


def test_gradients_and_bfloat16_go_the_usual_way(library: bool) -> None:
    projection = Linear(16, 4)
    x = numbers(9, 16).requires_grad_()
    with using(FASTER):
        projection(x).sum().backward()
    assert x.grad is not None and projection.weight.grad is not None
    torch.testing.assert_close(x.grad, projection.weight.detach().sum(0).expand(9, -1))
    a, b = numbers(9, 16).bfloat16(), numbers(4, 16).bfloat16()
    with torch.no_grad():
        assert torch.equal(FASTER.linear(a, b), F.linear(a, b))


@pytest.mark.parametrize("rows", (1, 80))
def test_gated_gelu(rows: int) -> None:
    gate, up = 4 * numbers(rows, 192), numbers(rows, 192, seed=1)
    exact = F.gelu(gate.double(), approximate="tanh") * up.double()
    with torch.no_grad():
        assert worst(FASTER.gated_gelu(gate, up), exact) <= 8e-6
        assert worst(TORCH.gated_gelu(gate, up), exact) <= 8e-6


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("weighted", (True, False))
@pytest.mark.parametrize("width", (192, 100))
def test_rms_norm(dtype: torch.dtype, weighted: bool, width: int) -> None:
    """100 is no multiple that C serves."""
    x, weight = numbers(3, 80, width).to(dtype), numbers(width, seed=1).to(dtype)
    scale = weight if weighted else None
    exact = F.rms_norm(x.double(), (width,), None if scale is None else scale.double(), 1e-6)
    with torch.no_grad():
        for these in (FASTER, TORCH):
            found = these.rms_norm(x, 1e-6, scale)
            assert found.dtype is dtype
            torch.testing.assert_close(
                found.double(), exact, rtol=2.0**-8 if dtype is torch.bfloat16 else 1e-6, atol=3e-6
            )


def test_others_run_while_the_context_lasts_and_in_this_thread_alone() -> None:
    assert current() is TORCH
    with pytest.raises(ValueError, match="stop"), using(FASTER):
        assert current() is FASTER
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current).result() is TORCH
        raise ValueError("stop")
    assert current() is TORCH


def test_c_serves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 model's norms and GELUs go to C on "cpu", none on "torch"; the numbers are alike."""
    called: list[str] = []

    def counted(name: str) -> Callable[..., Tensor | None]:
        plain = getattr(norms, name)
        return lambda *arguments: (called.append(name), plain(*arguments))[1]

    for name in ("gated_gelu", "rms_norm"):
        monkeypatch.setattr(norms, name, counted(name))
    model = tiny.model(hidden_size=64, intermediate_size=96, moe_intermediate_size=32).bfloat16()
    ids = [[1, 2, 3] * 100]
    plain = model.use("torch").encode(ids).hidden
    assert not called and plain is not None
    found = model.use("cpu").encode(ids).hidden
    assert found is not None and {"gated_gelu", "rms_norm"} == set(called)
    assert (found - plain).abs().float().mean() < 0.05
