"""Tiny random oracles: transformers' own models from drawn configurations, scrambled calmly.

A drawn configuration varies what the architecture lets vary (shared/spec.md §2 and §3), at sizes
at which a forward pass takes milliseconds. "Calmly" is the spec's word for weights that exercise
every term without making float32 noise grow from step to step: matrices N(0, 0.3), norms and
scales U(0.5, 1.5), layer scalars U(0.3, 1.2), then `q_norm`, `router.proj` and
`self_conditioning.down_proj` times 0.2.

The oracle always runs with its dynamic cache and with sdpa or eager attention: its static cache is
wrong once the prefix reaches the window.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)
from transformers.utils import logging

logging.disable_progress_bar()

CALM = ("q_norm.weight", "router.proj.weight", "self_conditioning.down_proj.weight")


@dataclass(frozen=True)
class Drawn:
    """One drawn case: the configuration, and the prefixes (for each row, its pieces' lengths)."""

    seed: int
    text: dict[str, Any]  # keyword arguments of DiffusionGemmaTextConfig
    canvas_length: int
    rows: tuple[tuple[int, ...], ...]
    attention: str  # "sdpa" | "eager"

    @property
    def prefix_lengths(self) -> list[int]:
        return [sum(pieces) for pieces in self.rows]


def draw(seed: int) -> Drawn:
    """Draw case number `seed`; equal seeds give equal cases."""
    rng = random.Random(f"drawn configuration {seed}")
    heads = rng.choice([2, 3, 4, 6])
    groups = [g for g in range(1, heads + 1) if heads % g == 0]
    experts = rng.choice([2, 3, 5, 8])
    layer_count = rng.randint(2, 4)
    kinds = [rng.choice(["sliding", "sliding", "full"]) for _ in range(layer_count - 1)] + ["full"]
    canvas_length = rng.choice([3, 4, 6, 8])
    # A piece is a prompt, a later turn, or a committed canvas.
    rows = tuple(
        tuple(rng.choice([rng.randint(1, 12), canvas_length]) for _ in range(piece_count))
        for piece_count in [rng.randint(1, 3)] * rng.randint(1, 3)
    )
    text: dict[str, Any] = {
        "vocab_size": rng.choice([37, 48, 64]),
        "hidden_size": rng.choice([12, 16, 20, 32]),
        "intermediate_size": rng.choice([8, 20, 40]),
        "num_hidden_layers": layer_count,
        "layer_types": [f"{kind}_attention" for kind in kinds],
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice(groups),
        "num_global_key_value_heads": rng.choice(groups),
        "head_dim": rng.choice([2, 4, 6, 8]),
        "global_head_dim": rng.choice([4, 8, 12, 16]),
        "sliding_window": rng.choice([2, 3, 5, 8, 64]),
        "num_experts": experts,
        "top_k_experts": rng.randint(1, min(experts, 4)),
        "moe_intermediate_size": rng.choice([4, 6, 12]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
        "final_logit_softcapping": rng.choice([30.0, 3.0, 8.0, 50.0]),
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": rng.choice([10_000.0, 100.0, 777.0]),
            },
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": rng.choice([1_000_000.0, 5_000.0, 50.0]),
                "partial_rotary_factor": rng.choice([0.25, 0.5, 0.6, 1.0]),
            },
        },
    }
    return Drawn(seed, text, canvas_length, rows, rng.choice(["sdpa", "eager"]))


def resized(drawn: Drawn, **changes: Any) -> Drawn:
    """The same case with some of its text configuration changed."""
    return replace(drawn, text={**drawn.text, **changes})


def aligned(drawn: Drawn, unit: int) -> Drawn:
    """The same case with all widths rounded up to multiples of `unit`, the vocabulary to one of 2 · `unit`."""
    widths = ("hidden_size", "intermediate_size", "moe_intermediate_size")
    units = dict.fromkeys((*widths, "head_dim", "global_head_dim"), unit) | {"vocab_size": 2 * unit}
    return resized(drawn, **{key: -(-drawn.text[key] // by) * by for key, by in units.items()})


@torch.no_grad()
def scramble(model: torch.nn.Module, seed: int) -> None:
    """Draw every text weight anew, calmly, tied weights once. The vision tower stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.named_parameters())  # names a tied weight once
    tensors |= {name: b for name, b in model.named_buffers() if name.endswith("layer_scalar")}
    for name, tensor in tensors.items():
        if "vision" in name:
            continue
        if name.endswith("layer_scalar"):
            tensor.uniform_(0.3, 1.2, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(0.0, 0.3, generator=generator)
        if name.endswith(CALM):
            tensor.mul_(0.2)


def diffusion_oracle(drawn: Drawn) -> DiffusionGemmaForBlockDiffusion:
    """transformers' DiffusionGemma for a drawn case, float32, scrambled calmly."""
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**drawn.text),
        vision_config=_smallest_vision(),
        canvas_length=drawn.canvas_length,
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    scramble(model, drawn.seed)
    _settle(model, drawn.attention)
    return model


def gemma4_oracle(
    diffusion: DiffusionGemmaForBlockDiffusion, drawn: Drawn, *, multimodal: bool = False
) -> Gemma4ForCausalLM | Gemma4ForConditionalGeneration:
    """transformers' Gemma 4 mixture of experts with the encoder's weights of `diffusion`.

    `multimodal` wraps it as the public 26B-A4B checkpoint is: model type gemma4, the text model
    under `model.language_model.`, a vision tower beside it.
    """
    text = Gemma4TextConfig(
        **drawn.text,
        attention_k_eq_v=True,
        enable_moe_block=True,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=drawn.text["vocab_size"],
    )
    model: Gemma4ForCausalLM | Gemma4ForConditionalGeneration
    if multimodal:
        config = Gemma4Config(text_config=text, vision_config=_smallest_vision())
        model = Gemma4ForConditionalGeneration(config).eval()
        text_model = model.model.language_model
    else:
        model = Gemma4ForCausalLM(text).eval()
        text_model = model.model
    text_model.load_state_dict(diffusion.model.encoder.language_model.state_dict())
    _settle(model, drawn.attention)
    return model


def save(model: torch.nn.Module, folder: Path) -> Path:
    """Save an oracle as transformers does."""
    model.save_pretrained(folder)
    return folder


def reloaded(folder: Path, drawn: Drawn, dtype: torch.dtype) -> DiffusionGemmaForBlockDiffusion:
    """The oracle as transformers loads it, every tensor from the folder.

    This, not `.to(dtype)`, is the oracle in bfloat16: RoPE's frequencies stay float32.
    """
    model, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _settle(model.eval(), drawn.attention)
    return model


def soft_embedding(model: DiffusionGemmaForBlockDiffusion, logits: torch.Tensor) -> torch.Tensor:
    """The oracle's soft embedding (B, C, D) of tempered `logits` (B, C, V)."""
    table = model.model.decoder.embed_tokens
    dtype = table.weight.dtype
    probabilities = logits.to(dtype).softmax(-1, dtype=torch.float32).to(dtype)
    return probabilities @ table.weight * table.embed_scale.to(dtype)


def capped(model: torch.nn.Module, hidden: torch.Tensor, cap: float) -> torch.Tensor:
    """Logits (…, V) float32 of `hidden` (…, D) through the oracle's head and soft cap."""
    return cap * torch.tanh(model.lm_head(hidden).float() / cap)


def random_ids(vocab_size: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Uniform token ids from a generator of their own."""
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def _smallest_vision() -> Gemma4VisionConfig:
    """The oracle always builds a vision tower; no test looks through it."""
    return Gemma4VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        position_embedding_size=4,
        patch_size=2,
    )


def _settle(model: torch.nn.Module, attention: str) -> None:
    model.set_attn_implementation(attention)
    model.set_experts_implementation("eager")
    model.requires_grad_(False)
