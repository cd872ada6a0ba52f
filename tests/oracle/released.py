"""The released 26B-A4B configurations, from the numbers of spec §2: never its weights."""

from __future__ import annotations

from typing import Any

TEXT_PARAMETERS = 25_250_986_812
TEXT_TENSORS = 691  # of 1047; the rest is the vision tower

_TEXT: dict[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "head_dim": 256,
    "global_head_dim": 512,
    "sliding_window": 1024,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "use_bidirectional_attention": "vision",
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1_000_000.0,
            "partial_rotary_factor": 0.25,
        },
    },
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def released_config() -> dict[str, Any]:
    """The config.json of DiffusionGemma 26B-A4B, as far as its text model goes."""
    return {
        "model_type": "diffusion_gemma",
        "canvas_length": 256,
        "image_token_id": 258_880,
        "boi_token_id": 255_999,
        "eoi_token_id": 258_882,
        "text_config": {"model_type": "diffusion_gemma_text", **_TEXT},
    }


def released_generation() -> dict[str, Any]:
    """The generation_config.json of DiffusionGemma 26B-A4B."""
    return {
        "max_new_tokens": 256,
        "max_denoising_steps": 48,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "t_min": 0.4,
        "t_max": 0.8,
        "stability_threshold": 1,
        "confidence_threshold": 0.005,
        "eos_token_id": [1, 106, 50],
        "pad_token_id": 0,
        "bos_token_id": 2,
    }


def gemma4_config() -> dict[str, Any]:
    """The config.json of Gemma 4 26B-A4B, as far as its text model goes."""
    only_gemma4 = {
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    }
    return {"model_type": "gemma4", "text_config": {**_TEXT, **only_gemma4}}
