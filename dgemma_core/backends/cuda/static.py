"""A pass over static buffers: what a CUDA graph can record, the same memory and the same launches every time.

Notable:
- the prefix's length is a number on the device; keys and values of position p stand at p modulo the layer's slots, so
  that a sliding layer keeps no more than its window and what is being written;
- a layer is its parts, each a method, so that a stopwatch can run one part of all layers by itself;
- the weights are the model's own.

Axes: T new tokens, D hidden size, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dgemma_core.backends.cpu.products import Linear
from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.backends.cuda import fused
from dgemma_core.cache import PrefixCache
from dgemma_core.config import LayerConfig
from dgemma_core.errors import RequestError
from dgemma_core.layers import Joined, Layer, Rotation, working_dtype
from dgemma_core.model import DiffusionGemma


class StaticPrefix:
    """The keys and values of one row, in memory that stays where it is.

    capacity: positions, those being written included. new: the most of them that a pass writes behind the prefix.
    """

    def __init__(self, model: DiffusionGemma, capacity: int, new: int) -> None:
        text = model.config.text
        self.capacity, self.new = capacity, new
        self.windows = [None if layer.full else text.sliding_window - 1 for layer in text.layers]
        self.keys, self.values = [], []
        for layer, window in zip(text.layers, self.windows, strict=True):
            slots = capacity if window is None else min(capacity, window + new)
            shape = (layer.num_key_value_heads, slots, layer.head_dim)
            # zeros: a slot that nothing has been written to is masked, but 0 · NaN would not be
            self.keys.append(torch.zeros(shape, dtype=model.dtype, device=model.device))
            self.values.append(torch.zeros(shape, dtype=model.dtype, device=model.device))
        self.length = torch.zeros(1, dtype=torch.long, device=model.device)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def load(self, prefix: PrefixCache) -> None:
        """Takes over a prefix of one row. RequestError where it has several, or is too long."""
        if len(prefix) != 1:
            raise RequestError(f"a captured step writes one text at a time, not {len(prefix)}")
        row = prefix.rows[0]
        if row.length + self.new > self.capacity:
            raise RequestError(
                f"a prefix of {row.length} tokens and {self.new} more are over the {self.capacity} that were reserved"
            )
        for i, buffer in enumerate(row.buffers):
            assert buffer is not None
            first, slots = row.first(i, row.length), self.keys[i].shape[1]
            at = torch.arange(first, row.length, device=self.length.device) % slots
            keys, values = buffer.slice(first, row.length)
            self.keys[i].index_copy_(1, at, keys)
            self.values[i].index_copy_(1, at, values)
        self.length.fill_(row.length)


@dataclass(frozen=True)
class _Matrices:
    """A layer's matrices that serve one input, side by side."""

    attention: Tensor
    """((H + 2G or H + G)·d, D): queries, keys, and values where they have their own."""
    mlp: Tensor
    """(2w, D): gate and up."""


def _joined(kept: Joined | None, *parts: Linear | None) -> Tensor:
    """The matrix of which the parts are views (`DiffusionGemma.join`), else a copy."""
    if kept is not None:
        return kept.matrix
    return torch.cat([part.weight for part in parts if part is not None])


class StaticPass:
    """All layers of one mode over a `StaticPrefix`. Raises RequestError for a quantised model."""

    def __init__(
        self, model: DiffusionGemma, prefix: StaticPrefix, scalars: Sequence[Tensor]
    ) -> None:
        if model.quantized is not None:
            raise RequestError(
                f"a captured step reads plain weights, not {model.quantized}: load the model without quantize"
            )
        self.model, self.prefix, self.scalars = model, prefix, [s.reshape(1) for s in scalars]
        self.watch: Callable[[Tensor], Any] | None = None  # told every layer's chosen experts
        self.layers = cast(Sequence[Layer], model.layers)
        self.matrices = []
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            self.matrices.append(
                _Matrices(
                    _joined(attention._joined, *parts), _joined(mlp._joined, mlp.gate_proj, mlp.up_proj)
                )
            )  # fmt: skip

    def rotations(self, tokens: int) -> dict[LayerConfig, Rotation]:
        """Angles of `tokens` positions behind the prefix."""
        steps = torch.arange(tokens, device=self.prefix.length.device)
        return self.model.rotations(self.prefix.length + steps, self.model.dtype)

    def attention(self, i: int, normed: Tensor, rotations: dict[LayerConfig, Rotation]) -> Tensor:
        """Layer i's attention: normed input (T, D) → (T, D); writes keys and values behind the prefix."""
        layer, keys, values = self.layers[i], self.prefix.keys[i], self.prefix.values[i]
        projected = fused.linear(normed, self.matrices[i].attention)
        length = self.prefix.length
        queries = fused.place(layer, projected, rotations[layer.config], length, keys, values)
        mixed = fused.attend(queries, keys, values, length, self.prefix.windows[i])
        return fused.linear(mixed.flatten(1), layer.self_attn.o_proj.weight)

    def dense(self, i: int, x: Tensor) -> Tensor:
        """Layer i's dense MLP: (T, D) → (T, D)."""
        inner = fused.gate(fused.linear(x, self.matrices[i].mlp))
        return fused.linear(inner, self.layers[i].mlp.down_proj.weight)

    def routing(self, i: int, routed: Tensor) -> tuple[Tensor, Tensor]:
        """Layer i's router: (T, D) → weights and experts (T, K)."""
        router = self.layers[i].router
        scores = fused.linear(routed, router.proj.weight)
        weights, chosen = fused.route(scores, router.per_expert_scale, router.top_k)
        if self.watch is not None:
            self.watch(chosen)
        return weights, chosen

    def experts(self, i: int, sparse: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Layer i's experts: (T, D) → what each choice adds (T, K, D)."""
        return grouped.outputs(self.layers[i].experts, sparse, weights, chosen)

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, D) → hidden states after the last norm (T, D)."""
        eps = self.model.norm.eps
        assert working_dtype(x) == x.dtype
        rotations = self.rotations(len(x))
        # what a layer's output is normed for: the next layer, and at last the head
        following = [layer.input_layernorm.weight for layer in list(self.layers)[1:]]
        following.append(self.model.norm.weight)
        normed = fused.norm(x, self.layers[0].input_layernorm.weight, eps)
        for i, layer in enumerate(self.layers):
            branches = fused.after_attention(layer, x, self.attention(i, normed, rotations))
            dense = self.dense(i, branches.dense)
            outputs = self.experts(i, branches.sparse, *self.routing(i, branches.routed))
            x, normed = fused.after_experts(
                layer, branches.h, dense, outputs, self.scalars[i], following[i]
            )
        return normed
