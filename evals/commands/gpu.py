"""`dgemma bench gpu`: its options, and the same command where only torch, triton and this project are installed:

python -m dgemma_evals.commands.gpu --out bench
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dgemma_core.errors import DeviceError, DgemmaError, RequestError


def gpu(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("bench"),
    device: Annotated[str, typer.Option(help="cuda, or cpu to try small shapes.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, after one to warm up.")] = 5,
    repeats: Annotated[int, typer.Option(min=2, help="Steps, or tokens, a round.")] = 48,
    layers: Annotated[int, typer.Option(min=1, help="Fewer take less memory.")] = 30,
    experts: Annotated[int, typer.Option(min=8, help="Fewer take less memory.")] = 128,
    touched: Annotated[int, typer.Option(min=8, help="Experts of the second routing.")] = 84,
    vocab: Annotated[int, typer.Option(min=64, help="Tokens of the vocabulary.")] = 262_144,
    prefix: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 4096,
    canvas: Annotated[int, typer.Option(min=2, help="Positions of the canvas.")] = 256,
    width: Annotated[int, typer.Option(min=16, help="Hidden size.")] = 2816,
    dense_width: Annotated[int, typer.Option(min=16, help="Width of the dense MLP.")] = 2112,
    expert_width: Annotated[int, typer.Option(min=16, help="Width of an expert.")] = 704,
    batch: Annotated[str, typer.Option(help="Batch sizes beside 1, with commas.")] = "8",
    tune: Annotated[bool, typer.Option(help="Try tiles of the experts' products first.")] = True,
) -> None:
    """The released shape on one GPU: `generate` in both modes, beside the bare replay of its recorded passes and the
    card's limits.

    Random weights, made on the card; no network. Proves itself against plain modules on the CPU first.
    """
    import torch

    from dgemma_evals.bench.gpu import run
    from dgemma_evals.bench.gpu.card import find_device
    from dgemma_evals.bench.gpu.model import Shape

    if dtype not in ("bfloat16", "float16", "float32"):
        raise RequestError(f"unknown dtype {dtype!r}: choose bfloat16, float16 or float32")
    shape = Shape(
        layers=layers, experts=experts, vocab=vocab, width=width, dense_width=dense_width,
        expert_width=expert_width, canvas=canvas, prefix=prefix,
    )  # fmt: skip
    plan = run.Plan(rounds=rounds, repeats=repeats, batches=_batches(batch), tune=tune)
    where, kind = find_device(device), getattr(torch, dtype)
    try:
        record = run.run(shape, where, kind, min(touched, experts), plan)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "the card's memory did not suffice: pass fewer --layers or --experts, a shorter --prefix, a smaller --batch"
        ) from error
    run.save(out, record)


def _batches(text: str) -> tuple[int, ...]:
    """Batch sizes in order, 1 among them."""
    from dgemma_core.backends.cuda.backend import SIZES

    try:
        sizes = {1, *map(int, text.split(","))}
    except ValueError:
        sizes = {0}
    if not 1 <= min(sizes) <= max(sizes) <= SIZES[-1]:
        raise RequestError(f"--batch {text}: expected sizes of 1 … {SIZES[-1]}, e.g. 4,8")
    return tuple(sorted(sizes))


def main() -> None:
    """The command by itself."""
    try:
        typer.run(gpu)
    except DgemmaError as error:
        print(f"dgemma bench gpu: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
