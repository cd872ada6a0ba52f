"""`dgemma compare`: two models on the same documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dgemma_core import RequestError
from dgemma_core.backends import AUTO, check_name
from dgemma_evals.commands.options import (
    Backend,
    Device,
    Limit,
    ModelArg,
    Quantize,
    Tasks,
    Unsafe,
    command,
    quiet,
    settings,
)

compare_app = typer.Typer()


@compare_app.command()
def compare(
    sweep_more: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUES]...", help="More of --sweep.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="nano, a folder or a hub name (diffusion); with :ar token by token, with :spec speculatively."
        ),
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
        typer.Option(
            metavar="NAME=VALUES", help="Settings of sampler or draft to try, e.g. steps=4,8,16."
        ),
    ] = None,
    model_arg: ModelArg = None,
    chat: Annotated[
        bool, typer.Option(help="Wrap prompts in each model's own chat template.")
    ] = True,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; the task's own.")
    ] = None,
    system_instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system instruction for both sides.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of a text, for both sides; the task's own.")
    ] = None,
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
    backend: Backend = "auto",
    baseline_backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the baseline, if not as --backend."),
    ] = None,
    confirm_run_unsafe_code: Unsafe = False,
) -> None:
    """Compare two models on the same documents: accuracy, speed and cost, in one HTML report."""
    from dgemma_evals.comparison.compare import compare as run
    from dgemma_evals.comparison.compare import parse_sweep
    from dgemma_evals.comparison.questions import load_tasks
    from dgemma_evals.comparison.report import write
    from dgemma_evals.writers.named import writer
    from dgemma_evals.writers.options import FOREIGN, split_mode

    quiet()
    _, mode = split_mode(model)
    swept = [*(sweep or ()), *(sweep_more or ())]
    if swept and (mode == "autoregressive" or model.startswith(FOREIGN)):
        raise RequestError(f"--sweep is of samplers and drafts, which {model} has not")
    points = parse_sweep(swept, mode)
    own = settings(model, model_arg or ())
    first, second = _run_as(
        model,
        baseline,
        {"quantize": quantize, "backend": None if backend == AUTO else backend},
        {"quantize": baseline_quantize, "backend": baseline_backend},
    )
    shared = {"dtype": dtype, "device": device}
    load_tasks([tasks], limit=1, unsafe=confirm_run_unsafe_code)  # before long loads
    comparison = run(
        writer(model, chat=chat, **shared, **own, **first),
        writer(baseline, chat=chat, **shared, **second),
        tasks=[tasks],
        limit=limit,
        seeds=seeds,
        out=out,
        sweep=points,
        chat=chat,
        num_fewshot=num_fewshot,
        system=system_instruction,
        max_new_tokens=max_new_tokens,
        say=typer.echo,
        unsafe=confirm_run_unsafe_code,
        command=command(),
    )
    page = write(comparison, out)
    typer.echo(page.answer)
    typer.echo(f"report: {page.path}")


def _run_as(
    model: str, baseline: str, both: dict[str, str | None], other: dict[str, str | None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scheme and backend of the two sides, judged before a long load.

    both: as --quantize and --backend say; other: as --baseline-quantize and --baseline-backend say.
    """
    from dgemma_core.files.quantised import scheme
    from dgemma_evals.writers.options import FOREIGN

    own = [not name.startswith(FOREIGN) for name in (model, baseline)]
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for option, given in both.items():
        if given is not None and not any(own):
            raise RequestError(
                f"--{option} is of checkpoints that this project runs: neither is one"
            )
        if other[option] is not None and not own[1]:
            raise RequestError(
                f"--baseline-{option} is of checkpoints that this project runs, which {baseline} is not"
            )
        for name in (given, other[option]):
            if option == "backend":
                check_name(name or AUTO)
            elif name not in (None, "none"):
                scheme(name)
        values = given, given if other[option] is None else other[option]
        for side, runs, value in zip(sides, own, values, strict=True):
            if runs and value not in (None, "none"):
                side[option] = value
    return sides
