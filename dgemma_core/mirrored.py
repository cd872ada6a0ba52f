"""The layers without gradient, in float32 on a CPU: the same numbers, but for rounding, in fewer operations.

What a pass of a small model costs is the number of its operations, some microseconds each, and a CPU has no RMS norm:
it is put together of six. But a layer norm is one operation, and a vector that stands twice, as (x, −x), has mean 0:
its layer norm is (n, −n), where n is the RMS norm of x. Hence the residual stream goes through all layers mirrored. (A
head is too short for that to pay.)

Of a small model the matrices are copied, too (`PackedLayer`): the norms before them multiplied in, those of one input
side by side. The modules that are passed over are used after all as soon as somebody hooks one.

Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension, E experts, I and w the widths of the
dense MLP and of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from dgemma_core.config import LayerConfig
from dgemma_core.layers import Attend, Layer, RMSNorm, Rotation, Seen
from dgemma_core.products import Linear, Packed
from dgemma_core.quantise import Holder

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma, LayerAttend, Watch


FEW = 256
"""Tokens up to which an operation's beginning counts. With more of them the plain layers take less memory."""
SMALL = 2**20
"""Numbers of a layer up to which its matrices are copied."""


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
        self.before_attention: Tensor | None = mirrored_weight(layer.input_layernorm)
        self.after_attention, self.after_dense, self.after_sparse, self.after_both = (
            mirrored_weight(norm)
            for norm in (
                layer.post_attention_layernorm,
                layer.post_feedforward_layernorm_1,
                layer.post_feedforward_layernorm_2,
                layer.post_feedforward_layernorm,
            )
        )
        norms = [part for part in layer.modules() if isinstance(part, RMSNorm)]
        self.passed_over: list[nn.Module] = [layer, attention, *norms]
        self.copied: list[tuple[nn.Module, str]] = [(norm, "weight") for norm in norms]

    def __call__(
        self, x: Tensor, rotate: Rotation, attend: Attend, scalar: Tensor, seen: Seen | None
    ) -> Tensor:
        """x (N, 2D), overwritten → (N, 2D)."""
        norm, width = self.norm, x.shape[1] // 2
        heads = self.projected(norm(x, self.before_attention)[:, :width])
        heads = F.rms_norm(heads, heads.shape[2:], None, self.eps)
        turned = rotate(heads[:, : self.heads + self.groups] * self.of_heads)
        # The values are the last heads: on full layers they are the keys, before norm and rotation.
        mixed = attend(turned[:, : self.heads], turned[:, self.heads :], heads[:, -self.groups :])
        x.add_(norm(mirrored(self.out(mixed.flatten(1))), self.after_attention))

        dense, sparse = self.feed(norm(x)[:, :width], seen)
        dense = norm(mirrored(dense), self.after_dense)
        both = dense.add_(norm(mirrored(sparse), self.after_sparse))
        return x.add_(norm(both, self.after_both)).mul_(scalar)

    def norm(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The RMS norm of a mirrored x (N, 2D), weight (2D,)."""
        return torch.layer_norm(x, x.shape[1:], weight, None, self.eps)

    def projected(self, normed: Tensor) -> Tensor:
        """normed (N, D) → queries, keys, and values where they are no keys (N, H + 2G or H + G, d)."""
        return self.layer.self_attn.projected(normed)

    def out(self, mixed: Tensor) -> Tensor:
        """mixed (N, H·d) → (N, D)."""
        return self.layer.self_attn.o_proj(mixed)

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


class PackedLayer(MirroredLayer):
    """A small layer, its matrices copied: a product with the norm before it multiplied in, and one product where
    several matrices read the same."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        attention, mlp, experts = layer.self_attn, layer.mlp, layer.experts
        self.head_dim = attention.head_dim
        projections = [attention.q_proj, attention.k_proj]
        if attention.v_proj is not None:
            projections.append(attention.v_proj)
        of_input, self.before_attention = layer.input_layernorm.weight, None
        self.projections = Packed(torch.cat([part.weight for part in projections]) * of_input)
        self.o_proj = Packed(attention.o_proj.weight)

        of_dense, of_sparse = (
            norm.weight
            for norm in (layer.pre_feedforward_layernorm, layer.pre_feedforward_layernorm_2)
        )
        gates, ups = (half.flatten(0, 1) for half in experts.gate_up_proj.chunk(2, dim=1))
        self.gate = Packed(torch.cat((mlp.gate_proj.weight * of_dense, gates * of_sparse)))
        self.up = Packed(
            torch.cat((mlp.up_proj.weight * of_dense, ups * of_sparse))
        )  # (I + E·w, D)
        self.width = len(mlp.gate_proj.weight)
        self.dense_down = Packed(mlp.down_proj.weight)
        self.sparse_down = Packed(experts.down_proj.transpose(0, 1).flatten(1))  # (D, E·w)
        self.router = layer.router.scaled()

        self.passed_over = list(layer.modules())
        self.copied += [
            *((part, "weight") for part in self.passed_over if isinstance(part, Linear)),
            (layer.router, "scale"),
            (experts, "gate_up_proj"),
            (experts, "down_proj"),
        ]

    @staticmethod
    def serves(layer: Layer) -> bool:
        """Whether the layer is small, and its matrices are plain numbers."""
        small = sum(weight.numel() for weight in layer.parameters()) <= SMALL
        return small and not any(isinstance(part, Holder) for part in layer.modules())

    def projected(self, normed: Tensor) -> Tensor:
        return self.projections(normed).view(normed.shape[0], -1, self.head_dim)

    def out(self, mixed: Tensor) -> Tensor:
        return self.o_proj(mixed)

    def feed(self, normed: Tensor, seen: Seen | None) -> tuple[Tensor, Tensor]:
        # Every expert on every token, those not chosen with weight 0: quicker than to sort a few tokens by expert.
        routing = self.layer.router.choose(F.linear(normed, self.router).softmax(dim=1))
        if seen is not None:
            seen(routing)
        shares = torch.zeros_like(routing.probabilities)
        shares = shares.scatter_(1, routing.chosen, routing.weights)
        inner = self.up.times(normed, self.gate.gelu(normed))  # (N, I + E·w)
        sparse = inner[:, self.width :]
        sparse.view(*shares.shape, -1).mul_(shares.unsqueeze(2))
        return self.dense_down(inner[:, : self.width]), self.sparse_down(sparse)


def mirrored_weight(norm: RMSNorm) -> Tensor:
    """A norm's weight (D,) → (2D,), for (x, −x)."""
    return torch.cat((norm.weight, norm.weight))


def _version(weight: Tensor) -> int | None:
    """How often it has been changed in place; what was made in inference mode does not count that."""
    return None if weight.is_inference() else weight._version


class MirroredLayers:
    """All layers and the final norm. Holds copies of weights: `current` while they are the model's."""

    def __init__(self, model: DiffusionGemma) -> None:
        self.layers = [
            (PackedLayer if PackedLayer.serves(layer) else MirroredLayer)(layer)
            for layer in cast(Sequence[Layer], model.layers)
        ]
        self.norm, self.eps = mirrored_weight(model.norm), model.norm.eps
        passed_over = [model.norm, *(part for layer in self.layers for part in layer.passed_over)]
        self.listening = [
            heard
            for part in passed_over
            for heard in (part._forward_hooks, part._forward_pre_hooks)
        ]
        copied = [
            (model.norm, "weight"),
            *(weight for layer in self.layers for weight in layer.copied),
        ]
        self.copied = [
            (part._parameters, name, weight, _version(weight), weight.detach().clone())
            for part, name in copied
            if (weight := part._parameters[name]) is not None
        ]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model makes its own."""
        return type(None), ()

    @property
    def current(self) -> bool:
        """Whether all copied weights are those that were copied, unchanged; `unchanged` sees changes through `.data`,
        too."""
        for held, name, weight, version, _ in self.copied:
            if held[name] is not weight or (version is not None and weight._version != version):
                return False
        return True

    @property
    def unchanged(self) -> bool:
        """Whether all copied weights hold the numbers that were copied."""
        return all(
            (weight := held[name]) is not None and torch.equal(weight, numbers)
            for held, name, _, _, numbers in self.copied
        )

    @property
    def hooked(self) -> bool:
        """Whether somebody listens to a module that is not called here."""
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return True
        return any(self.listening)

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
