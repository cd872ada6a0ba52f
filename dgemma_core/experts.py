"""The mixture of experts: which experts a token goes to, and running them (spec §3).

Axes: N tokens, D hidden size, E experts, K experts a token, w expert width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgemma_core.config import TextConfig
from dgemma_core.functions import functions


class Routing(NamedTuple):
    """Which experts each token goes to."""

    weights: Tensor
    """(…, K) float32; they sum to 1 before the per-expert scale."""
    chosen: Tensor
    """(…, K) expert indices."""
    probabilities: Tensor
    """(…, E) float32, the softmax that both come from."""


class Router(nn.Module):
    """Scores every expert from the residual, normed without a weight, and keeps the K best."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))
        self.top_k, self.eps = config.top_k_experts, config.rms_norm_eps

    def forward(self, x: Tensor) -> Routing:
        """x (…, D), the residual → the routing of every token."""
        scores = self.proj(functions().rms_norm(x, self.eps) * self.scale * x.shape[-1] ** -0.5)
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)  # (…, E)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)  # (…, K)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(weights * self.per_expert_scale[chosen], chosen, probabilities)


class Experts(nn.Module):
    """E gated MLPs, stored stacked. A token passes through K of them; their outputs are summed by weight."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.count = config.num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(self.count, 2 * inner, width))  # (E, 2w, D)
        self.down_proj = nn.Parameter(torch.empty(self.count, width, inner))  # (E, D, w)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (…, D), weights (…, K), chosen (…, K) → (…, D).

        Pairs (token, choice) are sorted by expert once, so that each expert reads one contiguous slice.
        """
        k = chosen.shape[-1]
        flat, pairs = x.reshape(-1, x.shape[-1]), chosen.reshape(-1)  # (N, D), (N·K,)
        order = pairs.argsort(stable=True)
        counts = torch.bincount(pairs, minlength=self.count).tolist()
        slices = flat[order // k].split(counts)
        outputs = torch.cat([self.expert(e, slices[e]) for e, n in enumerate(counts) if n])
        placed = torch.empty_like(outputs).index_copy(0, order, outputs)  # by token again
        weighted = placed.view(-1, k, x.shape[-1]) * weights.reshape(-1, k, 1).to(x.dtype)
        return weighted.sum(dim=1).view_as(x)

    def expert(self, index: int, x: Tensor) -> Tensor:
        """One expert: x (n, D) → (n, D)."""
        gate, up = self.product("gate_up_proj", index, x).chunk(2, dim=-1)
        return self.product("down_proj", index, functions().gated_gelu(gate, up))

    def product(self, name: str, index: int, x: Tensor) -> Tensor:
        """x (n, inputs) times the matrix of one expert in the stack `name` → (n, outputs)."""
        return functions().linear(x, getattr(self, name)[index])
