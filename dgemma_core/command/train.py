"""`dgemma train`: checks what was asked, runs a recipe in a folder, and says what came of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgemma_core.errors import RequestError

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma

BYTES_A_PARAMETER = 32
"""Of a run's folder at most: weights and two moments of the optimiser in float32, twice while a checkpoint is replaced,
and the exported weights."""


def train(
    recipe: Annotated[str, typer.Option(help="Name of a recipe: model, data and settings.")],
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
    from dgemma_core.facts.machine import bfloat16_multiplies
    from dgemma_core.nano.recipes import named_recipe
    from dgemma_core.train.recipe import Sitting
    from dgemma_core.train.run import export, make_trainer, plot_curve, run_with_progress

    chosen = named_recipe(recipe)
    folder = out or Path("runs") / recipe
    if (folder / "progress.json").exists() and not resume:
        raise RequestError(
            f"{folder} holds a run: pass --resume to go on with it, or another --out"
        )
    if minutes is not None and not minutes > 0:
        raise RequestError(f"--minutes must be above 0, got {minutes}")
    sitting = Sitting(minutes=minutes, workers=workers)
    if resume and start is not None:
        raise RequestError("--resume goes on with the run's own weights: leave --from out")
    _check_folder(folder)
    trainer = make_trainer(chosen, folder, device, start, workers=sitting.workers)
    if resume and not trainer.resume():
        raise RequestError(f"{folder} holds no run to resume: leave --resume out to start one")
    _check_space(folder, trainer.model)
    if not bfloat16_multiplies(trainer.model.device):
        print("this CPU has no bfloat16 products: training in float32")
    ended = run_with_progress(trainer, sitting.minutes)
    progress = trainer.progress
    print(f"step {progress.step} of {chosen.training.steps}, {progress.seconds / 60:.1f} minutes")
    print(f"curve: {plot_curve(progress.curve, folder / 'curve.html')}")
    print(f"checkpoint: {export(trainer.model, chosen, folder / 'checkpoint')}")
    if not ended:
        print("stopped before the recipe's end: go on with --resume")


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
