"""What one text takes in memory besides the weights: prefix cache and working memory, as arithmetic.

Notable:
- the cache's bytes are the cache's own: it is run on the meta device, in the chunks of `encode` and with a canvas
  behind the prefix, so that spare capacity is counted as it will be reserved;
- working memory is an upper bound: all that a prefill chunk and a denoising step hold at their widest points, added up
  as if at once;
- `encoding` is no bound but a prediction, to be checked against a measurement: the widest moment of encoding a prompt,
  found by running the cache through all chunks and layers.

All sizes are bytes, with bfloat16 wherever numbers stay numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from dgemma_core.cache import Buffer, PrefixCache
from dgemma_core.config import LayerConfig, ModelConfig, TextConfig
from dgemma_core.files.quantised import SLICE

CHUNK = 1024
"""Prompt tokens a pass, as `DiffusionGemma.encode` cuts them."""
HEAD_SLICE = 8192
"""Tokens of the vocabulary at a time, as `VocabularyHead` cuts them."""


@dataclass(frozen=True)
class Line:
    """One term of a sum, with the arithmetic that gave it."""

    label: str
    bytes: int
    arithmetic: str


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
            kept = groups if layer.full else 2 * groups  # keys, and values where they are others
            most = max(6 * heads + kept, 2 * heads + 5 * groups + kept)  # queries, then keys rotate
            project = (cache(), line("projections", tokens, most * d, f"{most} heads × {d}"))
            new = torch.empty(tokens, groups, d, dtype=dtype, device="meta")
            seen = row.append(index, new, new)[0].shape[1]
            after = cache()
            moved = 0 if row.buffers[index] is before else bytes_of(before)
            grow = (
                after,
                line(
                    "heads",
                    tokens,
                    (2 * heads + 3 * groups) * d,
                    f"(2 × {heads} + 3 × {groups}) × {d}",
                ),
                Line("buffer that grows", moved, f"of layer {index}, the old one"),
            )
            window = row.windows[index]
            masked = tokens > 1 and (seen > tokens or (window is not None and seen > window + 1))
            pairs = masked * tokens * seen
            copies = 3 if masked else 2  # of the queries: a masked kernel wants them side by side
            attends = line("attention", tokens, (copies * heads + 4 * groups) * d,
                           f"({copies} × {heads} + 4 × {groups} heads) × {d}")  # fmt: skip
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
        row.lay(layer, meta(layer, canvas), meta(layer, canvas))
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


def _largest_buffer(text: TextConfig, prefix: int) -> Line:
    """The old keys and values of a layer, which are held until the larger ones hold them too."""
    size = torch.bfloat16.itemsize

    def held(layer: LayerConfig) -> tuple[int, str]:
        kept = prefix if layer.full else min(prefix, text.sliding_window - 1)
        heads, d = layer.num_key_value_heads, layer.head_dim
        return kept * 2 * heads * d * size, f"{kept:,} × 2 × {heads} heads × {d} × {size}"

    return Line("buffer that grows", *max(map(held, text.layers)))


def working_lines(config: ModelConfig, prefix: int, *, quantised: bool) -> tuple[Line, ...]:
    """What passes hold besides weights and cache, at most: a prefill chunk, and a denoising step."""
    text, canvas, size = config.text, canvas_length(config), torch.bfloat16.itemsize
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
        _largest_buffer(text, prefix),
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


def canvas_length(config: ModelConfig) -> int:
    """Tokens that a pass behind the prefix runs: a canvas, or one token where the model cannot denoise."""
    return config.canvas_length if config.can_denoise else 1
