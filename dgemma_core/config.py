"""What a checkpoint's json says, as frozen dataclasses.

`ModelConfig` is config.json, `GenerationDefaults` is generation_config.json, both in the public
layout of DiffusionGemma; `ModelConfig` also reads the mixture-of-experts checkpoints of Gemma 4.
The reader fills in what a file leaves out as transformers does and refuses by name whatever is not
this architecture, so that a model that is built from a `ModelConfig` needs no further checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgemma_core.errors import CheckpointError

JSON = dict[str, Any]

SLIDING, FULL = "sliding_attention", "full_attention"
DIFFUSION_GEMMA, GEMMA_4, GEMMA_4_TEXT = "diffusion_gemma", "gemma4", "gemma4_text"

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
    """The transformer: sizes of everything, and its layers in order."""

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
    """A checkpoint's config.json.

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

    @classmethod
    def from_json(cls, data: object, *, source: str = "config.json") -> ModelConfig:
        """Reads a parsed config.json; `source` is the file's name in errors.

        Raises CheckpointError, naming file, key and finding, where a value is missing or malformed
        or describes another architecture (spec §2).
        """
        model_type = (root := _Section(data, source)).get("model_type")
        if model_type not in tuple(_DEFAULTS):
            expected = f"one of {', '.join(_DEFAULTS)}"
            raise root.refuse("model_type", model_type, expected, _ELSEWHERE)
        text_defaults, media_defaults = _DEFAULTS[model_type]
        root = _Section(data, source, defaults=media_defaults)
        text = _Section(
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
        return cls(
            text=sizes,
            canvas_length=root.whole("canvas_length", 256),
            can_denoise=model_type == DIFFUSION_GEMMA,
            model_type=model_type,
            bos_token_id=text.token("bos_token_id"),
            eos_token_ids=eos.tokens("eos_token_id"),
            pad_token_id=pad,
            media_token_ids=tuple(
                id for id in media if type(id) is int and 0 <= id < sizes.vocab_size
            ),
        )

    def to_json(self) -> JSON:
        """The config.json that transformers loads and `from_json` reads back to an equal value."""
        text = self._text_json()
        if self.model_type == GEMMA_4_TEXT:
            return {"architectures": ["Gemma4ForCausalLM"], "model_type": GEMMA_4_TEXT, **text}
        head: JSON = {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "text_config": {"model_type": GEMMA_4_TEXT, **text},
        }
        if self.model_type == DIFFUSION_GEMMA:
            head = {
                "architectures": ["DiffusionGemmaForBlockDiffusion"],
                "canvas_length": self.canvas_length,
                "text_config": {"model_type": "diffusion_gemma_text", **text},
            }
        rest = {"model_type": self.model_type, "tie_word_embeddings": True}
        return {**head, **rest, **self._media_json()}

    def _media_json(self) -> JSON:
        """Null stands only where leaving a key out would mean a token: transformers' Gemma 4 needs
        numbers, and those beyond the vocabulary do no harm."""
        text, defaults = self.text, _DEFAULTS[self.model_type][1]
        ids = self.media_token_ids + (None,) * len(_GEMMA_4_MEDIA)
        return {
            key: id
            for key, id in zip(_GEMMA_4_MEDIA, ids, strict=False)
            if id is not None or defaults.get(key, text.vocab_size) < text.vocab_size
        }

    def _text_json(self) -> JSON:
        text, layers = self.text, self.text.layers
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
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids),
            "pad_token_id": self.pad_token_id,
            **({} if self.can_denoise else gemma_4),
        }


@dataclass(frozen=True)
class GenerationDefaults:
    """A checkpoint's generation_config.json: how its authors sample from it (spec §2, §4)."""

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

    @classmethod
    def from_json(
        cls, data: object | None, config: ModelConfig, *, source: str = "generation_config.json"
    ) -> GenerationDefaults:
        """Reads a parsed generation_config.json, or None where a folder has none.

        Missing and null values take this class's defaults, token ids those of `config`. Raises
        CheckpointError where a value is malformed.
        """
        section = _Section({} if data is None else data, source).without_nulls()
        sampler = _Section(section.get("sampler_config", {}), source, "sampler_config.")
        kind = sampler.get("_cls_name", "EntropyBoundSamplerConfig")
        if kind != "EntropyBoundSamplerConfig":
            advice = "delete it, and name a sampler when generating"
            raise sampler.refuse("_cls_name", kind, "EntropyBoundSamplerConfig", advice)
        t_min = section.number("t_min", cls.t_min, zero=True)
        t_max = section.number("t_max", cls.t_max, zero=True)
        if t_max < t_min:
            raise section.refuse("t_max", t_max, f"at least t_min, which is {t_min}")
        return cls(
            max_new_tokens=section.whole("max_new_tokens", cls.max_new_tokens),
            max_denoising_steps=section.whole("max_denoising_steps", cls.max_denoising_steps),
            entropy_bound=sampler.number("entropy_bound", cls.entropy_bound, zero=True),
            t_min=t_min,
            t_max=t_max,
            stability_threshold=section.whole(
                "stability_threshold", cls.stability_threshold, at_least=0
            ),
            confidence_threshold=section.number("confidence_threshold", cls.confidence_threshold),
            eos_token_ids=section.tokens("eos_token_id", config.eos_token_ids),
            pad_token_id=section.token("pad_token_id", config.pad_token_id),
            bos_token_id=section.token("bos_token_id", config.bos_token_id),
        )

    def to_json(self) -> JSON:
        """The generation_config.json that transformers loads and `from_json` reads back."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "max_denoising_steps": self.max_denoising_steps,
            "sampler_config": {
                "_cls_name": "EntropyBoundSamplerConfig",
                "entropy_bound": self.entropy_bound,
            },
            "t_min": self.t_min,
            "t_max": self.t_max,
            "stability_threshold": self.stability_threshold,
            "confidence_threshold": self.confidence_threshold,
            "eos_token_id": list(self.eos_token_ids),
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
        }


class _Section:
    """One json object of a file, with the defaults of its keys.

    Getters check types; `refuse` words every error alike: file, key, expected, found, what to do.
    """

    def __init__(
        self,
        values: object,
        source: str,
        path: str = "",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.path, self.defaults = source, path, defaults or {}
        if not isinstance(values, dict):
            where = f"{source}: {path.rstrip('.')}" if path else source
            raise CheckpointError(
                f"{where}: expected a json object, found {json.dumps(values):.60}; correct the file"
            )
        self.values: JSON = values

    def without_nulls(self) -> _Section:
        given = {key: value for key, value in self.values.items() if value is not None}
        return _Section(given, self.source, self.path, self.defaults)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, self.defaults.get(key, default))

    def refuse(
        self, key: str, found: object, expected: str, advice: str = "correct the file"
    ) -> CheckpointError:
        what = f"{json.dumps(found):.80}"
        if key not in self.values:
            what = "no such key" if found is None else f"no such key, which means {what}"
        return CheckpointError(
            f"{self.source}: {self.path}{key}: expected {expected}, found {what}; {advice}"
        )

    def whole(self, key: str, default: int | None = None, *, at_least: int = 1) -> int:
        value = self.get(key, default)
        if type(value) is not int or value < at_least:
            raise self.refuse(key, value, f"a whole number of at least {at_least}")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        value = self.get(key, default)
        if (
            type(value) not in (int, float)
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and not zero)
        ):
            raise self.refuse(key, value, "a number of at least 0" if zero else "a number above 0")
        return float(value)

    def token(self, key: str, default: int | None = None) -> int:
        """A token id; null means the default."""
        value = self.get(key, default)
        value = self.defaults.get(key) if value is None else value
        if type(value) is not int or value < 0:
            raise self.refuse(key, value, "a token id")
        return value

    def tokens(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Token ids: a list, a single id, or null for none."""
        value = self.get(key, default)
        ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if any(type(id) is not int or id < 0 for id in ids):
            raise self.refuse(key, value, "a token id or a list of token ids")
        return ids


def _refuse_other_architectures(root: _Section, text: _Section) -> None:
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


def _read_text(section: _Section) -> TextConfig:
    heads = section.whole("num_attention_heads")
    experts, top_k = section.whole("num_experts"), section.whole("top_k_experts")
    if top_k > experts:
        raise section.refuse("top_k_experts", top_k, f"at most num_experts, which is {experts}")
    return TextConfig(
        vocab_size=section.whole("vocab_size"),
        hidden_size=section.whole("hidden_size"),
        intermediate_size=section.whole("intermediate_size"),
        num_attention_heads=heads,
        num_experts=experts,
        top_k_experts=top_k,
        moe_intermediate_size=section.whole("moe_intermediate_size"),
        sliding_window=section.whole("sliding_window"),
        rms_norm_eps=section.number("rms_norm_eps"),
        final_logit_softcapping=section.number("final_logit_softcapping"),
        max_position_embeddings=section.whole("max_position_embeddings"),
        layers=_read_layers(section, heads),
    )


def _read_layers(section: _Section, heads: int) -> tuple[LayerConfig, ...]:
    types = _read_layer_types(section)
    overrides = _read_overrides(section, types)
    ropes = {type: _read_rope(section, type) for type in dict.fromkeys(types)}
    layers = []
    for type, override in zip(types, overrides, strict=True):
        key_value_heads = override.whole("num_key_value_heads")
        head_dim = override.whole("head_dim")
        if heads % key_value_heads:
            expected = f"a divisor of num_attention_heads, which is {heads}"
            raise override.refuse("num_key_value_heads", key_value_heads, expected)
        if head_dim % 2:
            raise override.refuse("head_dim", head_dim, "an even number, RoPE turns pairs")
        layers.append(LayerConfig(type == FULL, key_value_heads, head_dim, *ropes[type]))
    return tuple(layers)


def _read_layer_types(section: _Section) -> list[str]:
    count, types = section.whole("num_hidden_layers"), section.get("layer_types")
    if types is None:
        types = [SLIDING if (index + 1) % 6 else FULL for index in range(count)]
    if (
        not isinstance(types, list)
        or len(types) != count
        or any(type not in (SLIDING, FULL) for type in types)
    ):
        raise section.refuse("layer_types", types, f"a list of {count} times {SLIDING} or {FULL}")
    return [*types[:-1], FULL]  # transformers forces the last layer too


def _read_overrides(section: _Section, types: list[str]) -> list[_Section]:
    """Each layer's `head_dim` and `num_key_value_heads`: what all share, and on top its own."""
    shared = {key: section.get(key) for key in _PER_LAYER}
    by_index: dict[int, _Section] = {}
    for key, given in _per_layer_config(section, types).items():
        path = f"{section.path}per_layer_config.{key}."
        own = _Section(given, section.source, path).values
        index = int(key) if key.isdecimal() else -1
        if index not in range(len(types)) or index in by_index:
            expected = f"as key the index of one of {len(types)} layers, each at most once"
            raise section.refuse("per_layer_config", key, expected)
        by_index[index] = layer = _Section({**shared, **own}, section.source, path)
        if other := next((name for name in own if name not in _PER_LAYER), None):
            expected = f"only {' and '.join(_PER_LAYER)} to differ between layers"
            raise layer.refuse(other, own[other], expected, _ELSEWHERE)
    alike = _Section(shared, section.source, section.path)
    return [by_index.get(index, alike) for index in range(len(types))]


def _per_layer_config(section: _Section, types: list[str]) -> JSON:
    """The `per_layer_config` of a file, or what the older `global_*` keys mean in its stead."""
    if "per_layer_config" in section.values:
        given = section.values["per_layer_config"]
        path = f"{section.path}per_layer_config."
        return {} if given is None else _Section(given, section.source, path).values
    of_full = {
        "head_dim": section.get("global_head_dim"),
        "num_key_value_heads": section.get("num_global_key_value_heads"),
    }
    of_full = {key: value for key, value in of_full.items() if value is not None}
    return {str(index): of_full for index, type in enumerate(types) if type == FULL}


def _read_rope(section: _Section, layer_type: str) -> tuple[float, float]:
    """RoPE's theta and rotary fraction of one layer type."""
    by_type = section.get("rope_parameters")
    by_type = section.defaults["rope_parameters"] if by_type is None else by_type
    path = f"{section.path}rope_parameters."
    values = _Section(by_type, section.source, path).get(layer_type)
    rope = _Section(values, section.source, f"{path}{layer_type}.")
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
    return rope.number("rope_theta"), fraction


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
