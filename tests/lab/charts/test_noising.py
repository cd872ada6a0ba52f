"""The picture of forward noising."""

from __future__ import annotations

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_lab import noising
from dgemma_lab.charts.noising import MOST

LEVELS = (0.0, 0.5)
MASKED = [["a", "b", "c"], ["a", "▒", "c"]]
UNIFORM = [["a", "b", "c"], ["a", "<x>", "c"]]
DAMAGED = np.array([[False, False, False], [False, True, False]])


def test_each_token_stands_in_its_place_and_the_damaged_ones_have_a_frame() -> None:
    figure = noising(LEVELS, MASKED, UNIFORM, DAMAGED)
    above = [(a.x, a.y, a.text) for a in figure.layout.annotations if a.yref == "y"]
    below = [(a.x, a.y, a.text) for a in figure.layout.annotations if a.yref == "y2"]
    assert (1, 1, "▒") in above and (1, 1, "&lt;x>") in below and len(above) == len(below) == 6
    frames = [(s.x0 + 0.46, s.y0 + 0.44, s.yref) for s in figure.layout.shapes]
    assert frames == [(1.0, 1.0, "y"), (1.0, 1.0, "y2")]


def test_only_masks_give_the_damage_away() -> None:
    with_masks, with_tokens = noising(LEVELS, MASKED, UNIFORM, DAMAGED).data
    assert np.array_equal(np.asarray(with_masks.z, bool), DAMAGED) and not np.any(with_tokens.z)


@pytest.mark.slow
def test_a_long_text_is_drawn_from_its_start() -> None:
    row = [["t"] * 40]
    figure = noising([1.0], row, row, np.ones((1, 40), bool))
    assert len(figure.layout.shapes) == 2 * MOST


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DgemmaError, match="with masks: 2 rows of texts for 1 levels"):
        noising(LEVELS[:1], MASKED, UNIFORM, DAMAGED)
