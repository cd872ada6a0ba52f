"""The layer: norms, rotary positions, attention, the dense MLP (spec §3).

Notable:
- every module works on the last axis only, so the same code serves packed rows (N, D) and padded batches (B, T, D);
- attention does not know where keys live: it hands (q, k, v) to `attend`, which the caller binds to a prefix cache
  or to a training mask;
- full layers have no value projection: their values are the keys, normed without a weight, before RoPE.

Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.config import LayerConfig, TextConfig
from dgemma_core.experts import Experts, Router, Routing

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q (…, H, d), k (…, G, d), v (…, G, d)) → (…, H, d), over whatever keys the caller holds."""


Seen = Callable[[Routing], None]
"""An observer of the router."""


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of x, or the one that autocast (in training) works in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rms_norm(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """Root-mean-square norm over the last axis, computed in float32, returned in the working dtype."""
    wide = x.float()
    normed = F.rms_norm(wide, wide.shape[-1:], None if weight is None else weight.float(), eps)
    return normed.to(working_dtype(x))


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (`gelu_pytorch_tanh`)."""
    return F.gelu(x, approximate="tanh")


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight (D,), used as stored (no "+1")."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps, self.weight)


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) · up(x)): the dense MLP, and the body of self-conditioning."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))


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
        return rms_norm(embedded, self.eps)


@dataclass(frozen=True)
class Rotation:
    """cos and sin of every position's angles, each (…, d), in the activation dtype."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates x (…, heads, d): halves (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin)."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * self.cos.unsqueeze(-2) + turned * self.sin.unsqueeze(-2)


def rotation(config: LayerConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Rotary angles of `positions` (…) for one kind of layer.

    "Proportional" RoPE (spec §3): only the first ⌊fraction · d/2⌋ of the d/2 frequencies turn; the rest are 0.
    """
    half = config.head_dim // 2
    turning = int(config.rotary_fraction * half)
    exponents = torch.arange(0, 2 * turning, 2, dtype=torch.float32, device=positions.device)
    frequencies = torch.zeros(half, dtype=torch.float32, device=positions.device)
    frequencies[:turning] = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    angles = positions.float().unsqueeze(-1) * frequencies  # (…, d/2)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


class Attention(nn.Module):
    """Grouped-query attention with normed queries, keys and values; scale 1 (spec §3)."""

    def __init__(self, config: TextConfig, layer: LayerConfig) -> None:
        super().__init__()
        heads, groups, d = config.num_attention_heads, layer.num_key_value_heads, layer.head_dim
        self.head_dim = d
        self.eps = config.rms_norm_eps
        self.q_proj = nn.Linear(config.hidden_size, heads * d, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, groups * d, bias=False)
        self.v_proj = None if layer.full else nn.Linear(config.hidden_size, groups * d, bias=False)
        self.o_proj = nn.Linear(heads * d, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(d, self.eps)
        self.k_norm = RMSNorm(d, self.eps)

    def queries(self, x: Tensor, rotate: Rotation) -> Tensor:
        """x (…, D) → rotated queries (…, H, d)."""
        return rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim))))

    def forward(self, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        """x (…, D) → (…, D)."""
        projected = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (…, G, d)
        keys = rotate(self.k_norm(projected))
        if self.v_proj is not None:
            projected = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        values = rms_norm(projected, self.eps)
        return self.o_proj(attend(self.queries(x, rotate), keys, values).flatten(-2))


class HalfLayer(NamedTuple):
    """A layer just before its experts."""

    h: Tensor
    """(…, D) the residual, attention added."""
    dense: Tensor
    """(…, D) the dense MLP's normed output."""
    for_experts: Tensor
    """(…, D) what the experts work on."""
    routing: Routing


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
        self, x: Tensor, rotate: Rotation, attend: Attend, scalar: Tensor, seen: Seen | None = None
    ) -> Tensor:
        """x (…, D) → (…, D). `scalar`: the layer scalar of the mode; `seen`: told the router's choice."""
        half = self.before_experts(x, rotate, attend)
        if seen is not None:
            seen(half.routing)
        routing = half.routing
        sparse = self.experts(half.for_experts, routing.weights, routing.chosen)
        return self.after_experts(half, sparse, scalar)

    def before_experts(self, x: Tensor, rotate: Rotation, attend: Attend) -> HalfLayer:
        """x (…, D) through attention, the dense MLP and the router."""
        h = x + self.post_attention_layernorm(
            self.self_attn(self.input_layernorm(x), rotate, attend)
        )
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(h)))
        # The router reads the raw residual; only what the experts work on is normed.
        return HalfLayer(h, dense, self.pre_feedforward_layernorm_2(h), self.router(h))

    def after_experts(self, half: HalfLayer, sparse: Tensor, scalar: Tensor) -> Tensor:
        """Joins both MLPs and the residual: sparse (…, D) → (…, D)."""
        sparse = self.post_feedforward_layernorm_2(sparse)
        return (half.h + self.post_feedforward_layernorm(half.dense + sparse)) * scalar
