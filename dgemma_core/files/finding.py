"""Finds a checkpoint by name: "nano", "nano-talk", a folder, or "owner/name" on the Hugging Face hub.

A hub checkpoint is taken from the hub's cache or downloaded: first its json files, whose
configuration is checked, then its weights.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgemma_core.config import GenerationDefaults, ModelConfig
from dgemma_core.errors import CheckpointError
from dgemma_core.files.config_json import read_generation_defaults, read_model_config
from dgemma_core.files.reading import plain, read_json
from dgemma_core.files.tensors import dtype_name

CONFIG, GENERATION = "config.json", "generation_config.json"
NANO = Path(__file__).parents[1] / "nano" / "weights"
SHIPPED = {"nano": NANO, "nano-talk": NANO.with_name("talk")}
"""Models that come with the package: one for puzzles, one for English."""

_SMALL_FILES = ("*.json", "*.jinja")


def find_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder that a shipped model's name, a path or a hub name stands for; the hub's is downloaded if need be.

    Raises CheckpointError where there is none.
    """
    if isinstance(name_or_path, str) and name_or_path in SHIPPED:
        return SHIPPED[name_or_path]
    name = as_name(name_or_path)
    path = as_path(name)
    try:
        if name and path.is_dir():
            return path
        exists = bool(name) and path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError(
            f"{plain(name)}: cannot be opened ({error.strerror}); check the name"
        ) from error
    if exists:
        found = "a pickle, which is never opened" if path.suffix in (".bin", ".pt") else "a file"
        raise CheckpointError(f"{path}: expected a folder, found {found}; name the file's folder")
    if is_hub_name(name):
        return _download(name)
    raise CheckpointError(
        f"{plain(name)}: expected {' or '.join(map(repr, SHIPPED))}, a folder or a hub name (owner/name), found no"
        " such folder; check the spelling"
    )


def read_config(folder: str | os.PathLike[str]) -> tuple[ModelConfig, GenerationDefaults]:
    """The configuration and the sampler defaults of a checkpoint.

    generation_config.json may be missing or hold nulls. Raises CheckpointError where a file is
    damaged or describes another architecture.
    """
    folder = find_folder(folder)
    file = folder / CONFIG
    config = read_model_config(read_json(file), source=str(file))
    file = folder / GENERATION
    given = read_json(file) if file.exists() else None
    return config, read_generation_defaults(given, config, source=str(file))


def as_name(name_or_path: str | os.PathLike[str]) -> str:
    """The name as text. Raises CheckpointError for what is neither text nor a path."""
    name = os.fspath(name_or_path) if isinstance(name_or_path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise CheckpointError(
            f"expected a checkpoint's name or folder, found a {type(name_or_path).__name__};"
            " give text or a path"
        )
    return name


def as_path(name: str) -> Path:
    """The path that a name spells, "~" expanded where such a user exists."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def is_hub_name(name: str) -> bool:
    """Whether nothing here has this name, and it is one that the hub may have."""
    if name in SHIPPED or re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name) is None:
        return False
    return not as_path(name).exists()


def _download(name: str) -> Path:
    """The folder of a hub checkpoint in the hub's cache."""
    from huggingface_hub import snapshot_download

    read_config(hub_configs(name))
    with _asking_hub(name):
        return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "model*.safetensors"]))


def hub_configs(name: str) -> Path:
    """The same, but only the json files and templates are downloaded."""
    from huggingface_hub import snapshot_download

    with _asking_hub(name):
        return Path(snapshot_download(name, allow_patterns=list(_SMALL_FILES)))


def hub_headers(name: str) -> dict[str, int]:
    """Bytes by dtype, from the headers of the weights on the hub."""
    from huggingface_hub import HfApi

    sizes: Counter[str] = Counter()
    with _asking_hub(name):
        for file in HfApi().get_safetensors_metadata(name).files_metadata.values():
            for tensor in file.tensors.values():
                begin, end = tensor.data_offsets
                sizes[dtype_name(tensor.dtype)] += end - begin
    return sizes


@contextmanager
def _asking_hub(name: str) -> Iterator[None]:
    """Turns whatever network, hub and cache raise into one CheckpointError."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name}: expected a folder, or a checkpoint in the hub's cache or on the hub, found"
            f" none ({type(error).__name__}: {reason}); check name, connection and access rights"
        ) from error
