"""The experts as one grouped product on a GPU: tokens sorted by expert once, every touched expert's weights read once.

Notable:
- nothing is asked of the host: where an expert's slice begins and ends stays on the device, and a program whose slice
  is empty ends at once;
- about 16 tokens reach an expert in a denoising step, so its time is that of reading weights, and tiles are chosen for
  that; a slice longer than a tile reads its weights again (from the cache, where they have just been);
- one token of autoregression goes the same way: eight slices of one token each, cut finely enough to fill the card;
- without triton, torch's own grouped product serves 16-bit weights; else the plain loop of `experts` does.

Axes: N tokens, K choices a token, D hidden size, E experts, W expert width.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dgemma_core.experts import Experts


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether triton's interpreter runs the kernels, on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_kernels(x: Tensor) -> bool:
    """Whether x is worked on by the kernels: on a GPU where triton is installed, or under its interpreter."""
    return has_triton() and (x.is_cuda or (x.device.type == "cpu" and interpreted()))


@dataclass(frozen=True)
class Tile:
    """How a product is cut: rows of weights, tokens, and columns a step of a program; its warps and pipeline."""

    n: int
    k: int
    warps: int = 4
    stages: int = 3
    m: int = 0
    """Tokens; 0 takes the next power of two above what a slice holds on average and a half more, 16 to 64."""


FEW = 64
"""Pairs (token, choice) up to which a product is cut finely, to fill the card."""

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


def outputs(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """x (N, D), weights (N, K) float32, chosen (N, K) → what each choice adds (N, K, D), weighted."""
    if on_kernels(x):
        return _by_kernels(experts, x, weights, chosen)
    return _by_torch(experts, x, weights, chosen)


def mixture(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """x (…, D), weights (…, K), chosen (…, K) → (…, D)."""
    k = chosen.shape[-1]
    flat = x.reshape(-1, x.shape[-1])
    return outputs(experts, flat, weights.reshape(-1, k), chosen.reshape(-1, k)).sum(1).view_as(x)


def serves(experts: Experts, x: Tensor) -> bool:
    """Whether `mixture` can take over from the plain loop: on a GPU, where no gradient is asked for."""
    asked = torch.is_grad_enabled() and (x.requires_grad or experts.down_proj.requires_grad)
    return x.is_cuda and not asked and (has_triton() or _torch_serves(x))


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


def _by_kernels(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    from dgemma_core.backends.cuda import kernels

    x = x.contiguous()
    (tokens, width), k = x.shape, chosen.shape[-1]
    inner_width, pairs = experts.down_proj.shape[-1], chosen.numel()
    slices = by_expert(chosen.contiguous(), experts.count)
    slots = slices.bounds.shape[1]
    inner = x.new_empty(pairs, inner_width)
    one, two = (tile(part, pairs, slots, x.element_size()) for part in ("in", "out"))
    upcast = interpreted()
    kernels.experts_in[(-(-inner_width // one.n), slots)](
        x, experts.gate_up_proj, slices.order, slices.bounds, inner, slots, k, D=width,
        W=inner_width, BLOCK_N=one.n, BLOCK_M=one.m, BLOCK_K=one.k, UPCAST=upcast,
        num_warps=one.warps, num_stages=one.stages,
    )  # fmt: skip
    out = x.new_empty(tokens, k, width)
    kernels.experts_out[(-(-width // two.n), slots)](
        inner, experts.down_proj, weights.contiguous(), slices.order, slices.bounds, out, slots,
        D=width, W=inner_width, BLOCK_N=two.n, BLOCK_M=two.m, BLOCK_K=two.k, UPCAST=upcast,
        num_warps=two.warps, num_stages=two.stages,
    )  # fmt: skip
    return out


def _torch_serves(x: Tensor) -> bool:
    """Whether torch has a grouped product for x."""
    return x.element_size() == 2 and (hasattr(F, "grouped_mm") or hasattr(torch, "_grouped_mm"))


def _by_torch(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    from dgemma_core.experts import gated

    k, pairs = chosen.shape[-1], chosen.reshape(-1)
    order = pairs.argsort(stable=True)
    index = torch.arange(experts.count, device=x.device)
    ends = torch.searchsorted(pairs[order], index, right=True).int()
    product = F.grouped_mm if hasattr(F, "grouped_mm") else torch._grouped_mm
    inner = gated(product(x[order // k], experts.gate_up_proj.mT, offs=ends))
    found = product(inner.contiguous(), experts.down_proj.mT, offs=ends)
    placed = torch.empty_like(found).index_copy_(0, order, found)
    return placed.view(*chosen.shape, -1) * weights.to(x.dtype).unsqueeze(-1)
