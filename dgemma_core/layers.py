"""The layer: norms, rotary positions, attention, the dense MLP (spec §3).

Notable:
- every module works on the last axis only, so the same code serves packed rows (N, D) and padded batches (B, T, D);
- attention does not know where keys live: it hands (q, k, v) to `attend`, which the caller binds to a prefix cache
  or to a training mask;
- full layers have no value projection: their values are the keys, normed without a weight, before RoPE.

Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.backends.cpu.products import Linear, linear
from dgemma_core.config import LayerConfig, TextConfig
from dgemma_core.experts import Experts, Router, Routing, gated, gelu

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q (…, H, d), k (…, G, d), v (…, G, d)) → (…, H, d), over whatever keys the caller holds."""


Seen = Callable[[Routing], None]
"""An observer of the router."""


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of x, or the one that autocast (in training) works in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@cache
def rounded(number: float, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to `number`: a factor that a product can take without a copy to its device."""
    return torch.tensor(number, dtype=dtype).item()


def rms_norm(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """Root-mean-square norm over the last axis, computed in float32, returned in the working dtype."""
    wide = x.float()
    normed = F.rms_norm(wide, wide.shape[-1:], None if weight is None else weight.float(), eps)
    return normed.to(working_dtype(x))


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight (D,), used as stored (no "+1")."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps, self.weight)

    def weighted(self, normed: Tensor, dtype: torch.dtype) -> Tensor:
        """normed (…, D) float32, without a weight → with this norm's, in `dtype`."""
        return (normed * self.weight.float()).to(dtype)


class Joined:
    """Several projections of the same input as one matrix, of which their weights are views: no memory is spent.

    Whoever moves, replaces or trains a weight afterwards undoes this: then a call gives None, and the projections are
    used one by one.
    """

    def __init__(self, matrix: Tensor, parts: Sequence[Linear]) -> None:
        self.matrix = matrix
        self.parts = parts

    @classmethod
    def of(cls, *projections: nn.Module | None) -> Joined | None:
        """None where a projection is no plain matrix (a quantised one) or asks for gradients."""
        parts = [part for part in projections if part is not None]
        if not all(type(part) is Linear and not part.weight.requires_grad for part in parts):
            return None
        plain = cast(list[Linear], parts)
        matrix = torch.cat([part.weight for part in plain])
        for part, rows in zip(plain, matrix.split([len(p.weight) for p in plain]), strict=True):
            part.weight.data = rows
        return cls(matrix, plain)

    def __call__(self, x: Tensor) -> Tensor | None:
        """x (…, D) → all outputs side by side, or None where the weights are no views any more."""
        start = self.matrix.data_ptr()
        for part in self.parts:
            if part.weight.data_ptr() != start or part.weight.requires_grad:
                return None
            start += part.weight.nbytes
        return linear(x, self.matrix)


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) · up(x)): the dense MLP, and the body of self-conditioning."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size)
        self._joined: Joined | None = None

    def join(self) -> None:
        """Lays gate and up side by side in memory, so that one product serves both (`Joined`)."""
        self._joined = Joined.of(self.gate_proj, self.up_proj)

    def forward(self, x: Tensor) -> Tensor:
        joined = None if self._joined is None else self._joined(x)
        inner = gelu(self.gate_proj(x)) * self.up_proj(x) if joined is None else gated(joined)
        return self.down_proj(inner)


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
    """cos of every position's angles, and sin with the sign of its half, each (…, 1, d), in the activation dtype."""

    cos: Tensor
    signed_sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates x (…, heads, d): halves (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin)."""
        turned = x.roll(x.shape[-1] // 2, -1)  # (x2, x1)
        return x * self.cos + turned * self.signed_sin

    def of(self, spans: Sequence[tuple[int, int]]) -> Rotation:
        """The rows of (first, count) spans, where each row is a position's."""
        if len(spans) == 1:
            ((first, count),) = spans
            return Rotation(self.cos[first : first + count], self.signed_sin[first : first + count])
        parts = [self.of((span,)) for span in spans]
        return Rotation(
            torch.cat([part.cos for part in parts]), torch.cat([part.signed_sin for part in parts])
        )


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
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        torch.cat((cos, cos), dim=-1).to(dtype).unsqueeze(-2),
        torch.cat((-sin, sin), dim=-1).to(dtype).unsqueeze(-2),
    )


def rotations(
    kinds: Iterable[LayerConfig], positions: Tensor, dtype: torch.dtype
) -> dict[LayerConfig, Rotation]:
    """Rotary angles of `positions` (…), once for each kind of layer."""
    return {kind: rotation(kind, positions, dtype) for kind in set(kinds)}


class Attention(nn.Module):
    """Grouped-query attention with normed queries, keys and values; scale 1 (spec §3).

    Queries, keys and values are normed and turned in one go, side by side: what a step of a small model costs is the
    number of its operations.
    """

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
        self._joined: Joined | None = None

    def join(self) -> None:
        """Lays the projections side by side in memory, so that one product serves them all (`Joined`)."""
        self._joined = Joined.of(self.q_proj, self.k_proj, self.v_proj)

    def projected(self, x: Tensor) -> Tensor:
        """x (…, D) → queries, keys and values before their norms (…, H + 2G, d)."""
        joined = None if self._joined is None else self._joined(x)
        if joined is None:
            parts = [self.q_proj(x), self.k_proj(x)]
            if self.v_proj is not None:
                parts.append(self.v_proj(x))
            joined = torch.cat(parts, dim=-1)
        found = joined.unflatten(-1, (-1, self.head_dim))
        if self.v_proj is None:  # values are the keys, before norm and rotation
            found = torch.cat((found, found[..., self.heads :, :]), dim=-2)
        return found

    def queries_keys_values(self, x: Tensor, rotate: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """x (…, D) → queries (…, H, d), keys and values (…, G, d)."""
        projected = self.projected(x)
        normed = F.rms_norm(projected.float(), (self.head_dim,), None, self.eps)
        dtype, turning = working_dtype(projected), self.heads + self.groups
        weights = torch.cat(
            (
                self.q_norm.weight.expand(self.heads, -1),
                self.k_norm.weight.expand(self.groups, -1),
            )
        )
        turned = rotate((normed[..., :turning, :] * weights.float()).to(dtype))
        queries, keys = turned.split((self.heads, self.groups), dim=-2)
        return queries, keys, normed[..., turning:, :].to(dtype)

    def queries(self, x: Tensor, rotate: Rotation) -> Tensor:
        """x (…, D) → rotated queries (…, H, d)."""
        return self.queries_keys_values(x, rotate)[0]

    def forward(self, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        """x (…, D) → (…, D)."""
        return self.o_proj(attend(*self.queries_keys_values(x, rotate)).flatten(-2))


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
        self.eps = eps
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
        # Dense MLP, experts and router all norm the same residual, each with a weight of its own: computed once.
        wide, dtype = h.float(), working_dtype(h)
        normed = F.rms_norm(wide, wide.shape[-1:], None, self.eps)
        for_dense = self.pre_feedforward_layernorm.weighted(normed, dtype)
        for_experts = self.pre_feedforward_layernorm_2.weighted(normed, dtype)
        dense = self.post_feedforward_layernorm_1(self.mlp(for_dense))
        return HalfLayer(h, dense, for_experts, self.router(normed.to(h.dtype)))

    def after_experts(self, half: HalfLayer, sparse: Tensor, scalar: Tensor) -> Tensor:
        """Joins both MLPs and the residual: sparse (…, D) → (…, D)."""
        sparse = self.post_feedforward_layernorm_2(sparse)
        return (half.h + self.post_feedforward_layernorm(half.dense + sparse)) * scalar
