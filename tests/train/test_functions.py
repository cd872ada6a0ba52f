"""Norms, gate and loss by C against torch's own operations, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu import bindings
from dgemma_core.functions import TORCH
from dgemma_core.head import soft_capped
from dgemma_core.train import functions
from dgemma_core.train.functions import (
    added_norm,
    capped_loss,
    capped_probabilities,
    gated_gelu,
    norm,
)

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
    compare(norm(x, weight, 1e-6), TORCH.rms_norm(x, 1e-6, weight), inputs, dtype)
    assert type(norm(x, weight, 1e-6).grad_fn).__name__ == "_NormBackward"


@pytest.mark.usefixtures("compiled")
def test_the_norm_under_autocast() -> None:
    """float32 in, bfloat16 out, as the residual stream is read; rows that are not contiguous."""
    x, weight = drawn(6, 4, 32), drawn(32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (
            norm(x.transpose(0, 1), weight, 1e-6),
            TORCH.rms_norm(x.transpose(0, 1), 1e-6, weight),
        )
    assert ours.dtype is torch.bfloat16
    compare(ours, theirs, [x, weight], torch.bfloat16)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(
    ("residual", "dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2],
)
def test_the_added_norm(residual: torch.dtype, dtype: torch.dtype, scaled: bool) -> None:
    x, y = drawn(3, 5, 48, dtype=residual), drawn(3, 5, 48, dtype=dtype, seed=2)
    weight = drawn(48, seed=1)
    inputs, scale = [x, y, weight], None
    if scaled:
        scale = drawn(3, 5, seed=3)
        inputs.append(scale)
    ours = added_norm(x, y, weight, 1e-6, scale)
    theirs = x.float() + TORCH.rms_norm(y.float(), 1e-6, weight)
    if scale is not None:
        theirs = theirs * scale.unsqueeze(-1)
    assert type(ours.grad_fn).__name__ == "_AddedNormBackward"
    compare(ours, theirs.to(residual), inputs, dtype)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_loss(dtype: torch.dtype) -> None:
    """Against float32; the places of two targets are left out."""
    hidden, weight = drawn(9, 24, dtype=dtype), drawn(64, 24, dtype=dtype, seed=1)
    targets = torch.tensor([5, 0, -100, 63, 17, -1, 5, 40, 31])
    ours = capped_loss(hidden, weight, targets, 5.0)
    logits = soft_capped(F.linear(hidden.float(), weight.float()), 5.0)
    theirs = F.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1)
    assert type(ours.grad_fn).__name__ == "_CappedLossBackward"
    compare(ours, theirs, [hidden, weight], dtype)
    with torch.no_grad():
        found = capped_probabilities(hidden, weight, 5.0)
    assert found.dtype is dtype
    bound = BOUNDS[dtype]
    torch.testing.assert_close(found.float(), logits.softmax(-1), rtol=4 * bound, atol=bound)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_gate(dtype: torch.dtype) -> None:
    gate_up = drawn(2, 7, 96, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    compare(gated_gelu(gate_up), F.gelu(gate, approximate="tanh") * up, [gate_up], dtype)


def test_other_widths_and_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's operations serve them."""
    assert torch.equal(norm(drawn(2, 6), None, 1e-6), TORCH.rms_norm(drawn(2, 6), 1e-6))
    monkeypatch.setattr(functions.bindings, "gradients", lambda: None)
    assert torch.equal(norm(drawn(2, 32), None, 1e-6), TORCH.rms_norm(drawn(2, 32), 1e-6))
    gate_up = drawn(2, 64)
    gate, up = gate_up.chunk(2, dim=-1)
    assert torch.equal(gated_gelu(gate_up), F.gelu(gate, approximate="tanh") * up)
    x, y, weight = drawn(2, 32), drawn(2, 32, seed=1), drawn(32, seed=2)
    assert torch.equal(added_norm(x, y, weight, 1e-6), x + TORCH.rms_norm(y, 1e-6, weight))
    hidden, head = drawn(3, 8), drawn(32, 8, seed=1)
    targets = torch.tensor([3, -100, 9])
    expected = F.cross_entropy(soft_capped(F.linear(hidden, head), 5.0)[[0, 2]], targets[[0, 2]])
    torch.testing.assert_close(capped_loss(hidden, head, targets, 5.0), expected)
