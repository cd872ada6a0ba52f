"""Describes a checkpoint from its configuration and headers, without reading its weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dgemma_core.config import GenerationDefaults, ModelConfig
from dgemma_core.files.finding import (
    as_name,
    find_folder,
    hub_configs,
    hub_headers,
    is_hub_name,
    read_config,
)
from dgemma_core.files.tensors import TensorFiles, lacks_shards, short_name


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself."""

    config: ModelConfig
    generation: GenerationDefaults
    stored: Mapping[str, int]
    """Bytes of all its tensors, by dtype."""
    place: str
    """The folder, or where on the hub it lies."""


def describe(name_or_path: str | os.PathLike[str]) -> Description:
    """Configuration and headers of a shipped model, a folder or a hub checkpoint, whose weights stay on the hub.

    Raises CheckpointError where there is none, or it is damaged.
    """
    name = as_name(name_or_path)
    on_hub = is_hub_name(name)
    folder = hub_configs(name) if on_hub else find_folder(name)
    config, generation = read_config(folder)
    stored: Counter[str] = Counter()
    if on_hub and lacks_shards(folder):
        stored.update(hub_headers(name))
        return Description(config, generation, stored, "on the Hugging Face hub")
    for tensor in TensorFiles(folder).stored.values():
        stored[short_name(tensor.dtype)] += tensor.end - tensor.begin
    return Description(config, generation, stored, str(folder))
