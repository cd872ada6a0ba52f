"""What a denoising step is made of, and the tiles of the experts' products.

A part is timed as one recording of that part of all layers, so that no kernel reads its weights from a warm cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.backends.cuda import fused
from dgemma_core.backends.cuda.backend import CudaBackend
from dgemma_core.backends.cuda.recording import Replay
from dgemma_core.backends.cuda.rows import Held
from dgemma_core.cache import PrefixCache
from dgemma_core.experts import Routing
from dgemma_core.layers import Layer
from dgemma_core.model import DiffusionGemma
from dgemma_evals.bench.gpu.card import timed


def fast(model: DiffusionGemma) -> CudaBackend:
    """The model's backend "cuda" itself, without the guard in front of it."""
    return cast(CudaBackend, cast(Any, model.backend).fast)


def tune(model: DiffusionGemma, device: torch.device, tokens: int) -> dict[str, Any]:
    """Tries the tiles of the experts' products for this card and keeps the quickest, over the weights of all layers."""
    layers = cast("list[Layer]", list(model.layers))
    width, k = model.config.text.hidden_size, model.config.text.top_k_experts
    kept: dict[str, Any] = {}
    for size, count in (("few", 1), ("many", tokens)):
        if size == "many" and count * k <= grouped.FEW:
            continue
        x = torch.randn(count, width, device=device).to(model.dtype)
        scores = torch.rand(len(layers), count, model.config.text.num_experts, device=device)
        chosen = scores.topk(k).indices.int()
        weights = torch.full((count, k), 1 / k, device=device)

        def run(x: Tensor = x, weights: Tensor = weights, chosen: Tensor = chosen) -> None:
            for layer, which in zip(layers, chosen, strict=True):
                grouped.outputs(layer.experts, x, weights, which)

        for part in ("in", "out"):
            usual = grouped.TILES[part, size]
            times: dict[grouped.Tile, float] = {}
            for tile in dict.fromkeys([usual, *grouped.CANDIDATES[size]]):
                grouped.TILES[part, size] = tile
                try:
                    times[tile] = statistics.median(timed(device, 3, 3, Replay(run, device)))
                except Exception as error:  # a tile that this card has no room for
                    if "OutOfResources" not in type(error).__name__:
                        raise
            best = min(times, key=lambda tile: times[tile])
            grouped.TILES[part, size] = best
            kept[f"{part}, {size}"] = {
                "tile": asdict(best),
                "ms": times[best],
                "usual_ms": times.get(usual),
            }
    return kept


class _Touched:
    """Counts the experts that a pass touches, layer by layer."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def router(self, layer: int, routing: Routing) -> None:
        self.counts.append(int(routing.chosen.unique().numel()))

    def attention(self, layer: int, row: int, queries: Tensor, keys: Tensor) -> None:
        """Not looked at."""


def touched(model: DiffusionGemma, cache: PrefixCache, canvas: Tensor, soft: Tensor) -> list[int]:
    """Experts that one denoising pass touches, in each layer."""
    counter = _Touched()
    model.denoise(canvas, cache, soft, watch=counter)
    return counter.counts


@torch.inference_mode()
def parts(
    model: DiffusionGemma,
    cache: PrefixCache,
    canvas: Tensor,
    soft: Tensor,
    rounds: int,
    repeats: int,
) -> dict[str, list[float]]:
    """Milliseconds of each part of a step, canvas (1, C) and soft (1, C, D), in each round."""
    backend, device = fast(model), model.device
    run = backend.passes[False]
    count, width = canvas.shape[1], model.config.text.hidden_size
    held = Held.empty(1, len(run.layers), device)
    held.load(backend.reserve(cache.rows, [count], causal=False))
    x = torch.randn(count, width, device=device).to(model.dtype)
    small = (x.float() * width**-0.5).to(model.dtype)  # as the router's input is scaled
    k = model.config.text.top_k_experts
    outputs = torch.randn(count, k, width, device=device).to(model.dtype)
    indices = range(len(run.layers))
    embedded = model.embed(canvas[0])

    def attention() -> None:
        rotations = run.rotations(held, [count])
        for i in indices:
            run.attention(i, x, rotations, held, [count])

    def experts() -> None:
        for i in indices:
            run.experts(i, x, *run.routing(i, small))

    def dense() -> None:
        for i in indices:
            run.dense(i, x)

    def norms() -> None:
        for i, layer in enumerate(run.layers):
            fused.after_attention(layer, x, x)
            scalar = run.scalars[i].reshape(1)
            fused.after_experts(layer, x, x, outputs, scalar, model.norm.weight)

    bodies: dict[str, Callable[[], Any]] = {
        "attention": attention,
        "experts": experts,
        "dense MLP": dense,
        "norms and sums": norms,
        "self-conditioning": lambda: run.conditioned(embedded, soft[0]),
    }
    times = {
        name: timed(device, rounds, repeats, Replay(body, device)) for name, body in bodies.items()
    }
    head = backend.recorded(canvas, cache, soft).head
    return {**times, "head and sampling": timed(device, rounds, repeats, head)}
