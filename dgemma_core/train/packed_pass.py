"""Both modes over a padded batch in one pass, with gradients: what training runs where all weights learn.

It gives what `DensePass` gives. With the C of gradients.c a step of nano's training took 0.56 of what it took before
(one thread, medians of 16 steps, one run after the other).

Notable:
- a row of the batch is packed: its clean text, then its canvases, so that every product runs over all of them at once.
  Only attention keeps the parts apart (attention.py), and the layer scalars;
- the canvases read the keys of the clean text, and their gradient flows back through them;
- clean text is padded to a multiple of `batches.ROUNDED` tokens, so that shapes recur: a CPU prepares its matrix
  products anew for every shape that it has not seen (a quarter of the time, measured);
- a layer is written out here once more, for pieces whose gradients are single passes (functions.py, attention.py,
  mixture.py).

Axes: B batch, T clean tokens, C canvas length, S tokens of a packed row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.experts import Experts, Routing
from dgemma_core.layers import Layer, Linear, Rotation
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.attention import Parts, attention
from dgemma_core.train.dense_pass import DensePass, Noised, conditioned, route, run_mlp, through
from dgemma_core.train.functions import added_norm, norm
from dgemma_core.train.mixture import mixture

if TYPE_CHECKING:
    from dgemma_core.train.batches import Batch


class PackedPass:
    """One padded batch through both modes. `routings` holds the router's choice of every layer of every pass."""

    def __init__(self, model: DiffusionGemma, batch: Batch) -> None:
        self.model = model
        self.batch = batch
        self.routings: list[Routing] = []
        self._looks: DensePass | None = None

    def begin(self) -> None:
        """The clean text is read with the canvases."""

    @torch.no_grad()
    def look(self, noised: Sequence[Noised], rows: int) -> list[Tensor]:
        """As `DensePass.look`; the clean text of these rows is read once for all looks."""
        if self._looks is None or rows > len(self._looks.encoded):
            self._looks = DensePass(self.model, self.batch)
            self._looks.begin(rows)
        return self._looks.look(noised, rows)

    def run(self, noised: Sequence[Noised]) -> list[Tensor]:
        """Both modes over the clean text and the canvases → their hidden states, (B, T, D) and, for each of `noised`,
        (B, C, D)."""
        model = self.model
        clean = self.batch.clean.to(model.device)
        batch, span = clean.shape
        place = torch.arange(span, device=clean.device)
        prefixes = [self.batch.canvases[group].prefix.to(clean.device) for group, _, _ in noised]
        inputs, positions = [model.embed(clean)], [place.expand(batch, span)]
        for (_, canvas, soft), prefix in zip(noised, prefixes, strict=True):
            inputs.append(conditioned(model, canvas, soft))
            places = torch.arange(canvas.shape[1], device=clean.device)
            positions.append(prefix.unsqueeze(1) + places)
        counts = tuple(x.shape[1] for x in inputs)
        window = model.config.text.sliding_window
        seen = {
            full: Parts(counts, self._seen(clean, prefixes, counts, None if full else window))
            for full in (False, True)
        }
        rotations = model.rotations(torch.cat(positions, dim=1), torch.float32)
        x = torch.cat(inputs, dim=1)
        for layer, scalar in zip(
            model.typed_layers(), model.layer_scalars(causal=True), strict=True
        ):
            rotate, parts = rotations[layer.config], seen[layer.config.full]
            x = through(layer, self._layer, x, rotate, parts, scalar)
        x = norm(x, model.norm.weight, model.norm.eps)
        return list(x.split(counts, dim=1))

    @staticmethod
    def _seen(
        clean: Tensor, prefixes: Sequence[Tensor], counts: Sequence[int], window: int | None
    ) -> tuple[Tensor, ...]:
        """What every part sees (`Parts.seen`): a canvas its own prefix, on sliding layers the end of it."""
        batch, span = clean.shape
        ends = torch.arange(1, span + 1, device=clean.device).expand(batch, span)
        found = [_ranges(ends, window, span)]
        for prefix, count in zip(prefixes, counts[1:], strict=True):
            behind = None if window is None else window - 1
            found.append(_ranges(prefix.unsqueeze(1).expand(batch, count), behind, span))
        return tuple(found)

    def _layer(
        self, layer: Layer, x: Tensor, rotate: Rotation, parts: Parts, scalar: Tensor
    ) -> Tensor:
        """`Layer.forward` with the pieces of functions.py, attention.py and mixture.py; scalar: of the clean text."""
        projections, eps = layer.self_attn, layer.input_layernorm.eps
        normed = norm(x, layer.input_layernorm.weight, eps)
        weights = [projections.q_proj.weight, projections.k_proj.weight]
        if projections.v_proj is not None:
            weights.append(projections.v_proj.weight)
        both = F.linear(normed, torch.cat(weights))
        mixed = projections.o_proj(attention(projections, both, rotate, parts))
        h = added_norm(x, mixed, layer.post_attention_layernorm.weight, eps)
        routing = route(layer.router, h)
        self.routings.append(routing)
        dense = run_mlp(layer.mlp, norm(h, layer.pre_feedforward_layernorm.weight, eps))
        dense = norm(dense, layer.post_feedforward_layernorm_1.weight, eps)
        sparse = norm(h, layer.pre_feedforward_layernorm_2.weight, eps)
        sparse = mixture(layer.experts, sparse, routing)
        summed = added_norm(dense, sparse, layer.post_feedforward_layernorm_2.weight, eps)
        scalars = (scalar, *[layer.layer_scalar] * (len(parts.counts) - 1))
        scale = torch.cat(
            [s.expand(len(x), n) for s, n in zip(scalars, parts.counts, strict=True)], dim=1
        )
        return added_norm(h, summed, layer.post_feedforward_layernorm.weight, eps, scale)


def _ranges(ends: Tensor, window: int | None, behind: int) -> Tensor:
    """(B, n) numbers of clean tokens that come before, of which the last `window` are seen (None: all) → (B, n, 3)."""
    first = torch.zeros_like(ends) if window is None else (ends - window).clamp(min=0)
    return torch.stack((first, ends, torch.full_like(ends, behind)), dim=-1)


def packs(model: DiffusionGemma) -> bool:
    """Whether the model is served: plain matrices, the same layers for both modes, and all of them learn."""
    return (
        model.causal_layers is None
        and all(parameter.requires_grad for parameter in model.parameters())
        and all(
            type(module) in (Linear, nn.Linear)
            for module in model.modules()
            if hasattr(module, "in_features")
        )
        and all(type(layer.experts) is Experts for layer in model.typed_layers())
    )
