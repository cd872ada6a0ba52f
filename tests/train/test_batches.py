"""Batches: what a canvas holds, which texts meet, and that a run takes them up at any step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import torch

from dgemma_core.train import Text
from dgemma_core.train.batches import (
    IGNORED,
    Batch,
    Place,
    batches,
    collate,
    draw_draft,
    draw_place,
    padding,
)
from dgemma_core.train.texts import canvas_count
from tests.train.copying import BOS, END, RECIPE


def test_collate_by_hand() -> None:
    """A short answer, the second canvas of a long one, and the end that has a canvas to itself."""
    texts = [
        Text((20, 21), (30,)),
        Text((22,), tuple(range(40, 46))),
        Text((23,), (50, 51, 52, 53)),
    ]
    assert [canvas_count(text, 4) for text in texts] == [1, 2, 2]
    batch = collate(texts, END, [[Place(0, 4)], [Place(4, 4)], [Place(4, 4)]])
    assert batch.clean.shape == batch.targets.shape == (3, 16), "rounded up, so that shapes recur"
    assert batch.clean[:, :8].tolist() == [
        [20, 21, 30, 1, 1, 1, 1, 1],
        [22, 40, 41, 42, 43, 44, 45, 1],
        [23, 50, 51, 52, 53, 1, 1, 1],
    ]
    none = IGNORED
    assert batch.targets[:, :8].tolist() == [
        [none, 30, 1, none, none, none, none, none],
        [40, 41, 42, 43, 44, 45, 1, none],
        [50, 51, 52, 53, 1, none, none, none],
    ], "the causal loss reads the whole answer, wherever the canvas lies"
    assert (batch.clean[:, 8:] == END).all() and (batch.targets[:, 8:] == none).all()
    (group,) = batch.canvases
    assert group.prefix.tolist() == [2, 5, 5]
    assert group.tokens.tolist() == [[30, 1, 1, 1], [44, 45, 1, 1], [1, 1, 1, 1]]
    assert group.ends.tolist() == [1, 2, 0] and not group.given.any()
    assert batch.tokens == 4 + 8 + 6 + 3 * 4


def test_canvases_of_one_text() -> None:
    """Each noising has its own place; what is given is the canvas's part of the given ranges."""
    text = Text((20,), (30, 31, 32, 33, 34, 35))
    batch = collate(
        [text],
        END,
        [[Place(3, 4, ((3, 4),)), Place(0, 4, ((0, 2), (3, 6))), Place(4, 2, ((0, 5),))]],
    )
    assert [group.prefix.tolist() for group in batch.canvases] == [[4], [1], [5]]
    assert [group.tokens.tolist()[0] for group in batch.canvases] == [
        [33, 34, 35, 1],
        [30, 31, 32, 33],
        [34, 35],
    ]
    assert [group.given.tolist()[0] for group in batch.canvases] == [
        [True, False, False, False],
        [True, True, False, True],
        [True, False],
    ]


def test_where_canvases_lie() -> None:
    """Canvases at multiples of their length; drafts anywhere in the answer or at its end, their first token given."""
    text = Text((20,), tuple(range(30, 39)))
    places = {draw_place(text, 4, RECIPE, Random(i)) for i in range(100)}
    assert places == {Place(0, 4), Place(4, 4), Place(8, 4)}
    drafts = {draw_draft(text, 5, Random(i)) for i in range(300)}
    assert drafts == {Place(i, 5, ((i, i + 1),)) for i in range(10)}
    group = collate([text], END, [[Place(9, 5, ((9, 10),))]]).canvases[0]
    assert group.tokens.tolist() == [[END] * 5] and group.given.tolist() == [[True, *[False] * 4]]


def test_drafts_are_one_more_canvas() -> None:
    """Of one length a micro-batch, each of the lengths in turn."""
    recipe = replace(RECIPE, steps=40, noisings=2, drafts=(2, 3))
    lengths = Counter()
    for micro in batches(numbered, recipe, 4, END):
        for batch in micro:
            *canvases, drafts = batch.canvases
            assert [group.tokens.shape for group in canvases] == [(3, 4)] * 2
            assert drafts.given[:, 0].all() and not drafts.given[:, 1:].any()
            lengths[drafts.tokens.shape[1]] += 1
    assert set(lengths) == {2, 3} and min(lengths.values()) > 20


def test_gaps_are_filled_in_half_of_the_draws() -> None:
    """There only the blank is noised, on the canvas where it begins."""
    text = Text((20,), tuple(range(30, 39)), blank=(5, 7))
    places = [draw_place(text, 4, RECIPE, Random(i)) for i in range(400)]
    filled = [place for place in places if place.given]
    assert 150 < len(filled) < 250 and set(filled) == {Place(4, 4, ((0, 5), (7, 9)))}
    group = collate([text], END, [[filled[0]]]).canvases[0]
    assert group.tokens.tolist() == [[34, 35, 36, 37]]
    assert group.given.tolist() == [[True, False, False, True]]


def numbered(number: int) -> Text:
    """A text that tells its number, with 0 to 9 answer tokens."""
    return Text((BOS, 100 + number), tuple([7] * (number % 10)))


def examples(micro: list[Batch]) -> list[int]:
    return [int(row[1]) - 100 for batch in micro for row in batch.clean]


def test_every_example_is_used_once() -> None:
    recipe = replace(RECIPE, steps=8)
    steps = list(batches(numbered, recipe, 4, END))
    assert len(steps) == 8 and all(len(micro) == 2 for micro in steps)
    assert all(len(batch.clean) == 3 for micro in steps for batch in micro)
    assert sorted(n for micro in steps for n in examples(micro)) == list(range(48))
    other = list(batches(numbered, replace(recipe, seed=1), 4, END))
    assert [examples(micro) for micro in steps] != [examples(micro) for micro in other]


def test_batches_resume_at_any_step() -> None:
    """Also where the recipe's steps end within a pool."""
    whole = list(batches(numbered, RECIPE, 4, END))
    assert len(whole) == RECIPE.steps
    for start in range(RECIPE.steps + 1):
        rest = list(batches(numbered, RECIPE, 4, END, start))
        assert len(rest) == RECIPE.steps - start
        for micro, expected in zip(rest, whole[start:], strict=True):
            for batch, wanted in zip(micro, expected, strict=True):
                assert batch.snapshot is None and batch.before is None
                assert torch.equal(batch.clean, wanted.clean)
                assert torch.equal(batch.targets, wanted.targets)
                for group, of_whole in zip(batch.canvases, wanted.canvases, strict=True):
                    for name in ("prefix", "tokens", "given", "ends"):
                        assert torch.equal(getattr(group, name), getattr(of_whole, name))


def test_micro_batches_hold_texts_of_like_length() -> None:
    for micro in batches(numbered, replace(RECIPE, batch_size=24, steps=8), 16, END):
        lengths = [(batch.targets != -100).sum(1) for batch in micro]
        assert lengths[0].max() <= lengths[1].min(), "short ones, then long ones, at every step"


def test_padding_is_counted_before_the_first_step() -> None:
    """That of every batch of the run, the last pool's, which is not used up, too."""
    recipe = replace(RECIPE, steps=7, batch_size=6, micro_batches=2, pool=3)

    def text(i: int) -> Text:
        return Text((2,) * (1 + i % 5), (4,) * (i * 37 % 50))

    made = [b for micro in batches(text, recipe, 8, END) for b in micro]
    total = sum(b.clean.numel() for b in made)
    assert len(made) == 14 and padding(text, recipe) == (total - sum(b.count for b in made), total)
    assert padding(lambda i: Text((2,), (4,) * 14), recipe) == (0, 7 * 6 * 16)


def test_every_canvas_of_a_text_has_its_turn() -> None:
    recipe = replace(RECIPE, steps=60)
    texts = Text((BOS,), tuple([7] * 10))
    found = Counter(
        int(prefix)
        for micro in batches(lambda _: texts, recipe, 4, END)
        for batch in micro
        for prefix in batch.canvases[0].prefix
    )
    assert found.keys() == {1, 5, 9} and min(found.values()) > 120 - 5 * math.sqrt(360 * 2 / 9)
