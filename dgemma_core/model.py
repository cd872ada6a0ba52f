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
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dgemma_core import backends
from dgemma_core.cache import PrefixCache, RowCache, attend_all, attend_causal
from dgemma_core.checks import (
    Rows,
    check_denoiser,
    checked_cache,
    checked_canvases,
    checked_ids,
    checked_rows,
)
from dgemma_core.config import LayerConfig, ModelConfig
from dgemma_core.draws import upload
from dgemma_core.errors import RequestError
from dgemma_core.experts import Routing
from dgemma_core.head import Prediction, SampleDraws, VocabularyHead
from dgemma_core.layers import Layer, RMSNorm, Rotation, SelfConditioning, rotation, rounded


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
    def modes_parted(self) -> bool:
        """Whether an adapter changes one mode alone, so that no pass can be of both."""
        return self.causal_layers is not None

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
        canvas: Sequence[int] = (),
        soft: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """ids (N,), of which `lengths` stand behind each row's prefix → hidden states (N, D), after the last norm.

        causal: keys and values are appended to the rows, whose `length` the caller advances; else the tokens are a
        canvas, and soft (N, D) is its soft embedding (None: the first step's zeros). canvas: how many of a causal
        row's last tokens are a canvas at its first step, none if empty; they are not appended.
        """
        x = self.embed(ids)  # (N, D)
        canvas = canvas or ([0] * len(rows) if causal else lengths)
        spans = list(zip(rows, lengths, canvas, strict=True))
        noisy = torch.cat([torch.arange(n) >= n - c for _, n, c in spans])
        noisy = noisy.unsqueeze(1).to(ids.device)  # (N, 1)
        if any(canvas):
            assert self.self_conditioning is not None
            x = torch.where(noisy, self.self_conditioning(x, soft), x)
        positions = torch.cat([torch.arange(row.length, row.length + n) for row, n, _ in spans])
        rotations = self.rotations(positions.to(ids.device), self.dtype)
        of_decoder, of_encoder = self.decoder_scalars(), self.encoder_scalars()
        for i, layer in enumerate(self.typed_layers(causal)):
            attend = partial(_attend, i, spans, watch)
            observe = None if watch is None else partial(watch.router, i)
            scalar = torch.where(noisy, of_decoder[i], of_encoder[i])
            x = layer(x, rotations[layer.config], attend, scalar, observe=observe)
        return self.norm(x)

    # --- what everybody calls

    @torch.inference_mode()
    def encode(
        self,
        ids: Rows,
        cache: PrefixCache | None = None,
        *,
        canvas: Rows | None = None,
        chunk: int = 1024,
    ) -> PrefixCache:
        """Runs clean tokens through the causal mode and returns the lengthened prefix cache.

        ids: (B, P) or B rows of different length, each at least one token. cache: the prefixes that they continue
        (None: empty ones); it stays valid and unchanged. canvas: a canvas behind each row's tokens, or an empty row; it
        takes its first denoising step in the same pass, and `PrefixCache.canvas` holds its hidden states. Where an
        adapter parts the modes it takes a pass of its own. chunk: tokens of a row a pass, which bounds the memory of a
        long prompt. Raises RequestError for token ids outside the vocabulary, empty rows, a row past the model's
        maximum length, or a cache of another model.
        """
        if type(chunk) is not int or chunk < 1:
            raise RequestError(f"chunk must be a whole number of at least 1, got {chunk!r}")
        texts = checked_rows(ids, self.config)
        canvases = checked_canvases(canvas, len(texts), self.config)
        if cache is None:
            self.backend.refresh()
            cache = PrefixCache.empty(self.config.text, len(texts))
        sizes = [len(text) + len(laid) for text, laid in zip(texts, canvases, strict=True)]
        rows = [row.view() for row in checked_cache(cache, sizes, self.config, self.norm.weight)]
        outputs: list[list[Tensor]] = [[] for _ in texts]
        denoised = [self.norm.weight.new_empty(0, self.config.text.hidden_size)] * len(texts)
        for start in range(0, max(map(len, texts)), chunk):
            active = [i for i, text in enumerate(texts) if len(text) > start]
            parts = [texts[i][start : start + chunk] for i in active]
            last = [not self.modes_parted and len(texts[i]) <= start + chunk for i in active]
            behind = [canvases[i] if ends else [] for i, ends in zip(active, last, strict=True)]
            whole = [part + laid for part, laid in zip(parts, behind, strict=True)]
            held = [rows[i] for i in active]
            hidden = self._pass(whole, held, causal=True, canvas=list(map(len, behind)))
            for i, part, output in zip(active, parts, hidden, strict=True):
                outputs[i].append(output[: len(part)])
                denoised[i] = output[len(part) :]
                rows[i].length += len(part)
                rows[i].tokens += tuple(part)
        if self.modes_parted and any(canvases):
            active = [i for i, laid in enumerate(canvases) if laid]
            held, laid = [rows[i] for i in active], [canvases[i] for i in active]
            for i, output in zip(active, self._pass(laid, held, causal=False), strict=True):
                denoised[i] = output
        joined = [each[0] if len(each) == 1 else torch.cat(each) for each in outputs]
        padded = joined[0][None]
        if len(joined) > 1:
            padded = nn.utils.rnn.pad_sequence(joined, batch_first=True)
        return PrefixCache(rows, padded, denoised)

    def _pass(
        self, tokens: Sequence[list[int]], rows: Sequence[RowCache], **options: Any
    ) -> Sequence[Tensor]:
        """One pass over some tokens behind each row → hidden states (T, D) of each row's."""
        packed = upload(torch.tensor(list(chain.from_iterable(tokens))), self.device)
        lengths = list(map(len, tokens))
        return self.backend.forward(packed, rows, lengths, **options).split(lengths)

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
        check_denoiser(self.config)
        if canvas.dim() != 2 or not canvas.numel():
            raise RequestError(
                f"a canvas is (rows, positions), each at least 1, got shape {tuple(canvas.shape)}"
            )
        canvas = checked_ids(canvas, self.config, self.device)
        batch, length = canvas.shape
        rows = checked_cache(cache, [length] * batch, self.config, self.norm.weight)
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


def _attend(
    layer: int,
    spans: Sequence[tuple[RowCache, int, int]],
    watch: Watch | None,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """`layers.Attend` over rows with T tokens each, C of them a canvas: (N, H, d), (N, G, d), (N, G, d) → (N, H, d)."""
    mixed = []
    split = [each.split([n for _, n, _ in spans]) for each in (queries, keys, values)]
    for i, ((row, n, canvas), q, k, v) in enumerate(zip(spans, *split, strict=True)):
        seen = row.append(layer, k, v, canvas=canvas)
        if n > canvas:
            end = seen[0].shape[1] - canvas
            window, (clean_keys, clean_values) = row.windows[layer], (x[:, :end] for x in seen)
            mixed.append(attend_causal(q[: n - canvas], clean_keys, clean_values, window))
        if canvas:
            start = row.length + n - canvas
            keys, values = (
                each[:, row.first(layer, start) - row.first(layer, row.length) :] for each in seen
            )
            mixed.append(attend_all(q[n - canvas :], keys, values))
            if watch is not None:
                watch.attention(layer, i, q, keys)
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
