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
    begun = time.monotonic()
    current = start or chain.start
    for leg in chain.legs:
        own = folder / leg.recipe
        if not (own / RESULT).exists():
            left = None if minutes is None else minutes - (time.monotonic() - begun) / 60
            if left is not None and left <= 0:
                return False
            going_on = (own / "progress.json").exists()
            if not run(leg, own, None if going_on else current, left):
                return False
            _keep(leg, folder, current)
        current = str(own / RESULT)
    if not (folder / CHECKPOINT).exists():
        _replace(Path(str(current)), folder / CHECKPOINT)
    return True


def _keep(leg: Leg, folder: Path, begun_with: str | None) -> None:
    """Makes the result of a leg that has ended."""
    from dgemma_core.files.finding import find_folder
    from dgemma_core.train.interpolation import interpolate

    own = folder / leg.recipe
    if leg.share == 1:
        _replace(own / CHECKPOINT, own / RESULT)
        return
    since = begun_with if leg.since is None else str(folder / leg.since / RESULT)
    assert since is not None, "a chain's first leg has no share of nothing"
    part = own / f"{RESULT}.part"
    shutil.rmtree(part, ignore_errors=True)
    interpolate(find_folder(since), own / CHECKPOINT, leg.share, part)
    part.rename(own / RESULT)


def _replace(source: Path, folder: Path) -> None:
    """Copies a folder so that it is there as a whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    part.rename(folder)
