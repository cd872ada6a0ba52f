"""The layers without gradient, in float32 on a CPU: the same numbers, but for rounding, in fewer operations.

What a pass of a small model costs is the number of its operations, some microseconds each, and a CPU has no RMS norm:
it is put together of six. But a layer norm is one operation, and a vector that stands twice, as (x, −x), has mean 0:
its layer norm is (n, −n), where n is the RMS norm of x. Hence the residual stream goes through all layers mirrored. (A
head is too short for that to pay.)

Products, router and experts are the modules' own. The modules that are passed over (layers, attention, norms) are used
after all as soon as somebody hooks one.

Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module as hooks

from dgemma_core.config import LayerConfig
from dgemma_core.layers import Attend, Layer, RMSNorm, Rotation, Seen

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma, LayerAttend, Watch


FEW = 256
"""Tokens up to which an operation's beginning counts. With more of them the plain layers take less memory."""


def mirrored(x: Tensor) -> Tensor:
    """x (…, D) → (x, −x) (…, 2D)."""
    return torch.cat((x, x.neg()), dim=-1)


class MirroredLayer:
    """One layer over a mirrored residual stream."""

    def __init__(self, layer: Layer) -> None:
        attention = layer.self_attn
        self.layer, self.eps = layer, layer.eps
        self.heads, self.groups = attention.heads, attention.groups
        self.of_heads = torch.cat(
            (
                attention.q_norm.weight.expand(self.heads, -1),
                attention.k_norm.weight.expand(self.groups, -1),
            )
        )  # (H + G, d)
        self.before_attention, self.after_attention, self.after_dense, self.after_sparse, self.after_both = (
            mirrored_weight(norm)
            for norm in (
                layer.input_layernorm,
                layer.post_attention_layernorm,
                layer.post_feedforward_layernorm_1,
                layer.post_feedforward_layernorm_2,
                layer.post_feedforward_layernorm,
            )
        )  # fmt: skip
        self.passed_over = [
            layer,
            attention,
            *(part for part in layer.modules() if isinstance(part, RMSNorm)),
        ]

    def __call__(
        self, x: Tensor, rotate: Rotation, attend: Attend, scalar: Tensor, seen: Seen | None
    ) -> Tensor:
        """x (N, 2D), overwritten → (N, 2D)."""
        layer, shape, eps = self.layer, x.shape[1:], self.eps
        width = shape[0] // 2
        normed = F.layer_norm(x, shape, self.before_attention, None, eps)[:, :width]
        heads = layer.self_attn.projected(normed)  # (N, H + 2G, d)
        heads = F.rms_norm(heads, heads.shape[2:], None, eps)
        turning, values = heads.split((self.heads + self.groups, self.groups), dim=1)
        queries, keys = rotate(turning * self.of_heads).split((self.heads, self.groups), dim=1)
        mixed = mirrored(layer.self_attn.o_proj(attend(queries, keys, values).flatten(1)))
        x.add_(F.layer_norm(mixed, shape, self.after_attention, None, eps))

        normed = F.layer_norm(x, shape, None, None, eps)[:, :width]
        routing = layer.router(normed)
        if seen is not None:
            seen(routing)
        dense = mirrored(layer.mlp(normed * layer.pre_feedforward_layernorm.weight))
        sparse = normed * layer.pre_feedforward_layernorm_2.weight
        sparse = mirrored(layer.experts(sparse, routing.weights, routing.chosen))
        dense = F.layer_norm(dense, shape, self.after_dense, None, eps)
        sparse = F.layer_norm(sparse, shape, self.after_sparse, None, eps)
        both = F.layer_norm(dense.add_(sparse), shape, self.after_both, None, eps)
        return x.add_(both).mul_(scalar)


def mirrored_weight(norm: RMSNorm) -> Tensor:
    """A norm's weight (D,) → (2D,), for (x, −x)."""
    return torch.cat((norm.weight, norm.weight))


def _version(weight: Tensor) -> int:
    """How often it has been changed in place; what was made in inference mode does not count that."""
    return 0 if weight.is_inference() else weight._version


class MirroredLayers:
    """All layers and the final norm. Holds copies of the norms' weights: `current` while they are the model's."""

    def __init__(self, model: DiffusionGemma) -> None:
        layers = cast(Sequence[Layer], model.layers)
        self.layers = [MirroredLayer(layer) for layer in layers]
        self.norm, self.eps = mirrored_weight(model.norm), model.norm.eps
        self.passed_over = [part for layer in self.layers for part in layer.passed_over]
        self.passed_over.append(model.norm)
        norms = [part for part in self.passed_over if isinstance(part, RMSNorm)]
        self.copied = [(norm, norm.weight, _version(norm.weight)) for norm in norms]

    @property
    def current(self) -> bool:
        """Whether all norms' weights are those that were copied, unchanged (changes through `.data` are not seen)."""
        return all(
            norm.weight is weight and _version(weight) == version
            for norm, weight, version in self.copied
        )

    @property
    def hooked(self) -> bool:
        """Whether somebody listens to a module that is not called here."""
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return True
        return any(part._forward_hooks or part._forward_pre_hooks for part in self.passed_over)

    def __call__(
        self,
        x: Tensor,
        rotations: Mapping[LayerConfig, Rotation],
        attend: LayerAttend,
        scalars: Sequence[Tensor],
        watch: Watch | None,
    ) -> Tensor:
        """x (N, D) → (N, D), after the final norm; `rotations` of its positions, by kind of layer."""
        width = x.shape[1]
        x = mirrored(x)
        for i, layer in enumerate(self.layers):
            seen = None if watch is None else partial(watch.router, i)
            x = layer(x, rotations[layer.layer.config], partial(attend, i), scalars[i], seen)
        return F.layer_norm(x, x.shape[1:], self.norm, None, self.eps)[:, :width]


def serves(x: Tensor) -> bool:
    """Whether x (N, D) is to go this way: few tokens, float32 on a CPU, and no gradient asked for."""
    return (
        x.device.type == "cpu"
        and len(x) <= FEW
        and x.dtype == torch.float32
        and x.dim() == 2
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
