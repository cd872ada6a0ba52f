"""The backend "cuda": passes of usual shape are recorded as CUDA graphs, all others run the same functions eagerly.

Notable:
- a step is two replays, the layers and the head. What changes between steps (ids, soft embedding, where the rows' keys
  stand, temperatures, uniform numbers) is copied into fixed buffers before a replay, and results are copied out of them
  after it, since states keep what they are given;
- a batch takes the next larger recorded size; the places beyond it are empty rows, whose tokens are zeros;
- recorded are canvases of the checkpoint's length (denoised, or committed causally) and single causal tokens. Prompts
  and other shapes run eagerly; observers get a pass of the reference;
- on a CPU the same code runs eagerly, for tests.

Axes: B rows, C positions of a row, N = B·C, D hidden size.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgemma_core.backends.cuda.head import Folded, Wanted, fold
from dgemma_core.backends.cuda.passes import Pass
from dgemma_core.backends.cuda.recording import Replay
from dgemma_core.backends.cuda.rows import Held, HeldRow, Reserve
from dgemma_core.cache import PrefixCache, RowCache
from dgemma_core.errors import RequestError
from dgemma_core.head import Asked, Prediction, VocabularyHead, check_finite
from dgemma_core.model import DiffusionGemma

if TYPE_CHECKING:
    from dgemma_core.model import Watch

SIZES = (1, 2, 4, 8, 16, 32)
"""Batch sizes that are recorded."""


def recorded_size(batch: int) -> int | None:
    """The smallest recorded batch size that holds `batch` rows; None above the largest."""
    return next((size for size in SIZES if size >= batch), None)


class RecordedPass:
    """All layers over `places` rows of `tokens` new tokens each, in fixed buffers."""

    def __init__(self, run: Pass, places: int, tokens: int, pool: Any) -> None:
        model = run.model
        device, count = model.device, places * tokens
        self.run, self.tokens = run, tokens
        self.ids = torch.zeros(count, dtype=torch.long, device=device)
        self.soft = (
            None
            if run.causal
            else torch.zeros(count, model.config.text.hidden_size, dtype=model.dtype, device=device)
        )
        self.held = Held.empty(places, len(run.layers), device)
        lengths = [tokens] * places
        self.replay = Replay(lambda: run(self.ids, self.soft, self.held, lengths), device, pool)

    def load(self, ids: Tensor, rows: Sequence[HeldRow], soft: Tensor | None) -> None:
        """ids (N,), rows from `Reserve`, soft (N, D) or None, of as many rows as there are places, or fewer."""
        self.ids[: len(ids)].copy_(ids)
        if self.soft is not None and soft is None:
            self.soft.zero_()
        elif self.soft is not None and soft is not None:
            self.soft[: len(soft)].copy_(soft)
        self.held.load(rows)

    def __call__(self, ids: Tensor, rows: Sequence[HeldRow], soft: Tensor | None) -> Tensor:
        """As `load`; returns hidden states (N, D)."""
        self.load(ids, rows, soft)
        hidden = self.replay()[: len(ids)].clone()
        self.held.rows[:] = [None] * len(self.held.rows)  # the buffers belong to the rows
        return hidden


class RecordedHead:
    """The head over `count` positions, in fixed buffers."""

    def __init__(self, model: DiffusionGemma, count: int, wanted: Wanted, pool: Any) -> None:
        text, device = model.config.text, model.device
        self.hidden = torch.zeros(count, text.hidden_size, dtype=model.dtype, device=device)
        self.temperatures = torch.ones(count, device=device)
        self.uniform = torch.zeros(count, dtype=torch.float64, device=device)
        weight, cap = model.embed_tokens.weight, text.final_logit_softcapping

        def run() -> Folded:
            return fold(self.hidden, weight, cap, self.temperatures, self.uniform, wanted)

        self.replay = Replay(run, device, pool)

    def load(self, hidden: Tensor, asked: Asked) -> None:
        self.hidden[: len(hidden)].copy_(hidden)
        if asked.uniform is not None:
            self.temperatures[: len(hidden)].copy_(asked.temperatures.squeeze(1))
            self.uniform[: len(hidden)].copy_(asked.uniform)

    def __call__(self, hidden: Tensor, asked: Asked) -> Folded:
        """hidden (N, D), of as many positions as were recorded, or fewer."""
        self.load(hidden, asked)
        count = len(hidden)
        found = self.replay()
        return Folded(
            found.ids[:, :count].clone(),
            found.numbers[:, :count].clone(),
            *(None if value is None else value[:count].clone() for value in found[2:]),
        )


class CudaHead(VocabularyHead):
    """`VocabularyHead` whose statistics come from `fold`."""

    def __init__(self, backend: CudaBackend, positions: int) -> None:
        """positions: of each row."""
        model = backend.model
        super().__init__(model.embed_tokens.weight, model.config.text.final_logit_softcapping)
        self.backend, self.positions = backend, positions

    def fields(self, hidden: Tensor, asked: Asked) -> dict[str, Tensor]:
        if asked.filters is not None:
            self.backend.tell("filters (top_k, top_p) are applied by the reference's head")
            return super().fields(hidden, asked)
        return self.backend.folded(hidden, asked, self.positions).fields()


@dataclass(frozen=True)
class RecordedStep:
    """A step without the host's part: a call replays its layers, then its head, on the same input again.

    For benchmarks. Each replay writes keys and values behind the rows anew.
    """

    layers: Replay[Tensor]
    """The pass through all layers."""
    head: Replay[Folded]
    rows: tuple[HeldRow, ...]
    """Keeps the memory that the replay writes to."""

    def __call__(self) -> None:
        self.layers()
        self.head()


class CudaBackend:
    """Serves the passes of one model. Make it by `dgemma_core.backends.cuda.make`."""

    name = "cuda"

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model
        self.length = model.config.canvas_length
        self.passes = {
            causal: Pass(model, causal=causal)
            for causal in (True, False)
            if causal or model.self_conditioning is not None
        }
        self.reserve = Reserve(model.config.text, model.norm.weight)
        self.recorded_passes: dict[tuple[bool, int, int], RecordedPass] = {}
        self.recorded_heads: dict[tuple[int, Wanted], RecordedHead] = {}
        self.pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None
        self.lock = threading.Lock()
        self.told: set[str] = set()

    def tell(self, line: str) -> None:
        """Says something once."""
        if line not in self.told:
            self.told.add(line)
            warnings.warn(f"backend 'cuda': {line}", stacklevel=3)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One pass at a time, since there is one set of fixed buffers; on the model's device."""
        device = self.model.device
        with self.lock, torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield

    def refresh(self) -> None:
        """Nothing is copied. Moved weights are noticed by `guard.Guarded`."""

    # --- the layers

    @torch.inference_mode()
    def forward(
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
        if watch is not None:
            return self.model.run(ids, rows, lengths, causal=causal, soft=soft, watch=watch)
        if any(canvas) and self.model.causal_layers is not None:
            self.tell("a pass of both modes, which an adapter has parted, runs on the reference")
            return self.model.run(ids, rows, lengths, causal=causal, canvas=canvas)
        with self.alone():
            held = self.reserve(rows, lengths, causal=causal, canvas=canvas)
            if any(canvas):
                return self._both(ids, held, lengths, canvas)
            tokens, size = lengths[0], recorded_size(len(rows))
            usual = tokens == self.length or (causal and tokens == 1)
            if usual and size is not None and len(set(lengths)) == 1:
                return self._pass(causal, size, tokens)(ids, held, soft)
            loaded = Held.empty(len(rows), len(self.model.layers), ids.device)
            loaded.load(held)
            return self.passes[causal](ids, soft, loaded, lengths)

    def _both(
        self, ids: Tensor, rows: Sequence[HeldRow], lengths: Sequence[int], canvas: Sequence[int]
    ) -> Tensor:
        """A causal pass in which a canvas stands behind some rows: to the kernels each is a row of its own."""
        parts: list[tuple[HeldRow, int, bool]] = []
        for row, new, laid in zip(rows, lengths, canvas, strict=True):
            behind = HeldRow(row.length + new - laid, row.layout)
            parts += [part for part in ((row, new - laid, False), (behind, laid, True)) if part[1]]
        loaded = Held.empty(len(parts), len(self.model.layers), ids.device)
        loaded.load([row for row, _, _ in parts])
        tokens, of_canvas = [n for _, n, _ in parts], [laid for _, _, laid in parts]
        return self.passes[True](ids, None, loaded, tokens, of_canvas)

    def _pass(self, causal: bool, places: int, tokens: int) -> RecordedPass:
        key = causal, places, tokens
        if key not in self.recorded_passes:
            self.recorded_passes[key] = RecordedPass(self.passes[causal], places, tokens, self.pool)
        return self.recorded_passes[key]

    # --- the head

    @torch.inference_mode()
    def predict(self, hidden: Tensor, *arguments: Any, **options: Any) -> Prediction:
        positions = hidden.shape[1] if hidden.dim() == 3 else 0
        found = CudaHead(self, positions).predict(hidden, *arguments, **options)
        check_finite(hidden, found.logsumexp)
        return found

    def folded(self, hidden: Tensor, asked: Asked, positions: int) -> Folded:
        """hidden (N, D) of rows of so many positions → what `asked` asks for."""
        wanted = Wanted(
            sampled=asked.uniform is not None,
            two_distributions=asked.two_distributions,
            soft=asked.soft,
            top_k=asked.top_k,
        )
        size = recorded_size(len(hidden) // positions)
        with self.alone():
            if size is not None and positions in (1, self.length):
                return self._head(size * positions, wanted)(hidden, asked)
            temperatures = asked.temperatures.squeeze(1)
            uniform = temperatures.double() if asked.uniform is None else asked.uniform
            weight, cap = (
                self.model.embed_tokens.weight,
                self.model.config.text.final_logit_softcapping,
            )
            return fold(hidden, weight, cap, temperatures, uniform, wanted)

    def _head(self, count: int, wanted: Wanted) -> RecordedHead:
        key = count, wanted
        if key not in self.recorded_heads:
            self.recorded_heads[key] = RecordedHead(self.model, count, wanted, self.pool)
        return self.recorded_heads[key]

    # --- for benchmarks

    @torch.inference_mode()
    def recorded(self, ids: Tensor, cache: PrefixCache, soft: Tensor | None = None) -> RecordedStep:
        """The bare replay of a denoising step, ids (B, C) and soft (B, C, D); or of a greedy token, ids (B, 1).

        It holds until the backend makes another pass of the same batch size. Raises RequestError for a shape that is
        not recorded.
        """
        batch, tokens = ids.shape
        causal, size = tokens == 1, recorded_size(batch)
        if tokens not in (1, self.length) or size is None:
            raise RequestError(
                f"recorded are canvases of {self.length} tokens and single tokens, of at most {SIZES[-1]} rows, "
                f"not {tuple(ids.shape)}"
            )
        wanted = Wanted(sampled=not causal, two_distributions=False, soft=not causal, top_k=0)
        with self.alone():
            rows = self.reserve(cache.rows, [tokens] * batch, causal=causal)
            layers = self._pass(causal, size, tokens)
            layers.load(ids.flatten(), rows, None if soft is None else soft.flatten(0, 1))
            head = self._head(size * tokens, wanted)
        return RecordedStep(layers.replay, head.replay, tuple(rows))
