"""Both modes over a padded batch, with gradients: what training runs instead of `encode` and `denoise`.

Notable:
- the causal pass over the clean text keeps its keys; the canvas reads them, and its gradient flows back through them;
- shapes recur: clean text is padded to a multiple of `batches.ROUNDED` tokens, since a CPU prepares its matrix products
  anew for every shape that it has not seen (a quarter of the time, measured);
- matrices may be quantised or adapted, and the modes may have layers of their own (files/lora.py). Where all weights
  are plain and learn, packed_pass.py gives the same in one pass;
- a layer is written out here once more, for norms and gates whose gradients are single passes (functions.py).

Axes: B batch, T clean tokens, C canvas length, D hidden size, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dgemma_core.experts import Router, Routing
from dgemma_core.functions import working_dtype
from dgemma_core.layers import Attend, GatedMLP, Layer, Rotation
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.adapted import gate_and_up
from dgemma_core.train.attention import mask_bias, plain_attention
from dgemma_core.train.functions import gated_gelu, norm
from dgemma_core.train.mixture import mixture
from dgemma_core.train.recomputing import recomputed

if TYPE_CHECKING:
    from dgemma_core.train.batches import Batch

Noised = tuple[int, Tensor, Tensor | None]
"""A group of the batch, its noised canvases (rows, C), and their soft embedding (rows, C, D) or None."""


class DensePass:
    """One padded batch through both modes. `routings` holds the router's choice of every layer of every pass."""

    def __init__(self, model: DiffusionGemma, batch: Batch, *, recomputes: bool = False) -> None:
        """recomputes: layers keep their input alone for the gradient, and run again for it (recomputing.py)."""
        self.model = model
        self.batch = batch
        self.run_layer = partial(recomputed, self, self._layer) if recomputes else self._layer
        self.recording = True
        self.keys: list[tuple[Tensor, Tensor]] = []
        self.routings: list[Routing] = []
        window = model.config.text.sliding_window
        span = batch.clean.shape[1]
        # Canvas masks of every group, one a kind of layer: the row's own prefix (on sliding layers its end), then the
        # whole canvas.
        position = torch.arange(span, device=model.device)
        self.full, self.sliding = [], []
        for group in batch.canvases:
            length = group.prefix.to(model.device).unsqueeze(1)
            canvas = torch.ones(group.tokens.shape, dtype=torch.bool, device=model.device)
            inside = position < length
            recent = inside & (position >= length - (window - 1))
            self.full.append(
                mask_bias(torch.cat((inside, canvas), dim=1).unsqueeze(1))
            )  # (B, 1, T + C)
            self.sliding.append(mask_bias(torch.cat((recent, canvas), dim=1).unsqueeze(1)))
        behind = position.unsqueeze(1) - position
        self.causal = mask_bias(behind >= 0).unsqueeze(0)  # (1, T, T)
        self.banded = mask_bias((behind >= 0) & (behind < window)).unsqueeze(0)

    def begin(self, rows: int | None = None) -> None:
        """Reads the clean text, with a gradient where that is on; rows: of the first ones alone."""
        self.encoded = self.encode(rows)

    @torch.no_grad()
    def look(self, noised: Sequence[Noised], rows: int) -> list[Tensor]:
        """Hidden states (rows, C, D) of canvases of the first rows, for each of `noised`, without a gradient; what the
        router chooses for them is not kept."""
        kept = len(self.routings)
        found = [self.denoise(canvas, soft, group, rows) for group, canvas, soft in noised]
        del self.routings[kept:]
        return found

    def run(self, noised: Sequence[Noised]) -> list[Tensor]:
        """Hidden states of the clean text (B, T, D) and, for each of `noised`, of its canvases (B, C, D)."""
        return [
            self.encoded,
            *(self.denoise(canvas, soft, group) for group, canvas, soft in noised),
        ]

    def encode(self, rows: int | None = None) -> Tensor:
        """The causal mode over the clean text (of the first rows) → hidden (B, T, D)."""
        self.keys = []
        clean = self.batch.clean[:rows].to(self.model.device)
        positions = torch.arange(clean.shape[1], device=clean.device)
        scalars = self.model.layer_scalars(causal=True)
        return self._run(
            self.model.embed(clean), positions, scalars, self.causal, self.banded, None
        )

    def denoise(
        self,
        canvas: Tensor,
        soft_embedding: Tensor | None,
        group: int = 0,
        rows: int | None = None,
    ) -> Tensor:
        """The bidirectional mode over noised canvases (rows, C) of a group → hidden (rows, C, D)."""
        prefix = self.batch.canvases[group].prefix.to(canvas.device)[:rows].unsqueeze(1)
        positions = prefix + torch.arange(canvas.shape[1], device=canvas.device)
        x = conditioned(self.model, canvas, soft_embedding)
        full, sliding = self.full[group][:rows], self.sliding[group][:rows]
        return self._run(x, positions, None, full, sliding, slice(rows))

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        scalars: list[Tensor] | None,
        full: Tensor,
        sliding: Tensor,
        rows: slice | None,
    ) -> Tensor:
        """All layers; `rows` of the kept keys are the prefix, None keeps this pass's own. scalars: None for those that
        the layers themselves hold, of the denoiser."""
        layers = self.model.typed_layers(rows is None)
        rotations = self.model.rotations(positions, working_dtype(x))
        for i, layer in enumerate(layers):
            bias = full if layer.config.full else sliding

            def attend(q: Tensor, k: Tensor, v: Tensor, i: int = i, bias: Tensor = bias) -> Tensor:
                if rows is None:
                    if self.recording:
                        self.keys.append((k, v))
                else:
                    k = torch.cat((self.keys[i][0][rows], k), dim=1)
                    v = torch.cat((self.keys[i][1][rows], v), dim=1)
                return plain_attention(q, k, v, bias)

            scalar = None if scalars is None else scalars[i]
            x = through(layer, self.run_layer, x, rotations[layer.config], attend, scalar)
        return norm(x, self.model.norm.weight, self.model.norm.eps)

    def _layer(
        self, layer: Layer, x: Tensor, rotate: Rotation, attend: Attend, scalar: Tensor | None
    ) -> Tensor:
        """`Layer.forward` with the norms and gates of functions.py."""
        attention_, eps = layer.self_attn, layer.input_layernorm.eps
        normed = norm(x, layer.input_layernorm.weight, eps)
        queries = attention_.q_proj(normed).unflatten(-1, (attention_.heads, -1))
        keys = attention_.k_proj(normed).unflatten(-1, (attention_.groups, -1))
        values = keys
        if attention_.v_proj is not None:
            values = attention_.v_proj(normed).unflatten(-1, (attention_.groups, -1))
        queries = rotate(norm(queries, attention_.q_norm.weight, eps))
        keys = rotate(norm(keys, attention_.k_norm.weight, eps))
        mixed = attention_.o_proj(attend(queries, keys, norm(values, None, eps)).flatten(-2))
        h = x + norm(mixed, layer.post_attention_layernorm.weight, eps)
        routing = route(layer.router, h)
        if self.recording:  # its choice is kept for the balance loss
            self.routings.append(routing)
        dense = run_mlp(layer.mlp, norm(h, layer.pre_feedforward_layernorm.weight, eps))
        dense = norm(dense, layer.post_feedforward_layernorm_1.weight, eps)
        sparse = norm(h, layer.pre_feedforward_layernorm_2.weight, eps)
        sparse = mixture(layer.experts, sparse, routing)
        sparse = norm(sparse, layer.post_feedforward_layernorm_2.weight, eps)
        scalar = layer.layer_scalar if scalar is None else scalar
        return (h + norm(dense + sparse, layer.post_feedforward_layernorm.weight, eps)) * scalar


def through(module: nn.Module, run: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`run(module, *arguments)`. Where several processes hold the module in parts (distributed.py), it is put together
    before, and its gradient divided."""
    gathered = getattr(module, "gathered", None)
    found = run(module, *arguments) if gathered is None else gathered(run, *arguments)
    return cast(Tensor, found)


def route(router: Router, x: Tensor) -> Routing:
    """`Router.forward` by the norm of functions.py."""
    scores = router.proj(norm(x, router.scale * x.shape[-1] ** -0.5, router.eps))
    probabilities = scores.softmax(dim=-1, dtype=torch.float32)
    weights, chosen = probabilities.topk(router.top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(weights * router.per_expert_scale[chosen], chosen, probabilities)


def conditioned(model: DiffusionGemma, canvas: Tensor, soft: Tensor | None) -> Tensor:
    """What canvases (rows, C) enter the layers as: their embedding and that of the last prediction, (rows, C, D)."""
    conditioning = model.self_conditioning
    assert conditioning is not None
    x = model.embed(canvas)
    if soft is not None:
        fed = norm(soft, conditioning.pre_norm.weight, conditioning.eps)
        x = x + run_mlp(conditioning, fed)
    return norm(x, None, conditioning.eps)


def run_mlp(mlp: GatedMLP, x: Tensor) -> Tensor:
    """`GatedMLP.forward` with one product for gate and up."""
    return cast(Tensor, mlp.down_proj(gated_gelu(gate_and_up(mlp, x))))
