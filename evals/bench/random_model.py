"""A random model and random prompts, the same for every implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def random_checkpoint(
    folder: Path, *, vocab: int = 262_144, width: int = 640, layers: int = 6, experts: int = 32,
    chosen: int = 4, expert_width: int = 256, canvas: int = 256, heads: int = 8,
    sliding: tuple[int, int] = (2, 64), full: tuple[int, int] = (1, 128), autoregressive: bool = True,
) -> Path:  # fmt: skip
    """A model of random weights, drawn calmly (spec §3), in the public layout, beside its autoregressive half.

    The defaults are shape A. sliding, full: key heads of such layers, and their size. autoregressive=False leaves the
    half out. Kept if it is there already.
    """
    import torch

    from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig, TextConfig
    from dgemma_core.files.saving import save_model, tiny_vision
    from dgemma_core.model import DiffusionGemma
    from dgemma_evals.writers.export import export_autoregressive

    if (folder / "config.json").exists():
        return folder
    near = LayerConfig(False, *sliding, rope_theta=1e4, rotary_fraction=1.0)
    far = LayerConfig(True, *full, rope_theta=1e6, rotary_fraction=0.25)
    config = ModelConfig(
        text=TextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=width,
            num_attention_heads=heads,
            num_experts=experts,
            top_k_experts=chosen,
            moe_intermediate_size=expert_width,
            sliding_window=1024,
            rms_norm_eps=1e-6,
            final_logit_softcapping=30.0,
            max_position_embeddings=65_536,
            layers=tuple(far if i % 6 == 5 or i == layers - 1 else near for i in range(layers)),
        ),
        canvas_length=canvas,
        bos_token_id=2,
        eos_token_ids=(1,),
        pad_token_id=0,
        # transformers compares prompts with them; none of `random_ids`
        media_token_ids=(9, 10, 11),
    )
    model = DiffusionGemma(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
            if name.endswith(
                ("q_norm.weight", "router.proj.weight", "self_conditioning.down_proj.weight")
            ):
                parameter.mul_(0.2)
    vision_config, vision = tiny_vision(config)
    save_model(
        model, folder, vision=vision, vision_config=vision_config,
        generation=GenerationDefaults(max_new_tokens=canvas, eos_token_ids=(1,), pad_token_id=0, bos_token_id=2),
    )  # fmt: skip
    if autoregressive:
        export_autoregressive(folder, f"{folder}-autoregressive")
    return folder


def random_ids(vocab: int, count: int, seed: int) -> list[int]:
    """Ids without the special ones at the vocabulary's start."""
    generator = np.random.default_rng(seed)
    return [int(i) for i in generator.integers(min(16, vocab // 2), vocab, count)]
