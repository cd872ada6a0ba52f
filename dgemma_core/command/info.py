"""`dgemma info` and `dgemma plan`: what a checkpoint is, and what of it fits into a memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgemma_core.command.lines import escaped
from dgemma_core.command.options import MODEL_HELP, AsJson, BackendName, Device
from dgemma_core.errors import RequestError, whole_number

if TYPE_CHECKING:
    from dgemma_core.command.plan import Plan, TuningPlan


def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "nano",
    device: Device = "auto",
    backend: BackendName = "auto",
    as_json: AsJson = False,
) -> None:
    """Show a checkpoint's configuration, parameters (total and active), bytes and backend.

    Of one on the hub only its configuration and the headers of its files are read.
    """
    from dgemma_core.backends import default_name
    from dgemma_core.facts.cost import count_parameters
    from dgemma_core.files.config_json import generation_defaults_json, model_config_json
    from dgemma_core.files.description import describe
    from dgemma_core.files.devices import resolve_device

    chosen = default_name(resolve_device(device), backend)
    found = describe(model)
    config, defaults, stored = found.config, found.generation, dict(found.stored)
    total, active = count_parameters(config)
    loaded = {"float32": 4 * total, "bfloat16": 2 * total}
    if as_json:
        facts = {
            "model": model,
            "backend": chosen,
            "parameters": {"total": total, "active": active},
            "stored_bytes": stored,
            "loaded_bytes": loaded,
            "config": model_config_json(config),
            "generation_config": generation_defaults_json(defaults),
        }
        print(json.dumps(facts))
        return
    text = config.text
    full = sum(layer.full for layer in text.layers)
    canvases = f"canvases of {config.canvas_length} tokens, or token by token"
    rows = {
        "model": f"{model} ({config.model_type}), {found.place}",
        "writes": canvases if config.can_denoise else "token by token only",
        "layers": f"{len(text.layers) - full} sliding (window {text.sliding_window}), {full} full",
        "width": f"{text.hidden_size}; {text.num_attention_heads} query heads",
        "experts": f"{text.num_experts} of width {text.moe_intermediate_size}, "
        f"{text.top_k_experts} for each token, beside a dense MLP of {text.intermediate_size}",
        "vocabulary": f"{text.vocab_size:,}",
        "parameters": f"{total:,} in the text model, {active:,} active for each token",
        "stored": f"{_sizes(stored)}; all tensors",
        "loaded": f"{_sizes(loaded)}; the text model",
        "backend": f"{chosen}, unless it cannot run the model: `dgemma generate --json` names what ran",
        "sampling": f"up to {defaults.max_denoising_steps} steps a canvas, "
        f"entropy bound {defaults.entropy_bound:g} nats, "
        f"temperature {defaults.t_max:g} to {defaults.t_min:g}",
    }
    for name, value in rows.items():
        print(f"{name:<12}{escaped(value)}")


def plan(
    memory: Annotated[str, typer.Option(metavar="SIZE", help="For example 18GB or 16GiB.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="nano, a folder with a config.json, or a released name."
        ),
    ] = "google/diffusiongemma-26B-A4B-it",
    prefix: Annotated[
        int | None, typer.Option(help="Tokens before the canvas, in the cache; 4096.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Of tuning in place of generation; the options below.")
    ] = False,
    rank: Annotated[int | None, typer.Option(help="Of the adapter's factors; 16.")] = None,
    modes: Annotated[str | None, typer.Option(help="both, denoiser or causal; both.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All weights learn.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Answers an update; 16.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts of a batch; 1.")] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a text, prompt and answer; 512.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show which formats of a model fit into a memory, and the arithmetic."""
    from dgemma_core.command.plan import make_plan, parse_memory

    asked = {"rank": rank, "modes": modes, "length": length}
    given = {name: value for name, value in asked.items() if value is not None}
    if tune:
        if prefix is not None:
            raise RequestError("--prefix belongs to generation: leave it out, or --tune")
        if full and rank is not None:
            raise RequestError(
                "--rank is of an adapter, and all weights learn: leave it out, or --full"
            )
        size = 16 if batch_size is None else whole_number("--batch-size", batch_size, low=1)
        parts = 1 if accumulate is None else whole_number("--accumulate", accumulate, low=1)
        _plan_tuning(model, memory, device, size, parts, as_json, full, given)
        return
    more = {"batch-size": batch_size, "accumulate": accumulate, "full": full or None, **given}
    if wrong := [f"--{name}" for name, value in more.items() if value is not None]:
        raise RequestError(f"{', '.join(wrong)} belong to --tune: add it, or leave them out")
    found = make_plan(model, parse_memory(memory), 4096 if prefix is None else prefix)
    if as_json:
        from dataclasses import asdict

        formats = {format.pop("name"): format for format in asdict(found)["formats"]}
        print(json.dumps({**asdict(found), "formats": formats}))
        return
    _print_plan(found)


def _plan_tuning(
    model: str,
    memory: str,
    device: str,
    batch_size: int,
    parts: int,
    as_json: bool,
    full: bool,
    settings: dict[str, Any],
) -> None:
    from dgemma_core.command.plan import make_tuning_plan, parse_memory
    from dgemma_core.files.devices import resolve_device

    if batch_size % parts:
        raise RequestError(f"--batch-size {batch_size} does not divide into {parts} parts")
    settings |= {"full": full, "texts": batch_size // parts, "parts": parts}
    found = make_tuning_plan(model, parse_memory(memory), resolve_device(device), **settings)
    if as_json:
        from dataclasses import asdict

        bases = {
            base: {
                name: {"total": one.total, "fits": one.total <= found.memory, **asdict(one)}
                for name, one in zip(("plain", "recompute"), both, strict=True)
            }
            for base, both in found.bases.items()
        }
        print(json.dumps({"model": model, "memory": found.memory, "bases": bases}))
        return
    _print_tuning(found)


def _print_tuning(found: TuningPlan) -> None:
    """A table of formats, with and without activation checkpointing, then how each number came about."""
    from rich.console import Console
    from rich.table import Table

    run = found.run
    table = Table(box=None, pad_edge=False)
    table.add_column("GB")
    for base in found.bases:
        table.add_column(base, justify="right")

    def row(label: str, sizes: Sequence[int], **style: Any) -> None:
        table.add_row(label, *(f"{size / 1e9:,.2f}" for size in sizes), **style)

    def of(lines: Sequence[Any]) -> int:
        return sum(line.bytes for line in lines)

    every = found.bases.values()
    row("weights", [plain.held[0].bytes for plain, _ in every])
    row("adapter, moments, copies", [of(plain.held[1:]) for plain, _ in every])
    row("gradients", [of(plain.updating) for plain, _ in every])
    row("a pass", [of(plain.passing) for plain, _ in every])
    row("a pass with --recompute", [of(again.passing) for _, again in every])
    row("total", [plain.total for plain, _ in every], style="bold")
    row("total with --recompute", [again.total for _, again in every], style="bold")
    verdicts = [
        "fits"
        if plain.total <= found.memory
        else "recompute fits"
        if again.total <= found.memory
        else "too large"
        for plain, again in every
    ]
    table.add_row(f"in {found.memory / 1e9:,.2f} GB", *verdicts, style="bold")
    Console(highlight=False).print(table)
    print(
        f"\n{run.texts} texts of {run.length:,} tokens at once. The total is weights, adapter, moments and copies,"
        " and the larger of gradients and a pass. Not counted: the process itself, and what kernels and"
        " the allocator keep from step to step (on a CPU 1 to 2 GB)."
    )
    base, (plain, again) = next(
        (item for item in found.bases.items() if item[0] == "bf16"), next(iter(found.bases.items()))
    )
    for heading, lines in (
        (base, (*plain.held, *plain.updating)),
        ("a pass", plain.passing),
        ("a pass with --recompute", again.passing),
    ):
        print(f"\n{heading}")
        for line in lines:
            print(f"  {line.label:<28}{line.arithmetic} = {line.bytes / 1e6:,.1f} MB")


def _print_plan(found: Plan) -> None:
    """A table of parts and formats, then how each number came about."""
    from rich.console import Console
    from rich.table import Table

    large = max(format.total for format in found.formats) >= 1e9
    unit, size_of = ("GB", 1e9) if large else ("MB", 1e6)
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{unit}, prefix {found.prefix:,}")
    for heading in ("parameters", *(format.name for format in found.formats)):
        table.add_column(heading, justify="right")

    def row(label: str, count: int | None, sizes: Sequence[int], **style: Any) -> None:
        shown = "" if count is None else f"{count:,}"
        table.add_row(label, shown, *(f"{size / size_of:,.2f}" for size in sizes), **style)

    for part, count in found.parameters.items():
        row(part, count, [format.weights[part] for format in found.formats])
    row("of which scales", None, [format.scales for format in found.formats], style="dim")
    row("prefix cache", None, [format.cache for format in found.formats])
    row(
        "working memory",
        None,
        [sum(line.bytes for line in format.working) for format in found.formats],
    )
    row(
        "total",
        sum(found.parameters.values()),
        [format.total for format in found.formats],
        style="bold",
    )
    verdicts = ["fits" if format.fits else "too large" for format in found.formats]
    table.add_row(f"in {found.memory / 1e9:,.2f} GB", "", *verdicts, style="bold")
    console = Console(highlight=False)
    console.print(table)
    print()
    for format in found.formats:
        print(f"{format.name:<20}{found.formula(format.name)}")
    left_out = "left out"
    if found.vision is not None:
        left_out += f": {found.vision:,} parameters, {2 * found.vision / 1e9:.2f} GB as bf16"
    print(f"{'vision':<20}{left_out}")
    working = max((format.working for format in found.formats), key=len)
    for line in (*found.cache, *working):
        print(f"{line.label:<20}{line.arithmetic} = {line.bytes / 1e6:,.1f} MB")
    for format in found.formats:
        if format.fits and format.loads is not None:
            print(f"load as {format.name:<12}load({found.model!r}, {format.loads})")


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e6:,.1f} MB {dtype}" for dtype, size in sizes.items())
