"""What a checkpoint says of its model, as frozen dataclasses.

`ModelConfig` holds what config.json says, `GenerationDefaults` what generation_config.json says.
`files.config_json` reads and writes both files; what it reads needs no further checks, so a model can
be built from any `ModelConfig` that it returns.
"""

from __future__ import annotations

from dataclasses import dataclass

SLIDING, FULL = "sliding_attention", "full_attention"
DIFFUSION_GEMMA, GEMMA_4, GEMMA_4_TEXT = "diffusion_gemma", "gemma4", "gemma4_text"

# A canvas or a schedule beyond these limits would keep a machine busy for hours before its first text.
MAX_LAYERS = 1_000
MAX_CANVAS_LENGTH = 4_096
MAX_DENOISING_STEPS = 10_000


@dataclass(frozen=True)
class LayerConfig:
    """The attention of one layer.

    `full` layers see the whole prefix and take their values from the key projection; the others see
    a window. RoPE turns the first `rotary_fraction` of the head's frequencies (1.0: all of them).
    """

    full: bool
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rotary_fraction: float = 1.0


@dataclass(frozen=True)
class TextConfig:
    """The transformer: its sizes, and its layers in order."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    sliding_window: int
    rms_norm_eps: float
    final_logit_softcapping: float
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture and the special tokens of a checkpoint.

    `media_token_ids` are the placeholders of images, video and audio, which prompts must not hold,
    in the order image, begin and end of image, video, audio, begin and end of audio. `can_denoise`
    is False for Gemma 4, which has no self-conditioning block and only decodes token by token.
    """

    text: TextConfig
    canvas_length: int = 256
    can_denoise: bool = True
    model_type: str = DIFFUSION_GEMMA
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)
    pad_token_id: int = 0
    media_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class GenerationDefaults:
    """How a checkpoint's authors sample from it (spec §2, §4)."""

    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_ids: tuple[int, ...] = (1,)
    pad_token_id: int = 0
    bos_token_id: int = 2
