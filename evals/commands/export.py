"""`dgemma export`: the causal half as a Gemma 4 checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    from dgemma_evals.writers.export import export_autoregressive

    folder = export_autoregressive(model, autoregressive, dtype=dtype)
    typer.echo(f"wrote {folder}")
