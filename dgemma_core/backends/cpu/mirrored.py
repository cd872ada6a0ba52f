"""The layers without gradient, in float32 on a CPU: the same numbers, but for rounding, in fewer operations.

What a pass of a small model costs is the number of its operations, some microseconds each, and a CPU has no RMS norm:
it is put together of six. But a layer norm is one operation, and a vector that stands twice, as (x, −x), has mean 0:
its layer norm is (n, −n), where n is the RMS norm of x. Hence the residual stream goes through all layers mirrored. (A
head is too short for that to pay.)

The modules that are passed over are used after all as soon as somebody hooks one. (A small model goes another way
where there is a C compiler: native.py.)

Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.backends.borrowed import Borrowed
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
    """One layer over a mirrored residual stream. Products, router and experts are the modules' own."""

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
        (
            self.before_attention,
            self.after_attention,
            self.after_dense,
            self.after_sparse,
            self.after_both,
        ) = (
            mirrored_weight(norm)
            for norm in (
                layer.input_layernorm,
                layer.post_attention_layernorm,
                layer.post_feedforward_layernorm_1,
                layer.post_feedforward_layernorm_2,
                layer.post_feedforward_layernorm,
            )
        )
        self.norms = [part for part in layer.modules() if isinstance(part, RMSNorm)]
        self.passed_over: list[nn.Module] = [layer, attention, *self.norms]

    def __call__(
        self, x: Tensor, rotate: Rotation, attend: Attend, scalar: Tensor, seen: Seen | None
    ) -> Tensor:
        """x (N, 2D), overwritten → (N, 2D)."""
        norm, width = self.norm, x.shape[1] // 2
        heads = self.layer.self_attn.projected(norm(x, self.before_attention)[:, :width])
        heads = F.rms_norm(heads, heads.shape[2:], None, self.eps)
        turned = rotate(heads[:, : self.heads + self.groups] * self.of_heads)
        # The values are the last heads: on full layers they are the keys, before norm and rotation.
        mixed = attend(turned[:, : self.heads], turned[:, self.heads :], heads[:, -self.groups :])
        x.add_(norm(mirrored(self.layer.self_attn.o_proj(mixed.flatten(1))), self.after_attention))

        dense, sparse = self.feed(norm(x)[:, :width], seen)
        dense = norm(mirrored(dense), self.after_dense)
        both = dense.add_(norm(mirrored(sparse), self.after_sparse))
        return x.add_(norm(both, self.after_both)).mul_(scalar)

    def norm(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The RMS norm of a mirrored x (N, 2D), weight (2D,)."""
        return torch.layer_norm(x, x.shape[1:], weight, None, self.eps)

    def feed(self, normed: Tensor, seen: Seen | None) -> tuple[Tensor, Tensor]:
        """normed (N, D), without a weight → what the dense MLP and the experts make of it, (N, D) each."""
        layer = self.layer
        routing = layer.router(normed)
        if seen is not None:
            seen(routing)
        sparse = normed * layer.pre_feedforward_layernorm_2.weight
        return (
            layer.mlp(normed * layer.pre_feedforward_layernorm.weight),
            layer.experts(sparse, routing.weights, routing.chosen),
        )


def mirrored_weight(norm: RMSNorm) -> Tensor:
    """A norm's weight (D,) → (2D,), for (x, −x)."""
    return torch.cat((norm.weight, norm.weight))


class MirroredLayers:
    """All layers and the final norm. Holds copies of the norms' weights: `borrowed` says while they are the model's."""

    def __init__(self, model: DiffusionGemma) -> None:
        self.layers = [MirroredLayer(layer) for layer in cast(Sequence[Layer], model.layers)]
        self.norm, self.eps = mirrored_weight(model.norm), model.norm.eps
        norms = [model.norm, *(norm for layer in self.layers for norm in layer.norms)]
        passed_over = [model.norm, *(part for layer in self.layers for part in layer.passed_over)]
        self.borrowed = Borrowed([(norm, "weight") for norm in norms], passed_over)
        self.numbers = [weight.detach().clone() for weight in self.borrowed.weights]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model makes its own."""
        return type(None), ()

    @property
    def unchanged(self) -> bool:
        """Whether all copied weights hold the numbers that were copied."""
        return all(map(torch.equal, self.borrowed.weights, self.numbers))

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
        return torch.layer_norm(x, x.shape[1:], self.norm, None, self.eps)[:, :width]


def serves(x: Tensor) -> bool:
    """Whether x (N, D) is to go this way: few tokens, float32 on a CPU, and no gradient asked for."""
    return (
        x.device.type == "cpu"
        and x.shape[0] <= FEW
        and x.dtype == torch.float32
        and x.dim() == 2
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
