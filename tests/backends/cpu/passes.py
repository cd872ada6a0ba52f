"""Passes whose numbers must be the same on every backend, and ways to change a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.experts import Routing
from dgemma_core.model import DiffusionGemma

LENGTHS = (9, 3, 14)


class Recorder:
    """Everything that a watcher is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def router(self, layer: int, routing: Routing) -> None:
        self.seen += [routing.weights, routing.probabilities, routing.chosen.float()]

    def attention(self, layer: int, row: int, queries: Tensor, keys: Tensor) -> None:
        self.seen += [queries.clone(), keys.clone()]


def passes(model: DiffusionGemma) -> list[Tensor]:
    """Both modes over rows of unlike length, by themselves and in one pass; and what is watched."""
    generator = torch.Generator().manual_seed(0)
    size, length = model.config.text.vocab_size, model.config.canvas_length
    rows = [torch.randint(0, size, (n,), generator=generator) for n in LENGTHS]
    cache = model.encode(rows)
    longer = model.encode([[1], [2], [3]], cache)
    alone = model.encode([[4]], PrefixCache([longer.rows[1]]))
    canvas = torch.randint(0, size, (3, length), generator=generator)
    recorder = Recorder()
    first = model.denoise(canvas, longer)
    second = model.denoise(canvas, longer, first, watch=recorder)
    both = model.encode([[5], [6, 7], [8]], longer, canvas=[canvas[0], [], canvas[1, :3]])
    hidden = [made.hidden for made in (cache, longer, alone, both) if made.hidden is not None]
    return [*hidden, *filter(len, both.canvas), first, second, *recorder.seen]


def plain_passes(model: DiffusionGemma) -> list[Tensor]:
    """Through the modules themselves."""
    return passes(copy.deepcopy(model).use("torch"))


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(ours) == len(theirs) > 5
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


WAYS = ("in place", "replaced", "through .data")
"""To change a weight."""


def change(model: DiffusionGemma, name: str, way: str) -> None:
    """Doubles the first row of a weight (all of it might be normed away)."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    weight = getattr(module, last)
    if way == "in place":
        weight[:1].mul_(2.0)
    elif way == "replaced":
        changed = weight.clone()
        changed[:1] *= 2
        setattr(module, last, torch.nn.Parameter(changed, requires_grad=False))
    else:
        weight.data[:1].mul_(2.0)
