"""Which formats of a model fit into a memory (`dgemma plan`): sizes in bytes, of one text at a time."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dgemma_core.config import ModelConfig
from dgemma_core.errors import RequestError
from dgemma_core.facts.cost import weight_bytes
from dgemma_core.facts.machine import bfloat16_multiplies
from dgemma_core.facts.memory import Line, cache_lines, canvas_length, working_lines
from dgemma_core.facts.published import CONFIGS, VISION_PARAMETERS
from dgemma_core.facts.tuning import BASES, Tuning, TuningMemory, tuning_memory
from dgemma_core.files.finding import SHIPPED, read_config
from dgemma_core.files.quantised import GROUP, SCHEMES

UNITS: Mapping[str, int] = {
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
LOADS: Mapping[str, str | None] = {
    "bf16": 'dtype="bfloat16"',
    "fp8": None,
    "int8": 'quantize="int8"',
    "int4": 'quantize="int4"',
}
"""The formats, and what `load` is given for each; None: nothing here loads it yet."""

_FORMULAS: Mapping[str, str] = {
    "bf16": "2 bytes a weight",
    "fp8": "1 byte a weight and 2 for the scale of a row; nothing here loads it yet",
    "int8": "1 byte a weight and 2 for the scale of a row",
    "int4": f"½ byte a weight and 2 for the scale of {GROUP}; the embedding as in int8",
}


@dataclass(frozen=True)
class Format:
    """What a model takes in one format."""

    name: str
    weights: Mapping[str, int]
    """By part; scales included."""
    scales: int
    """Of them the scales."""
    cache: int
    working: tuple[Line, ...]
    total: int
    fits: bool
    loads: str | None
    """What `load` is given; None: nothing here loads this format yet."""


@dataclass(frozen=True)
class Plan:
    """What of a model fits into `memory` with a prefix of so many tokens."""

    model: str
    memory: int
    prefix: int
    parameters: Mapping[str, int]
    """By part."""
    vision: int | None
    """Parameters of towers that are left out; None where that is not known."""
    cache: tuple[Line, ...]
    formats: tuple[Format, ...]

    def formula(self, name: str) -> str:
        """How the weights of a format are counted."""
        return _FORMULAS[name]


def parse_memory(text: str) -> int:
    """Bytes of "18GB", "16 GiB". Raises RequestError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not found or found[2] not in UNITS or float(found[1]) == 0:
        units = ", ".join(UNITS)
        raise RequestError(
            f"memory: expected a number and one of {units}, found {text!r}; write for example 18GB"
        )
    return math.floor(float(found[1]) * UNITS[found[2]])


def find_config(model: str | os.PathLike[str]) -> ModelConfig:
    """The configuration of a shipped model, a folder, or a released checkpoint whose shape is known.

    Nothing is downloaded, and a folder needs no more than its config.json. Raises RequestError for
    another name.
    """
    name = os.fspath(model)
    if name in CONFIGS:
        return CONFIGS[name]
    if name in SHIPPED or (name and Path(name).expanduser().is_dir()):
        return read_config(name)[0]
    raise RequestError(
        f"model: expected {', '.join(SHIPPED)}, a folder or {', '.join(CONFIGS)}, found {name!r}; put the"
        " checkpoint's config.json into a folder and name that"
    )


def make_plan(model: str | os.PathLike[str], memory: int, prefix: int = 4096) -> Plan:
    """What of `model` fits into `memory` bytes with a prefix of so many tokens in the cache.

    Raises RequestError for an unknown model, or a prefix that the model cannot have.
    """
    config = find_config(model)
    text, canvas = config.text, canvas_length(config)
    if not 0 < prefix <= text.max_position_embeddings - canvas:
        most = text.max_position_embeddings - canvas
        raise RequestError(f"prefix: expected 1 … {most:,} tokens, found {prefix:,}")
    cache = cache_lines(text, prefix, canvas)
    name = os.fspath(model)
    return Plan(
        model=name,
        memory=memory,
        prefix=prefix,
        parameters=weight_bytes(config, None)[0],
        vision=VISION_PARAMETERS.get(name),
        cache=cache,
        formats=tuple(
            _format(format, config, memory, prefix, sum(line.bytes for line in cache))
            for format in LOADS
        ),
    )


def _format(name: str, config: ModelConfig, memory: int, prefix: int, cache: int) -> Format:
    weights, scales = weight_bytes(config, name)
    working = working_lines(config, prefix, quantised=name in SCHEMES)
    total = sum(weights.values()) + cache + sum(line.bytes for line in working)
    return Format(name, weights, scales, cache, working, total, total <= memory, LOADS[name])


@dataclass(frozen=True)
class TuningPlan:
    """What tuning a model takes with bases of every format, and which of them fit into `memory`."""

    model: str
    memory: int
    run: Tuning
    bases: Mapping[str, tuple[TuningMemory, TuningMemory]]
    """By format: as a pass runs, and with activation checkpointing (`dgemma tune --recompute`)."""


def make_tuning_plan(
    model: str | os.PathLike[str], memory: int, device: torch.device, **settings: Any
) -> TuningPlan:
    """What tuning `model` on `device` takes, of `memory` bytes. settings: fields of `Tuning`, but for base, copied and
    recomputes. Raises RequestError for an unknown model, and for settings without meaning."""
    config, full = find_config(model), bool(settings.get("full"))
    copied = bfloat16_multiplies(device)
    runs = {
        base: tuple(
            Tuning(base=base, copied=copied, recomputes=again, **settings)
            for again in (False, True)
        )
        for base in (BASES[:1] if full else BASES)
    }
    found = {
        base: (tuning_memory(config, plain), tuning_memory(config, again))
        for base, (plain, again) in runs.items()
    }
    return TuningPlan(os.fspath(model), memory, runs[BASES[0]][0], found)
