"""What a configuration costs: its weights by part and format, and the work of a pass, as arithmetic."""

from __future__ import annotations

import re

import torch

from dgemma_core.config import ModelConfig
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
