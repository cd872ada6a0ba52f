"""DiffusionGemma: one set of weights, run two ways (spec §1, §3).

Notable:
- `encode` is causal, over clean tokens, and writes the prefix cache; `denoise` is bidirectional, over a canvas, and
  only reads it. The layers are the same; only the layer scalars differ;
- rows are packed: tokens of all rows stand in one (N, D) array, and only attention looks at rows one by one;
- the parameter names are the public checkpoint's, without the prefix `model.decoder.`.

Axes: B batch, P prefix length, C canvas length, D hidden size, V vocabulary, N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dgemma_core.backends.cpu import mirrored, native
from dgemma_core.backends.cpu.mirrored import MirroredLayers
from dgemma_core.backends.cpu.native import NativeModel
from dgemma_core.cache import PrefixCache, RowCache, attend_all, attend_causal, check_rows
from dgemma_core.config import LayerConfig, ModelConfig
from dgemma_core.errors import RequestError
from dgemma_core.experts import Routing
from dgemma_core.head import VocabularyHead
from dgemma_core.layers import (
    Attention,
    GatedMLP,
    Layer,
    RMSNorm,
    Rotation,
    SelfConditioning,
    rotations,
    rounded,
)

Rows = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]
"""Token ids: a (B, P) tensor, or a list of rows of different length."""

Spans = Sequence[tuple[int, int]]
"""Of each row, the position of its first token and how many there are."""

KEPT_ROTATIONS = 4096
"""Positions whose rotary angles are kept, at most."""

LayerAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`layers.Attend` with the layer's index in front."""


class Watch(Protocol):
    """What an observer of a denoising pass is shown; None of it is computed for the model's own use."""

    def router(self, layer: int, routing: Routing) -> None:
        """The routing of the N tokens of all rows."""

    def attention(self, layer: int, row: int, queries: Tensor, keys: Tensor) -> None:
        """queries (C, H, d) of one row, and the keys (G, S, d) they see: prefix, then canvas."""


class DiffusionGemma(nn.Module):
    """The text model. Build it with `load`, or on the meta device to look at names and shapes.

    Parameters are left uninitialised: a checkpoint or `training.initialise` fills them.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self.quantized: str | None = None  # the scheme, where matrices are codes and scales
        self._native: NativeModel | None = None
        self._mirrored: MirroredLayers | None = None
        self._rotations: dict[torch.dtype, dict[LayerConfig, Rotation]] = {}
        with torch.device(device or "cpu"):
            self.embed_tokens = nn.Embedding(
                text.vocab_size,
                text.hidden_size,
                _weight=torch.empty(text.vocab_size, text.hidden_size),
            )
            self.layers = nn.ModuleList(Layer(text, layer) for layer in text.layers)
            self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
            self.encoder_layer_scalars = nn.Parameter(torch.ones(len(text.layers)))
            self.self_conditioning = (
                SelfConditioning(text.hidden_size, text.intermediate_size, text.rms_norm_eps)
                if config.can_denoise
                else None
            )
        if dtype is not None:
            self.to(dtype)

    def join(self) -> DiffusionGemma:
        """Lays projections of one input side by side in memory (`layers.Joined`): the same numbers in fewer products.

        For a frozen model that stays where it is; a later `.to(…)` undoes it.
        """
        for module in self.modules():
            if isinstance(module, Attention | GatedMLP):
                module.join()
        return self

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def head(self) -> VocabularyHead:
        """The tied vocabulary head."""
        return VocabularyHead(
            self.embed_tokens.weight,
            self.config.text.final_logit_softcapping,
            native=self._in_native,
        )

    def _in_native(self) -> NativeModel | None:
        """The same model in native.c, where it serves and no gradient is asked for."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        if self._native is None or not self._native.borrowed.current:
            self._native = NativeModel(self) if native.serves(self) else None
        return None if self._native is None or self._native.borrowed.hooked else self._native

    def embed(self, ids: Tensor) -> Tensor:
        """ids (…) → embeddings (…, D), times √D rounded to the weights' dtype."""
        scale = rounded(self.config.text.hidden_size**0.5, self.dtype)
        return self.embed_tokens(ids).to(self.dtype) * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) → soft-capped logits (…, V), float32. For tests and observers; the loops never call it."""
        return self.head.logits(hidden)

    def encoder_scalars(self) -> list[Tensor]:
        """The layer scalars of the causal mode, one each layer."""
        return list(self.encoder_layer_scalars.unbind())

    def decoder_scalars(self) -> list[Tensor]:
        """The layer scalars of the bidirectional mode, one each layer."""
        return [layer.layer_scalar for layer in self._typed_layers()]

    def _typed_layers(self) -> Sequence[Layer]:
        return cast(Sequence[Layer], self.layers)

    def rotations(self, positions: Tensor, dtype: torch.dtype) -> dict[LayerConfig, Rotation]:
        """Rotary angles of `positions` (…), once for each kind of layer."""
        return rotations((layer.config for layer in self._typed_layers()), positions, dtype)

    def _rotations_of(self, spans: Spans) -> dict[LayerConfig, Rotation]:
        """Rotary angles of the positions of all rows. On a CPU those of the first positions are kept, for passes over
        few tokens: they recur, and to compute them takes as long as a small layer."""
        last = max(start + size for start, size in spans)
        many = last > KEPT_ROTATIONS or sum(size for _, size in spans) > mirrored.FEW
        if self.device.type != "cpu" or many:
            rows = [torch.arange(start, start + size) for start, size in spans]
            return self.rotations(torch.cat(rows).to(self.device), self.dtype)
        kept = self._rotations.get(self.dtype)
        if kept is None or last > len(next(iter(kept.values())).cos):
            positions = torch.arange(max(256, 1 << (last - 1).bit_length()))
            kept = self._rotations[self.dtype] = self.rotations(positions, self.dtype)
        return {kind: rotation.of(spans) for kind, rotation in kept.items()}

    def run_layers(
        self,
        x: Tensor,
        spans: Spans,
        attend: LayerAttend,
        scalars: Sequence[Tensor],
        watch: Watch | None = None,
    ) -> Tensor:
        """x (N, D) at the positions of `spans` through all layers and the final norm → (N, D)."""
        rotations = self._rotations_of(spans)
        if mirrored.serves(x):
            if self._mirrored is None or not self._mirrored.borrowed.current:
                self._mirrored = MirroredLayers(self)
            if not self._mirrored.borrowed.hooked:
                return self._mirrored(x, rotations, attend, scalars, watch)
        for i, layer in enumerate(self._typed_layers()):
            seen = None if watch is None else partial(watch.router, i)
            x = layer(x, rotations[layer.config], partial(attend, i), scalars[i], seen)
        return self.norm(x)

    @torch.inference_mode()
    def encode(
        self, ids: Rows, cache: PrefixCache | None = None, *, chunk: int = 1024
    ) -> PrefixCache:
        """Runs clean tokens through the causal mode and returns the lengthened prefix cache.

        ids: (B, P) or B rows of different length, each at least one token. cache: the prefixes that they continue
        (None: empty ones); it stays valid and unchanged. chunk: tokens of a row a pass, which bounds the memory of a
        long prompt. Raises RequestError for token ids outside the vocabulary, empty rows, or a row past the model's
        maximum length.
        """
        rows = self._rows(ids)
        if cache is None:
            cache = PrefixCache.empty(self.config.text, len(rows))
            self._check_copies()
        check_rows(cache, len(rows))
        limit = self.config.text.max_position_embeddings
        for row, prefix in zip(rows, cache.lengths, strict=True):
            if prefix + len(row) > limit:
                raise RequestError(
                    f"{prefix + len(row)} tokens are more than the model's {limit}: shorten the prompt"
                )
        views = [row.view() for row in cache.rows]
        longest = max(len(row) for row in rows)
        width = self.config.text.hidden_size
        hidden = torch.zeros(len(rows), longest, width, dtype=self.dtype, device=self.device)
        for start in range(0, longest, chunk):
            active = [i for i, row in enumerate(rows) if len(row) > start]
            parts = [rows[i][start : start + chunk] for i in active]
            outputs = self._encode_chunk(parts, [views[i] for i in active])
            for i, output in zip(active, outputs, strict=True):
                hidden[i, start : start + len(output)] = output
                views[i].length += len(output)
        return PrefixCache(views, hidden)

    def _check_copies(self) -> None:
        """Gives up copies of weights that have been changed in a way that torch does not count, through `.data`."""
        if self._native is not None and not self._native.unchanged:
            self._native = None
        if self._mirrored is not None and not self._mirrored.unchanged:
            self._mirrored = None

    def _encode_chunk(self, parts: list[Tensor], rows: list[RowCache]) -> tuple[Tensor, ...]:
        sizes = [len(part) for part in parts]
        ids = parts[0] if len(parts) == 1 else torch.cat(parts)
        in_native = self._in_native()
        if in_native is not None:
            return in_native.run(ids, rows, sizes, causal=True).split(sizes)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if len(rows) == 1:
                seen = rows[0].append(layer, keys, values)
                return attend_causal(queries, *seen, rows[0].windows[layer])
            mixed = [
                attend_causal(q, *row.append(layer, k, v), row.windows[layer])
                for row, q, k, v in zip(
                    rows, queries.split(sizes), keys.split(sizes), values.split(sizes), strict=True
                )
            ]
            return torch.cat(mixed)

        spans = [(row.length, size) for row, size in zip(rows, sizes, strict=True)]
        x = self.embed(ids)  # (N, D)
        hidden = self.run_layers(x, spans, attend, self.encoder_scalars())
        return (hidden,) if len(sizes) == 1 else hidden.split(sizes)

    @torch.inference_mode()
    def denoise(
        self,
        canvas: Tensor,
        cache: PrefixCache,
        soft_embedding: Tensor | None = None,
        *,
        watch: Watch | None = None,
    ) -> Tensor:
        """One bidirectional pass over a canvas: canvas (B, C) ids → final hidden states (B, C, D), after the norm.

        soft_embedding (B, C, D): the previous step's, from `Prediction`; None at the first step. The cache is read,
        not changed. Raises RequestError if the checkpoint cannot denoise, or a shape does not fit.
        """
        if self.self_conditioning is None:
            raise RequestError(
                f"this checkpoint ({self.config.model_type}) has no denoiser: decode it autoregressively "
                "(mode='autoregressive'), or load a DiffusionGemma checkpoint"
            )
        if canvas.dim() != 2:
            raise RequestError(f"a canvas is (rows, positions), got shape {tuple(canvas.shape)}")
        check_rows(cache, len(canvas))
        rows, (batch, length) = cache.rows, canvas.shape
        width = self.config.text.hidden_size
        if soft_embedding is not None and soft_embedding.shape != (batch, length, width):
            raise RequestError(
                f"the soft embedding has shape {tuple(soft_embedding.shape)}, the canvas needs "
                f"{(batch, length, width)}"
            )
        in_native = self._in_native()
        if in_native is not None:
            soft = None if soft_embedding is None else soft_embedding.flatten(0, 1)
            return in_native.run(
                canvas.flatten(), rows, [length] * batch, causal=False, soft=soft, watch=watch
            ).unflatten(0, (batch, length))

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if batch == 1 and watch is None:
                return attend_all(queries, *rows[0].overlay(layer, keys, values))
            mixed = []
            parts = zip(
                rows, queries.split(length), keys.split(length), values.split(length), strict=True
            )
            for i, (row, q, k, v) in enumerate(parts):
                seen_keys, seen_values = row.overlay(layer, k, v)
                mixed.append(attend_all(q, seen_keys, seen_values))
                if watch is not None:
                    watch.attention(layer, i, q, seen_keys)
            return torch.cat(mixed)

        x = self.self_conditioning(self.embed(canvas), soft_embedding).flatten(0, 1)  # (N, D)
        spans = [(row.length, length) for row in rows]
        hidden = self.run_layers(x, spans, attend, self.decoder_scalars(), watch)
        return hidden.unflatten(0, (batch, length))

    def _rows(self, ids: Rows) -> list[Tensor]:
        rows = [torch.as_tensor(row, dtype=torch.long) for row in ids]
        if not rows:
            raise RequestError("no rows of tokens to encode")
        for i, row in enumerate(rows):
            if row.dim() != 1 or not len(row):
                raise RequestError(
                    f"row {i} must hold at least one token id, got shape {tuple(row.shape)}"
                )
        packed = torch.cat(rows)
        low, high = torch.aminmax(packed)
        if low < 0 or high >= self.config.text.vocab_size:
            raise RequestError(
                f"token ids must lie in 0 … {self.config.text.vocab_size - 1}, got {int(low)} … {int(high)}: "
                "was the text tokenised for another model?"
            )
        return list(packed.to(self.device).split([len(row) for row in rows]))
