"""Both modes over a padded batch, with gradients: what training runs instead of `encode` and `denoise`.

Notable:
- the causal pass over the clean text keeps its keys; the canvas reads them, and its gradient flows back through them;
- shapes recur: clean text is padded to a multiple of `batches.ROUNDED` tokens and each expert's slice to one of
  `SLICE`, since a CPU prepares its matrix products anew for every shape that it has not seen (a quarter of the time,
  measured);
- a layer is written out here once more, for norms and gates whose gradients are single passes (functions.py);
  torch.compile made one thread 1.4 times as fast and two threads no faster, after five minutes of compiling.

Axes: B batch, T clean tokens, C canvas length, D hidden size, H query heads, G key/value heads, d head dimension,
E experts, K experts a token, N tokens of all rows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dgemma_core.experts import Experts, Router, Routing
from dgemma_core.layers import Attend, GatedMLP, Layer, Rotation, working_dtype
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.adapted import expert_products, gate_and_up
from dgemma_core.train.functions import gated_gelu, norm
from dgemma_core.train.recomputing import recomputed

if TYPE_CHECKING:
    from dgemma_core.train.batches import Batch

SLICE = 128


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
                _bias(torch.cat((inside, canvas), dim=1).unsqueeze(1))
            )  # (B, 1, T + C)
            self.sliding.append(_bias(torch.cat((recent, canvas), dim=1).unsqueeze(1)))
        behind = position.unsqueeze(1) - position
        self.causal = _bias(behind >= 0).unsqueeze(0)  # (1, T, T)
        self.banded = _bias((behind >= 0) & (behind < window)).unsqueeze(0)

    def encode(self) -> Tensor:
        """The causal mode over the clean text → hidden (B, T, D)."""
        self.keys = []
        clean = self.batch.clean.to(self.model.device)
        positions = torch.arange(clean.shape[1], device=clean.device)
        scalars = self.model.encoder_scalars()
        return self._run(
            self.model.embed(clean), positions, scalars, self.causal, self.banded, None
        )

    def denoise(
        self,
        canvas: Tensor,
        soft_embedding: Tensor | None,
        group: int = 0,
        rows: slice = slice(None),
    ) -> Tensor:
        """The bidirectional mode over noised canvases (rows, C) of a group → hidden (rows, C, D)."""
        model = self.model
        conditioning = model.self_conditioning
        assert conditioning is not None
        prefix = self.batch.canvases[group].prefix.to(canvas.device)[rows].unsqueeze(1)
        positions = prefix + torch.arange(canvas.shape[1], device=canvas.device)
        x = model.embed(canvas)
        if soft_embedding is not None:
            fed = norm(soft_embedding, conditioning.pre_norm.weight, conditioning.eps)
            x = x + _mlp(conditioning, fed)
        x = norm(x, None, conditioning.eps)
        scalars = model.decoder_scalars()
        full, sliding = self.full[group][rows], self.sliding[group][rows]
        return self._run(x, positions, scalars, full, sliding, rows)

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        scalars: list[Tensor],
        full: Tensor,
        sliding: Tensor,
        rows: slice | None,
    ) -> Tensor:
        """All layers; `rows` of the kept keys are the prefix, None keeps this pass's own."""
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
                return attention(q, k, v, bias)

            x = self.run_layer(layer, x, rotations[layer.config], attend, scalars[i])
        return norm(x, self.model.norm.weight, self.model.norm.eps)

    def _layer(
        self, layer: Layer, x: Tensor, rotate: Rotation, attend: Attend, scalar: Tensor
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
        routing = self._route(layer.router, h)
        dense = _mlp(layer.mlp, norm(h, layer.pre_feedforward_layernorm.weight, eps))
        dense = norm(dense, layer.post_feedforward_layernorm_1.weight, eps)
        sparse = norm(h, layer.pre_feedforward_layernorm_2.weight, eps)
        sparse = mixture(layer.experts, sparse, routing)
        sparse = norm(sparse, layer.post_feedforward_layernorm_2.weight, eps)
        return (h + norm(dense + sparse, layer.post_feedforward_layernorm.weight, eps)) * scalar

    def _route(self, router: Router, x: Tensor) -> Routing:
        """`Router.forward`; its choice is kept for the balance loss."""
        scores = router.proj(norm(x, router.scale * x.shape[-1] ** -0.5, router.eps))
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(router.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        routing = Routing(weights * router.per_expert_scale[chosen], chosen, probabilities)
        if self.recording:
            self.routings.append(routing)
        return routing


def _mlp(mlp: GatedMLP, x: Tensor) -> Tensor:
    """`GatedMLP.forward` with one product for gate and up."""
    return cast(Tensor, mlp.down_proj(gated_gelu(gate_and_up(mlp, x))))


class _Rearranged(torch.autograd.Function):
    """output[s] = x[source[s]], zero where source[s] is the number of rows. back (rows, K) names the outputs that each
    row went to (or their number, for none): so the gradient is a look-up, too, and needs no scattered sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _with_zeros(x).index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        found = _with_zeros(gradients[0]).index_select(0, back.flatten())
        return _added(found.view(*back.shape, -1)), None, None


def _added(x: Tensor) -> Tensor:
    """x (…, K, D) → its sum over K, by additions: torch's own sum over so few takes five times as long."""
    total, *rest = x.unbind(-2)
    for each in rest:
        total = total + each
    return total


def _with_zeros(x: Tensor) -> Tensor:
    return torch.cat((x, x.new_zeros(1, x.shape[1])))


def mixture(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """x (…, D) → (…, D), the experts of all tokens by batched products."""
    outputs = run_experts(experts, x, routing.chosen)
    weighted = outputs * routing.weights.unsqueeze(-1).to(outputs.dtype)
    return _added(weighted)


def run_experts(experts: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    """x (…, D), chosen (…, K) → the outputs of the chosen experts, unweighted (…, K, D).

    Every expert's tokens are padded to one length, and three batched products run them all.
    """
    count, k = experts.count, chosen.shape[-1]
    flat, pairs = x.reshape(-1, x.shape[-1]), chosen.flatten()
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=count)
    size = -(-int(counts.max()) // SLICE) * SLICE
    sorted_experts = pairs[order]
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(pairs), device=x.device) - starts[sorted_experts]
    place = place + sorted_experts * size  # of the sorted pairs, in (E · size)
    slot = torch.empty_like(pairs).index_copy_(0, order, place)
    token = pairs.new_full((count * size,), len(flat)).index_copy_(0, place, order // k)
    pair = pairs.new_full((count * size,), len(pairs)).index_copy_(0, place, order)
    dtype = working_dtype(x)
    rows = cast(Tensor, _Rearranged.apply(flat.to(dtype), token, slot.view(-1, k)))
    inner = gated_gelu(expert_products(experts, "gate_up_proj", rows.view(count, size, -1)))
    outputs = expert_products(experts, "down_proj", inner).flatten(0, 1)
    placed = cast(Tensor, _Rearranged.apply(outputs, slot, pair.unsqueeze(1)))
    return placed.view(*chosen.shape, -1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
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


def _bias(visible: Tensor) -> Tensor:
    """0 where visible, a large negative number elsewhere; bfloat16, as the scores are under autocast."""
    return torch.zeros(visible.shape, dtype=torch.bfloat16, device=visible.device).masked_fill_(
        ~visible, -1e4
    )
