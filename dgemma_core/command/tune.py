"""`dgemma tune` and `dgemma merge`: a model learns a user's own data; an adapter becomes part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from dgemma_core.command import options
from dgemma_core.errors import CheckpointError, RequestError, shown

if TYPE_CHECKING:
    from dgemma_core.train.tuning_run import Tuned

RECIPES = Path(__file__).parents[1] / "train" / "recipes"
WORDS = {
    "tuple": "two numbers", "list": "whole numbers", "bool": "true or false", "int": "a whole number",
    "float": "a number", "str": "a text", "Path": "a text",
}  # fmt: skip
"""How errors call an option's type."""


def tune(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines with messages, or prompt and completion; or a folder saved by `datasets`.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the adapter goes; the run itself is in DIR/run."),
    ] = None,
    model: options.Model = "nano",
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A YAML file of these options, or sudoku_26b; options given here win.",
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Updates; else --epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times over the data; 3.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate at its peak; 0.6 over the hidden size, --full a tenth of it."
        ),
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="cosine or constant, after the warm-up.")
    ] = "cosine",
    warmup: Annotated[int | None, typer.Option(help="Steps of warm-up; 3 % of all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Answers an update.")] = 16,
    accumulate: Annotated[
        int, typer.Option(help="Parts of a batch, whose gradients are added up.")
    ] = 1,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    modes: Annotated[
        str, typer.Option(help="both, denoiser or causal: the other one stays bit for bit.")
    ] = "both",
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights, and write a checkpoint.")
    ] = False,
    rank: Annotated[int, typer.Option(help="Of the adapter's factors.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="Their product counts alpha / rank; twice the rank.")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Of the adapter's inputs.")] = 0.0,
    targets: Annotated[
        str, typer.Option(help="Groups (router is one more) or names of matrices, by commas.")
    ] = "attention,mlp,experts,self_conditioning",
    self_conditioning: Annotated[
        float, typer.Option(help="Share of canvases that are denoised twice.")
    ] = 0.5,
    noise: Annotated[
        tuple[float, float], typer.Option(help="Range of a canvas's share of noise.")
    ] = (0.0, 1.0),
    autoregressive: Annotated[float, typer.Option(help="Weight of the causal mode's loss.")] = 1.0,
    drafts: Annotated[
        list[int] | None,
        typer.Option(
            help="Also learn canvases of this length that begin anywhere, as speculation drafts them."
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SHARE", help="Held-out data, or the share of the data to hold out."
        ),
    ] = None,
    validate_every: Annotated[
        int, typer.Option(help="Steps between validations; 0: at the end.")
    ] = 0,
    max_length: Annotated[
        int | None,
        typer.Option(help="Cut answers so that no text has more tokens; else none is cut."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Texts as they are, no chat template.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the base: float32, bfloat16; auto.")] = "auto",
    quantize: options.Quantize = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Activation checkpointing: less memory, more time.")
    ] = False,
    device: options.Device = "auto",
    shard: Annotated[
        bool,
        typer.Option("--shard", help="Under torchrun: a part of every weight a process (FSDP2)."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Parts of a batch run side by side, a CPU thread each.")
    ] = None,
    seed: options.Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes; --resume goes on later.")
    ] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    trackio: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Log to this trackio project, too.")
    ] = None,
) -> None:
    """Teach a model your own data. Ctrl-C saves; a killed run loses at most five minutes."""
    given = dict(ctx.params)
    path = given.pop("recipe")
    if path is not None:
        named = {name for name in given if _was_given(ctx, name)}
        given |= {key: v for key, v in read_recipe(path).items() if key not in named}
    if given["data"] is None or given["out"] is None:
        raise RequestError("--data and --out are needed, here or in --recipe")
    if given["minutes"] is not None and not given["minutes"] > 0:
        raise RequestError(f"--minutes must be above 0, got {given['minutes']}")

    from dgemma_core.train import tune as run
    from dgemma_core.train.distributed import is_first

    try:
        done = run(**arguments(given), tell=lambda line: print(line, flush=True))
    except (RequestError, CheckpointError):
        if is_first():
            raise
        raise typer.Exit(2) from None  # the first process says why
    if is_first():
        _print_done(done, given)


def _print_done(done: Tuned, given: Mapping[str, Any]) -> None:
    """What came of the run, in lines."""
    if done.validation:
        losses = {"canvas": "canvas_loss", "causal": "autoregressive_loss"}
        row = done.validation[-1]
        found = [f"{label} {row[name]:.4f}" for label, name in losses.items() if name in row]
        print(f"held out: {', '.join(found)} nats a token")
    print(f"step {done.steps:,}")
    if not done.ended:
        print("stopped before the end: go on with --resume")
    elif given["full"]:
        print(f"checkpoint: {done.folder} (dgemma generate … --model {done.folder})")
    else:
        model = given["model"]
        print(f"adapter: {done.folder} (dgemma generate … --model {model} --adapter {done.folder})")


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as `train.tune` takes them."""
    found = dict(given)
    found["learning_rate"] = found.pop("lr")
    found["recomputes"] = found.pop("recompute")
    found["drafts"] = tuple(found["drafts"] or ())
    held = found["validation"]
    with suppress(ValueError):  # a file
        found["validation"] = None if held is None else float(held)
    return found


def read_recipe(path: Path) -> dict[str, Any]:
    """The options in a YAML file, or in one that comes along, by its name. Raises RequestError for a file that is none,
    for unknown names, and for values of another kind than the option's."""
    import yaml

    if not path.exists() and (shipped := RECIPES / f"{path}.yaml").exists():
        path = shipped
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RequestError(
            f"--recipe {path}: cannot be read ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(found, dict):
        raise RequestError(f"--recipe {path}: expected options by name")
    kinds = get_type_hints(tune)
    known = kinds.keys() - {"ctx", "recipe", "return"}
    found = {str(key).replace("-", "_"): value for key, value in found.items() if key != "about"}
    if unknown := sorted(found.keys() - known):
        raise RequestError(f"--recipe {path}: unknown options {', '.join(unknown)}")
    options = {}
    for name, value in found.items():
        try:
            options[name] = typed(value, kinds[name])
        except (ValueError, OverflowError):
            expected = next(words for kind, words in WORDS.items() if kind in str(kinds[name]))
            raise RequestError(
                f"--recipe {path}: {name}: expected {expected}, found {shown(value)}"
            ) from None
    return options


def typed(value: Any, kind: Any) -> Any:
    """A YAML value as an option of this type takes it: 2e-4 and 1e1, which YAML reads as texts, are numbers. Raises
    ValueError for what cannot be converted without loss."""
    kinds = get_args(kind)
    if type(None) in kinds:
        return None if value is None else typed(value, kinds[0])
    if get_origin(kind) is list:
        return [typed(each, kinds[0]) for each in (value if isinstance(value, list) else [value])]
    if get_origin(kind) is tuple:
        given = value if isinstance(value, list) else [value]
        return tuple(typed(each, one) for each, one in zip(given, kinds, strict=True))
    if kind is str and isinstance(value, list):  # of targets
        return ",".join(typed(each, str) for each in value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, str | int | float):
        raise ValueError
    if kind is not int:
        return kind(value if kind in (bool, float) else str(value))
    if isinstance(value, int):
        return value
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def merge(
    adapter: Annotated[str, typer.Option(metavar="DIR", help="The adapter, in PEFT's layout.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the checkpoint goes.")],
    model: options.Model = "nano",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, …; auto: as `load` runs the model.")
    ] = "auto",
) -> None:
    """Write a checkpoint whose weights are a model's with an adapter's changes. It loads like any other."""
    from dgemma_core.files.checkpoint import load_model, prefers_float32
    from dgemma_core.files.devices import resolve_device
    from dgemma_core.files.finding import find_folder, read_config
    from dgemma_core.files.tensors import short_name
    from dgemma_core.train.tuning_run import check_other, write_checkpoint

    source = find_folder(model)
    check_other(out, source)
    config, generation = read_config(source)
    if dtype == "auto" and prefers_float32(config, resolve_device("auto")):
        dtype = "float32"
    merged = load_model(source, dtype=dtype, device="cpu", backend="torch", adapter=adapter)
    write_checkpoint(merged, out, source, generation)
    print(f"checkpoint: {out} (in {short_name(merged.dtype)}; --dtype chooses another)")
