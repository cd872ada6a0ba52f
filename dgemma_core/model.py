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

    def layer_scalars(self, causal: bool) -> list[Tensor]:
        """The layer scalars of a mode, one each layer."""
        if causal:
            return list(self.encoder_layer_scalars.unbind())
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
        if not any(canvas):
            stream = _Stream(self, ids, rows, lengths, causal=causal, soft=soft, watch=watch)
            for i in range(len(self.layers)):
                stream.through(i)
            return self.norm(stream.x)
        clean = [n - laid for n, laid in zip(lengths, canvas, strict=True)]
        pieces = ids.split([count for pair in zip(clean, canvas, strict=True) for count in pair])
        written = _Stream(self, torch.cat(pieces[::2]), rows, clean, causal=True, spare=canvas)
        noisy = _Stream(self, torch.cat(pieces[1::2]), rows, canvas, causal=False, ahead=clean)
        for i in range(len(self.layers)):  # the canvases see what the tokens before them write
            written.through(i)
            noisy.through(i)
        parts = zip(written.x.split(clean), noisy.x.split(list(canvas)), strict=True)
        return self.norm(torch.cat(list(chain.from_iterable(parts))))

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
        takes its first denoising step in the same pass, and `PrefixCache.canvas` holds its hidden states. chunk: tokens
        of a row a pass, which bounds the memory of a long prompt. Raises RequestError for token ids outside the
        vocabulary, empty rows, a row past the model's maximum length, or a cache of another model.
        """
        if type(chunk) is not int or chunk < 1:
            raise RequestError(f"chunk must be a whole number of at least 1, got {chunk!r}")
        texts = checked_rows(ids, self.config)
        canvases = checked_canvases(canvas, len(texts), self.config)
        if cache is None:
            self.backend.refresh()
            cache = PrefixCache.empty(self.config.text, len(texts))
        whole = [text + laid for text, laid in zip(texts, canvases, strict=True)]
        places = checked_cache(cache, list(map(len, whole)), self.config, self.norm.weight)
        rows = [row.view() for row in places]
        outputs: list[list[Tensor]] = [[] for _ in texts]
        denoised = [torch.empty(0)] * len(texts)
        for start in range(0, max(map(len, texts)), chunk):
            active = [i for i, text in enumerate(texts) if len(text) > start]
            last = [len(texts[i]) <= start + chunk for i in active]
            parts = [
                whole[i][start : None if ends else start + chunk]
                for i, ends in zip(active, last, strict=True)
            ]
            laid = [len(canvases[i]) * ends for i, ends in zip(active, last, strict=True)]
            packed = upload(torch.tensor(list(chain.from_iterable(parts))), self.device)
            lengths = list(map(len, parts))
            held = [rows[i] for i in active]
            hidden = self.backend.forward(packed, held, lengths, causal=True, canvas=laid)
            for row, part, n, output in zip(
                active, parts, laid, hidden.split(lengths), strict=True
            ):
                clean = len(part) - n
                outputs[row].append(output[:clean] if n else output)
                if n:
                    denoised[row] = output[clean:].clone()
                rows[row].length += clean
                rows[row].tokens += tuple(part[:clean])
        joined = [each[0] if len(each) == 1 else torch.cat(each) for each in outputs]
        padded = joined[0][None]
        if len(joined) > 1:
            padded = nn.utils.rnn.pad_sequence(joined, batch_first=True)
        return PrefixCache(rows, padded, denoised)

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
        if not isinstance(canvas, Tensor) or canvas.dim() != 2 or not canvas.numel():
            shape = tuple(canvas.shape) if isinstance(canvas, Tensor) else type(canvas).__name__
            raise RequestError(
                f"a canvas is (rows, positions), a tensor, at least 1 each, got shape {shape}"
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


class _Stream:
    """Tokens of one mode on their way through the layers: x (N, D)."""

    def __init__(
        self,
        model: DiffusionGemma,
        ids: Tensor,
        rows: Sequence[RowCache],
        lengths: Sequence[int],
        *,
        causal: bool,
        soft: Tensor | None = None,
        watch: Watch | None = None,
        spare: Sequence[int] = (),
        ahead: Sequence[int] = (),
    ) -> None:
        """spare, ahead: of each row, positions of a canvas behind these tokens, or tokens before this canvas."""
        self.x = model.embed(ids)
        if not causal:
            assert model.self_conditioning is not None
            self.x = model.self_conditioning(self.x, soft)
        none = [0] * len(rows)
        self.rows = list(zip(rows, lengths, spare or none, ahead or none, strict=True))
        spans = [(row.length + before, n) for row, n, _, before in self.rows]
        positions = torch.cat([torch.arange(start, start + n) for start, n in spans])
        self.rotations = model.rotations(positions.to(ids.device), model.dtype)
        self.scalars = model.layer_scalars(causal)
        self.layers, self.causal, self.watch = model.typed_layers(causal), causal, watch

    def through(self, i: int) -> None:
        """Layer i."""
        layer = self.layers[i]
        observe = None if self.watch is None else partial(self.watch.router, i)
        turn, attend = self.rotations[layer.config], partial(self._attend, i)
        self.x = layer(self.x, turn, attend, self.scalars[i], observe=observe)

    def _attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`layers.Attend` over the rows: (N, H, d), (N, G, d), (N, G, d) → (N, H, d)."""
        mixed = []
        split = [each.split([n for _, n, _, _ in self.rows]) for each in (queries, keys, values)]
        for i, ((row, n, spare, ahead), q, k, v) in enumerate(zip(self.rows, *split, strict=True)):
            if self.causal:
                keys, values = row.append(layer, k, v, spare=spare)
                mixed.append(attend_causal(q, keys, values, row.windows[layer]))
            elif n:
                keys, values = row.lay(layer, k, v, ahead=ahead)
                mixed.append(attend_all(q, keys, values))
                if self.watch is not None:
                    self.watch.attention(layer, i, q, keys)
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
