"""DiffusionGemma: one set of weights, run two ways (spec §1, §3).

Notable:
- `encode` is causal, over clean tokens, and writes the prefix cache; `denoise` is bidirectional, over a canvas, and
  only reads it. The layers are the same; only the layer scalars differ;
- rows are packed: tokens of all rows stand in one (N, D) array, and only attention works on rows one by one;
- `encode`, `denoise` and `predict` check what they are given and hand it to the model's backend. `run` is the pass in
  plain modules: what the backend "torch" runs, and nothing else;
- the parameter names are the public checkpoint's, without the prefix `model.decoder.`.

Axes: B batch, P prefix length, C canvas length, D hidden size, V vocabulary, N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from operator import index
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dgemma_core import backends
from dgemma_core.cache import PrefixCache, RowCache, attend_all, attend_causal, check_row
from dgemma_core.config import LayerConfig, ModelConfig
from dgemma_core.draws import upload
from dgemma_core.errors import RequestError
from dgemma_core.experts import Routing
from dgemma_core.head import Prediction, SampleDraws, VocabularyHead
from dgemma_core.layers import Layer, RMSNorm, Rotation, SelfConditioning, rotation, rounded

Rows = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]
"""Token ids: a (B, P) tensor, or a list of rows of different length."""


class Watch(Protocol):
    """What an observer of a denoising pass is shown; none of it is computed for the model's own use."""

    def router(self, layer: int, routing: Routing) -> None:
        """The routing of the N tokens of all rows."""

    def attention(self, layer: int, row: int, queries: Tensor, keys: Tensor) -> None:
        """queries (C, H, d) of one row, and the keys (G, S, d) they see: prefix, then canvas."""


class DiffusionGemma(nn.Module):
    """The text model. Build it with `load`, or on the meta device to inspect names and shapes.

    Parameters are left uninitialised: a checkpoint or training fills them. Passes run on the backend "torch" until
    `use` chooses another; `load` does.
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
        self._backend_name = "torch"
        self._backend: backends.Backend | None = None
        with torch.device(device or "cpu"):
            weight = torch.empty(text.vocab_size, text.hidden_size)
            self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size, _weight=weight)
            self.layers = nn.ModuleList(Layer(text, layer) for layer in text.layers)
            self.causal_layers: nn.ModuleList | None = None  # where an adapter parts the modes
            self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
            self.encoder_layer_scalars = nn.Parameter(torch.ones(len(text.layers)))
            self.self_conditioning = (
                SelfConditioning(text.hidden_size, text.intermediate_size, text.rms_norm_eps)
                if config.can_denoise
                else None
            )
        if dtype is not None:
            self.to(dtype)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    # --- the backend

    @property
    def backend(self) -> backends.Backend:
        """What runs the passes; `backend.name` says which."""
        if self._backend is None:
            self._backend = backends.choose(self, self._backend_name)
        return self._backend

    def use(self, name: str = "auto") -> DiffusionGemma:
        """Chooses the backend anew: "auto", or one of `backends.names()`.

        Raises RequestError for another name, DeviceError where that backend cannot run this model.
        """
        self._backend = backends.choose(self, name)
        self._backend_name = name
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model chooses a backend of its own, at its first pass."""
        return {**self.__dict__, "_backend": None}

    # --- a pass in plain modules

    @property
    def head(self) -> VocabularyHead:
        """The tied vocabulary head."""
        return VocabularyHead(self.embed_tokens.weight, self.config.text.final_logit_softcapping)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) → soft-capped logits (…, V), float32. For tests and observers; the loops never call it."""
        return self.head.logits(hidden)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (…) → embeddings (…, D), times √D rounded to the weights' dtype."""
        scale = rounded(self.config.text.hidden_size**0.5, self.dtype)
        return self.embed_tokens(ids).to(self.dtype) * scale

    def encoder_scalars(self) -> list[Tensor]:
        """The layer scalars of the causal mode, one each layer."""
        return list(self.encoder_layer_scalars.unbind())

    def decoder_scalars(self) -> list[Tensor]:
        """The layer scalars of the bidirectional mode, one each layer."""
        return [layer.layer_scalar for layer in self.typed_layers()]

    def typed_layers(self, causal: bool = False) -> Sequence[Layer]:
        """The layers of a mode: the same for both, unless an adapter changes one alone (`files.lora`)."""
        of_mode = self.causal_layers if causal and self.causal_layers is not None else self.layers
        return cast(Sequence[Layer], of_mode)

    def rotations(self, positions: Tensor, dtype: torch.dtype) -> dict[LayerConfig, Rotation]:
        """Rotary angles of `positions` (…), once for each kind of layer."""
        kinds = set(self.config.text.layers)
        return {kind: rotation(kind, positions, dtype) for kind in kinds}

    def run(
        self,
        ids: Tensor,
        rows: Sequence[RowCache],
        lengths: Sequence[int],
        *,
        causal: bool,
        soft: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """ids (N,), of which `lengths` stand behind each row's prefix → hidden states (N, D), after the last norm.

        causal: keys and values are appended to the rows, whose `length` the caller advances; else the tokens are a
        canvas, and soft (N, D) is its soft embedding (None: the first step's zeros).
        """
        x = self.embed(ids)  # (N, D)
        if not causal:
            assert self.self_conditioning is not None
            x = self.self_conditioning(x, soft)
        spans = zip(rows, lengths, strict=True)
        positions = torch.cat([torch.arange(row.length, row.length + n) for row, n in spans])
        rotations = self.rotations(positions.to(ids.device), self.dtype)
        scalars = self.encoder_scalars() if causal else self.decoder_scalars()
        for i, layer in enumerate(self.typed_layers(causal)):
            attend = partial(_attend, i, rows, lengths, causal, watch)
            observe = None if watch is None else partial(watch.router, i)
            x = layer(x, rotations[layer.config], attend, scalars[i], observe=observe)
        return self.norm(x)

    # --- what everybody calls

    @torch.inference_mode()
    def encode(
        self, ids: Rows, cache: PrefixCache | None = None, *, chunk: int = 1024
    ) -> PrefixCache:
        """Runs clean tokens through the causal mode and returns the lengthened prefix cache.

        ids: (B, P) or B rows of different length, each at least one token. cache: the prefixes that they continue
        (None: empty ones); it stays valid and unchanged. chunk: tokens of a row a pass, which bounds the memory of a
        long prompt. Raises RequestError for token ids outside the vocabulary, empty rows, a row past the model's
        maximum length, or a cache of another model.
        """
        if type(chunk) is not int or chunk < 1:
            raise RequestError(f"chunk must be a whole number of at least 1, got {chunk!r}")
        texts = self._checked_rows(ids)
        if cache is None:
            self.backend.refresh()
            cache = PrefixCache.empty(self.config.text, len(texts))
        rows = [row.view() for row in self._rows_of(cache, list(map(len, texts)))]
        outputs: list[list[Tensor]] = [[] for _ in texts]
        for start in range(0, max(map(len, texts)), chunk):
            active = [i for i, text in enumerate(texts) if len(text) > start]
            parts = [texts[i][start : start + chunk] for i in active]
            packed = upload(torch.tensor(list(chain.from_iterable(parts))), self.device)
            lengths = list(map(len, parts))
            hidden = self.backend.forward(packed, [rows[i] for i in active], lengths, causal=True)
            for i, part, output in zip(active, parts, hidden.split(lengths), strict=True):
                outputs[i].append(output)
                rows[i].length += len(part)
                rows[i].tokens += tuple(part)
        whole = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in outputs]
        padded = (
            nn.utils.rnn.pad_sequence(whole, batch_first=True) if len(whole) > 1 else whole[0][None]
        )
        return PrefixCache(rows, padded)

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
        not changed. Raises RequestError if the checkpoint cannot denoise, or a shape, a dtype or an id does not fit.
        """
        if self.self_conditioning is None:
            raise RequestError(
                f"this checkpoint ({self.config.model_type}) has no denoiser: decode it autoregressively "
                "(mode='autoregressive'), or load a DiffusionGemma checkpoint"
            )
        if canvas.dim() != 2 or not canvas.numel():
            raise RequestError(
                f"a canvas is (rows, positions), each at least 1, got shape {tuple(canvas.shape)}"
            )
        canvas = self._checked_ids(canvas)
        batch, length = canvas.shape
        rows = self._rows_of(cache, [length] * batch)
        if soft_embedding is not None:
            wanted = (batch, length, self.config.text.hidden_size)
            if soft_embedding.shape != wanted or not soft_embedding.is_floating_point():
                raise RequestError(
                    f"the soft embedding has shape {tuple(soft_embedding.shape)} and dtype {soft_embedding.dtype}, "
                    f"the canvas needs {wanted} and a floating dtype"
                )
            soft_embedding = soft_embedding.to(self.device, self.dtype).flatten(0, 1)
        hidden = self.backend.forward(
            canvas.flatten(), rows, [length] * batch, causal=False, soft=soft_embedding, watch=watch
        )
        return hidden.unflatten(0, (batch, length))

    @torch.inference_mode()
    def predict(
        self,
        hidden: Tensor,
        temperature: Tensor | float,
        draws: SampleDraws | None = None,
        **options: Any,
    ) -> Prediction:
        """hidden (B, C, D) → what the head says of every position; options as in `VocabularyHead.predict`."""
        return self.backend.predict(hidden, temperature, draws, **options)

    # --- checks

    def _rows_of(self, cache: PrefixCache, lengths: Sequence[int]) -> list[RowCache]:
        """The cache's rows, each of which has space for so many new tokens."""
        if len(cache) != len(lengths):
            raise RequestError(
                f"{len(lengths)} rows of tokens for a prefix cache of {len(cache)} rows: they must be as many"
            )
        limit = self.config.text.max_position_embeddings
        for row, new in zip(cache.rows, lengths, strict=True):
            if row.length + new > limit:
                raise RequestError(
                    f"{row.length + new} tokens are more than the model's {limit}: shorten the prompt"
                )
            check_row(row, self.config.text, self.norm.weight)
        return cache.rows

    def _checked_ids(self, ids: Tensor) -> Tensor:
        """Token ids as int64 on the model's device."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise RequestError(f"token ids are whole numbers, got a tensor of {ids.dtype}")
        if ids.is_cuda:  # what a step made on the card; asking the card would make the host wait
            return ids.long()
        low, high = map(int, torch.aminmax(ids))
        if low < 0 or high >= self.config.text.vocab_size:
            raise self._no_token(low, high)
        return ids.to(self.device, torch.long)

    def _checked_rows(self, ids: Rows) -> list[list[int]]:
        """Rows of token ids, on the host."""
        rows = []
        for i, row in enumerate(ids):
            try:
                found = row.tolist() if hasattr(row, "tolist") else row
                rows.append([index(id) for id in found])
            except TypeError as error:
                raise RequestError(f"row {i} must be a list of token ids ({error})") from error
            if not rows[-1]:
                raise RequestError(f"row {i} must hold at least one token id")
            low, high = min(rows[-1]), max(rows[-1])
            if low < 0 or high >= self.config.text.vocab_size:
                raise self._no_token(low, high)
        if not rows:
            raise RequestError("no rows of tokens to encode")
        return rows

    def _no_token(self, low: int, high: int) -> RequestError:
        return RequestError(
            f"token ids must lie in 0 … {self.config.text.vocab_size - 1}, got {low} … {high}: "
            "was the text tokenised for another model?"
        )


def _attend(
    layer: int,
    rows: Sequence[RowCache],
    lengths: Sequence[int],
    causal: bool,
    watch: Watch | None,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """`layers.Attend` over the rows: (N, H, d), (N, G, d), (N, G, d) → (N, H, d)."""
    mixed = []
    split = [each.split(list(lengths)) for each in (queries, keys, values)]
    for i, (row, q, k, v) in enumerate(zip(rows, *split, strict=True)):
        if causal:
            seen_keys, seen_values = row.append(layer, k, v)
            mixed.append(attend_causal(q, seen_keys, seen_values, row.windows[layer]))
            continue
        seen_keys, seen_values = row.overlay(layer, k, v)
        mixed.append(attend_all(q, seen_keys, seen_values))
        if watch is not None:
            watch.attention(layer, i, q, seen_keys)
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
