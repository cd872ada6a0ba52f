"""Batches: which canvases of which texts a step learns from, as padded tensors.

Notable:
- a text's answer is cut into canvases at multiples of the canvas length, the last one filled up with the end token;
- a draft is a canvas, often a shorter one, that begins anywhere in the answer with its first token clean: that is where
  speculative decoding begins (`Recipe.drafts`);
- texts are sorted by length within a pool of batches, so a micro-batch holds texts of like length and little padding;
- the batch of step s is a function of (seed, s): a run that was stopped goes on with the same batches.

Axes: B texts, T clean tokens, C canvas length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from dgemma_core.train.recipe import Recipe
from dgemma_core.train.texts import Text, canvas_count

ROUNDED = 16
"""Clean text is padded to a multiple of this: a CPU prepares a matrix product anew for every new shape."""
IGNORED = -100
"""The target of a token that the causal loss leaves out, as in `cross_entropy`."""


@dataclass(frozen=True)
class Place:
    """Where a canvas lies in a text's answer, and which of its tokens are never noised."""

    start: int
    length: int
    given: tuple[tuple[int, int], ...] = ()
    """Ranges of the answer, first to last + 1."""


@dataclass(frozen=True)
class Canvases:
    """One canvas of every text of a batch."""

    prefix: Tensor
    """(B,) clean tokens before the canvas."""
    tokens: Tensor
    """(B, C) the clean canvas, its tail filled with the end token."""
    given: Tensor
    """(B, C) bool: tokens that are never noised."""
    ends: Tensor
    """(B,) answer tokens on the canvas; behind them stand end marks."""


@dataclass(frozen=True)
class Batch:
    """The texts of one micro-batch, right-padded to T, with one group of canvases a noising."""

    clean: Tensor
    """(B, T) prompt, answer and one end token."""
    targets: Tensor
    """(B, T) the next token where the causal loss counts (the answer and its end), IGNORED elsewhere."""
    canvases: tuple[Canvases, ...]
    snapshot: Tensor | None = None
    """(B, C) what a sampler saw of the first group, −1 in rows that it did not see; None: it saw none of them."""
    before: Tensor | None = None
    """(first rows, C) the same one step earlier, of rows that a step came before."""
    steps: Tensor | None = None
    """(B,) falling: the steps that the model makes on the first group first; None: on none of them."""

    count: int = 0
    """Clean tokens without padding."""

    @property
    def tokens(self) -> int:
        """Tokens that run through the model with a gradient, padding left out."""
        return self.count + sum(group.tokens.numel() for group in self.canvases)


def draw_place(text: Text, canvas_length: int, recipe: Recipe, rng: Random) -> Place:
    """The canvas that a text is learnt from."""
    if text.blank is not None and rng.random() < recipe.blanks:
        first, last = text.blank
        given = ((0, first), (last, len(text.answer)))
        return Place(first // canvas_length * canvas_length, canvas_length, given)
    canvas = rng.randrange(canvas_count(text, canvas_length))
    return Place(canvas * canvas_length, canvas_length)


def draw_draft(text: Text, length: int, rng: Random) -> Place:
    """A draft of a text: its first token is one of the answer, or the end."""
    places = len(text.answer) + 1 if text.whole else max(1, len(text.answer) - length + 1)
    start = rng.randrange(places)
    return Place(start, length, ((start, start + 1),))


def collate(texts: Sequence[Text], end: int, places: Sequence[Sequence[Place]]) -> Batch:
    """Texts, with the places of each one's canvases → Batch; the canvases of a group have one length. A snapshot brings
    its own canvas for the first group. Rows come in the order of their own steps, the most first, then: seen after a
    step, not seen, seen at the first step."""

    def order_of(i: int) -> tuple[int, int]:
        seen = texts[i].snapshot
        return -texts[i].own_steps, 1 if seen is None else 0 if seen.before is not None else 2

    order = sorted(range(len(texts)), key=order_of)
    texts = [texts[i] for i in order]
    of_rows = [list(places[i]) for i in order]
    for row, text in enumerate(texts):
        if text.snapshot is not None:
            length = len(text.snapshot.tokens)
            of_rows[row][0] = Place(text.snapshot.canvas * length, length)
    rows = [(*text.prompt, *text.answer, end) for text in texts]
    longest = -(-max(map(len, rows)) // ROUNDED) * ROUNDED
    clean = torch.tensor([row + (end,) * (longest - len(row)) for row in rows])
    targets = torch.full_like(clean, IGNORED)
    for i, text in enumerate(texts):
        prompt, length = len(text.prompt), len(rows[i]) - (not text.whole)
        targets[i, prompt - 1 : length - 1] = clean[i, prompt:length]
    groups = tuple(_canvases(texts, end, group) for group in zip(*of_rows, strict=True))
    batch = Batch(clean, targets, groups, count=sum(map(len, rows)))
    snapshots = [text.snapshot for text in texts]
    if any(snapshots):
        unseen = (-1,) * groups[0].tokens.shape[1]
        seen = torch.tensor([unseen if each is None else each.tokens for each in snapshots])
        before = [each.before for each in snapshots if each is not None and each.before is not None]
        earlier = torch.tensor(before, dtype=torch.long).reshape(-1, len(unseen))
        batch = replace(batch, snapshot=seen, before=earlier)
    if any(text.own_steps for text in texts):
        batch = replace(batch, steps=torch.tensor([text.own_steps for text in texts]))
    return batch


def _canvases(texts: Sequence[Text], end: int, places: Sequence[Place]) -> Canvases:
    """The canvas of every text at its place."""
    tokens, ends = [], []
    given = torch.zeros(len(texts), places[0].length, dtype=torch.bool)
    for row, (text, place) in enumerate(zip(texts, places, strict=True)):
        part = text.answer[place.start : place.start + place.length]
        tokens.append(part + (end,) * (place.length - len(part)))
        ends.append(len(part))
        for first, last in place.given:
            given[row, max(0, first - place.start) : max(0, last - place.start)] = True
    prefix = [len(text.prompt) + place.start for text, place in zip(texts, places, strict=True)]
    return Canvases(torch.tensor(prefix), torch.tensor(tokens), given, torch.tensor(ends))


def generator_of(seed: int, *counters: int) -> torch.Generator:
    """A generator for every (seed, counters), independent of the others."""
    mixed = 0
    for number in (seed, *counters):
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def batches(
    texts: Callable[[int], Text], recipe: Recipe, canvas_length: int, end: int, start: int = 0
) -> Iterator[list[Batch]]:
    """The micro-batches of every step from `start` on. texts(i) is example i; each is used once. While one pool is
    learnt from, a thread draws the next one."""
    per_pool = recipe.pool * recipe.batch_size

    def draw(pool: int) -> list[Text]:
        return [texts(number) for number in range(pool * per_pool, (pool + 1) * per_pool)]

    pools = range(start // recipe.pool, math.ceil(recipe.steps / recipe.pool))
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(draw, pools.start) if pools else None
        for pool in pools:
            assert following is not None
            drawn = following.result()
            following = thread.submit(draw, pool + 1) if pool + 1 in pools else None
            yield from _steps(drawn, pool, recipe, canvas_length, end, start)


def _steps(
    drawn: Sequence[Text], pool: int, recipe: Recipe, canvas_length: int, end: int, start: int
) -> Iterator[list[Batch]]:
    """The micro-batches of the steps of one pool, from step `start` on."""
    for step, chosen in _chosen([_length(text) for text in drawn], pool, recipe, start):
        micro = []
        for m, members in enumerate(chosen):
            length = None
            if recipe.drafts:
                length = Random(f"draft {recipe.seed} {pool} {step} {m}").choice(recipe.drafts)
            places = []
            for i in members:
                rng = Random(f"canvases {recipe.seed} {pool * len(drawn) + i}")
                drawn_places = [
                    draw_place(drawn[i], canvas_length, recipe, rng) for _ in range(recipe.noisings)
                ]
                if length is not None:
                    drawn_places.append(draw_draft(drawn[i], length, rng))
                places.append(drawn_places)
            micro.append(collate([drawn[i] for i in members], end, places))
        yield micro


def _length(text: Text) -> int:
    return len(text.prompt) + len(text.answer)


def _chosen(
    lengths: Sequence[int], pool: int, recipe: Recipe, start: int
) -> Iterator[tuple[int, list[list[int]]]]:
    """(step within the pool, the texts of each of its micro-batches), from step `start` on, for texts of such
    lengths."""
    part = recipe.batch_size // recipe.micro_batches
    generator = generator_of(recipe.seed, 1, pool)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # Micro-batch m of a step comes from the m-th range of lengths, at a random place in it.
    ranges = [
        torch.randperm(recipe.pool, generator=generator).tolist()
        for _ in range(recipe.micro_batches)
    ]
    shuffles = [
        torch.randperm(part, generator=generator).tolist() for _ in range(recipe.micro_batches)
    ]
    for step in range(recipe.pool):
        if start <= pool * recipe.pool + step < recipe.steps:
            firsts = [(m * recipe.pool + r[step]) * part for m, r in enumerate(ranges)]
            yield step, [[order[f + i] for i in s] for f, s in zip(firsts, shuffles, strict=True)]


def padding(texts: Callable[[int], Text], recipe: Recipe) -> tuple[int, int]:
    """(clean tokens that are padding, all clean tokens with it) of the batches of a whole run."""
    per_pool = recipe.pool * recipe.batch_size
    held = total = 0
    for pool in range(math.ceil(recipe.steps / recipe.pool)):
        lengths = [_length(texts(pool * per_pool + i)) + 1 for i in range(per_pool)]
        for _, chosen in _chosen(lengths, pool, recipe, 0):
            for members in chosen:
                rows = [lengths[i] for i in members]
                held += sum(rows)
                total += len(rows) * -(-max(rows) // ROUNDED) * ROUNDED
    return total - held, total
