"""What stands between the matrix products of a layer, one GPU kernel each; beside it what it computes, in plain torch.

A layer of the released shape reads its weights in some 0.4 ms on a fast card, and a kernel costs one or two
microseconds to begin: written out in torch operations, norms, rotations and sums would take as long as the weights.
On a CPU the plain form runs, which is also what the kernels are tested against.

Axes: T new tokens, D hidden size, H query heads, G key/value heads, d head dimension, E experts, K choices a token.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cuda.experts import interpreted, on_kernels
from dgemma_core.experts import gated
from dgemma_core.layers import Layer, Rotation, rms_norm

ONE_ROW_TILE = (16, 512)
"""Rows of the matrix, and columns a step, of a program of `linear` for one token."""


def _power(size: int, least: int = 16) -> int:
    """The power of two at or above `size`."""
    return max(least, 1 << (size - 1).bit_length())


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, D) · weight (R, D) → (T, R)."""
    if len(x) > 1 or not on_kernels(x):
        return F.linear(x, weight)
    from dgemma_core.backends.cuda import kernels

    out = x.new_empty(1, len(weight))
    rows, columns = ONE_ROW_TILE
    kernels.one_row[(-(-len(weight) // rows),)](
        x, weight, out, len(weight), D=x.shape[1], BLOCK_N=rows, BLOCK_K=columns
    )
    return out


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Root-mean-square norm of x (T, D)."""
    if not on_kernels(x):
        return rms_norm(x, eps, weight)
    from dgemma_core.backends.cuda import kernels

    out = torch.empty_like(x)
    kernels.rms_norm[(len(x),)](
        x, x if weight is None else weight, out, eps, D=x.shape[1],
        WEIGHTED=weight is not None, BLOCK=_power(x.shape[1]),
    )  # fmt: skip
    return out


class Branches(NamedTuple):
    """A layer after its attention, (T, D) each."""

    h: Tensor
    """The residual, attention added."""
    dense: Tensor
    """What the dense MLP works on."""
    sparse: Tensor
    """What the experts work on."""
    routed: Tensor
    """What the router's product works on."""


def after_attention(layer: Layer, x: Tensor, mixed: Tensor) -> Branches:
    """x, mixed (T, D): the residual and attention's output."""
    root = x.shape[1] ** -0.5
    parts = (
        layer.post_attention_layernorm.weight,
        layer.pre_feedforward_layernorm.weight,
        layer.pre_feedforward_layernorm_2.weight,
        layer.router.scale,
    )
    eps = layer.post_attention_layernorm.eps
    if not on_kernels(x):
        h = x + rms_norm(mixed, eps, parts[0])
        routed = rms_norm(h, eps) * parts[3] * root
        return Branches(h, rms_norm(h, eps, parts[1]), rms_norm(h, eps, parts[2]), routed)
    from dgemma_core.backends.cuda import kernels

    found = Branches(*(torch.empty_like(x) for _ in range(4)))
    kernels.after_attention[(len(x),)](
        x, mixed, *parts, *found, eps, root, D=x.shape[1], BLOCK=_power(x.shape[1])
    )
    return found


def after_experts(
    layer: Layer, h: Tensor, dense: Tensor, outputs: Tensor, scalar: Tensor, following: Tensor
) -> tuple[Tensor, Tensor]:
    """Residual h and dense MLP's output (T, D), the experts' outputs (T, K, D) → the layer's output, and its norm with
    the weight `following` (D,) of what comes next."""
    parts = (
        layer.post_feedforward_layernorm_1.weight,
        layer.post_feedforward_layernorm_2.weight,
        layer.post_feedforward_layernorm.weight,
    )
    eps = layer.post_feedforward_layernorm.eps
    if not on_kernels(h):
        both = rms_norm(dense, eps, parts[0]) + rms_norm(outputs.sum(dim=1), eps, parts[1])
        out = (h + rms_norm(both, eps, parts[2])) * scalar
        return out, rms_norm(out, eps, following)
    from dgemma_core.backends.cuda import kernels

    out, after = torch.empty_like(h), torch.empty_like(h)
    kernels.after_experts[(len(h),)](
        h, dense, outputs, *parts, scalar, following, out, after, eps,
        D=h.shape[1], K=outputs.shape[1], BLOCK=_power(h.shape[1]),
    )  # fmt: skip
    return out, after


def gate(joined: Tensor) -> Tensor:
    """joined (T, 2w), gate and up side by side → gelu(gate) · up (T, w)."""
    if not on_kernels(joined):
        return gated(joined)
    from dgemma_core.backends.cuda import kernels

    rows, width = joined.shape[0], joined.shape[1] // 2
    out = joined.new_empty(rows, width)
    block = min(1024, _power(width))
    kernels.gate[(-(-width // block), rows)](joined, out, W=width, BLOCK=block)
    return out


def route(scores: Tensor, scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """scores (T, E), scale (E,) → weights (T, K) float32 and chosen experts (T, K)."""
    if not on_kernels(scores):
        weights, chosen = scores.softmax(dim=-1, dtype=torch.float32).topk(k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True) * scale[chosen], chosen
    from dgemma_core.backends.cuda import kernels

    weights = torch.empty(len(scores), k, device=scores.device)
    chosen = torch.empty(len(scores), k, dtype=torch.int32, device=scores.device)
    experts = scores.shape[1]
    kernels.route[(len(scores),)](
        scores, scale, weights, chosen, E=experts, K=k, BLOCK=_power(experts), num_warps=1
    )
    return weights, chosen


# --- attention over static buffers, in which position p stands at p % slots


def place(
    layer: Layer, projected: Tensor, rotate: Rotation, length: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """projected (T, (H + G or 2G)·d) → rotated queries (T, H, d).

    Keys and values go behind the prefix of `length` (1,) positions into keys and values (G, slots, d).
    """
    attention = layer.self_attn
    heads, groups, d = attention.heads, attention.groups, attention.head_dim
    q_weight, k_weight = attention.q_norm.weight, attention.k_norm.weight
    own = attention.v_proj is not None
    tokens, slots = len(projected), keys.shape[1]
    if not on_kernels(projected):
        found = projected.unflatten(-1, (-1, d))
        kept = found[:, heads:].split(groups, dim=1)
        at = (length + torch.arange(tokens, device=length.device)) % slots
        turned = rotate(rms_norm(kept[0], attention.eps, k_weight))
        keys.index_copy_(1, at, turned.transpose(0, 1))
        values.index_copy_(1, at, rms_norm(kept[-1], attention.eps).transpose(0, 1))
        return rotate(rms_norm(found[:, :heads], attention.eps, q_weight))
    from dgemma_core.backends.cuda import kernels

    queries = projected.new_empty(tokens, heads, d)
    kernels.place[(tokens, heads + 2 * groups)](
        projected, q_weight, k_weight, rotate.cos, rotate.signed_sin, length, queries, keys, values,
        slots, attention.eps, H=heads, G=groups, OWN_VALUES=own, D=d, BLOCK=_power(d),
        num_warps=1 if d <= 256 else 2,
    )  # fmt: skip
    return queries


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, length: Tensor, window: int | None
) -> Tensor:
    """queries (T, H, d) of T new tokens, whose keys stand behind `length` (1,) others → (T, H, d).

    They see each other, and the last `window` positions before them (None: all). keys and values (G, slots, d).
    """
    tokens, heads, d = queries.shape
    groups, slots = keys.shape[:2]
    if not on_kernels(queries):
        # A slot holds the youngest position that falls on it.
        slot = torch.arange(slots, device=length.device)
        end = length + tokens
        position = end - 1 - (end - 1 - slot) % slots
        first = length * 0 if window is None else (length - window).clamp_min(0)
        seen = position >= first
        stacked = queries.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        mixed = F.scaled_dot_product_attention(
            stacked.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), scale=1.0,
            attn_mask=seen.expand(stacked.shape[1], -1),
        )[0]  # fmt: skip
        return mixed.unflatten(1, (-1, tokens)).permute(2, 0, 1, 3).flatten(1, 2)
    from dgemma_core.backends.cuda import kernels

    rows = heads // groups * tokens
    most = slots if window is None else min(slots, window + tokens)
    shape = _attend_shape(rows, groups, d, most, queries.element_size(), _processors(queries))
    mixed = torch.empty(shape.splits, groups, rows, d, device=queries.device)
    peaks = torch.empty(shape.splits, groups, rows, device=queries.device)
    masses = torch.empty_like(peaks)
    kernels.attend[(-(-rows // shape.m), groups, shape.splits)](
        queries, keys, values, length, mixed, peaks, masses, tokens, slots,
        slots if window is None else window, shape.splits, H=heads, G=groups, D=d,
        BLOCK_M=shape.m, BLOCK_N=shape.n, BLOCK_D=_power(d), UPCAST=interpreted(),
        num_warps=shape.warps, num_stages=2,
    )  # fmt: skip
    out = torch.empty_like(queries)
    kernels.join_splits[(rows, groups)](
        mixed, peaks, masses, out, tokens, shape.splits, H=heads, G=groups, D=d,
        BLOCK_S=_power(shape.splits, 1), BLOCK_D=_power(d),
    )  # fmt: skip
    return out


class AttendShape(NamedTuple):
    """How `attend` is cut: rows and positions of a program, how many share the positions, and warps."""

    m: int
    n: int
    splits: int
    warps: int


def _attend_shape(
    rows: int, groups: int, d: int, most: int, itemsize: int, processors: int
) -> AttendShape:
    """For `most` positions at most: tiles that a multiprocessor can hold, and two programs for each of them."""
    m = min(64, _power(rows))
    n = max(16, min(64, 32768 // (_power(d) * itemsize)))
    blocks = -(-rows // m) * groups
    splits = max(1, min(-(-2 * processors // blocks), -(-most // n), 64))
    return AttendShape(m, n, splits, 8 if d > 256 and m > 16 else 4)


@cache
def _processors_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _processors(x: Tensor) -> int:
    return _processors_of(x.device) if x.is_cuda else 2
