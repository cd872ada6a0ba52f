"""A task of three words to copy, and runs on it, for the tests of training."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgemma_core.model import DiffusionGemma
from dgemma_core.train import Recipe, Text, Trainer
from dgemma_core.train.batches import Batch, Place, collate
from dgemma_core.train.initial import initialise
from dgemma_core.train.noise import noised
from tests.core import tiny

BOS, SEPARATOR, END = 2, 3, 1
WORDS = range(4, 12)
COPYING = tiny.config(vocab_size=12, canvas_length=4, sliding_window=16)
RECIPE = Recipe(steps=11, batch_size=6, micro_batches=2, pool=4, warmup=3, learning_rate=1e-2)


def copy_text(number: int) -> Text:
    """Three words to be copied."""
    rng = random.Random(number)
    words = tuple(rng.choices(WORDS, k=3))
    return Text((BOS, *words, SEPARATOR), words)


def trainer(
    folder: Path, recipe: Recipe = RECIPE, texts: Callable[[int], Text] = copy_text
) -> Trainer:
    """A run at step 0; equal recipes start from equal weights."""
    model = DiffusionGemma(COPYING)
    initialise(model, recipe.seed)
    return Trainer(model, texts, recipe, folder, end=END)


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """To the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(run: Trainer, steps: int, **options: Any) -> bool:
    """Makes at most so many updates and saves."""

    class Enough(Exception):
        pass

    end = run.progress.step + steps

    def report(progress: Any, figures: dict[str, float]) -> None:
        if progress.step == end:
            raise Enough

    try:
        return run.run(report=report, **options)
    except Enough:
        run.save()
        return run.progress.step == RECIPE.steps


def noise(canvas: Tensor, vocab: int, generator: torch.Generator) -> Tensor:
    """Noised once, each row with a rate of its own."""
    return noised(canvas, torch.rand(len(canvas), 1, generator=generator), vocab, generator)


def uneven(*, drafts: bool = False) -> Batch:
    """Prefixes from 1 to 20 tokens, around the window of 6 too, first and later canvases. drafts: with a second group
    of canvases, five tokens long."""
    generator = torch.Generator().manual_seed(5)
    texts, places = [], []
    for prompt, answer, canvas in (
        (1, 3, 0),
        (5, 8, 0),
        (6, 2, 0),
        (4, 19, 2),
        (7, 8, 1),
        (3, 13, 1),
    ):
        ids = torch.randint(2, 48, (prompt + answer,), generator=generator).tolist()
        texts.append(Text(tuple(ids[:prompt]), tuple(ids[prompt:])))
        places.append([Place(canvas * 8, 8)])
        if drafts:
            start = min(canvas * 8 + 1, answer)
            places[-1].append(Place(start, 5, ((start, start + 1),)))
    return collate(texts, END, places)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
