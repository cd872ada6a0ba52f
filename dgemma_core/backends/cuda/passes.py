"""A pass through all layers, of launches that a CUDA graph can record: nothing is asked of the host.

Notable:
- passes read the model's parameters, and each projection is one product: nothing is copied, so nothing becomes stale;
- a layer is its parts, each a method, so that a benchmark can time one part of all layers by itself;
- quantised matrices are turned back into numbers where they are used, of the experts no more than a pass can touch.

Axes: N tokens of all rows, T tokens of a row, D hidden size, K choices a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.backends.cuda import fused
from dgemma_core.backends.cuda.rows import Held
from dgemma_core.backends.cuda.weights import weight
from dgemma_core.config import LayerConfig
from dgemma_core.draws import upload
from dgemma_core.layers import GatedMLP, Layer, Rotation
from dgemma_core.model import DiffusionGemma

Rotations = dict[LayerConfig, Rotation]


class Pass:
    """The layers of one mode: causal over clean tokens, or bidirectional over canvases."""

    def __init__(self, model: DiffusionGemma, *, causal: bool) -> None:
        text = model.config.text
        self.model, self.causal = model, causal
        self.layers: Sequence[Layer] = list(model.typed_layers(causal))
        self.windows = [None if layer.full else text.sliding_window - 1 for layer in text.layers]
        self.scalars = model.layer_scalars(causal)

    def __call__(
        self,
        ids: Tensor,
        soft: Tensor | None,
        held: Held,
        lengths: Sequence[int],
        canvas: Sequence[bool] = (),
    ) -> Tensor:
        """ids (N,), of which `lengths` stand behind each row in `held` → hidden states (N, D), after the last norm.

        soft (N, D): the canvases' soft embedding, None for zeros. canvas: which rows of a causal pass are canvases at
        their first step, none if empty; each comes behind the row that it continues. Hidden states where no row is are
        zeros.
        """
        eps = self.model.norm.eps
        x = self.embed(ids, soft, held, lengths)
        scalars = [scalar.reshape(1, 1) for scalar in self.scalars]
        if canvas:
            of_token = [[laid] for laid, n in zip(canvas, lengths, strict=True) for _ in range(n)]
            noisy = upload(torch.tensor(of_token), ids.device)  # (N, 1)
            x = torch.where(noisy, self.conditioned(x, None), x)
            both = zip(self.model.layer_scalars(causal=False), scalars, strict=True)
            scalars = [torch.where(noisy, of_canvas, own) for of_canvas, own in both]
        rotations = self.rotations(held, lengths)
        # what a layer's output is normed for: the next layer, and at last the head
        following = [layer.input_layernorm.weight for layer in self.layers[1:]]
        following.append(self.model.norm.weight)
        normed = fused.norm(x, self.layers[0].input_layernorm.weight, eps)
        for i, layer in enumerate(self.layers):
            mixed = self.attention(i, normed, rotations, held, lengths, canvas)
            branches = fused.after_attention(layer, x, mixed)
            dense = self.dense(i, branches.dense)
            outputs = self.experts(i, branches.sparse, *self.routing(i, branches.routed))
            x, normed = fused.after_experts(
                layer, branches.h, dense, outputs, scalars[i], following[i]
            )
        return normed

    def embed(self, ids: Tensor, soft: Tensor | None, held: Held, lengths: Sequence[int]) -> Tensor:
        """What the first layer works on (N, D)."""
        x = self.model.embed(ids)
        if not self.causal:
            x = self.conditioned(x, soft)
        if _equal(lengths):  # places may be empty
            absent = (held.table[:, :1] < 0).expand(-1, lengths[0]).reshape(-1, 1)
            x = x.masked_fill(absent, 0)
        return x

    def conditioned(self, embedded: Tensor, soft: Tensor | None) -> Tensor:
        """The canvases' embedding with the soft embedding mixed in: (N, D) each → (N, D)."""
        block = self.model.self_conditioning
        assert block is not None
        if soft is not None:
            normed = fused.norm(soft, block.pre_norm.weight, block.pre_norm.eps)
            embedded = embedded + self._mlp(block, normed)
        return fused.norm(embedded, None, block.eps)

    def rotations(self, held: Held, lengths: Sequence[int]) -> Rotations:
        """Angles of the tokens' positions, for each kind of layer."""
        starts = held.table[:, :1].clamp_min(0)
        device = starts.device
        if _equal(lengths):
            positions = (starts + torch.arange(lengths[0], device=device)).flatten()
        else:
            steps = [torch.arange(n, device=device) for n in lengths]
            positions = torch.cat([start + n for start, n in zip(starts, steps, strict=True)])
        return self.model.rotations(positions, self.model.dtype)

    def attention(
        self,
        i: int,
        normed: Tensor,
        rotations: Rotations,
        held: Held,
        lengths: Sequence[int],
        canvas: Sequence[bool] = (),
    ) -> Tensor:
        """Layer i's attention: normed input (N, D) → (N, D); writes keys and values behind the rows."""
        layer = self.layers[i]
        part, rotate, dtype = layer.self_attn, rotations[layer.config], normed.dtype
        q = fused.linear(normed, weight(part.q_proj, dtype))
        k = fused.linear(normed, weight(part.k_proj, dtype))
        v = k if part.v_proj is None else fused.linear(normed, weight(part.v_proj, dtype))
        if _equal(lengths) and not canvas:
            mixed = self._attend(i, q, k, v, rotate, held, self.causal)
        else:
            causal = [not laid for laid in canvas] or [self.causal] * len(lengths)
            split = [each.split(list(lengths)) for each in (q, k, v, rotate.cos, rotate.signed_sin)]
            mixed = torch.cat(
                [
                    self._attend(i, q, k, v, Rotation(cos, sin), held[row], causal[row])
                    for row, (q, k, v, cos, sin) in enumerate(zip(*split, strict=True))
                ]
            )
        return fused.linear(mixed.flatten(1), weight(part.o_proj, dtype))

    def _attend(
        self,
        i: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotate: Rotation,
        held: Held,
        causal: bool,
    ) -> Tensor:
        layer = self.layers[i]
        queries = fused.place(layer, q, k, v, rotate, held, i)
        groups = layer.self_attn.groups
        return fused.attend(queries, groups, held, i, self.windows[i], causal)

    def dense(self, i: int, x: Tensor) -> Tensor:
        """Layer i's dense MLP: (N, D) → (N, D)."""
        return self._mlp(self.layers[i].mlp, x)

    def _mlp(self, mlp: GatedMLP, x: Tensor) -> Tensor:
        gate = fused.linear(x, weight(mlp.gate_proj, x.dtype))
        up = fused.linear(x, weight(mlp.up_proj, x.dtype))
        return fused.linear(fused.gate(gate, up), weight(mlp.down_proj, x.dtype))

    def routing(self, i: int, routed: Tensor) -> tuple[Tensor, Tensor]:
        """Layer i's router: (N, D) → weights and experts (N, K)."""
        router = self.layers[i].router
        scores = fused.linear(routed, router.proj.weight)
        return fused.route(scores, router.per_expert_scale, router.top_k)

    def experts(self, i: int, sparse: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Layer i's experts: (N, D) → what each choice adds (N, K, D)."""
        return grouped.outputs(self.layers[i].experts, sparse, weights, chosen)


def _equal(lengths: Sequence[int]) -> bool:
    return len(set(lengths)) == 1
