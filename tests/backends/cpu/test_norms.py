"""The RMS norm and the gated GELU in C: torch's numbers, or None where C does not serve."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.backends.cpu import bindings, norms

DTYPES = (torch.float32, torch.bfloat16)
STEP = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8}
"""The relative error that rounding may make."""


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor | None, exact: Tensor, dtype: torch.dtype) -> None:
    assert found is not None and found.dtype is dtype and found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=STEP[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((1, 16), (7, 48), (3, 5, 2816), (16,), (300, 256)))
@pytest.mark.parametrize("weighted", (False, True))
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], weighted: bool) -> None:
    x, width = 3 * numbers(*shape, dtype=dtype), shape[-1]
    weight = numbers(width, dtype=dtype, seed=1) if weighted else None
    exact = F.rms_norm(x.double(), (width,), None if weight is None else weight.double(), 1e-6)
    with torch.no_grad():
        close(norms.rms_norm(x, weight, 1e-6), exact, dtype)


def test_rms_norm_of_a_float32_weight() -> None:
    x, weight = numbers(5, 64, dtype=torch.bfloat16), numbers(64, seed=1)
    exact = F.rms_norm(x.double(), (64,), weight.double(), 1e-6)
    close(norms.rms_norm(x, weight, 1e-6), exact, torch.bfloat16)


def test_rms_norm_rounds_as_torch_does() -> None:
    """In bfloat16 from float32 numbers: nearly all are the same bits."""
    x, weight = numbers(200, 512, dtype=torch.bfloat16), numbers(512, dtype=torch.bfloat16, seed=1)
    plain = F.rms_norm(x.float(), (512,), weight.float(), 1e-6).bfloat16()
    found = norms.rms_norm(x, weight, 1e-6)
    assert found is not None
    assert (found != plain).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", (1, 3))
def test_gelu(dtype: torch.dtype, threads: int) -> None:
    x, up = 4 * numbers(700, 192, dtype=dtype), numbers(700, 192, dtype=dtype, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain = F.gelu(x, approximate="tanh") * up
        found = norms.gated_gelu(x, up)
    finally:
        torch.set_num_threads(before)
    assert found is not None and found.dtype is dtype
    torch.testing.assert_close(found, plain, rtol=2 * STEP[dtype], atol=1e-5)


def test_gate_and_up_side_by_side() -> None:
    """As one product gives them: rows of both are parts of longer rows."""
    both = numbers(9, 96)
    gate, up = both.chunk(2, dim=1)
    found = norms.gated_gelu(gate, up)
    assert found is not None and found.is_contiguous()
    apart = norms.gated_gelu(gate.contiguous(), up.contiguous())
    assert apart is not None and torch.equal(found, apart)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_numbers(dtype: torch.dtype) -> None:
    """NaN and infinities come out where torch has them; nothing else does."""
    odd = (
        0.0, -0.0, math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-42, 88.0, -88.0, 1e30, -1e30, 12.0, -12.0, 1.0, -1.0,
    )  # fmt: skip
    x = torch.tensor(odd).to(dtype)
    found = norms.gated_gelu(x.unsqueeze(0), torch.ones_like(x).unsqueeze(0))
    plain = F.gelu(x, approximate="tanh").unsqueeze(0)
    assert found is not None
    torch.testing.assert_close(found, plain, rtol=STEP[dtype], atol=1e-6, equal_nan=True)
    rows = x.unsqueeze(1) * torch.ones(16, dtype=dtype)
    normed = norms.rms_norm(rows, None, 1e-6)
    plain = F.rms_norm(rows.float(), (16,), None, 1e-6).to(dtype)
    torch.testing.assert_close(normed, plain, rtol=STEP[dtype], atol=1e-6, equal_nan=True)


def test_every_bfloat16() -> None:
    """Rounding to bfloat16 and back changes no number, and no NaN into one."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    ones = torch.ones(2**16, dtype=torch.bfloat16)
    near_identity = norms.gated_gelu(100 * ones.view(-1, 16), bits.view(-1, 16))
    assert near_identity is not None
    torch.testing.assert_close(near_identity.flatten(), 100 * bits, rtol=0, atol=0, equal_nan=True)


def test_no_rows() -> None:
    none = torch.empty(0, 32)
    for found in (norms.rms_norm(none, None, 1e-6), norms.gated_gelu(none, none)):
        assert found is not None and found.shape == (0, 32)


def test_where_c_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(4, 32), numbers(32)
    refused = (
        (numbers(4, 40), None), (x.double(), None), (x.half(), None), (x.to("meta"), None), (numbers(32, 4).mT, None),
        (x, numbers(16)), (x, weight.double()), (x, numbers(64)[::2]), (numbers(4, 32).requires_grad_(), None),
        (x, nn.Parameter(weight.clone())), (torch.tensor(1.0), None),
    )  # fmt: skip
    for wrong, its_weight in refused:
        assert norms.rms_norm(wrong, its_weight, 1e-6) is None
        if its_weight is None:
            assert norms.gated_gelu(wrong, wrong) is None
    assert norms.gated_gelu(x, x.bfloat16()) is None and norms.gated_gelu(x, x[:3]) is None
    with torch.autocast("cpu"):
        assert norms.rms_norm(x, weight, 1e-6) is None
    with torch.no_grad():
        assert norms.rms_norm(x, nn.Parameter(weight), 1e-6) is not None
    monkeypatch.setattr(bindings, "norms", lambda: None)
    assert norms.rms_norm(x, weight, 1e-6) is None and norms.gated_gelu(x, x) is None
