"""Options that several commands share, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dgemma_core import RequestError

_NO_SETTINGS = (
    "pretrained", "dtype", "quantize", "device", "backend", "batch_size", "max_batch_size", "records", "likelihood",
    "likelihood_samples", "slot_passes",
)  # fmt: skip
"""Arguments of the lm-eval models that --model-arg may not name."""

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
Backend = Annotated[
    str,
    typer.Option(help="What runs this project's models: torch, cpu or cuda; auto: by the device."),
]
Unsafe = Annotated[
    bool,
    typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run written programs."),
]


def settings(model: str, texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts, checked before a long load."""
    from dgemma_evals.writers.options import FOREIGN, Options, split_mode

    if texts and model.startswith(FOREIGN):
        raise RequestError(
            f"--model-arg is of checkpoints that this project runs, which {model} is not"
        )
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
    checkpoint, mode = split_mode(model)
    Options.parse(mode, {"pretrained": checkpoint, **found})
    return found


def command() -> str:
    return " ".join(["dgemma", *map(_plain_argument, sys.argv[1:])])


def _plain_argument(text: str) -> str:
    return f"'{text}'" if " " in text else text
