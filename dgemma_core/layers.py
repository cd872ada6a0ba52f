"""The layer: norms, rotary positions, attention, the dense MLP (spec §3).

Notable:
- every module works on the last axis only, so the same code serves packed rows (N, D) and padded batches (B, T, D);
- attention does not know where keys live: it hands (q, k, v) to `attend`, which the caller binds to a prefix cache
  or to a training mask;
- full layers have no value projection: their values are the keys, normed without a weight, before RoPE.

Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from dgemma_core.config import LayerConfig, TextConfig
from dgemma_core.experts import Experts, Router, Routing
from dgemma_core.functions import functions

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q (…, H, d), k (…, G, d), v (…, G, d)) → (…, H, d), over whatever keys the caller holds."""


@cache
def rounded(number: float, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to `number`."""
    return torch.tensor(number, dtype=dtype).item()


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight (D,), used as stored (no "+1")."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functions().rms_norm(x, self.eps, self.weight)


class Linear(nn.Linear):
    """A projection without bias: x (…, inputs) → (…, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functions().linear(x, self.weight)


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) · up(x)): the dense MLP, and the body of self-conditioning."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functions().gated_gelu(self.gate_proj(x), self.up_proj(x)))


class SelfConditioning(GatedMLP):
    """Mixes the previous step's soft embedding into the canvas embedding (spec §3, "Denoise input")."""

    def __init__(self, hidden_size: int, width: int, eps: float) -> None:
        super().__init__(hidden_size, width)
        self.pre_norm = RMSNorm(hidden_size, eps)
        self.eps = eps

    def forward(self, embedded: Tensor, soft_embedding: Tensor | None = None) -> Tensor:
        """embedded (…, D) · soft_embedding (…, D), or None for the first step's zeros → (…, D).

        Zeros go through the block as zeros (it has no bias), so the first step skips it.
        """
        if soft_embedding is not None:
            embedded = embedded + super().forward(self.pre_norm(soft_embedding))
        return functions().rms_norm(embedded, self.eps)


@dataclass(frozen=True)
class Rotation:
    """cos of every position's angles, and sin with the sign of its half, each (…, 1, d), in the activation dtype."""

    cos: Tensor
    signed_sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates x (…, heads, d): halves (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin)."""
        swapped = x.roll(x.shape[-1] // 2, -1)  # (x2, x1)
        return x * self.cos + swapped * self.signed_sin


def rotation(config: LayerConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Rotary angles of `positions` (…) for one kind of layer.

    "Proportional" RoPE (spec §3): only the first ⌊fraction · d/2⌋ of the d/2 frequencies rotate; the rest are 0.
    """
    half = config.head_dim // 2
    rotating = int(config.rotary_fraction * half)
    exponents = torch.arange(0, 2 * rotating, 2, dtype=torch.float32, device=positions.device)
    frequencies = torch.zeros(half, dtype=torch.float32, device=positions.device)
    frequencies[:rotating] = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    angles = positions.float().unsqueeze(-1) * frequencies  # (…, d/2)
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        torch.cat((cos, cos), dim=-1).to(dtype).unsqueeze(-2),
        torch.cat((-sin, sin), dim=-1).to(dtype).unsqueeze(-2),
    )


class Attention(nn.Module):
    """Grouped-query attention with normed queries, keys and values; scale 1 (spec §3)."""

    def __init__(self, config: TextConfig, layer: LayerConfig) -> None:
        super().__init__()
        heads, groups, d = config.num_attention_heads, layer.num_key_value_heads, layer.head_dim
        self.heads, self.groups, self.head_dim = heads, groups, d
        self.eps = config.rms_norm_eps
        self.q_proj = Linear(config.hidden_size, heads * d)
        self.k_proj = Linear(config.hidden_size, groups * d)
        self.v_proj = None if layer.full else Linear(config.hidden_size, groups * d)
        self.o_proj = Linear(heads * d, config.hidden_size)
        self.q_norm = RMSNorm(d, self.eps)
        self.k_norm = RMSNorm(d, self.eps)

    def forward(self, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        """x (…, D) → (…, D)."""
        queries = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        keys = self.k_proj(x).unflatten(-1, (self.groups, self.head_dim))
        values = keys
        if self.v_proj is not None:
            values = self.v_proj(x).unflatten(-1, (self.groups, self.head_dim))
        queries, keys = rotate(self.q_norm(queries)), rotate(self.k_norm(keys))
        values = functions().rms_norm(values, self.eps)
        return self.o_proj(attend(queries, keys, values).flatten(-2))


class Layer(nn.Module):
    """One transformer layer: attention, then the dense MLP and the experts side by side (spec §3)."""

    def __init__(self, config: TextConfig, layer: LayerConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.config = layer
        self.self_attn = Attention(config, layer)
        self.mlp = GatedMLP(width, config.intermediate_size)
        self.router = Router(config)
        self.experts = Experts(config)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.pre_feedforward_layernorm = RMSNorm(width, eps)
        self.post_feedforward_layernorm = RMSNorm(width, eps)
        self.post_feedforward_layernorm_1 = RMSNorm(width, eps)
        self.pre_feedforward_layernorm_2 = RMSNorm(width, eps)
        self.post_feedforward_layernorm_2 = RMSNorm(width, eps)
        self.layer_scalar = nn.Parameter(torch.ones(1))

    def forward(
        self,
        x: Tensor,
        rotate: Rotation,
        attend: Attend,
        scalar: Tensor,
        *,
        observe: Callable[[Routing], None] | None = None,
    ) -> Tensor:
        """x (…, D) → (…, D).

        scalar: the layer scalar of the mode. observe: told the router's choice.
        """
        h = x + self.post_attention_layernorm(
            self.self_attn(self.input_layernorm(x), rotate, attend)
        )
        routing = self.router(h)  # the router sees the residual as it is
        if observe is not None:
            observe(routing)
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(h)))
        sparse = self.pre_feedforward_layernorm_2(h)
        sparse = self.experts(sparse, routing.weights, routing.chosen)
        sparse = self.post_feedforward_layernorm_2(sparse)
        return (h + self.post_feedforward_layernorm(dense + sparse)) * scalar
