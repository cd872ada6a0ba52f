"""Three ways to run the experts against one plain loop in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core import experts as module
from dgemma_core.experts import Experts
from dgemma_core.train.dense_pass import run_experts
from tests.core import tiny


@pytest.fixture(scope="module")
def experts() -> Experts:
    found = tiny.model(4).layers[0].experts
    assert isinstance(found, Experts)
    return found


def plain(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Token by token, choice by choice."""
    result = torch.zeros_like(x, dtype=torch.float64)
    gate_up, down = experts.gate_up_proj.double(), experts.down_proj.double()
    for n, token in enumerate(x.double()):
        for weight, e in zip(weights[n].tolist(), chosen[n].tolist(), strict=True):
            gate, up = (gate_up[e] @ token).chunk(2)
            result[n] += weight * (down[e] @ (F.gelu(gate, approximate="tanh") * up))
    return result


@pytest.mark.parametrize("tokens", [1, 2, 7, 150])
@pytest.mark.parametrize("seed", range(3))
def test_all_ways_agree(
    experts: Experts, monkeypatch: pytest.MonkeyPatch, tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 16, generator=generator)
    weights = torch.rand(tokens, 2, generator=generator)
    chosen = torch.rand(tokens, experts.count, generator=generator).topk(2).indices
    expected = plain(experts, x, weights, chosen)
    for below in (0, 2**62):  # sorted by expert, and every expert on every token
        monkeypatch.setattr(module, "ALL_BELOW", below)
        torch.testing.assert_close(
            experts(x, weights, chosen).double(), expected, rtol=1e-5, atol=1e-5
        )
    padded = (run_experts(experts, x, chosen) * weights.unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(padded.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_ways_do_run(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few multiplications: all experts at once. Many: expert by expert."""
    ran = []
    down = Experts.down
    monkeypatch.setattr(Experts, "down", lambda self, e, rows: ran.append(e) or down(self, e, rows))
    x, chosen = torch.randn(3, 16), torch.tensor([[0, 1], [0, 2], [0, 1]])
    experts(x, torch.ones(3, 2), chosen)
    assert ran == []
    monkeypatch.setattr(module, "ALL_BELOW", 0)
    experts(x, torch.ones(3, 2), chosen)
    assert ran == [0, 1, 2]


def test_gelu_is_the_tanh_form_whatever_its_way() -> None:
    x = torch.linspace(-12, 12, 40_001)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    with torch.no_grad():
        many, few = module.gelu(x), torch.cat([module.gelu(part) for part in x.split(1000)])
    for found in (many, few, module.gelu(x)):
        torch.testing.assert_close(found.double(), exact, rtol=3e-6, atol=1e-6)
