"""Weights between two checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dgemma_core.errors import RequestError
from dgemma_core.files.tensors import SINGLE


def interpolate(first: Path, second: Path, share: float, out: Path) -> None:
    """Writes the folder `second` to `out`, with the weights first + share · (second − first).

    Raises RequestError where the two do not fit, or `out` holds a checkpoint.
    """
    for folder in (first, second):
        if not (folder / SINGLE).exists():
            raise RequestError(f"{folder} holds no {SINGLE}: name a checkpoint folder")
    if (out / SINGLE).exists():
        raise RequestError(f"{out} holds a checkpoint: name another folder")
    a, b = load_file(first / SINGLE), load_file(second / SINGLE)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        raise RequestError(f"{first} and {second} hold weights of different shapes")
    shutil.copytree(second, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SINGLE))
    with safe_open(second / SINGLE, "pt") as file:
        metadata = file.metadata()
    mixed = {
        name: torch.lerp(t.float(), b[name].float(), share).to(t.dtype) for name, t in a.items()
    }
    save_file(mixed, out / SINGLE, metadata=metadata)
