"""What a configuration costs: its weights by part and format, and the work of a pass, as arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dgemma_core.config import ModelConfig, TextConfig
from dgemma_core.files.quantised import SCHEMES, held_sizes, stored_sizes
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
    """What a pass reads at least, in bytes, and computes, in operations (an addition is one, too), by part: those of
    `PARTS`, and "prefix" for its keys and values."""

    read: Mapping[str, float]
    computed: Mapping[str, float]

    @property
    def bytes(self) -> float:
        return sum(self.read.values())

    @property
    def operations(self) -> float:
        return sum(self.computed.values())

    def floor(self, bytes_per_second: float, operations_per_second: float) -> float:
        """Seconds below which the pass cannot be: reading all, or computing all, whichever takes longer."""
        return max(self.bytes / bytes_per_second, self.operations / operations_per_second)


def weights_of(model: DiffusionGemma) -> dict[str, tuple[int, int]]:
    """Numbers of each part's weights, those of `PARTS`, and the bytes in which they lie in memory."""
    parts = dict.fromkeys(PARTS, (0, 0))
    for name, (numbers, held) in held_sizes(model).items():
        before = parts[part_of(name)]
        parts[part_of(name)] = before[0] + numbers, before[1] + held
    return parts


def work(
    model: DiffusionGemma,
    *,
    prefix: int,
    tokens: int,
    batch: int = 1,
    touched: float | None = None,
    denoises: bool | None = None,
    weights: Mapping[str, tuple[int, int]] | None = None,
) -> Work:
    """A denoising step of `batch` rows (tokens: of a canvas), or an autoregressive one (1), behind `prefix` tokens.

    model: may be on the meta device; weights count with the bytes in which they lie in memory. Each is read once, of
    the experts `touched` ones a layer (None: `experts_touched`); keys and values of the prefix once a row. A number of
    a weight is two operations a token, of the tied embedding four on a canvas: logits and soft embedding.
    denoises: whether the pass conditions on a prediction and makes one, as a denoising step does; None: if it is of
    several tokens. Verifying a draft is a pass of several tokens that does not.
    weights: `weights_of(model)`, from who asks for many passes of one model.
    """
    text, count = model.config.text, batch * tokens
    denoises = tokens > 1 if denoises is None else denoises
    touched = experts_touched(text, count) if touched is None else touched
    read, computed = (dict.fromkeys((*PARTS, "prefix"), 0.0) for _ in range(2))
    for part, (numbers, held) in (weights or weights_of(model)).items():
        if part == "self-conditioning" and not denoises:
            continue
        experts = part == "experts"
        read[part] += held * (touched / text.num_experts if experts else 1)
        active = text.top_k_experts / text.num_experts if experts else 1
        products = 2 if part == "embedding" and denoises else 1
        computed[part] += 2 * count * numbers * active * products
    for layer in text.layers:
        seen = prefix if layer.full else min(prefix, text.sliding_window - 1)
        keys = seen * layer.num_key_value_heads * layer.head_dim
        read["prefix"] += 2 * batch * keys * model.dtype.itemsize
        heads = text.num_attention_heads * layer.head_dim
        computed["prefix"] += 4 * count * (seen + tokens) * heads
    return Work(read, computed)


OPERATIONS_A_BYTE = {"cpu": 8.0, "cuda": 300.0}
"""Operations that a device does while it reads a byte of weights, about: of a core's caches and memory, of an H100."""


def pass_tokens(model: DiffusionGemma) -> float:
    """What a pass costs beside its tokens, in tokens: reading the weights takes as long as the arithmetic of so many.

    By arithmetic and `OPERATIONS_A_BYTE`, so it is the same at every run.
    """
    canvas = model.config.canvas_length
    one, full = (work(model, prefix=0, tokens=n, denoises=False) for n in (1, canvas))
    a_byte = OPERATIONS_A_BYTE.get(model.device.type, OPERATIONS_A_BYTE["cuda"])
    return full.bytes * a_byte / one.operations


def experts_touched(text: TextConfig, tokens: int) -> float:
    """Experts a layer that so many tokens go to if each chooses evenly: an estimate, exact for one token."""
    missed = (1 - text.top_k_experts / text.num_experts) ** tokens
    return text.num_experts * (1 - missed)
