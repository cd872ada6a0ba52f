"""The operations between a layer's matrix products: one GPU kernel each, and beside it the same in plain torch.

A layer of the released shape reads its weights in some 0.4 ms on a fast card, and a kernel costs one or two
microseconds to start: as separate torch operations, norms, rotations and sums would take as long as the weights. On a
CPU the plain form runs; the kernels are tested against it.

Axes: T new tokens, D hidden size, H query heads, G key/value heads, d head dimension, E experts, K choices a token.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cuda.experts import interpreted, on_kernels
from dgemma_core.backends.cuda.rows import Held
from dgemma_core.cache import attend_all, attend_causal
from dgemma_core.functions import TORCH
from dgemma_core.layers import Layer, Rotation

rms_norm = TORCH.rms_norm
ONE_ROW_TILE = (16, 512)
"""Rows of the matrix, and columns a step, of a program of `linear` for one token."""
FAR = 2**30
"""More positions than any row has: the window of a layer that sees all."""


def power(size: int, least: int = 16) -> int:
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
        WEIGHTED=weight is not None, BLOCK=power(x.shape[1]),
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
        x, mixed, *parts, *found, eps, root, D=x.shape[1], BLOCK=power(x.shape[1])
    )
    return found


def after_experts(
    layer: Layer, h: Tensor, dense: Tensor, outputs: Tensor, scalar: Tensor, following: Tensor
) -> tuple[Tensor, Tensor]:
    """Residual h and dense MLP's output (T, D), the experts' outputs (T, K, D) → the layer's output, and its norm with
    the weight `following` (D,) of what comes next. scalar: the layer's, (1, 1), or each token's, (T, 1)."""
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
        EACH=len(scalar) > 1, D=h.shape[1], K=outputs.shape[1], BLOCK=power(h.shape[1]),
    )  # fmt: skip
    return out, after


def gate(left: Tensor, right: Tensor) -> Tensor:
    """left, right (T, w) → gelu(left) · right (T, w)."""
    if not on_kernels(left):
        return F.gelu(left, approximate="tanh") * right
    from dgemma_core.backends.cuda import kernels

    out = torch.empty_like(left)
    block = min(1024, power(left.numel()))
    kernels.gate[(-(-left.numel() // block),)](left, right, out, left.numel(), BLOCK=block)
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
        scores, scale, weights, chosen, E=experts, K=k, BLOCK=power(experts), num_warps=1
    )
    return weights, chosen


# --- attention over the keys and values of rows


def place(
    layer: Layer, q: Tensor, k: Tensor, v: Tensor, rotate: Rotation, held: Held, index: int
) -> Tensor:
    """q (N, H·d), k and v (N, G·d) before their norms, T tokens of each row → rotated queries (N, H, d).

    Keys and values are written behind the rows' prefixes. index: the layer's, in `held`.
    """
    attention = layer.self_attn
    heads, groups, d = attention.heads, attention.groups, attention.head_dim
    q_weight, k_weight = attention.q_norm.weight, attention.k_norm.weight
    if not on_kernels(q):
        tokens = len(q) // len(held.rows)
        keys = rotate(rms_norm(k.unflatten(-1, (-1, d)), attention.eps, k_weight))
        values = rms_norm(v.unflatten(-1, (-1, d)), attention.eps)
        for row, new_keys, new_values in zip(
            held.rows, keys.split(tokens), values.split(tokens), strict=True
        ):
            if row is not None:
                row.buffer(index).write(row.length, new_keys, new_values)
        return rotate(rms_norm(q.unflatten(-1, (-1, d)), attention.eps, q_weight))
    from dgemma_core.backends.cuda import kernels

    table = held.table
    queries = q.new_empty(len(q), heads, d)
    kernels.place[(len(q), heads + 2 * groups)](
        q, k, v, q_weight, k_weight, rotate.cos, rotate.signed_sin, table, queries,
        len(q) // len(table), table.shape[1], index, attention.eps, H=heads, G=groups, D=d,
        BLOCK=power(d), ALIGNED=_aligned(q, d), num_warps=1 if d <= 256 else 2,
    )  # fmt: skip
    return queries


def attend(
    queries: Tensor, groups: int, held: Held, index: int, window: int | None, causal: bool
) -> Tensor:
    """queries (N, H, d) of T new tokens of each row, whose keys stand behind the row's prefix → (N, H, d).

    A row's new tokens see each other, and the last `window` positions of its prefix (None: all). causal: none sees a
    later one, and the window of each ends at itself. Where no row is, zeros.
    """
    count, heads, d = queries.shape
    if not on_kernels(queries):
        tokens, parts = count // len(held.rows), []
        for row, q in zip(held.rows, queries.split(tokens), strict=True):
            if row is None:
                parts.append(torch.zeros_like(q))
                continue
            first = 0 if window is None else max(0, row.length - window)
            seen = row.buffer(index).slice(first, row.length + tokens)
            parts.append(attend_causal(q, *seen, window) if causal else attend_all(q, *seen))
        return torch.cat(parts)
    from dgemma_core.backends.cuda import kernels

    table = held.table
    places = len(table)
    tokens = count // places
    rows = heads // groups * tokens
    most = FAR if window is None else window + tokens
    shape = attend_shape(
        rows, groups * places, d, most, queries.element_size(), _processors(queries)
    )
    mixed = torch.empty(shape.splits, places, groups, rows, d, device=queries.device)
    peaks = torch.empty(shape.splits, places, groups, rows, device=queries.device)
    masses = torch.empty_like(peaks)
    kernels.attend[(-(-rows // shape.m), groups * places, shape.splits)](
        queries, table, mixed, peaks, masses, tokens, table.shape[1], index,
        FAR if window is None else window, shape.splits, H=heads, G=groups, D=d,
        CAUSAL=causal and tokens > 1, ALIGNED=_aligned(queries, d), BLOCK_M=shape.m,
        BLOCK_N=shape.n, BLOCK_D=power(d), UPCAST=interpreted(), num_warps=shape.warps,
        num_stages=2,
    )  # fmt: skip
    out = torch.empty_like(queries)
    kernels.join_splits[(rows, groups * places)](
        mixed, peaks, masses, out, tokens, shape.splits, H=heads, G=groups, D=d,
        BLOCK_S=power(shape.splits, 1), BLOCK_D=power(d),
    )  # fmt: skip
    return out


def _aligned(x: Tensor, d: int) -> bool:
    """Whether every head begins at a multiple of 16 bytes."""
    return d * x.element_size() % 16 == 0


class AttendShape(NamedTuple):
    """The work of one program of `attend`: stacked rows and positions a step, how many share a row, and warps."""

    m: int
    n: int
    splits: int
    warps: int


def attend_shape(
    rows: int, groups: int, d: int, most: int, itemsize: int, processors: int
) -> AttendShape:
    """Tiles that a multiprocessor can hold, and about two programs for each multiprocessor.

    groups: key heads of all rows; most: positions that a row can see.
    """
    m = min(64, power(rows))
    n = max(16, min(64, 32768 // (power(d) * itemsize)))
    blocks = -(-rows // m) * groups
    splits = max(1, min(-(-2 * processors // blocks), -(-most // n), 64))
    return AttendShape(m, n, splits, 8 if d > 256 and m > 16 else 4)


@cache
def _processors_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _processors(x: Tensor) -> int:
    return _processors_of(x.device) if x.is_cuda else 2
