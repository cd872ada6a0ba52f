"""The experts against one plain loop in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.experts import Experts, Router, Routing
from dgemma_core.train.mixture import mixture
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
def test_the_sorted_loop_and_training_agree_with_it(
    experts: Experts, tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 16, generator=generator)
    weights = torch.rand(tokens, 2, generator=generator)
    chosen = torch.rand(tokens, experts.count, generator=generator).topk(2).indices
    expected = plain(experts, x, weights, chosen)
    found = experts(x, weights, chosen)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    batched = mixture(experts, x, Routing(weights, chosen, weights))
    torch.testing.assert_close(batched.double(), expected, rtol=1e-5, atol=1e-5)


def test_only_the_chosen_experts_run(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    expert = Experts.expert
    monkeypatch.setattr(Experts, "expert", lambda self, e, x: ran.append(e) or expert(self, e, x))
    experts(torch.randn(3, 16), torch.ones(3, 2), torch.tensor([[0, 1], [0, 2], [0, 1]]))
    assert ran == [0, 1, 2]


def test_the_router_keeps_the_best_and_scales_them() -> None:
    router = tiny.model(4).layers[0].router
    assert isinstance(router, Router)
    x = torch.randn(5, 16)
    routing = router(x)
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + router.eps) ** -0.5
    scores = (normed * router.scale.double() * 16**-0.5) @ router.proj.weight.double().T
    best = scores.softmax(-1).topk(router.top_k)
    shares = best.values / best.values.sum(-1, keepdim=True)
    expected = shares * router.per_expert_scale.double()[best.indices]
    assert torch.equal(routing.chosen, best.indices)
    torch.testing.assert_close(routing.weights.double(), expected, rtol=1e-5, atol=1e-6)
