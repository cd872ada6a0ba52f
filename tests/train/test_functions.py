"""Norm and gate by C against torch's own operations, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu import bindings
from dgemma_core.layers import rms_norm
from dgemma_core.train import functions
from dgemma_core.train.functions import gated_gelu, norm

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype).requires_grad_(True)


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor], dtype: torch.dtype) -> None:
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9)).to(ours.dtype)
    bound = BOUNDS[dtype]
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    got = torch.autograd.grad(ours, inputs, upstream)
    wanted = torch.autograd.grad(theirs, inputs, upstream)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=4 * bound, atol=8 * bound)


@pytest.fixture()
def compiled() -> None:
    if bindings.gradients() is None:
        pytest.skip("no C compiler")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("weighted", [True, False])
def test_the_norm(dtype: torch.dtype, weighted: bool) -> None:
    x = drawn(3, 5, 48, dtype=dtype)
    weight = drawn(48, seed=1) if weighted else None
    inputs = [x] if weight is None else [x, weight]
    compare(norm(x, weight, 1e-6), rms_norm(x, 1e-6, weight), inputs, dtype)
    assert type(norm(x, weight, 1e-6).grad_fn).__name__ == "_NormBackward"


@pytest.mark.usefixtures("compiled")
def test_the_norm_under_autocast() -> None:
    """float32 in, bfloat16 out, as the residual stream is read; rows that are not contiguous."""
    x, weight = drawn(6, 4, 32), drawn(32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (
            norm(x.transpose(0, 1), weight, 1e-6),
            rms_norm(x.transpose(0, 1), 1e-6, weight),
        )
    assert ours.dtype is torch.bfloat16
    compare(ours, theirs, [x, weight], torch.bfloat16)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_gate(dtype: torch.dtype) -> None:
    gate_up = drawn(2, 7, 96, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    compare(gated_gelu(gate_up), F.gelu(gate, approximate="tanh") * up, [gate_up], dtype)


def test_other_widths_and_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's operations serve them."""
    assert torch.equal(norm(drawn(2, 6), None, 1e-6), rms_norm(drawn(2, 6), 1e-6))
    monkeypatch.setattr(functions.bindings, "gradients", lambda: None)
    assert torch.equal(norm(drawn(2, 32), None, 1e-6), rms_norm(drawn(2, 32), 1e-6))
    gate_up = drawn(2, 64)
    gate, up = gate_up.chunk(2, dim=-1)
    assert torch.equal(gated_gelu(gate_up), F.gelu(gate, approximate="tanh") * up)
