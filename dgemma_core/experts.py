"""The mixture of experts: which experts a token goes to, and running them grouped (spec §3).

Axes: N tokens, D hidden size, E experts, K experts a token, w expert width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.backends.cpu.products import Linear, linear
from dgemma_core.config import TextConfig

ALL_BELOW = 2**23
"""Multiplications up to which it is quicker to run every expert on every token than to sort tokens by expert."""

SIGMOID_FROM = 4096
"""Numbers from which on six quick operations take less time than one slow one."""
_GELU = (2 / math.pi) ** 0.5


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (`gelu_pytorch_tanh`).

    Without gradient and in float32, a CPU takes it through the sigmoid, ½(1 + tanh u) = σ(2u): a third of the time.
    """
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() < SIGMOID_FROM
    if plain or torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    doubled = x.square().mul_(2 * _GELU * 0.044715).add_(2 * _GELU).mul_(x)  # 2u
    return doubled.sigmoid_().mul_(x)


def gated(hidden: Tensor) -> Tensor:
    """hidden (…, 2w), gate and up side by side → gelu(gate) · up (…, w)."""
    gate, up = hidden.chunk(2, dim=-1)
    return gelu(gate) * up


class Routing(NamedTuple):
    """Which experts each token goes to."""

    weights: Tensor
    """(…, K) float32; they sum to 1 before the per-expert scale."""
    chosen: Tensor
    """(…, K) expert indices."""
    probabilities: Tensor
    """(…, E) float32, the softmax that both come from."""


class Router(nn.Module):
    """Scores every expert from the normed residual and keeps the K best."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.proj = Linear(config.hidden_size, config.num_experts)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))
        self.top_k = config.top_k_experts

    def probabilities(self, normed: Tensor) -> Tensor:
        """normed (…, D), the residual after a norm without a weight → softmax over the experts (…, E), float32."""
        scores = self.proj(normed * self.scale * normed.shape[-1] ** -0.5)
        return scores.softmax(dim=-1, dtype=torch.float32)

    def scaled(self) -> Tensor:
        """(E, D) the projection with the scales of its input multiplied in."""
        return self.proj.weight * self.scale * self.scale.shape[0] ** -0.5

    def forward(self, normed: Tensor) -> Routing:
        """normed (…, D), as above → the routing of every token."""
        return self.choose(self.probabilities(normed))

    def choose(self, probabilities: Tensor) -> Routing:
        """The best K experts of every token: probabilities (…, E) → its routing."""
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(weights * self.per_expert_scale[chosen], chosen, probabilities)


class ExpertMixture(nn.Module):
    """A token passes through K of E experts, and their outputs are summed by weight."""

    count: int

    def gate_up(self, index: int, rows: Tensor) -> Tensor:
        """One expert's first product: rows (n, D) → (n, 2w), gate and up side by side."""
        raise NotImplementedError

    def down(self, index: int, rows: Tensor) -> Tensor:
        """Its second: rows (n, w) → (n, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (…, D), weights (…, K), chosen (…, K) → (…, D).

        Tokens are sorted by expert once, so that each expert reads one contiguous slice; between its two products all
        experts' rows stand together.
        """
        k = chosen.shape[-1]
        flat = x.reshape(-1, x.shape[-1])  # (N, D)
        order = chosen.reshape(-1).argsort(stable=True)  # (N·K,), pairs (token, choice) by expert
        counts = torch.bincount(chosen.reshape(-1), minlength=self.count).tolist()
        busy = [e for e, count in enumerate(counts) if count]
        sizes = [counts[e] for e in busy]
        slices = flat[order // k].split(sizes)
        hidden = torch.cat([self.gate_up(e, rows) for e, rows in zip(busy, slices, strict=True)])
        inner = gated(hidden).split(sizes)
        outputs = torch.cat([self.down(e, rows) for e, rows in zip(busy, inner, strict=True)])
        placed = torch.empty_like(outputs).index_copy(
            0, order, outputs
        )  # back to (token, choice) order
        mixed = placed.view(-1, k, flat.shape[-1]) * weights.reshape(-1, k, 1).to(x.dtype)
        return mixed.sum(dim=1).view_as(x)


class Experts(ExpertMixture):
    """E gated MLPs, stored stacked."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.count = config.num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(self.count, 2 * inner, width))  # (E, 2w, D)
        self.down_proj = nn.Parameter(torch.empty(self.count, width, inner))  # (E, D, w)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (…, D), weights (…, K), chosen (…, K) → (…, D)."""
        if x.is_cuda:
            from dgemma_core.backends.cuda import experts as grouped

            if grouped.serves(self, x):
                return grouped.mixture(self, x, weights, chosen)
        tokens = x.numel() // x.shape[-1]
        if tokens == 1 and not torch.is_grad_enabled():
            return self._one(x, weights, chosen)
        few = tokens * (self.gate_up_proj.numel() + self.down_proj.numel()) <= ALL_BELOW
        return (self._all if few else super().forward)(x, weights, chosen)

    def _one(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The chosen experts of a single token, with nothing to sort."""
        shares = weights.flatten().to(x.dtype).tolist()  # rounded as a product with them would be
        parts = [
            self.down(index, gated(self.gate_up(index, x))).mul_(share)
            for index, share in zip(chosen.flatten().tolist(), shares, strict=True)
        ]
        return sum(parts[1:], parts[0])

    def _all(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Every expert on every token, those not chosen with weight 0: more arithmetic, in few operations."""
        flat = x.reshape(-1, x.shape[-1])  # (N, D)
        shares = weights.new_zeros(len(flat), self.count)
        shares.scatter_(1, chosen.reshape(len(flat), -1), weights.reshape(len(flat), -1))
        hidden = linear(flat, self.gate_up_proj.flatten(0, 1))  # (N, E · 2w)
        inner = gated(hidden.unflatten(-1, (self.count, -1)))
        inner = inner * shares.to(x.dtype).unsqueeze(-1)
        return torch.bmm(inner.transpose(0, 1), self.down_proj.mT).sum(dim=0).view_as(x)

    def gate_up(self, index: int, rows: Tensor) -> Tensor:
        return linear(rows, self.gate_up_proj[index])

    def down(self, index: int, rows: Tensor) -> Tensor:
        return linear(rows, self.down_proj[index])
