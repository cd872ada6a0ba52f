"""Softmax statistics by C: what tests/core/test_head.py, which runs both heads, does not show."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dgemma_core.backends.cpu.online_softmax import COnlineSoftmax, sample_in_group
from dgemma_core.errors import RequestError

DTYPES = (torch.float32, torch.bfloat16)


def logits(rows: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (20 * torch.randn(rows, size, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("place", (0, 63, 64, 69))
def test_logits_that_are_not_finite(dtype: torch.dtype, number: float, place: int) -> None:
    """NaN is one clear error; the soft cap makes an infinite logit a finite one."""
    z = logits(3, 70, dtype)
    z[1, place] = number
    softmax = COnlineSoftmax(3, 30.0, 1.0, sampled=True)
    if math.isnan(number):
        with pytest.raises(RequestError, match="not finite"):
            softmax.add(z, 0)
        return
    softmax.add(z, 0)
    found = softmax.fields()
    assert all(value.isfinite().all() for value in found.values())
    assert (found["argmax"][1] == place) == (number > 0)


@pytest.mark.parametrize("temperature", (0.0, 1e-40, 1e-10, 1.0, 3e38))
@pytest.mark.parametrize("size", (64, 70))
def test_every_temperature(temperature: float, size: int) -> None:
    """Near 0 only the argmax has mass; far above 1 all tokens have as much."""
    softmax = COnlineSoftmax(3, 30.0, torch.full((3, 1), temperature), sampled=True)
    z = logits(3, 2 * size)
    for start in (0, size):
        softmax.add(z[:, start : start + size].clone(), start)
    found = softmax.fields()
    assert torch.equal(found["argmax"], z.argmax(dim=1))
    assert all(value.isfinite().all() for value in found.values())
    if temperature < 1e-9:
        assert (found["argmax_probability"] == 1).all() and (found["entropy"] == 0).all()
    if temperature > 1:
        uniform = torch.full((3,), 1 / (2 * size))
        torch.testing.assert_close(found["argmax_probability"], uniform, rtol=1e-4, atol=0)
    assert (softmax.groups().sum(dim=1) - 1).abs().max() < 1e-6


def test_a_sample_stays_inside_the_vocabulary() -> None:
    """Wherever its group is said to be, whatever the numbers are."""
    hidden, weight = torch.randn(4, 32), torch.randn(100, 32)
    places = torch.tensor([[-(2**62)], [99], [2**62], [64]])
    targets = torch.tensor([[0.5], [math.nan], [2.0], [-1.0]], dtype=torch.float64)
    for numbers in (hidden, hidden * math.nan):
        found = sample_in_group(numbers, weight, 30.0, torch.ones(4, 1), places, places + 64, targets)  # fmt: skip
        assert found is not None and ((found[0] >= 0) & (found[0] < 100)).all()


def test_where_c_does_not_serve() -> None:
    ones, places = torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.long)
    hidden, weight = torch.randn(4, 32), torch.randn(100, 32)
    pairs = (
        (hidden.double(), weight), (hidden, weight.bfloat16()), (hidden, weight[:, :16]), (hidden, weight[:0]),
        (hidden[:, :24], weight[:, :24]), (hidden, weight.mT.contiguous().mT),
    )  # fmt: skip
    for a, b in pairs:
        assert sample_in_group(a, b, 30.0, ones, places, places + 64, ones.double()) is None
    with pytest.raises(RequestError, match="temperatures must have shape"):
        sample_in_group(hidden, weight, 30.0, ones[:3], places, places + 64, ones)
