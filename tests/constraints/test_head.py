"""Heads over some tokens say what a head over a matrix of these tokens says."""

from __future__ import annotations

import pytest
import torch

from dgemma_core.backends.cpu.head import CpuHead
from dgemma_core.constraints.head import Rows
from dgemma_core.head import Asked, VocabularyHead


@pytest.mark.parametrize("kind", [VocabularyHead, CpuHead])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("buffered", [False, True])
def test_scattered_tokens(
    kind: type[VocabularyHead], dtype: torch.dtype, buffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several slices, each copied over the one before where there is a buffer; the last is short, as is the last
    group. Samples are found a few rows at a time."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(1000, 32, generator=random).to(dtype)
    hidden = torch.randn(40, 32, generator=random).to(dtype)
    ids = torch.randperm(1000, generator=random)[:333].sort().values
    asked = Asked(
        temperatures=torch.full((40, 1), 0.8), tempered=True,
        uniform=torch.rand(40, generator=random, dtype=torch.float64),
        reference="tempered", filters=None, soft=True, top_k=3,
    )  # fmt: skip
    monkeypatch.setattr(kind, "tokens_per_slice", lambda *_: 128)
    monkeypatch.setattr(kind, "groups_at_a_time", lambda *_: 7)
    rows = Rows(weight, ids, weight.new_empty(128, 32) if buffered else None)
    whole, part = (kind(matrix, 30.0) for matrix in (weight[ids], rows))
    found, wanted = part.fields(hidden, asked), whole.fields(hidden, asked)
    assert len(set(wanted["sample"].tolist())) > 20
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
