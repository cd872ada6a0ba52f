"""A model of the released shape with random weights, made on its device, and the memory that it needs there.

Notable:
- weights are drawn one matrix at a time, each from a seed that its name gives: no more memory than the result takes,
  and another implementation can be given the same ones;
- the draws are calm (small query norms, small attention outputs), so that canvas positions stay unlike each other and
  a random router spreads them over all experts, as a trained one does over about two thirds of them;
- fewer experts are touched by weights alone: a router's rows of zeros score 0, and the best of many random scores lie
  above, so experts with such rows are never chosen. How many are touched is counted, not assumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from dgemma_core.config import ModelConfig
from dgemma_core.errors import RequestError
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.layers import Layer
from dgemma_core.model import DiffusionGemma

SHRUNK: Mapping[str, float] = {
    "q_norm.weight": 0.2,
    "self_conditioning.down_proj.weight": 0.2,
    "post_attention_layernorm.weight": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The released shape, or a smaller one."""

    layers: int = 30
    experts: int = 128
    vocab: int = 262_144
    width: int = 2816
    dense_width: int = 2112
    expert_width: int = 704
    canvas: int = 256
    prefix: int = 4096

    def config(self) -> ModelConfig:
        """RequestError for a shape that the architecture cannot have."""
        released = CONFIGS[DIFFUSION_26B]
        text = released.text
        if not 1 <= self.layers <= len(text.layers):
            raise RequestError(f"layers: expected 1 … {len(text.layers)}, found {self.layers}")
        if self.experts < text.top_k_experts:
            raise RequestError(
                f"experts: a token goes to {text.top_k_experts}, found {self.experts}"
            )
        smaller = replace(
            text,
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.dense_width,
            moe_intermediate_size=self.expert_width,
            num_experts=self.experts,
            layers=text.layers[len(text.layers) - self.layers :],  # the last is a full one
        )
        media = tuple(token for token in released.media_token_ids if token < self.vocab)
        return replace(released, text=smaller, canvas_length=self.canvas, media_token_ids=media)


def fill(name: str, values: Tensor, seed: int = 0) -> None:
    """Draws one parameter in place, by its name in this project."""
    generator = torch.Generator(values.device).manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    if name.endswith(("layer_scalar", "layer_scalars")):
        values.uniform_(0.9, 1.1, generator=generator)
    elif values.dim() == 1:
        values.uniform_(0.5, 1.5, generator=generator)
    elif name.endswith("router.proj.weight"):
        values.normal_(0, 1, generator=generator)
    else:
        values.normal_(0, values.shape[-1] ** -0.5, generator=generator)
    for ending, factor in SHRUNK.items():
        if name.endswith(ending):
            values.mul_(factor)


@torch.inference_mode()
def build(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    progress: bool = False,
) -> DiffusionGemma:
    """The model with random weights, on its device from the first byte on."""
    from tqdm.auto import tqdm

    model = DiffusionGemma(config, device="meta")
    names = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
    for name, shape in tqdm(names, desc="weights", leave=False, disable=not progress):
        with torch.inference_mode(False):
            values = torch.empty(shape, dtype=dtype, device=device)
            fill(name, values, seed)
            module, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(values, requires_grad=False)
            setattr(model.get_submodule(module), attribute, parameter)
    with torch.inference_mode(False):
        return model.eval()


def check_touched(touched: int, experts: int, chosen: int) -> None:
    """RequestError unless the best `chosen` of `touched` random scores surely lie above 0, or all experts are meant."""
    if touched != experts and not 4 * chosen <= touched < experts:
        raise RequestError(
            f"touched: expected {4 * chosen} … {experts} of {experts} experts, found {touched}"
        )


def narrow(model: DiffusionGemma, touched: int, *, seed: int = 0) -> None:
    """Leaves `touched` experts a layer to be chosen, others in every layer. Raises as `check_touched`."""
    generator = torch.Generator().manual_seed(seed)
    for layer in cast("list[Layer]", list(model.layers)):
        weight = layer.router.proj.weight
        check_touched(touched, len(weight), layer.router.top_k)
        left_out = torch.randperm(len(weight), generator=generator)[touched:]
        weight.data[left_out.to(weight.device)] = 0


def needed_bytes(
    config: ModelConfig, prefix: int, tokens: int, itemsize: int, batch: int = 1
) -> int:
    """Memory of the weights, of the prefixes of `batch` rows, of copies of them, and of what passes hold."""
    model = DiffusionGemma(config, device="meta")
    weights = sum(parameter.numel() for parameter in model.parameters())
    keys = 0
    for layer in config.text.layers:
        each = 2 * layer.num_key_value_heads * layer.head_dim
        keys += each * (2 * prefix + config.canvas_length + tokens)
    layer_copy = max(parameter.numel() for parameter in model.parameters())
    return (weights + 2 * keys * batch + layer_copy) * itemsize + 3 * 2**30
