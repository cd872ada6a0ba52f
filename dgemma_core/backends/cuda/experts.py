"""The experts as one grouped product on a GPU: tokens sorted by expert once, every touched expert's weights read once.

Notable:
- nothing is asked of the host: where an expert's slice begins and ends stays on the device, and a program whose slice
  is empty ends at once;
- about 16 tokens reach an expert in a denoising step, so its time is that of reading weights, and tiles are chosen for
  that; a slice longer than a tile reads its weights again (from the cache, where they have just been);
- one token of autoregression takes the same way: slices of one token each, in tiles small enough to fill the card;
- on a CPU every expert runs on every token, for tests.

Axes: N tokens, K choices a token, D hidden size, E experts, W expert width.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.backends.cuda.weights import ExpertWeights, expert_weights


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether triton's interpreter runs the kernels, on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_kernels(x: Tensor) -> bool:
    """Whether the kernels work on x: on a GPU, or under triton's interpreter."""
    return x.is_cuda or (has_triton() and interpreted())


@dataclass(frozen=True)
class Tile:
    """The work of one program of a product: rows of weights, tokens, columns a step; its warps and pipeline."""

    n: int
    k: int
    warps: int = 4
    stages: int = 3
    m: int = 0
    """Tokens; 0 takes the next power of two above what a slice holds on average and a half more, 16 to 64."""


FEW = 64
"""Pairs (token, choice) up to which a product has small tiles, to fill the card."""

TILES = {
    ("in", "few"): Tile(n=16, k=256, stages=3),
    ("in", "many"): Tile(n=64, k=64, stages=4),
    ("out", "few"): Tile(n=16, k=128, stages=3),
    ("out", "many"): Tile(n=128, k=64, stages=4),
}
"""The first and the second product of an expert. `dgemma bench gpu` tries others (CANDIDATES) and keeps the best."""

CANDIDATES = {
    "few": [
        Tile(n=n, k=k, warps=w, stages=s)
        for n, k, w, s in ((16, 128, 4, 4), (16, 256, 4, 3), (16, 256, 8, 3), (32, 128, 4, 4), (32, 256, 8, 3),
                           (64, 128, 4, 3))
    ],
    "many": [
        Tile(n=n, k=k, warps=w, stages=s, m=m)
        for m in (16, 32, 64)
        for n, k, w, s in ((64, 64, 4, 4), (64, 128, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (32, 128, 4, 4))
    ],
}  # fmt: skip


class Slices(NamedTuple):
    """Pairs (token, choice) in the experts' order, and where each expert's begin and end; all on the device."""

    order: Tensor
    """(N·K,) int32"""
    bounds: Tensor
    """(3, slots) int32: start, end, expert of each slot; an empty one has its end at its start."""


def by_expert(chosen: Tensor, experts: int) -> Slices:
    """chosen (N, K) → the pairs sorted by expert, stably. A slot an expert, or one a pair where these are fewer."""
    from dgemma_core.backends.cuda import kernels

    pairs = chosen.numel()
    slots = min(pairs, experts)
    order = torch.empty(pairs, dtype=torch.int32, device=chosen.device)
    bounds = torch.empty(3, slots, dtype=torch.int32, device=chosen.device)
    block = min(2048, 1 << max(4, (pairs - 1).bit_length()))
    kernels.sort_pairs[(experts,)](
        chosen, order, bounds, pairs, slots, experts, BY_EXPERT=slots == experts, BLOCK=block
    )
    return Slices(order, bounds)


def outputs(experts: nn.Module, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """x (N, D), weights (N, K) float32, chosen (N, K) → what each choice adds (N, K, D), weighted.

    experts: `Experts`, or quantised ones.
    """
    held = expert_weights(experts, chosen, x.dtype)
    return (_by_kernels if on_kernels(x) else _plain)(held, x, weights)


def tile(part: str, pairs: int, slots: int, itemsize: int) -> Tile:
    """The tile of one product of `pairs` pairs in `slots` slices. part: "in" or "out"."""
    found = TILES[part, "few" if pairs <= FEW else "many"]
    if not found.m:
        average = pairs // slots
        wanted = 1 << (average + average // 2).bit_length()
        found = replace(found, m=min(max(wanted, 16), 64))
    if itemsize > 2:  # twice the bytes a stage: what a multiprocessor holds is limited
        found = replace(found, k=max(16, found.k // 2), stages=2)
    return found


def _by_kernels(held: ExpertWeights, x: Tensor, weights: Tensor) -> Tensor:
    from dgemma_core.backends.cuda import kernels

    x, chosen = x.contiguous(), held.chosen.contiguous()
    (tokens, width), k = x.shape, chosen.shape[-1]
    inner_width, pairs = held.down.shape[-1], chosen.numel()
    slices = by_expert(chosen, len(held.down))
    slots = slices.bounds.shape[1]
    inner = x.new_empty(pairs, inner_width)
    one, two = (tile(part, pairs, slots, x.element_size()) for part in ("in", "out"))
    upcast = interpreted()
    kernels.experts_in[(-(-inner_width // one.n), slots)](
        x, held.gate_up, slices.order, slices.bounds, inner, slots, k, D=width, W=inner_width,
        BLOCK_N=one.n, BLOCK_M=one.m, BLOCK_K=one.k, UPCAST=upcast,
        num_warps=one.warps, num_stages=one.stages,
    )  # fmt: skip
    out = x.new_empty(tokens, k, width)
    kernels.experts_out[(-(-width // two.n), slots)](
        inner, held.down, weights.contiguous(), slices.order, slices.bounds, out, slots, D=width,
        W=inner_width, BLOCK_N=two.n, BLOCK_M=two.m, BLOCK_K=two.k, UPCAST=upcast,
        num_warps=two.warps, num_stages=two.stages,
    )  # fmt: skip
    return out


def _plain(held: ExpertWeights, x: Tensor, weights: Tensor) -> Tensor:
    """The same on a CPU, for tests: every expert on every token, of which the chosen ones are kept."""
    gate, up = (x @ held.gate_up.mT).chunk(2, dim=-1)  # (E, N, w)
    found = (F.gelu(gate, approximate="tanh") * up) @ held.down.mT  # (E, N, D)
    token = torch.arange(len(x), device=x.device).unsqueeze(1)
    return found[held.chosen.long(), token] * weights.to(x.dtype).unsqueeze(-1)
