"""`dgemma train`: checks what was asked, runs a recipe in a folder, and says what came of it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgemma_core.errors import RequestError

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.nano.chains import Leg
    from dgemma_core.train.recipe import Sitting

BYTES_A_PARAMETER = 32
"""Of a run's folder at most: weights and two moments of the optimiser in float32, twice while a checkpoint is replaced,
and the exported weights."""


def train(
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe, or of a chain of them: nano, nano-talk.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the run lives; runs/RECIPE if not given."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="MODEL", help="Begin with these weights: nano, or a folder."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes; --resume goes on later.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Parts of a batch run side by side, a CPU thread each; all cores if not given."
        ),
    ] = None,
) -> None:
    """Train a small model from a recipe. Ctrl-C saves; a killed run loses at most five minutes."""
    from dgemma_core.nano.chains import CHAINS
    from dgemma_core.nano.recipes import named_recipe
    from dgemma_core.train.chained import CHECKPOINT, run_chain
    from dgemma_core.train.checkpoints import PROGRESS
    from dgemma_core.train.recipe import Sitting

    chain = CHAINS.get(recipe)
    if chain is None:
        named_recipe(recipe)
    folder = out or Path("runs") / recipe
    first = folder if chain is None else folder / chain.legs[0].recipe
    going_on = (first / PROGRESS).exists()
    if going_on and not resume:
        raise RequestError(
            f"{folder} holds a run: pass --resume to go on with it, or another --out"
        )
    if minutes is not None and not minutes > 0:
        raise RequestError(f"--minutes must be above 0, got {minutes}")
    if resume and start is not None:
        raise RequestError("--resume goes on with the run's own weights: leave --from out")
    if resume and not going_on:
        raise RequestError(f"{folder} holds no run to resume: leave --resume out to start one")
    sitting = Sitting(minutes=minutes, workers=workers)
    if chain is None:
        ended = _run(recipe, folder, start, sitting, device)
    else:

        def run(leg: Leg, own: Path, begun: str | None, left: float | None) -> bool:
            title = f"leg {chain.legs.index(leg) + 1} of {len(chain.legs)}: {leg.recipe}"
            part = replace(sitting, minutes=left)
            return _run(leg.recipe, own, begun, part, device, leg.steps, title)

        ended = run_chain(chain, folder, start, minutes, run)
        if ended:
            print(f"all legs are done: {folder / CHECKPOINT}")
    if not ended:
        print("stopped before the recipe's end: go on with --resume")


def _run(
    recipe: str,
    folder: Path,
    start: str | None,
    sitting: Sitting,
    device: str,
    until: int | None = None,
    title: str = "",
) -> bool:
    """Runs a recipe in its folder, from `start` or, where the folder holds a run, on from there, until its last step or
    step `until`. Whether it is at its end; what it has made so far is the folder's checkpoint."""
    from dgemma_core.facts.machine import bfloat16_multiplies
    from dgemma_core.nano.recipes import named_recipe
    from dgemma_core.train.chained import CHECKPOINT
    from dgemma_core.train.run import export, make_trainer, plot_curve, run_with_progress

    chosen = named_recipe(recipe)
    last = until or chosen.training.steps
    _check_folder(folder)
    trainer = make_trainer(chosen, folder, device, start, workers=sitting.workers)
    trainer.resume()
    _check_space(folder, trainer.model)
    if title:
        print(title)
    if not bfloat16_multiplies(trainer.model.device):
        print("this CPU has no bfloat16 products: training in float32")
    progress = trainer.progress
    if progress.step < last:
        run_with_progress(trainer, sitting.minutes, until=until)
    print(f"step {progress.step} of {last}, {progress.seconds / 60:.1f} minutes")
    print(f"curve: {plot_curve(progress.curve, folder / 'curve.html')}")
    print(f"checkpoint: {export(trainer.model, chosen, folder / CHECKPOINT)}")
    return progress.step >= last


def _check_folder(folder: Path) -> None:
    """Raises RequestError unless files can be written there, before any time is spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"--out {folder}: cannot be written to ({error.strerror}); name another folder"
        ) from None


def _check_space(folder: Path, model: DiffusionGemma) -> None:
    """Raises RequestError where the folder's disk cannot hold the run's checkpoints."""
    needed = BYTES_A_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RequestError(
            f"--out {folder}: {free / 1e6:,.0f} MB free, and a run needs up to {needed / 1e6:,.0f} MB: "
            "free some, or name another folder"
        )
