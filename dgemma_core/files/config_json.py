"""config.json and generation_config.json, in and out, in the public layout of DiffusionGemma.

The readers also take the mixture-of-experts checkpoints of Gemma 4. They fill in what a file leaves
out as transformers does, and refuse by name whatever is not this architecture or beyond its bounds
(spec §2). What the writers return loads in transformers and reads back to an equal value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dgemma_core.config import (
    DIFFUSION_GEMMA,
    FULL,
    GEMMA_4,
    GEMMA_4_TEXT,
    MAX_CANVAS_LENGTH,
    MAX_DENOISING_STEPS,
    MAX_LAYERS,
    SLIDING,
    GenerationDefaults,
    LayerConfig,
    ModelConfig,
    TextConfig,
)
from dgemma_core.errors import CheckpointError
from dgemma_core.files.section import JSON, Section

# What a key means when a file leaves it out: transformers' class defaults, not the released values.
_SHARED_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "sliding_window": 512,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "hidden_activation": "gelu_pytorch_tanh",
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    },
}
_DIFFUSION_DEFAULTS: Mapping[str, Any] = {
    **_SHARED_DEFAULTS,
    "final_logit_softcapping": 30.0,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
}
_GEMMA_4_DEFAULTS: Mapping[str, Any] = {
    **_SHARED_DEFAULTS,
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 256,
}
_DIFFUSION_MEDIA: Mapping[str, Any] = {
    "image_token_id": 258_880,
    "boi_token_id": 255_999,
    "eoi_token_id": 258_882,
}
_GEMMA_4_MEDIA: Mapping[str, Any] = {
    **_DIFFUSION_MEDIA,
    "video_token_id": 258_884,
    "audio_token_id": 258_881,
    "boa_token_id": 256_000,
    "eoa_token_index": 258_883,
}
_DEFAULTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {  # of text, of media
    DIFFUSION_GEMMA: (_DIFFUSION_DEFAULTS, _DIFFUSION_MEDIA),
    GEMMA_4: (_GEMMA_4_DEFAULTS, _GEMMA_4_MEDIA),
    GEMMA_4_TEXT: (_GEMMA_4_DEFAULTS, {}),
}

# What a file must say, if it says anything, for the model to be one that this code computes.
_ARCHITECTURE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "enable_moe_block": ((True,), "dense models"),
    "hidden_size_per_layer_input": ((0, None), "per-layer inputs"),
    "num_kv_shared_layers": ((0, None), "layers that share keys and values"),
    "attention_k_eq_v": ((True,), "full-attention layers with their own v_proj"),
    "attention_bias": ((False, None), "attention with biases"),
    "use_bidirectional_attention": (("vision", None), "prefixes that see ahead"),
    "use_double_wide_mlp": ((False, None), "double-wide MLPs"),
    "hidden_activation": (("gelu_pytorch_tanh",), "other activations"),
    "tie_word_embeddings": ((True, None), "output heads apart from the embedding"),
    "quantization_config": ((None,), "quantised checkpoints"),
}
_PER_LAYER = ("head_dim", "num_key_value_heads")
_ELSEWHERE = "use transformers for this checkpoint"

# Far above any model; below them, sizes of tensors stay within 63 bits.
_MOST_TOKENS, _MOST_WIDTH, _MOST_PARTS = 2**24, 2**20, 2**16


def read_model_config(data: object, *, source: str = "config.json") -> ModelConfig:
    """Reads a parsed config.json; `source` is the file's name in errors.

    Raises CheckpointError, naming file, key and finding, where a value is missing, malformed or out
    of bounds, or describes another architecture.
    """
    model_type = (root := Section(data, source)).get("model_type")
    if model_type not in tuple(_DEFAULTS):
        expected = f"one of {', '.join(_DEFAULTS)}"
        raise root.refuse("model_type", model_type, expected, _ELSEWHERE)
    text_defaults, media_defaults = _DEFAULTS[model_type]
    root = Section(data, source, defaults=media_defaults)
    text = Section(
        data if model_type == GEMMA_4_TEXT else root.get("text_config", {}),
        source,
        "" if model_type == GEMMA_4_TEXT else "text_config.",
        text_defaults,
    )
    _refuse_other_architectures(root, text)
    sizes = _read_text(text)
    if (pad := text.token("pad_token_id")) >= sizes.vocab_size:
        expected = f"an id below vocab_size, which is {sizes.vocab_size}"
        raise text.refuse("pad_token_id", pad, expected)
    eos = root if root.get("eos_token_id") is not None else text
    media = (root.get(key) for key in _GEMMA_4_MEDIA)
    return ModelConfig(
        text=sizes,
        canvas_length=root.whole("canvas_length", 256, most=MAX_CANVAS_LENGTH),
        can_denoise=model_type == DIFFUSION_GEMMA,
        model_type=model_type,
        bos_token_id=text.token("bos_token_id"),
        eos_token_ids=eos.tokens("eos_token_id"),
        pad_token_id=pad,
        media_token_ids=tuple(id for id in media if type(id) is int and 0 <= id < sizes.vocab_size),
    )


def read_generation_defaults(
    data: object | None, config: ModelConfig, *, source: str = "generation_config.json"
) -> GenerationDefaults:
    """Reads a parsed generation_config.json, or None where a folder has none.

    Missing and null values take the class's defaults, token ids those of `config`. Raises
    CheckpointError where a value is malformed or out of bounds.
    """
    default = GenerationDefaults
    section = Section({} if data is None else data, source).without_nulls()
    sampler = Section(section.get("sampler_config", {}), source, "sampler_config.")
    kind = sampler.get("_cls_name", "EntropyBoundSamplerConfig")
    if kind != "EntropyBoundSamplerConfig":
        advice = "delete it, and name a sampler when generating"
        raise sampler.refuse("_cls_name", kind, "EntropyBoundSamplerConfig", advice)
    t_min = section.number("t_min", default.t_min, zero=True)
    t_max = section.number("t_max", default.t_max, zero=True)
    if t_max < t_min:
        raise section.refuse("t_max", t_max, f"at least t_min, which is {t_min}")
    return GenerationDefaults(
        max_new_tokens=section.whole("max_new_tokens", default.max_new_tokens),
        max_denoising_steps=section.whole(
            "max_denoising_steps", default.max_denoising_steps, most=MAX_DENOISING_STEPS
        ),
        entropy_bound=sampler.number("entropy_bound", default.entropy_bound, zero=True),
        t_min=t_min,
        t_max=t_max,
        stability_threshold=section.whole(
            "stability_threshold", default.stability_threshold, least=0, most=MAX_DENOISING_STEPS
        ),
        confidence_threshold=section.number("confidence_threshold", default.confidence_threshold),
        eos_token_ids=section.tokens("eos_token_id", config.eos_token_ids),
        pad_token_id=section.token("pad_token_id", config.pad_token_id),
        bos_token_id=section.token("bos_token_id", config.bos_token_id),
    )


def model_config_json(config: ModelConfig) -> JSON:
    """The config.json of a model.

    Raises CheckpointError for layers of one type with different RoPE, which the file cannot hold.
    """
    text = _text_json(config)
    if config.model_type == GEMMA_4_TEXT:
        return {"architectures": ["Gemma4ForCausalLM"], "model_type": GEMMA_4_TEXT, **text}
    head: JSON = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "text_config": {"model_type": GEMMA_4_TEXT, **text},
    }
    if config.model_type == DIFFUSION_GEMMA:
        head = {
            "architectures": ["DiffusionGemmaForBlockDiffusion"],
            "canvas_length": config.canvas_length,
            "text_config": {"model_type": "diffusion_gemma_text", **text},
        }
    rest = {"model_type": config.model_type, "tie_word_embeddings": True}
    return {**head, **rest, **_media_json(config)}


def generation_defaults_json(generation: GenerationDefaults) -> JSON:
    """The generation_config.json of a model."""
    return {
        "max_new_tokens": generation.max_new_tokens,
        "max_denoising_steps": generation.max_denoising_steps,
        "sampler_config": {
            "_cls_name": "EntropyBoundSamplerConfig",
            "entropy_bound": generation.entropy_bound,
        },
        "t_min": generation.t_min,
        "t_max": generation.t_max,
        "stability_threshold": generation.stability_threshold,
        "confidence_threshold": generation.confidence_threshold,
        "eos_token_id": list(generation.eos_token_ids),
        "pad_token_id": generation.pad_token_id,
        "bos_token_id": generation.bos_token_id,
    }


# --- writing


def _media_json(config: ModelConfig) -> JSON:
    """Null stands only where leaving a key out would mean a token: transformers' Gemma 4 needs
    numbers, and those beyond the vocabulary do no harm."""
    text, defaults = config.text, _DEFAULTS[config.model_type][1]
    ids = config.media_token_ids + (None,) * len(_GEMMA_4_MEDIA)
    return {
        key: id
        for key, id in zip(_GEMMA_4_MEDIA, ids, strict=False)
        if id is not None or defaults.get(key, text.vocab_size) < text.vocab_size
    }


def _text_json(config: ModelConfig) -> JSON:
    text, layers = config.text, config.text.layers
    base = next((layer for layer in layers if not layer.full), layers[0])
    overrides = {
        str(index): {
            key: getattr(layer, key)
            for key in _PER_LAYER
            if getattr(layer, key) != getattr(base, key)
        }
        for index, layer in enumerate(layers)
    }
    gemma_4 = {
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    }
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": len(layers),
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": base.num_key_value_heads,
        "head_dim": base.head_dim,
        "per_layer_config": {index: values for index, values in overrides.items() if values},
        "layer_types": [FULL if layer.full else SLIDING for layer in layers],
        "sliding_window": text.sliding_window,
        "rope_parameters": _rope_json(layers),
        "num_experts": text.num_experts,
        "top_k_experts": text.top_k_experts,
        "moe_intermediate_size": text.moe_intermediate_size,
        "rms_norm_eps": text.rms_norm_eps,
        "final_logit_softcapping": text.final_logit_softcapping,
        "max_position_embeddings": text.max_position_embeddings,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        **({} if config.can_denoise else gemma_4),
    }


def _rope_json(layers: tuple[LayerConfig, ...]) -> JSON:
    found: JSON = {}
    for layer in layers:
        partial = {"partial_rotary_factor": layer.rotary_fraction}
        partial = partial if layer.rotary_fraction != 1.0 else {}
        kind = "proportional" if partial else "default"
        rope = {"rope_type": kind, "rope_theta": layer.rope_theta, **partial}
        if found.setdefault(FULL if layer.full else SLIDING, rope) != rope:
            raise CheckpointError(
                "config.json: cannot hold layers of one type with different RoPE; make them equal"
            )
    return found


# --- reading


def _refuse_other_architectures(root: Section, text: Section) -> None:
    """Raises where the file describes a relative of this architecture, computed otherwise."""
    for key, (allowed, otherwise) in _ARCHITECTURE.items():
        for section in (text, root) if key in root.values else (text,):
            found = section.get(key)
            if not any(type(found) is type(value) and found == value for value in allowed):
                shown = " or ".join(json.dumps(value) for value in allowed)
                advice = f"{otherwise} cannot run here, {_ELSEWHERE}"
                raise section.refuse(key, found, shown, advice)
    if text.get("num_experts") is None:
        advice = f"dense models cannot run here, {_ELSEWHERE}"
        raise text.refuse("num_experts", None, "a whole number of at least 1", advice)


def _read_text(section: Section) -> TextConfig:
    heads = section.whole("num_attention_heads", most=_MOST_PARTS)
    experts = section.whole("num_experts", most=_MOST_PARTS)
    top_k = section.whole("top_k_experts")
    if top_k > experts:
        raise section.refuse("top_k_experts", top_k, f"at most num_experts, which is {experts}")
    return TextConfig(
        vocab_size=section.whole("vocab_size", most=_MOST_TOKENS),
        hidden_size=section.whole("hidden_size", most=_MOST_WIDTH),
        intermediate_size=section.whole("intermediate_size", most=_MOST_WIDTH),
        num_attention_heads=heads,
        num_experts=experts,
        top_k_experts=top_k,
        moe_intermediate_size=section.whole("moe_intermediate_size", most=_MOST_WIDTH),
        sliding_window=section.whole("sliding_window"),
        rms_norm_eps=section.number("rms_norm_eps"),
        final_logit_softcapping=section.number("final_logit_softcapping"),
        max_position_embeddings=section.whole("max_position_embeddings"),
        layers=_read_layers(section, heads),
    )


def _read_layers(section: Section, heads: int) -> tuple[LayerConfig, ...]:
    types = _read_layer_types(section)
    overrides = _read_overrides(section, types)
    ropes = {type: _read_rope(section, type) for type in dict.fromkeys(types)}
    layers = []
    for type, override in zip(types, overrides, strict=True):
        key_value_heads = override.whole("num_key_value_heads")
        head_dim = override.whole("head_dim", most=_MOST_PARTS)
        if heads % key_value_heads:
            expected = f"a divisor of num_attention_heads, which is {heads}"
            raise override.refuse("num_key_value_heads", key_value_heads, expected)
        if head_dim % 2:
            raise override.refuse("head_dim", head_dim, "an even number, RoPE turns pairs")
        layers.append(LayerConfig(type == FULL, key_value_heads, head_dim, *ropes[type]))
    return tuple(layers)


def _read_layer_types(section: Section) -> list[str]:
    count = section.whole("num_hidden_layers", most=MAX_LAYERS)
    types = section.get("layer_types")
    if types is None:
        types = [SLIDING if (index + 1) % 6 else FULL for index in range(count)]
    if (
        not isinstance(types, list)
        or len(types) != count
        or any(type not in (SLIDING, FULL) for type in types)
    ):
        raise section.refuse("layer_types", types, f"a list of {count} times {SLIDING} or {FULL}")
    return [*types[:-1], FULL]  # transformers forces the last layer too


def _read_overrides(section: Section, types: list[str]) -> list[Section]:
    """Each layer's `head_dim` and `num_key_value_heads`: what all share, and on top its own."""
    shared = {key: section.get(key) for key in _PER_LAYER}
    by_index: dict[int, Section] = {}
    for key, given in _per_layer_config(section, types).items():
        path = f"{section.path}per_layer_config.{key}."
        own = Section(given, section.source, path).values
        index = int(key) if key.isdecimal() and len(key) < 10 else -1
        if index not in range(len(types)) or index in by_index:
            expected = f"as key the index of one of {len(types)} layers, each at most once"
            raise section.refuse("per_layer_config", key, expected)
        by_index[index] = layer = Section({**shared, **own}, section.source, path)
        if other := next((name for name in own if name not in _PER_LAYER), None):
            expected = f"only {' and '.join(_PER_LAYER)} to differ between layers"
            raise layer.refuse(other, own[other], expected, _ELSEWHERE)
    alike = Section(shared, section.source, section.path)
    return [by_index.get(index, alike) for index in range(len(types))]


def _per_layer_config(section: Section, types: list[str]) -> JSON:
    """The `per_layer_config` of a file, or what the older `global_*` keys mean in its stead."""
    if "per_layer_config" in section.values:
        given = section.values["per_layer_config"]
        path = f"{section.path}per_layer_config."
        return {} if given is None else Section(given, section.source, path).values
    of_full = {
        "head_dim": section.get("global_head_dim"),
        "num_key_value_heads": section.get("num_global_key_value_heads"),
    }
    of_full = {key: value for key, value in of_full.items() if value is not None}
    return {str(index): of_full for index, type in enumerate(types) if type == FULL}


def _read_rope(section: Section, layer_type: str) -> tuple[float, float]:
    """RoPE's theta and rotary fraction of one layer type."""
    by_type = section.get("rope_parameters")
    by_type = section.defaults["rope_parameters"] if by_type is None else by_type
    path = f"{section.path}rope_parameters."
    values = Section(by_type, section.source, path).get(layer_type)
    rope = Section(values, section.source, f"{path}{layer_type}.")
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "proportional"):
        advice = f"other kinds of RoPE cannot run here, {_ELSEWHERE}"
        raise rope.refuse("rope_type", kind, "default or proportional", advice)
    if (factor := rope.get("factor", 1.0)) != 1.0:
        advice = f"scaled RoPE cannot run here, {_ELSEWHERE}"
        raise rope.refuse("factor", factor, "1.0", advice)
    fraction = rope.number("partial_rotary_factor", 1.0, zero=True)
    if fraction > 1.0 or (kind == "default" and fraction != 1.0):
        raise rope.refuse(
            "partial_rotary_factor", fraction, "1.0, or less with rope_type proportional"
        )
    if (theta := rope.number("rope_theta")) < 1.0:
        raise rope.refuse("rope_theta", theta, "a number of at least 1")
    return theta, fraction
