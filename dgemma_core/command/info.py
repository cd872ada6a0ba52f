"""`dgemma info` and `dgemma plan`: what a checkpoint is, and what of it fits into a memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgemma_core.command.lines import escaped
from dgemma_core.command.options import MODEL_HELP, AsJson, BackendName, Device

if TYPE_CHECKING:
    from dgemma_core.command.plan import Plan


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
    prefix: Annotated[int, typer.Option(help="Tokens before the canvas, in the cache.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Show which formats of a model fit into a memory, and the arithmetic."""
    from dgemma_core.command.plan import make_plan, parse_memory

    found = make_plan(model, parse_memory(memory), prefix)
    if as_json:
        from dataclasses import asdict

        formats = {format.pop("name"): format for format in asdict(found)["formats"]}
        print(json.dumps({**asdict(found), "formats": formats}))
        return
    _print_plan(found)


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
