"""A small float32 model on a CPU: all layers in one call of C, the vocabulary head in another (small_model.c).

In torch a pass of a small model costs its number of operations, some microseconds each. C reads a copy of the weights,
laid out in the order in which it needs them; `backends.guard` notices when the copy is out of date. The numbers are
those of the modules, but for rounding.

Axes: N tokens of all rows, D hidden size, H query heads, G key/value heads, d head dimension, E experts, K chosen
experts, I and w the widths of the dense MLP and of an expert, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import POINTER, Array, byref, cast
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dgemma_core.backends.cpu import bindings, checks
from dgemma_core.backends.cpu.online_softmax import row_top
from dgemma_core.cache import Buffer, RowCache
from dgemma_core.checks import check_row
from dgemma_core.config import ModelConfig
from dgemma_core.draws import filtered, inverse_cdf
from dgemma_core.errors import RequestError
from dgemma_core.experts import Routing
from dgemma_core.head import Asked, Prediction, VocabularyHead
from dgemma_core.layers import Layer, rotation, rounded

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma, Watch

SMALL = 2**20
"""Largest layer, in parameters, about, that runs in C."""
VOCABULARY = 2**13
"""Largest vocabulary that runs in C."""
UNIT = 32
"""Widths must be multiples of it, the vocabulary of twice as many: the widest panel, and four vectors."""
A_THREAD = 8
"""Tokens for which another thread pays."""


def fits(config: ModelConfig) -> bool:
    """Whether a model is small enough, and its widths are multiples of `UNIT`."""
    text = config.text
    widths = [text.hidden_size, text.intermediate_size, text.moe_intermediate_size]
    widths += [layer.head_dim for layer in text.layers]
    of_attention = 2 * max(layer.head_dim for layer in text.layers) * text.num_attention_heads
    of_mlps = 3 * (text.intermediate_size + text.num_experts * text.moe_intermediate_size)
    return (
        text.hidden_size * (of_attention + of_mlps) <= SMALL
        and all(width % UNIT == 0 for width in widths)
        and text.vocab_size % (2 * UNIT) == 0
        and text.vocab_size <= VOCABULARY
        and text.top_k_experts <= text.num_experts
        and all(
            text.num_attention_heads % layer.num_key_value_heads == 0
            and text.num_attention_heads // layer.num_key_value_heads <= UNIT // 2
            for layer in text.layers
        )
    )


def serves(model: DiffusionGemma) -> bool:
    """Whether the model fits, has its original modules with float32 weights on a CPU, and C can be compiled."""
    return (
        fits(model.config)
        and model.quantized is None
        and all(map(_plain, model.parameters()))
        and _is_original(model)
        and bindings.small_model() is not None
    )


def _is_original(model: DiffusionGemma) -> bool:
    """Whether no module was replaced by another kind, and no weight by one of another shape."""
    from dgemma_core.model import DiffusionGemma

    original, own = DiffusionGemma(model.config, device="meta"), model.causal_layers
    form = [part for part in _form(model) if part[0].partition(".")[0] != "causal_layers"]
    return form == _form(original) and (own is None or _form(own) == _form(original.layers))


def _form(module: nn.Module) -> list[tuple[str, type, dict[str, torch.Size]]]:
    """Name, kind and weights' shapes of every part."""
    return [
        (
            name,
            type(part),
            {key: weight.shape for key, weight in part._parameters.items() if weight is not None},
        )
        for name, part in module.named_modules(remove_duplicate=False)
    ]


def _plain(weight: Tensor) -> bool:
    """Whether C can read the numbers as they stand."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


class Layout:
    """Where C finds a row's keys and values (`RowCache.layout`): a step that finds them as they were reads them there.

    places: of the buffers, by identity. The row must be at least `start` long, and at most `end` with what is added.
    """

    def __init__(self, buffers: list[Buffer], windows: tuple[int | None, ...]) -> None:
        self.buffers, self.windows = buffers, windows
        self.tensors = [(b.keys, b.values) for b in buffers]  # whose memory the table names
        self.places = tuple(map(id, buffers))
        kept = zip(buffers, windows, strict=True)
        self.start = max(b.base + window if b.base and window else 0 for b, window in kept)
        self.end = min(b.base + b.keys.shape[1] for b in buffers)
        self.table = np.array(
            [(b.keys.data_ptr(), b.values.data_ptr(), b.keys.shape[1], b.base) for b in buffers]
        )
        self.address = self.table.ctypes.data

    def holds(self, row: RowCache, size: int) -> bool:
        """Whether the row still has these buffers, filled by nobody else, with space for so many tokens behind it."""
        return (
            self.start <= row.length <= self.end - size
            and row.windows == self.windows
            and all(map(is_, row.buffers, self.buffers))
            and all(
                held.filled == row.length and held.keys is keys and held.values is values
                for held, (keys, values) in zip(self.buffers, self.tensors, strict=True)
            )
        )

    def __reduce__(self) -> tuple[type[Layout], tuple[object, ...]]:
        """A copy's tensors are elsewhere: it is made from them anew."""
        return Layout, (self.buffers, self.windows)


class SmallModel:
    """The weights of a model as small_model.c reads them, and its passes."""

    def __init__(self, model: DiffusionGemma) -> None:
        functions = bindings.small_model()
        assert functions is not None
        self.functions = functions
        self.panel = int(functions.panel_width())
        self.config = model.config
        text = model.config.text
        self.width = text.hidden_size
        self.weights = [weight.detach() for weight in model.parameters()]
        self.sources = self._sources()
        self.kept: list[Tensor] = []  # what C holds pointers to
        self.windows = tuple(
            None if layer.full else text.sliding_window - 1 for layer in text.layers
        )
        scalars = model.encoder_layer_scalars.tolist()
        self.layers = self._layers(model.typed_layers(), scalars)
        own = model.causal_layers is not None
        self.causal_layers = self._layers(model.typed_layers(True), scalars) if own else self.layers
        self.likes = [
            torch.empty(0, layer.num_key_value_heads, layer.head_dim) for layer in text.layers
        ]
        self.row = text.num_attention_heads * max(layer.head_dim for layer in text.layers)
        self.positions = 0
        self.growing = threading.Lock()
        self.scale = rounded(self.width**0.5, torch.float32)
        self.embedding_weight = model.embed_tokens.weight.detach()
        self.embedding = self._keep(model.embed_tokens.weight)
        self.vocabulary = self._panels(model.embed_tokens.weight)
        conditioning = model.self_conditioning
        sizes: dict[str, Any] = dict(
            embedding=self.embedding,
            final_norm=self._keep(model.norm.weight),
            vocab_size=text.vocab_size,
            hidden_size=self.width,
            heads=text.num_attention_heads,
            dense_width=text.intermediate_size,
            experts=text.num_experts,
            top_k=text.top_k_experts,
            expert_width=text.moe_intermediate_size,
            layer_count=len(self.layers),
            query_stride=self.row,
            eps=text.rms_norm_eps,
            embedding_scale=self.scale,
        )
        if conditioning is not None:
            sizes["conditioning_norm"] = self._keep(conditioning.pre_norm.weight)
            sizes["conditioning_gate"] = self._panels(conditioning.gate_proj.weight)
            sizes["conditioning_up"] = self._panels(conditioning.up_proj.weight)
            sizes["conditioning_down"] = self._panels(conditioning.down_proj.weight)
        places = (POINTER(bindings.Layer) * 2)(
            *(cast(layers, POINTER(bindings.Layer)) for layers in (self.layers, self.causal_layers))
        )
        self.model = bindings.Model(layers=places, **sizes)

    def _layers(self, layers: Sequence[Layer], scalars: Sequence[float]) -> Array[bindings.Layer]:
        """Layers as C reads them. scalars: the causal mode's, one each."""
        parts = zip(layers, self.windows, scalars, strict=True)
        return (bindings.Layer * len(layers))(*(self._layer(*part) for part in parts))

    def _keep(self, numbers: Tensor) -> int:
        held = numbers.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
        self.kept.append(held)
        return held.data_ptr()

    def _panels(self, *matrices: Tensor) -> int:
        """Matrices (R, D) → their rows as columns, a panel of them after the other, (R / panel, D, panel)."""
        panels = [
            matrix.detach().unflatten(0, (-1, self.panel)).transpose(1, 2) for matrix in matrices
        ]
        return self._keep(torch.cat(panels))

    def _layer(self, layer: Layer, window: int | None, of_encoder: float) -> bindings.Layer:
        attention, mlp, experts, router = layer.self_attn, layer.mlp, layer.experts, layer.router
        projections = [attention.q_proj, attention.k_proj]
        if attention.v_proj is not None:
            projections.append(attention.v_proj)
        of_input, of_dense, of_sparse = (
            norm.weight
            for norm in (
                layer.input_layernorm,
                layer.pre_feedforward_layernorm,
                layer.pre_feedforward_layernorm_2,
            )
        )
        gates, ups = (experts.gate_up_proj * of_sparse).chunk(2, dim=1)  # (E, w, D)
        scores = router.proj.weight * router.scale * router.scale.shape[0] ** -0.5
        missing = -len(scores) % self.panel
        return bindings.Layer(
            projections=self._panels(*(part.weight * of_input for part in projections)),
            out=self._panels(attention.o_proj.weight),
            dense_gate=self._panels(mlp.gate_proj.weight * of_dense),
            dense_up=self._panels(mlp.up_proj.weight * of_dense),
            dense_down=self._panels(mlp.down_proj.weight),
            router=self._panels(nn.functional.pad(scores, (0, 0, 0, missing))),
            expert_gate=self._panels(*gates),
            expert_up=self._panels(*ups),
            expert_down=self._panels(*experts.down_proj),
            query_norm=self._keep(attention.q_norm.weight),
            key_norm=self._keep(attention.k_norm.weight),
            attention_norm=self._keep(layer.post_attention_layernorm.weight),
            dense_norm=self._keep(layer.post_feedforward_layernorm_1.weight),
            expert_norm=self._keep(layer.post_feedforward_layernorm_2.weight),
            mlp_norm=self._keep(layer.post_feedforward_layernorm.weight),
            expert_scale=self._keep(router.per_expert_scale),
            kv_heads=attention.groups,
            head_dim=attention.head_dim,
            window=-1 if window is None else window,
            keys_are_values=attention.v_proj is None,
            scalars=(layer.layer_scalar.item(), of_encoder),
        )

    def _sources(self) -> tuple[list[int], int]:
        """Where the parameters stand, and a checksum of their numbers."""
        weights = self.weights
        places = np.array([weight.data_ptr() for weight in weights], dtype=np.uint64)
        sizes = np.array([weight.numel() for weight in weights], dtype=np.int64)
        summed = self.functions.checksum(
            len(weights), places.ctypes.data, sizes.ctypes.data, torch.get_num_threads()
        )
        return places.tolist(), summed

    @property
    def unchanged(self) -> bool:
        """Whether all parameters hold the numbers that were copied."""
        return all(map(_plain, self.weights)) and self._sources() == self.sources

    def _threads(self, tokens: int) -> int:
        return max(1, min(torch.get_num_threads(), tokens // A_THREAD))

    def _grow_rotations(self, positions: int) -> None:
        """Lays out the rotary angles of so many first positions. Shorter tables stay: a pass may be reading them."""
        if positions <= self.positions:
            return
        with self.growing:
            if positions <= self.positions:
                return
            grown = max(256, 1 << (positions - 1).bit_length())
            kinds = self.config.text.layers
            kept = {
                kind: (self._keep(turned.cos), self._keep(turned.signed_sin))
                for kind in set(kinds)
                for turned in [rotation(kind, torch.arange(grown), torch.float32)]
            }
            for layers in (self.layers, self.causal_layers):
                for held, kind in zip(layers, kinds, strict=True):
                    held.cos, held.sin = kept[kind]
            self.positions = grown

    name = "cpu"

    def refresh(self) -> None:
        """The guard in front asks `unchanged`."""

    def forward(
        self,
        ids: Tensor,
        rows: Sequence[RowCache],
        sizes: Sequence[int],
        *,
        causal: bool,
        canvas: Sequence[int] = (),
        soft: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """ids (N,), `sizes` of them a row, behind the rows' prefixes → (N, D), after the final norm.

        causal: the tokens are appended to their rows, but not yet counted in `length`, without the last `canvas` of
        each row; all others are canvases, laid over for this pass. soft: (N, D), of canvases. Raises RequestError for
        an id outside the vocabulary.
        """
        ids, text = checks.token_ids(ids), self.config.text
        tokens = ids.numel()
        checks.lengths(tokens, rows, sizes)
        if not tokens:
            return torch.empty(0, self.width)
        if soft is not None:
            soft = checks.floats("the soft embedding", soft, (tokens, self.width))
        longest = checks.positions(text, rows, sizes)
        self._grow_rotations(longest)
        canvas = canvas or ([0] * len(rows) if causal else sizes)
        checks.canvases(sizes, canvas)
        layouts = self._layouts(rows, sizes, canvas)
        segments, first = [], 0
        for row, size, laid, layout in zip(rows, sizes, canvas, layouts, strict=True):
            position, clean = row.length, size - laid
            if clean:
                segments.append(bindings.Segment(first, clean, position, True, layout.address))
            if laid:
                place = first + clean, laid, position + clean
                segments.append(bindings.Segment(*place, False, layout.address))
            first += size
        x = torch.empty(tokens, self.width)
        layers = len(self.layers)
        queries = torch.empty(layers if watch is not None else 1, tokens, self.row)
        watched = bindings.Watch()
        if watch is not None:
            probabilities = torch.empty(layers, tokens, text.num_experts)
            weights = torch.empty(layers, tokens, text.top_k_experts)
            chosen = torch.empty(layers, tokens, text.top_k_experts, dtype=torch.long)
            watched.queries, watched.probabilities = queries.data_ptr(), probabilities.data_ptr()
            watched.weights, watched.chosen = weights.data_ptr(), chosen.data_ptr()
        threads = self._threads(tokens)
        size = self.functions.scratch_size(byref(self.model), longest)
        scratch = torch.empty(threads * size)
        status = self.functions.forward(
            byref(self.model), tokens, ids.data_ptr(), None if soft is None else soft.data_ptr(),
            (bindings.Segment * len(segments))(*segments), x.data_ptr(), queries.data_ptr(), byref(watched), threads,
            scratch.data_ptr(), size,
        )  # fmt: skip
        outside = bindings.wrong_place(status)
        if outside is not None:
            raise RequestError(
                f"token ids must lie in 0 … {text.vocab_size - 1}, got {int(ids[outside])}"
            )
        if watch is not None:
            for i, layer in enumerate(text.layers):
                turned = queries[i, :, : text.num_attention_heads * layer.head_dim]
                parts = turned.unflatten(1, (-1, layer.head_dim)).split(list(sizes))
                for j, (row, part) in enumerate(zip(rows, parts, strict=True)):
                    seen = row.first(i, row.length), row.length + len(part)
                    watch.attention(i, j, part, layouts[j].buffers[i].slice(*seen)[0])
                watch.router(i, Routing(weights[i], chosen[i], probabilities[i]))
        return x

    def _layouts(
        self, rows: Sequence[RowCache], sizes: Sequence[int], canvas: Sequence[int]
    ) -> list[Layout]:
        """Where the keys and values of each row go, with space for its new tokens; no two rows write to one place."""
        found: list[Layout] = []
        taken: set[int] = set()
        for row, size, laid in zip(rows, sizes, canvas, strict=True):
            layout = row.layout
            known = (
                isinstance(layout, Layout)
                and layout.holds(row, size)
                and taken.isdisjoint(layout.places)
            )
            if not known:
                row.checked = None  # its tensors may not be those that were looked at
            check_row(row, self.config.text, self.likes[0])
            if not known:
                checks.positions_held(self.windows, row)
                layout = row.layout = self._layout(row, size, taken)
            assert isinstance(layout, Layout)
            taken.update(layout.places)
            end = row.length + size - laid
            for buffer in layout.buffers:
                buffer.filled = end
            found.append(layout)
        return found

    def _layout(self, row: RowCache, size: int, taken: set[int]) -> Layout:
        buffers = []
        for i, like in enumerate(self.likes):
            buffer = row.reserve(i, size, like)
            if id(buffer) in taken:  # a branch of a row before it
                buffer = row.reallocate(i, size, like)
            buffers.append(buffer)
        return Layout(buffers, row.windows)

    def predict(self, hidden: Tensor, *arguments: Any, **options: Any) -> Prediction:
        return SmallHead(self).predict(hidden, *arguments, **options)

    def fields(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        uniform: Tensor | None,
        soft: bool,
        top_k: int = 0,
    ) -> dict[str, Tensor]:
        """hidden (N, D), temperatures (N, 1), uniform (N,) float64, None for the argmax → the fields of a `Prediction`,
        (N, …)."""
        tokens, vocabulary = len(hidden), self.config.text.vocab_size
        cap = self.config.text.final_logit_softcapping
        hidden = checks.floats("hidden states", hidden, (tokens, self.width))
        temperatures = checks.floats("temperatures", temperatures, (tokens, 1))
        drawn = None
        if uniform is not None:
            drawn = checks.floats("uniform numbers", uniform, (tokens,), torch.float64)
        whole, real = torch.empty(2, tokens, dtype=torch.long), torch.empty(4, tokens)
        fields = dict(zip(("argmax", "sample"), whole.unbind(), strict=True))
        names = ("argmax_probability", "sample_probability", "entropy", "logsumexp")
        fields |= zip(names, real.unbind(), strict=True)
        found = bindings.Outputs(**{name: value.data_ptr() for name, value in fields.items()})
        if soft:
            fields["soft_embedding"] = torch.empty(tokens, self.width)
            found.soft = fields["soft_embedding"].data_ptr()
        sigmoids = torch.empty(tokens, vocabulary) if top_k else None
        if sigmoids is not None:
            found.sigmoids = sigmoids.data_ptr()
        threads = self._threads(tokens)
        scratch = torch.empty(threads * self.functions.predict_scratch_size(vocabulary))
        status = self.functions.predict(
            tokens, self.width, vocabulary, hidden.data_ptr(), self.vocabulary, self.embedding, cap,
            temperatures.data_ptr(), None if drawn is None else drawn.data_ptr(), self.scale, byref(found), threads,
            scratch.data_ptr(),
        )  # fmt: skip
        wrong = bindings.wrong_place(status)
        if wrong is not None:
            number = "" if drawn is None else f", uniform number {float(drawn[wrong])}"
            raise RequestError(
                "temperatures must be finite and not negative, uniform numbers in [0, 1): got temperature "
                f"{float(temperatures[wrong])}{number}"
            )
        if sigmoids is not None:
            best, fields["top_ids"] = row_top(sigmoids, top_k)
            fields["top_logits"] = (2 * best - 1) * checks.capped_scale(cap, temperatures)
        return fields


class SmallHead(VocabularyHead):
    """The head of a small model by C: a token's numbers do not depend on which others stand beside it."""

    def __init__(self, small: SmallModel) -> None:
        super().__init__(small.embedding_weight, small.config.text.final_logit_softcapping)
        self.small = small

    def fields(self, hidden: Tensor, asked: Asked) -> dict[str, Tensor]:
        if hidden.dtype != torch.float32:
            return super().fields(hidden, asked)
        if asked.filters is not None:
            return self._filtered_fields(hidden, asked)
        if not asked.two_distributions:
            found = self.small.fields(
                hidden, asked.temperatures, asked.uniform, asked.soft, asked.top_k
            )
            return found | {"sample_logprob": found["sample_probability"].log()}
        raw = torch.ones_like(asked.temperatures)
        found = self.small.fields(hidden, raw, None, asked.soft, asked.top_k)
        drawn = self.small.fields(hidden, asked.temperatures, asked.uniform, False)
        logit = drawn["sample_probability"].log() + drawn["logsumexp"]  # over the temperature
        return found | {
            "sample": drawn["sample"],
            "sample_probability": drawn["sample_probability"],
            "sample_logprob": logit * asked.temperatures.squeeze(1) - found["logsumexp"],
        }

    def _filtered_fields(self, hidden: Tensor, asked: Asked) -> dict[str, Tensor]:
        """Samples from whole rows of C's logits, so that they do not depend on the batch either."""
        assert asked.filters is not None and asked.uniform is not None
        raw = torch.ones_like(asked.temperatures)
        reference = raw if asked.reference == "raw" else asked.temperatures
        found = self.small.fields(hidden, reference, None, asked.soft, self.vocab_size)
        ids, logits = found["top_ids"], found["top_logits"]
        z = torch.empty_like(logits).scatter_(1, ids, logits)  # (N, V), in the vocabulary's order
        tempered = z * (reference / asked.temperatures)
        probabilities = filtered(tempered, asked.filters).softmax(dim=-1)
        sample = inverse_cdf(probabilities, asked.uniform).unsqueeze(1)
        return found | {
            "sample": sample.squeeze(1),
            "sample_probability": probabilities.gather(1, sample).squeeze(1),
            "sample_logprob": z.gather(1, sample).squeeze(1) - found["logsumexp"],
        }
