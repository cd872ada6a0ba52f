"""A chain of runs in one folder: a folder for each leg, which ends with the weights that the next leg begins with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgemma_core.nano.chains import Chain, Leg

    RunLeg = Callable[[Leg, Path, str | None, float | None], bool]
    """(leg, its folder, the model that it begins with or None to go on, minutes) → whether it is at its end."""

CHECKPOINT = "checkpoint"
"""Folder, within a run's, of the model that the run has made so far."""
RESULT = "result"
"""Folder, within a leg's, of what the next leg begins with. It is there once the leg is done."""


def run_chain(
    chain: Chain, folder: Path, start: str | None, minutes: float | None, run: RunLeg
) -> bool:
    """Runs the legs that are not done yet; True if all are, and `folder`/checkpoint holds what came of them.

    start: in the place of the chain's own. minutes: of all legs together. run: runs one leg, which leaves its model in
    the folder's `checkpoint`.
    """
    from dgemma_core.train.checkpoints import PROGRESS, put_in_place

    begun = time.monotonic()
    current = start or chain.start
    for leg in chain.legs:
        own = folder / leg.recipe
        if not (own / RESULT).exists():
            left = None if minutes is None else minutes - (time.monotonic() - begun) / 60
            if left is not None and left <= 0:
                return False
            going_on = (own / PROGRESS).exists()
            if not run(leg, own, None if going_on else current, left):
                return False
            _keep(leg, folder, current)
        current = str(own / RESULT)
    if not (folder / CHECKPOINT).exists():
        put_in_place(folder / CHECKPOINT, lambda part: shutil.copytree(str(current), part))
    return True


def _keep(leg: Leg, folder: Path, begun_with: str | None) -> None:
    """Makes the result of a leg that has ended: its weights, or those that its share says."""
    from dgemma_core.files.finding import find_folder
    from dgemma_core.train.checkpoints import put_in_place
    from dgemma_core.train.interpolation import interpolate

    ended = folder / leg.recipe / CHECKPOINT
    since = begun_with if leg.since is None else str(folder / leg.since / RESULT)

    def make(part: Path) -> None:
        if leg.share == 1:
            shutil.copytree(ended, part)
        else:
            assert since is not None, "a chain's first leg has no share of nothing"
            interpolate(find_folder(since), ended, leg.share, part)

    put_in_place(ended.with_name(RESULT), make)
