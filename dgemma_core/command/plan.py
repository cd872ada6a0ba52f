"""What fits into a memory: weights, prefix cache and working memory of a configuration, as arithmetic.

Notable:
- weights are counted from the model on the meta device, by part and by format; quantised ones by
  the very function that `quantise` allocates with;
- the cache's bytes are the cache's own: it is run on the meta device, in the chunks of `encode`
  and with a canvas behind the prefix, so that spare capacity is counted as it will be reserved;
- working memory is an upper bound: all that a prefill chunk and a denoising step hold at their
  widest points, added up as if at once;
- `encoding` is no bound but a prediction, to be checked against a measurement: the widest moment of
  encoding a prompt, found by running the cache through all chunks and layers.

All sizes are bytes, of one text at a time, with bfloat16 wherever numbers stay numbers.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dgemma_core.cache import Buffer, PrefixCache
from dgemma_core.config import LayerConfig, ModelConfig, TextConfig
from dgemma_core.errors import RequestError
from dgemma_core.facts.released import CONFIGS, VISION_PARAMETERS
from dgemma_core.files.finding import read_config
from dgemma_core.files.quantised import GROUP, SCHEMES, SLICE, stored_sizes
from dgemma_core.model import DiffusionGemma

UNITS: Mapping[str, int] = {
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
CHUNK = 1024
"""Prompt tokens a pass, as `DiffusionGemma.encode` cuts them."""
HEAD_SLICE = 8192
"""Tokens of the vocabulary at a time, as `VocabularyHead` cuts them."""

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
PARTS = ("embedding", "attention", "dense MLP", "experts", "self-conditioning", "router and norms")


@dataclass(frozen=True)
class Line:
    """One term of a sum, with the arithmetic that gave it."""

    label: str
    bytes: int
    arithmetic: str


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
    """The configuration of "nano", a folder, or a released checkpoint whose shape is known.

    Nothing is downloaded, and a folder needs no more than its config.json. Raises RequestError for
    another name.
    """
    name = os.fspath(model)
    if name in CONFIGS:
        return CONFIGS[name]
    if name == "nano" or (name and Path(name).expanduser().is_dir()):
        return read_config(name)[0]
    raise RequestError(
        f"model: expected nano, a folder or {', '.join(CONFIGS)}, found {name!r}; put the"
        " checkpoint's config.json into a folder and name that"
    )


def make_plan(model: str | os.PathLike[str], memory: int, prefix: int = 4096) -> Plan:
    """What of `model` fits into `memory` bytes with a prefix of so many tokens in the cache.

    Raises RequestError for an unknown model, or a prefix that the model cannot have.
    """
    config = find_config(model)
    text, canvas = config.text, _canvas(config)
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


def _canvas(config: ModelConfig) -> int:
    return config.canvas_length if config.can_denoise else 1


def _format(name: str, config: ModelConfig, memory: int, prefix: int, cache: int) -> Format:
    weights, scales = weight_bytes(config, name)
    working = working_lines(config, prefix, quantised=name in SCHEMES)
    total = sum(weights.values()) + cache + sum(line.bytes for line in working)
    return Format(name, weights, scales, cache, working, total, total <= memory, LOADS[name])


def weight_bytes(config: ModelConfig, name: str | None) -> tuple[dict[str, int], int]:
    """Bytes of the weights by part in a format, and of the scales among them.

    None counts parameters instead of bytes. fp8 is counted as int8, byte for byte.
    """
    model = DiffusionGemma(config, device="meta")
    itemsize = 1 if name is None else torch.bfloat16.itemsize
    to = SCHEMES.get("int8" if name == "fp8" else name or "")
    if to is not None:
        sizes = stored_sizes(model, to, itemsize)
    else:
        sizes = {key: (value.numel() * itemsize, 0) for key, value in model.named_parameters()}
    parts = dict.fromkeys(PARTS, 0)
    for parameter, size in sizes.items():
        parts[_part(parameter)] += sum(size)
    return parts, sum(scales for _, scales in sizes.values())


def _part(parameter: str) -> str:
    if parameter.startswith("embed_tokens."):
        return "embedding"
    if parameter.startswith("self_conditioning."):
        return "self-conditioning"
    if ".experts." in parameter:
        return "experts"
    if ".mlp." in parameter:
        return "dense MLP"
    return (
        "attention" if re.search(r"\.self_attn\.[qkvo]_proj\.", parameter) else "router and norms"
    )


@dataclass(frozen=True)
class Encoding:
    """What encoding one prompt takes besides the weights."""

    held: tuple[Line, ...]
    """Afterwards: what the returned cache refers to."""
    peak: tuple[Line, ...]
    """At the widest moment."""


KERNEL = "mask in the kernel"
"""The line of `Encoding.peak` that the attention kernel allocates inside itself."""


def encoding(
    config: ModelConfig, prefix: int, dtype: torch.dtype = torch.bfloat16, *, reserved: bool = True
) -> Encoding:
    """What `DiffusionGemma.encode` of so many tokens of one row holds, on a CPU.

    reserved: counts spare capacity of the cache, which lies in no memory until it is written:
    True for bytes of tensors, False for bytes that the system calls resident.
    """
    text = config.text
    row = PrefixCache.empty(text, 1).rows[0]
    width, size = text.hidden_size, dtype.itemsize
    hidden = Line("hidden states", prefix * width * size, f"{prefix:,} × {width} × {size}")

    def bytes_of(buffer: Buffer | None) -> int:
        if buffer is None:
            return 0
        groups, capacity, d = buffer.keys.shape
        places = capacity if reserved else buffer.filled - buffer.base
        return 2 * groups * places * d * size

    def cache() -> Line:
        total = sum(map(bytes_of, row.buffers))
        return Line(
            "prefix cache", total, f"keys and values, {'reserved' if reserved else 'written'}"
        )

    def line(label: str, tokens: int, numbers: int, arithmetic: str) -> Line:
        return Line(label, tokens * numbers * size, f"{tokens:,} tokens × {arithmetic} × {size}")

    turns = sum(2 * kind.head_dim for kind in set(text.layers))
    routed = text.top_k_experts
    widest: tuple[Line, ...] = ()
    for start in range(0, prefix, CHUNK):
        tokens = min(CHUNK, prefix - start)
        shared = line("activations", tokens, 4 * width + turns, f"(4 × {width} + {turns})")
        experts = line("experts", tokens, 4 * routed * width, f"{routed} experts × 4 × {width}")
        for index, layer in enumerate(text.layers):
            heads, groups, d = text.num_attention_heads, layer.num_key_value_heads, layer.head_dim
            before = row.buffers[index]
            project = (cache(), line("projections", tokens, 6 * (heads + 2 * groups) * d,
                                     f"6 × {heads + 2 * groups} heads × {d}"))  # fmt: skip
            new = torch.empty(tokens, groups, d, dtype=dtype, device="meta")
            seen = row.append(index, new, new)[0].shape[1]
            after = cache()
            attends = line("attention", tokens, (3 * heads + 4 * groups) * d,
                           f"(3 × {heads} + 4 × {groups} heads) × {d}")  # fmt: skip
            moved = 0 if row.buffers[index] is before else bytes_of(before)
            grow = (
                after,
                attends,
                Line("buffer that grows", moved, f"of layer {index}, the old one"),
            )
            window = row.windows[index]
            masked = tokens > 1 and (seen > tokens or (window is not None and seen > window + 1))
            pairs = masked * tokens * seen
            attend = (after, attends, Line("mask", pairs, f"{tokens:,} × {seen:,}"),
                      Line(KERNEL, pairs * size, f"{tokens:,} × {seen:,} × {size}"))  # fmt: skip
            for moment in (project, grow, attend, (after, experts)):
                lines = (*moment, hidden, shared)
                widest = max(widest, lines, key=lambda found: sum(line.bytes for line in found))
        row.length += tokens
    return Encoding((cache(), hidden), widest)


def cache_bytes(
    text: TextConfig, prefix: int, canvas: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """What `PrefixCache.nbytes` will say of one row of `prefix` tokens once a canvas was denoised."""
    row = PrefixCache.empty(text, 1).rows[0]

    def meta(layer: int, tokens: int) -> torch.Tensor:
        shape = (tokens, text.layers[layer].num_key_value_heads, text.layers[layer].head_dim)
        return torch.empty(shape, dtype=dtype, device="meta")

    for start in range(0, prefix, CHUNK):
        tokens = min(CHUNK, prefix - start)
        for layer in range(len(text.layers)):
            row.append(layer, meta(layer, tokens), meta(layer, tokens))
        row.length += tokens
    for layer in range(len(text.layers)):
        row.overlay(layer, meta(layer, canvas), meta(layer, canvas))
    return row.nbytes


def cache_lines(text: TextConfig, prefix: int, canvas: int) -> tuple[Line, ...]:
    """The cache as a sum: what each kind of layer keeps, then what is reserved beside it."""
    size = torch.bfloat16.itemsize
    lines = []
    for layer, count in Counter(text.layers).items():
        kept = prefix if layer.full else min(prefix, text.sliding_window - 1)
        heads, d = layer.num_key_value_heads, layer.head_dim
        lines.append(
            Line(
                f"{count} {'full' if layer.full else 'sliding'} layers",
                count * kept * 2 * heads * d * size,
                f"{count} × {kept:,} positions × 2 (keys, values) × {heads} heads × {d} × {size}",
            )
        )
    reserved = cache_bytes(text, prefix, canvas) - sum(line.bytes for line in lines)
    return (*lines, Line("canvas and growth", reserved, "reserved behind the prefix"))


def _growing(text: TextConfig, prefix: int) -> Line:
    """The old keys and values of a layer, which are held until the larger ones hold them too."""
    size = torch.bfloat16.itemsize

    def held(layer: LayerConfig) -> tuple[int, str]:
        kept = prefix if layer.full else min(prefix, text.sliding_window - 1)
        heads, d = layer.num_key_value_heads, layer.head_dim
        return kept * 2 * heads * d * size, f"{kept:,} × 2 × {heads} heads × {d} × {size}"

    return Line("buffer that grows", *max(map(held, text.layers)))


def working_lines(config: ModelConfig, prefix: int, *, quantised: bool) -> tuple[Line, ...]:
    """What passes hold besides weights and cache, at most: a prefill chunk, and a denoising step."""
    text, canvas, size = config.text, _canvas(config), torch.bfloat16.itemsize
    width, tokens = text.hidden_size, max(canvas, min(CHUNK, prefix))
    heads = text.num_attention_heads * max(layer.head_dim for layer in text.layers)
    routed = tokens * text.top_k_experts
    seen = tokens + prefix
    piece = min(HEAD_SLICE, text.vocab_size)
    lines = [
        Line(
            "activations",
            tokens * (8 * width + 5 * heads) * size,
            f"{tokens:,} tokens × (8 × {width} + 5 × {heads} of the queries) × {size}",
        ),
        Line("mask", tokens * seen * (1 + size), f"{tokens:,} × {seen:,} × {1 + size}"),
        _growing(text, prefix),
        Line(
            "experts",
            4 * routed * width * size,
            f"{tokens:,} tokens × {text.top_k_experts} experts × 4 × {width} × {size}",
        ),
        Line(
            "head",
            canvas * (piece * (8 + 2 * size) + 2 * width * 4),
            f"{canvas} × ({piece:,} logits × {8 + 2 * size} + 2 × {width} × 4)",
        ),
        Line(
            "hidden states",
            (prefix + 4 * canvas) * width * size,
            f"({prefix:,} of the prefix + 4 × {canvas}) × {width} × {size}",
        ),
    ]
    if quantised:
        largest = width * max(heads, 2 * text.moe_intermediate_size, text.intermediate_size)
        numbers = max(piece * width, min(largest, SLICE))
        arithmetic = f"{numbers:,} weights of a slice × ({size} + 1)"
        lines.append(Line("weights turned back", numbers * (size + 1), arithmetic))
    return tuple(lines)
