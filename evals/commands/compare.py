"""`dgemma compare`: two models on the same documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgemma_core import RequestError
from dgemma_evals.commands.options import (
    Device,
    Limit,
    ModelArg,
    Quantize,
    Tasks,
    Unsafe,
    command,
    quiet,
    samples,
    settings,
)

compare_app = typer.Typer()


@compare_app.command()
def compare(
    sweep_more: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUES]...", help="More of --sweep.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="nano, a folder or a hub name (diffusion); with :ar token by token.")
    ] = "nano",
    baseline: Annotated[
        str,
        typer.Option(
            help="Likewise; or hf:NAME, gguf:FILE, gguf:gemma3-270m (any causal model of"
            " transformers), or http://HOST/v1#MODEL (an OpenAI-compatible server)."
        ),
    ] = "nano:ar",
    tasks: Tasks = "dgemma_nano",
    limit: Limit = 50,
    seeds: Annotated[
        int, typer.Option(min=1, help="Texts of a document, where a writer samples.")
    ] = 3,
    out: Annotated[Path, typer.Option(help="Folder of records and report.")] = Path("comparison"),
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUES", help="Sampler settings to try, e.g. steps=4,8,16."),
    ] = None,
    model_arg: ModelArg = None,
    chat: Annotated[
        bool, typer.Option(help="Wrap prompts in each model's own chat template.")
    ] = True,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, …; auto: as stored (nano on a CPU: float32).")
    ] = "auto",
    quantize: Quantize = None,
    baseline_quantize: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME", help="Of the baseline, if not as --quantize: int8, int4 or none."
        ),
    ] = None,
    device: Device = "auto",
    confirm_run_unsafe_code: Unsafe = False,
) -> None:
    """Compare two models on the same documents: accuracy, speed and cost, in one HTML report."""
    from dgemma_evals.comparison.compare import compare as run
    from dgemma_evals.comparison.compare import load_tasks, parse_sweep
    from dgemma_evals.comparison.report import write
    from dgemma_evals.writers.writers import writer

    quiet()
    points = parse_sweep([*(sweep or ()), *(sweep_more or ())])
    if points and not samples(model):
        raise RequestError(f"--sweep is of samplers, which {model} has not")
    own = settings(model, model_arg or ())
    forms = _quantized(model, baseline, quantize, baseline_quantize)
    shared = {"dtype": dtype, "device": device}
    load_tasks([tasks], limit=1, unsafe=confirm_run_unsafe_code)  # before long loads
    comparison = run(
        writer(model, **shared, **own, quantize=forms[0]),
        writer(baseline, **shared, quantize=forms[1]),
        tasks=[tasks],
        limit=limit,
        seeds=seeds,
        out=out,
        sweep=points,
        chat=chat,
        unsafe=confirm_run_unsafe_code,
        command=command(),
    )
    page = write(comparison, out)
    typer.echo(page.answer)
    typer.echo(f"report: {page.path}")


def _quantized(
    model: str, baseline: str, both: str | None, other: str | None
) -> tuple[str | None, str | None]:
    """The schemes of the two, judged before a long load."""
    from dgemma_core.files.quantised import scheme
    from dgemma_evals.writers.options import FOREIGN

    own = [not name.startswith(FOREIGN) for name in (model, baseline)]
    if both is not None and not any(own):
        raise RequestError("--quantize is of checkpoints that this project runs: neither is one")
    if other is not None and not own[1]:
        raise RequestError(
            f"--baseline-quantize is of checkpoints that this project runs, which {baseline} is not"
        )
    for name in (both, None if other == "none" else other):
        if name is not None:
            scheme(name)
    second = both if other is None else None if other == "none" else other
    return (both if own[0] else None, second if own[1] else None)
