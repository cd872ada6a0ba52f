"""Shapes of released checkpoints, known without a download (spec §2). Never their weights."""

from __future__ import annotations

from collections.abc import Mapping

from dgemma_core.config import LayerConfig, ModelConfig, TextConfig

_SLIDING = LayerConfig(False, num_key_value_heads=8, head_dim=256, rope_theta=1e4)
_FULL = LayerConfig(True, num_key_value_heads=2, head_dim=512, rope_theta=1e6, rotary_fraction=0.25)

DIFFUSION_26B = "google/diffusiongemma-26B-A4B-it"

CONFIGS: Mapping[str, ModelConfig] = {
    DIFFUSION_26B: ModelConfig(
        text=TextConfig(
            vocab_size=262_144,
            hidden_size=2816,
            intermediate_size=2112,
            num_attention_heads=16,
            num_experts=128,
            top_k_experts=8,
            moe_intermediate_size=704,
            sliding_window=1024,
            rms_norm_eps=1e-6,
            final_logit_softcapping=30.0,
            max_position_embeddings=131_072,
            layers=((_SLIDING,) * 5 + (_FULL,)) * 5,
        ),
        canvas_length=256,
        media_token_ids=(258_880, 255_999, 258_882),
    )
}
VISION_PARAMETERS: Mapping[str, int] = {DIFFUSION_26B: 572_792_052}
"""Of the towers that `load` leaves out."""
