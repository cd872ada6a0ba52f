"""Weights between two checkpoints: `python -m scripts.interpolate A B SHARE OUT` writes A + SHARE · (B − A).

Between a model and what became of it when it was trained on one skill alone lie models that have the skill and have
forgotten less (Wortsman et al., arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dgemma_core import RequestError
from dgemma_core.files.tensors import SINGLE


def interpolate(first: Path, second: Path, share: float, out: Path) -> None:
    """Writes the folder `first` to `out`, with the weights in between. RequestError where the two do not fit."""
    for folder in (first, second):
        if not (folder / SINGLE).exists():
            raise RequestError(f"{folder} holds no {SINGLE}: name a checkpoint folder")
    if (out / SINGLE).exists():
        raise RequestError(f"{out} holds a checkpoint: name another folder")
    a, b = load_file(first / SINGLE), load_file(second / SINGLE)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        raise RequestError(f"{first} and {second} hold weights of different shapes")
    shutil.copytree(first, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SINGLE))
    with safe_open(first / SINGLE, "pt") as file:
        metadata = file.metadata()
    mixed = {
        name: torch.lerp(t.float(), b[name].float(), share).to(t.dtype) for name, t in a.items()
    }
    save_file(mixed, out / SINGLE, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    try:
        interpolate(asked.first, asked.second, asked.share, asked.out)
    except RequestError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
