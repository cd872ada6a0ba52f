"""What a configuration costs: its weights by part and format, and the work of a pass, as arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dgemma_core.config import ModelConfig, TextConfig
from dgemma_core.files.quantised import SCHEMES, stored_sizes
from dgemma_core.model import DiffusionGemma

PARTS = ("embedding", "attention", "dense MLP", "experts", "self-conditioning", "router and norms")
"""The parts of a model that weights are counted by."""


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(total, active) of the text model; the experts that a token is not sent to are not active."""
    parts, text = weight_bytes(config, None)[0], config.text
    total, experts = sum(parts.values()), parts["experts"]
    return total, total - experts + experts * text.top_k_experts // text.num_experts


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
        parts[part_of(parameter)] += sum(size)
    return parts, sum(scales for _, scales in sizes.values())


def part_of(parameter: str) -> str:
    """The part of `PARTS` that a parameter belongs to, by its name."""
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
class Work:
    """What a pass must read at least, in bytes, and compute, in operations (an addition is one, too)."""

    read: Mapping[str, float]
    computed: Mapping[str, float]

    def floor(self, bytes_per_second: float, operations_per_second: float) -> float:
        """Seconds below which the pass cannot be: reading all, or computing all, whichever takes longer."""
        return max(
            sum(self.read.values()) / bytes_per_second,
            sum(self.computed.values()) / operations_per_second,
        )


def work(
    config: ModelConfig,
    prefix: int,
    tokens: int,
    touched: float,
    itemsize: float,
    *,
    denoises: bool | None = None,
) -> Work:
    """A pass over `tokens` behind `prefix` others, with `touched` experts a layer and weights of `itemsize` bytes.

    denoises: whether the pass conditions on a prediction and makes one, as a denoising step does; None: if it is of
    several tokens. Verifying a draft is a pass of several tokens that does not. Every touched weight is read once, the
    tied embedding too; keys and values of the prefix once a layer.
    """
    text = config.text
    width, heads = text.hidden_size, text.num_attention_heads
    attention = attended = keys = 0.0
    for layer in text.layers:
        groups, d = layer.num_key_value_heads, layer.head_dim
        kinds = 1 if layer.full else 2  # full layers take their values from the keys
        attention += width * d * (2 * heads + kinds * groups)
        seen = prefix if layer.full else min(prefix, text.sliding_window - 1)
        attended += 4 * tokens * (seen + tokens) * heads * d
        keys += 2 * seen * groups * d
    count = len(text.layers)
    dense = count * 3 * width * text.intermediate_size
    expert = count * 3 * width * text.moe_intermediate_size
    router = count * width * text.num_experts
    if denoises is None:
        denoises = tokens > 1
    conditioning = 3 * width * text.intermediate_size if denoises else 0
    vocabulary = text.vocab_size * width
    products = 2 if denoises else 1  # logits, and the soft embedding
    return Work(
        read={
            "attention": attention * itemsize,
            "prefix": keys * itemsize,
            "experts": (expert * touched + router) * itemsize,
            "dense": (dense + conditioning) * itemsize,
            "head": vocabulary * itemsize,
        },
        computed={
            "attention": 2 * tokens * attention + attended,
            "experts": 2 * tokens * (expert * text.top_k_experts + router),
            "dense": 2 * tokens * (dense + conditioning),
            "head": 2 * tokens * products * vocabulary,
        },
    )


def evenly_touched(text: TextConfig, tokens: int) -> float:
    """Experts a layer that so many tokens go to if each chooses evenly: an estimate, exact for one token."""
    missed = (1 - text.top_k_experts / text.num_experts) ** tokens
    return text.num_experts * (1 - missed)
