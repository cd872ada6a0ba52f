"""The commands that this package adds to `dgemma`: eval, compare, flips, export."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dgemma_core import DgemmaError, RequestError

_RAW = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
_USERS_FAULT = ("config", "_cli", "tasks", "api/registry.py", "api/group.py")
"""Parts of lm-eval whose ValueError and KeyError speak of what was asked for."""

_NO_SETTINGS = (
    "pretrained", "dtype", "quantize", "device", "batch_size", "max_batch_size", "records", "likelihood",
    "likelihood_samples",
)  # fmt: skip
"""Arguments of the lm-eval models that --model-arg may not name."""

eval_app = typer.Typer()


@eval_app.command(context_settings=_RAW, add_help_option=False)
def evaluate(ctx: typer.Context) -> None:
    """Evaluate with lm-eval's own command line (run, ls, validate), which then knows the models
    dgemma and dgemma-ar and the tasks dgemma_nano."""
    harness(ctx.args)


def harness(arguments: Sequence[str]) -> None:
    """lm-eval's command line, with our models and tasks known to it.

    For our models: the device is auto unless one is given, records stand beside the samples of
    --output_path, the path of --use_cache gets the model's hash, and --quantize is the model argument
    of that name.
    """
    from dgemma_evals.harness import register

    register()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    arguments, quantize = _taken("--quantize", arguments)
    sys.argv = ["dgemma eval", *arguments]
    command = HarnessCLI()
    try:
        parsed = command.parse_args()
        if parsed.command == "run":
            _prepare(parsed, quantize)
        elif quantize is not None:
            raise RequestError(f"--quantize has no meaning for {parsed.command}: leave it out")
        command.execute(parsed)
    except (ValueError, KeyError, TypeError) as error:
        if not _users_fault(error):
            raise
        raise DgemmaError(str(error.args[0] if error.args else error)) from error


def _taken(option: str, arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without an option that lm-eval does not know, and its value."""
    left: list[str] = []
    found: str | None = None
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != option:
            left.append(argument)
            continue
        if found is not None:
            raise RequestError(f"{option} is given twice: give it once")
        found = value if equals else next(rest, "")
        if not found:
            raise RequestError(f"{option} needs a value, e.g. {option} int4")
    return left, found


def _users_fault(error: BaseException) -> bool:
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename).as_posix()
    _, inside, part = raised.rpartition("/lm_eval/")
    return bool(inside) and part.startswith(_USERS_FAULT)


def _prepare(parsed: Namespace, quantize: str | None) -> None:
    """Fills in what our models need that lm-eval's command line does not say."""
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import sanitize_model_name, simple_parse_args_string

    from dgemma_evals.backend import models

    asked: dict[str, Any] = {}
    if parsed.config:
        asked = EvaluatorConfig.load_yaml_config(parsed.config)
    asked |= {name: value for name, value in vars(parsed).items() if value is not None}
    kinds = dict(models())
    if asked.get("model") not in kinds:
        if quantize is not None:
            raise RequestError(
                f"--quantize is of the models {' and '.join(kinds)}, not of {asked.get('model')}"
            )
        return
    given = asked.get("model_args") or {}
    given = simple_parse_args_string(given) if isinstance(given, str) else dict(given)
    if not asked.get("device") and "device" not in given:
        parsed.device = "auto"
    elif "device" in given:
        parsed.device = given.pop("device")
    if quantize is not None:
        if given.get("quantize", quantize) != quantize:
            raise RequestError(
                f"--quantize {quantize} and the model argument quantize={given['quantize']}: give one"
            )
        given["quantize"] = quantize
    output = asked.get("output_path")
    if output and "records" not in given and not asked.get("use_cache"):
        folder = Path(output)
        folder = folder.parent if folder.suffix == ".json" else folder
        given["records"] = os.fspath(
            folder / sanitize_model_name(str(given.get("pretrained", "nano")))
        )
    parsed.model_args = given
    if asked.get("use_cache"):
        from dgemma_evals.options import Options

        options = Options.parse(kinds[asked["model"]].mode, given)
        parsed.use_cache = f"{asked['use_cache']}-{options.identity()}"


Tasks = Annotated[str, typer.Option(help="Tasks that write, separated by commas.")]
Limit = Annotated[int, typer.Option(min=1, help="Documents of each task.")]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A setting of --model, as in the --model_args of `dgemma eval`, e.g. steps=16.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, …; auto: a GPU where there is one.")]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="SCHEME", help="int8 or int4: weights of this project's models as whole numbers."
    ),
]
Unsafe = Annotated[
    bool,
    typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run written programs."),
]

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
    from dgemma_evals.compare import compare as run
    from dgemma_evals.compare import load_tasks, parse_sweep
    from dgemma_evals.report import write
    from dgemma_evals.writers import writer

    _quiet()
    points = parse_sweep([*(sweep or ()), *(sweep_more or ())])
    if points and not _samples(model):
        raise RequestError(f"--sweep is of samplers, which {model} has not")
    own = _settings(model, model_arg or ())
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
        command=_command(),
    )
    page = write(comparison, out)
    typer.echo(page.answer)
    typer.echo(f"report: {page.path}")


def _quantized(
    model: str, baseline: str, both: str | None, other: str | None
) -> tuple[str | None, str | None]:
    """The schemes of the two, judged before a long load."""
    from dgemma_core.files.quantised import scheme
    from dgemma_evals.options import FOREIGN

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


def _samples(model: str) -> bool:
    from dgemma_evals.options import FOREIGN

    return not model.endswith(":ar") and not model.startswith(FOREIGN)


def _settings(model: str, texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts, checked before a long load."""
    from dgemma_evals.options import Options

    if texts and not _samples(model):
        raise RequestError(f"--model-arg is of diffusion, which {model} is not")
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise RequestError(f"--model-arg {text}: expected NAME=VALUE, e.g. steps=16")
        if name in _NO_SETTINGS:
            raise RequestError(
                f"--model-arg {name}: has an option of its own, or no effect on what is written here"
            )
        found[name] = value
    Options.parse("diffusion", {"pretrained": model, **found})
    return found


def _command() -> str:
    return " ".join(["dgemma", *map(_plain_argument, sys.argv[1:])])


def _plain_argument(text: str) -> str:
    return f"'{text}'" if " " in text else text


def _quiet() -> None:
    """Leaves out what lm-eval tells of each task."""
    import logging

    from dgemma_evals.harness import register

    register()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


flips_app = typer.Typer()


@flips_app.command()
def flips(
    model: Annotated[
        str, typer.Option(help="nano, a folder or a hub name (diffusion); with :ar token by token.")
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
    confirm_run_unsafe_code: Unsafe = False,
) -> None:
    """Measure which share of answers changes with the batch that they are written in."""
    from dgemma_core.files.quantised import scheme
    from dgemma_evals.flips import RESULTS, measure
    from dgemma_evals.options import FOREIGN

    _quiet()
    if model.startswith(FOREIGN):
        raise RequestError(f"flips are of checkpoints that this project runs, which {model} is not")
    own = _settings(model, model_arg or ())
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
        command=_command(),
    )
    for flip in found:
        typer.echo(flip.sentence)
    typer.echo(f"results: {out / RESULTS}")


export_app = typer.Typer()


@export_app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="nano, a folder, or a name on the Hugging Face hub.")
    ],
    autoregressive: Annotated[
        Path, typer.Option(metavar="DIR", help="Write the causal half into this folder.")
    ],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, …; auto: as stored.")] = "auto",
) -> None:
    """Write the causal half of a DiffusionGemma as a Gemma 4 checkpoint, which transformers
    (Gemma4ForCausalLM), lm_eval --model hf and vLLM load."""
    from dgemma_evals.export import export_autoregressive

    folder = export_autoregressive(model, autoregressive, dtype=dtype)
    typer.echo(f"wrote {folder}")
