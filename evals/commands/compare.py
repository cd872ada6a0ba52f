"""`dgemma compare`: two models or more on the same documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dgemma_core import RequestError
from dgemma_core.backends import AUTO, check_name
from dgemma_evals.commands.options import (
    Backend,
    Device,
    Limit,
    Quantize,
    Tasks,
    Unsafe,
    command,
)

compare_app = typer.Typer()
Value = TypeVar("Value")


@compare_app.command()
def compare(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SIDE]...",
            help="The first against each other one; nano and nano:ar where none is named. A side is nano, a folder or"
            " a hub name (diffusion), with :ar token by token, with :spec speculatively; hf:NAME, gguf:FILE or"
            " gguf:gemma3-270m (any causal model of transformers); or http://HOST/v1#MODEL (an OpenAI-compatible"
            " server). Its own settings stand behind a comma: nano,steps=16,quantize=int4.",
        ),
    ] = None,
    tasks: Tasks = "dgemma_nano",
    limit: Limit = 50,
    seeds: Annotated[
        int, typer.Option(min=1, help="Blocks: every side writes every document once in each.")
    ] = 3,
    out: Annotated[Path, typer.Option(help="Folder of records and report.")] = Path("comparison"),
    fresh: Annotated[
        bool, typer.Option(help="Each block in a process of its own; or all in this one, quickly.")
    ] = True,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME[,FILTER]", help="What counts; the task's first, first filter."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Settings of the first side's sampler or draft to try, e.g. steps=4,8,16.",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="SIZES", help="Also serve so many at a time, e.g. 1,2,4,8,16,32.")
    ] = "",
    rate: Annotated[
        str,
        typer.Option(
            metavar="RATES", help="Also serve requests that arrive a second, e.g. 0.5,1,2."
        ),
    ] = "",
    within: Annotated[
        float, typer.Option(help="Seconds in which an answer counts as good (goodput).")
    ] = 1.0,
    price: Annotated[
        float | None, typer.Option(help="Of the machine an hour: gives the cost of tokens.")
    ] = None,
    server_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Sent to servers in the request's body besides."),
    ] = None,
    chat: Annotated[
        bool, typer.Option(help="Wrap prompts in each model's own chat template.")
    ] = True,
    num_fewshot: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Examples before each question; several, e.g. 0,2,8, for longer and longer prompts.",
        ),
    ] = "",
    system_instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system instruction for all sides.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of a text, for all sides; the task's own.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, …; auto: as stored (nano on a CPU: float32).")
    ] = "auto",
    quantize: Quantize = None,
    device: Device = "auto",
    backend: Backend = "auto",
    confirm_run_unsafe_code: Unsafe = False,
) -> None:
    """Compare models on the same documents: accuracy, speed and cost, in one HTML report."""
    from dgemma_core.files.quantised import scheme
    from dgemma_evals.comparison import block
    from dgemma_evals.comparison.compare import compare as run_here
    from dgemma_evals.comparison.compare import compare_afresh
    from dgemma_evals.comparison.plan import Plan, parse_sweep
    from dgemma_evals.comparison.questions import quiet_harness
    from dgemma_evals.comparison.report import write
    from dgemma_evals.writers.named import Spec, writer
    from dgemma_evals.writers.options import split_mode

    quiet_harness()
    # `--sweep steps=4,8 entropy_bound=.1,.2`: what follows is more of the same.
    more = [side for side in sides or () if sweep and _is_setting(side)]
    swept = [*(sweep or ()), *more]
    named = [side for side in sides or () if side not in more]
    specs = [Spec.parse(side) for side in named or ("nano", "nano:ar")]
    if len(specs) < 2:
        raise RequestError(f"what is {named[0]} to be compared with? Name two sides or more")
    _, mode = split_mode(specs[0].name)
    if swept and (mode == "autoregressive" or not specs[0].own):
        raise RequestError(f"--sweep is of samplers and drafts, which {specs[0].text} has not")
    check_name(backend)
    if quantize is not None:
        scheme(quantize)
    for option, given in (
        ("quantize", quantize),
        ("backend", None if backend == AUTO else backend),
    ):
        if given and not any(spec.own for spec in specs):
            raise RequestError(
                f"--{option} is of checkpoints that this project runs: no side is one"
            )
    if server_arg and not any(spec.server for spec in specs):
        raise RequestError("--server-arg is of servers (http://…): no side is one")
    plan = Plan(
        tasks=(tasks,), limit=limit, seeds=seeds, sweep=parse_sweep(swept, mode), chat=chat,
        examples=_numbers("--num-fewshot", num_fewshot, _count) or (None,),
        system=system_instruction, max_new_tokens=max_new_tokens, metric=metric,
        unsafe=confirm_run_unsafe_code, batches=_numbers("--batch", batch, int),
        rates=_numbers("--rate", rate, float), within=within, price=price,
    )  # fmt: skip
    terms, _ = block.asked(plan)  # before long loads
    for name, asked in terms.items():
        typer.echo(f"{name}: {_terms_line(asked)}")
    shared = {"dtype": dtype, "device": device, "backend": backend}
    shared |= {} if quantize is None else {"quantize": quantize}
    extra = dict(_setting(text) for text in server_arg or ())
    texts = [spec.text for spec in specs]
    if fresh and seeds > 1:
        comparison = compare_afresh(plan, texts, out, shared=shared, extra=extra, command=command())
    else:
        writers = [writer(spec, chat=chat, extra=extra, **shared) for spec in specs]
        comparison = run_here(plan, writers, out, command=command())
    for side, said in comparison.facts["prompts"].items():
        typer.echo(f"prompts of {side}: {said}")
    page = write(comparison, out)
    for answer in page.answers:
        typer.echo(answer)
    typer.echo(f"report: {page.path}")


def _is_setting(text: str) -> bool:
    """NAME=VALUES, and no side with settings of its own."""
    name, equals, _ = text.partition("=")
    return bool(equals) and name.isidentifier()


def _terms_line(asked: dict[str, Any]) -> str:
    """A task's `gen_kwargs` in words."""
    stops = ", ".join(map(repr, asked["until"])) or "none"
    rest = {name: value for name, value in asked.items() if name not in ("until", "max_gen_toks")}
    more = "".join(f", {name}={value}" for name, value in rest.items())
    return f"at most {asked['max_gen_toks']} tokens, stop strings {stops}{more}"


def _numbers(option: str, text: str, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """Numbers with commas between them, each once; () for an empty text."""
    try:
        return tuple(dict.fromkeys(kind(part) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise RequestError(f"{option} {text}: expected numbers, e.g. 1,2,4") from error


def _count(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(text)
    return int(text)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise RequestError(f"--server-arg {text}: expected NAME=VALUE, e.g. temperature=0.8")
    return name, value
