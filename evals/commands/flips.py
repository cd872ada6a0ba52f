"""`dgemma flips`: answers that change with the batch that they are written in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgemma_core import RequestError
from dgemma_evals.commands.options import (
    Backend,
    Device,
    Limit,
    ModelArg,
    Quantize,
    Tasks,
    Unsafe,
    command,
    settings,
)

flips_app = typer.Typer()


@flips_app.command()
def flips(
    model: Annotated[
        str,
        typer.Option(
            help="nano, a folder or a hub name (diffusion); with :ar token by token, with :spec speculatively."
        ),
    ] = "nano",
    dtype: Annotated[
        str, typer.Option(help="One or more, separated by commas.")
    ] = "float32,bfloat16",
    batch: Annotated[
        str, typer.Option(help="Batch sizes: the first against each other one.")
    ] = "1,3,8",
    tasks: Tasks = "dgemma_nano",
    limit: Limit = 50,
    out: Annotated[Path, typer.Option(help="Folder of records and flips.json.")] = Path("flips"),
    model_arg: ModelArg = None,
    chat: Annotated[
        bool, typer.Option(help="Wrap prompts in the model's own chat template.")
    ] = True,
    quantize: Quantize = None,
    device: Device = "auto",
    backend: Backend = "auto",
    confirm_run_unsafe_code: Unsafe = False,
) -> None:
    """Measure which share of answers changes with the batch that they are written in."""
    from dgemma_core.backends import check_name
    from dgemma_core.files.quantised import scheme
    from dgemma_evals.comparison.flips import RESULTS, measure
    from dgemma_evals.comparison.questions import quiet_harness
    from dgemma_evals.writers.options import FOREIGN

    quiet_harness()
    if model.startswith(FOREIGN):
        raise RequestError(f"flips are of checkpoints that this project runs, which {model} is not")
    check_name(backend)
    own = {**settings(model, model_arg or ()), "backend": backend}
    if quantize is not None:
        scheme(quantize)
        own["quantize"] = quantize
    try:
        sizes = [int(size) for size in batch.split(",")]
    except ValueError as error:
        raise RequestError(f"--batch {batch}: expected sizes, e.g. 1,3,8") from error
    found = measure(
        model,
        dtypes=dtype.split(","),
        batches=sizes,
        tasks=[tasks],
        limit=limit,
        out=out,
        device=device,
        settings=own,
        chat=chat,
        unsafe=confirm_run_unsafe_code,
        command=command(),
    )
    for flip in found:
        typer.echo(flip.sentence)
    typer.echo(f"results: {out / RESULTS}")
