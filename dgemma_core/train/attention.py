"""The attention of a packed batch with its gradient: by C and batched products where that serves, else by torch.

A row of a packed batch holds a clean text and, behind it, canvases of that text. The clean text is read causally, and
every canvas reads the clean tokens before it and itself: the parts of a row never see one another otherwise.

Axes: B texts, S tokens of a row, P parts, n tokens of a part, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

import ctypes
from ctypes import CDLL, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dgemma_core.backends.cpu.bindings import Packed
from dgemma_core.functions import TORCH
from dgemma_core.layers import Attention, Rotation
from dgemma_core.train.functions import half, in_c

rms_norm = TORCH.rms_norm
WIDEST_HEAD = 512
"""gradients.c: WIDEST_HEAD."""


@dataclass(frozen=True)
class Parts:
    """The parts of a packed row, the clean text first, and what each of their tokens sees."""

    counts: tuple[int, ...]
    """(P,) tokens of each."""
    seen: tuple[Tensor, ...]
    """Of each part (B, n, 3), int64: a token sees the clean tokens from the first number to the second, and all keys
    from the third on; the keys of a canvas are the clean text's and, behind them, its own."""

    def of(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, S, …) by part."""
        return x.split(self.counts, dim=1)


def attention(layer: Attention, both: Tensor, rotation: Rotation, parts: Parts) -> Tensor:
    """The layer's projections `both` (B, S, (H + G [+ G]) · d), queries, keys and, where it has them, values → what the
    heads read, (B, S, H · d). rotation: float32, of positions (B, S)."""
    functions = in_c(both, layer.head_dim // 2)
    weights = layer.q_norm.weight, layer.k_norm.weight
    if (
        functions is None
        or layer.head_dim > WIDEST_HEAD
        or any(w.dtype is not torch.float32 for w in weights)
    ):
        return _plain(layer, both, rotation, parts)
    return cast(Tensor, _Attention.apply(layer, rotation, parts, functions, both, *weights))


def _plain(layer: Attention, both: Tensor, rotation: Rotation, parts: Parts) -> Tensor:
    heads, groups, d = layer.heads, layer.groups, layer.head_dim
    each = both.unflatten(-1, (-1, d))
    turn = Rotation(rotation.cos.to(both.dtype), rotation.signed_sin.to(both.dtype))
    queries = turn(rms_norm(each[..., :heads, :], layer.eps, layer.q_norm.weight))
    keys = turn(rms_norm(each[..., heads : heads + groups, :], layer.eps, layer.k_norm.weight))
    values = rms_norm(each[..., -groups:, :], layer.eps)
    of_parts = zip(parts.of(queries), parts.of(keys), parts.of(values), parts.seen, strict=True)
    clean, outputs = parts.counts[0], []
    for part, (q, k, v, seen) in enumerate(of_parts):
        if part:
            k, v = torch.cat((keys[:, :clean], k), dim=1), torch.cat((values[:, :clean], v), dim=1)
        place = torch.arange(k.shape[1], device=k.device)
        low, high, behind = seen.unsqueeze(-1).unbind(2)  # (B, n, 1)
        visible = ((place >= low) & (place < high)) | (place >= behind)
        outputs.append(plain_attention(q, k, v, mask_bias(visible)).flatten(-2))
    return torch.cat(outputs, dim=1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q (B, T, H, d), k and v (B, S, G, d), bias (B or 1, T or 1, S) added to the scores → (B, T, H, d).

    Plain products: on a CPU their gradient takes a fifth of the fused kernel's time at these sizes.
    """
    batch, count, heads, d = q.shape
    span, groups = k.shape[1], k.shape[2]
    share = heads // groups
    q = (
        q.view(batch, count, groups, share, d)
        .permute(0, 2, 3, 1, 4)
        .reshape(batch * groups, share * count, d)
    )
    k = k.transpose(1, 2).reshape(batch * groups, span, d)
    v = v.transpose(1, 2).reshape(batch * groups, span, d)
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, groups * share, count, span)
    weights = (scores + bias.unsqueeze(1)).softmax(dim=-1).to(v.dtype)
    mixed = torch.bmm(weights.view(batch * groups, share * count, span), v)
    return (
        mixed.view(batch, groups, share, count, d)
        .permute(0, 3, 1, 2, 4)
        .reshape(batch, count, heads, d)
    )


def mask_bias(visible: Tensor) -> Tensor:
    """0 where visible, a large negative number elsewhere; bfloat16, as the scores are under autocast."""
    return torch.zeros(visible.shape, dtype=torch.bfloat16, device=visible.device).masked_fill_(
        ~visible, -1e4
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: Attention,
        rotation: Rotation,
        parts: Parts,
        functions: CDLL,
        both: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
    ) -> Tensor:
        packed = _Inputs(layer, rotation, parts, both, query_weight, key_weight)
        batch, span = both.shape[:2]
        heads, groups, d = layer.heads, layer.groups, layer.head_dim
        clean = parts.counts[0]
        queries = [both.new_empty(batch, heads, n, d) for n in parts.counts]
        spans = [n + (clean if part else 0) for part, n in enumerate(parts.counts)]
        keys = [both.new_empty(batch * groups, n, d) for n in spans]
        values = [both.new_empty(batch * groups, n, d) for n in spans]
        functions.attention_inputs(packed.ref, _array(queries), _array(keys), _array(values))
        out = both.new_empty(batch, span, heads, d)
        all_weights = []
        scratch = torch.empty(max(spans) + WIDEST_VECTOR)
        for part, (into, n) in enumerate(zip(parts.of(out), parts.counts, strict=True)):
            scores = torch.bmm(queries[part].view(batch * groups, -1, d), keys[part].mT)
            functions.visible_softmax(
                batch, heads, n, spans[part], parts.seen[part].data_ptr(), scores.data_ptr(), half(scores),
                scratch.data_ptr(),
            )  # fmt: skip
            mixed = torch.bmm(scores, values[part])
            into.copy_(mixed.view(batch, heads, n, d).transpose(1, 2))
            all_weights.append(scores)
        ctx.packed, ctx.functions = packed, functions
        ctx.save_for_backward(*queries, *keys, *values, *all_weights)
        return out.flatten(-2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed, functions, saved = ctx.packed, ctx.functions, ctx.saved_tensors
        layer, parts = packed.layer, packed.parts
        count = len(parts.counts)
        queries, keys, values, all_weights = (saved[i * count : (i + 1) * count] for i in range(4))
        grad = gradients[0].unflatten(-1, (layer.heads, layer.head_dim))
        of_queries, of_keys, of_values = [], [], []
        for q, k, v, weights, g in zip(
            queries, keys, values, all_weights, parts.of(grad), strict=True
        ):
            g = g.transpose(1, 2).reshape(len(k), -1, layer.head_dim)
            of_scores = torch.bmm(g, v.mT)
            of_values.append(torch.bmm(weights.mT, g))
            functions.softmax_gradient(
                weights.shape[0] * weights.shape[1], weights.shape[2], weights.data_ptr(),
                of_scores.data_ptr(), half(of_scores),
            )  # fmt: skip
            of_queries.append(torch.bmm(of_scores, k))
            of_keys.append(torch.bmm(of_scores.mT, q.view(len(k), -1, layer.head_dim)))
        of_both = torch.empty_like(packed.both)
        of_query_weight, of_key_weight = (
            torch.zeros_like(packed.query_weight),
            torch.zeros_like(packed.key_weight),
        )
        functions.attention_inputs_gradient(
            packed.ref, _array(of_queries), _array(of_keys), _array(of_values), of_both.data_ptr(),
            of_query_weight.data_ptr(), of_key_weight.data_ptr(),
        )  # fmt: skip
        return None, None, None, None, of_both, of_query_weight, of_key_weight


WIDEST_VECTOR = 16
"""Numbers of the scratch that C may use behind a row."""


class _Inputs:
    """What gradients.c reads, kept alive."""

    def __init__(
        self,
        layer: Attention,
        rotation: Rotation,
        parts: Parts,
        both: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
    ) -> None:
        self.layer, self.parts = layer, parts
        self.both = both.contiguous()
        self.query_weight, self.key_weight = query_weight.contiguous(), key_weight.contiguous()
        self.cos, self.sin = rotation.cos.contiguous(), rotation.signed_sin.contiguous()
        batch, span = both.shape[:2]
        self.factors = torch.empty(batch, span, layer.heads + 2 * layer.groups)
        count = len(parts.counts)
        firsts = [sum(parts.counts[:part]) for part in range(count)]
        self.first, self.count = (c_int64 * count)(*firsts), (c_int64 * count)(*parts.counts)
        self.ref = ctypes.byref(
            Packed(
                batch, span, parts.counts[0], count, layer.heads, layer.groups, layer.head_dim,
                layer.v_proj is None, half(both),
                ctypes.addressof(self.first), ctypes.addressof(self.count), self.both.data_ptr(),
                self.query_weight.data_ptr(), self.key_weight.data_ptr(), self.cos.data_ptr(), self.sin.data_ptr(),
                self.factors.data_ptr(), layer.eps,
            )
        )  # fmt: skip


def _array(tensors: list[Tensor]) -> Any:
    return (c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])
