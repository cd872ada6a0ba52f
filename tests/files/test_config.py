"""config.json and generation_config.json: read as transformers reads them, refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig, Gemma4TextConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
)

from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig
from dgemma_core.errors import CheckpointError
from dgemma_core.files.config_json import (
    generation_defaults_json,
    model_config_json,
    read_generation_defaults,
    read_model_config,
)
from tests.oracle.build import draw
from tests.oracle.released import gemma4_config, released_config, released_generation

SLIDING, FULL = "sliding_attention", "full_attention"
MOE = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8}
GEMMA4 = {**MOE, "attention_k_eq_v": True, "enable_moe_block": True}
GEMMA4 |= {"hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0}

# What a config may say of its layers, and leave out.
FORMS: dict[str, dict[str, Any]] = {
    "defaults only": {},
    "global keys": {"global_head_dim": 64, "num_global_key_value_heads": 2},
    "global head size alone": {"global_head_dim": 64},
    "5:1 pattern, last layer not its sixth": {"num_hidden_layers": 8},
    "last layer forced full": {"num_hidden_layers": 2, "layer_types": [SLIDING, SLIDING]},
    "layer types null": {"num_hidden_layers": 7, "layer_types": None},
    "all equal": {"per_layer_config": {}},
    "no per-layer values": {"per_layer_config": None},
    "plain indices": {"num_hidden_layers": 6, "per_layer_config": {"5": {"head_dim": 64}}},
    "padded indices": {"per_layer_config": {"05": {"head_dim": 64, "num_key_value_heads": 2}}},
    "per-layer values win over global keys": {
        "num_hidden_layers": 6,
        "global_head_dim": 128,
        "per_layer_config": {"5": {"num_key_value_heads": 1}},
    },
    "per-layer values on a sliding layer": {
        "num_hidden_layers": 3,
        "layer_types": [SLIDING, FULL, FULL],
        "per_layer_config": {"0": {"num_key_value_heads": 8}},
    },
    "RoPE null": {"rope_parameters": None},
    "RoPE given": {
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 777.0},
            FULL: {"rope_type": "proportional", "rope_theta": 55.0, "partial_rotary_factor": 0.6},
        }
    },
    "RoPE plain everywhere": {
        "rope_parameters": {
            SLIDING: {"rope_theta": 777.0},
            FULL: {"rope_type": "default", "rope_theta": 5.0},
        }
    },
    "soft cap": {"final_logit_softcapping": 12.0},
}


def diffusion(text: dict[str, Any], **root: Any) -> dict[str, Any]:
    return {"model_type": "diffusion_gemma", "text_config": {**MOE, **text}, **root}


def layers_of(oracle: Any) -> list[tuple[Any, ...]]:
    """(full, G, d, θ, rotary fraction) of each layer, as transformers resolves them."""
    found = []
    for index, kind in enumerate(oracle.layer_types):
        layer, rope = oracle.per_layer_config[index], oracle.rope_parameters[kind]
        fraction = rope.get("partial_rotary_factor", 1.0)
        heads = layer.num_key_value_heads
        found.append((kind == FULL, heads, layer.head_dim, rope["rope_theta"], fraction))
    return found


def check_text(ours: ModelConfig, oracle: Any) -> None:
    layers = [
        (x.full, x.num_key_value_heads, x.head_dim, x.rope_theta, x.rotary_fraction)
        for x in ours.text.layers
    ]
    assert layers == layers_of(oracle)
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_experts",
        "top_k_experts", "moe_intermediate_size", "sliding_window", "rms_norm_eps",
        "final_logit_softcapping", "max_position_embeddings", "num_hidden_layers",
    ):  # fmt: skip
        assert getattr(ours.text, key) == getattr(oracle, key), key
    assert ours.eos_token_ids == (oracle.eos_token_id,)
    assert (ours.bos_token_id, ours.pad_token_id) == (oracle.bos_token_id, oracle.pad_token_id)


@pytest.mark.parametrize("form", FORMS)
def test_a_diffusion_config_means_what_transformers_reads_in_it(form: str) -> None:
    text = FORMS[form]
    ours = read_model_config(diffusion(text))
    check_text(ours, DiffusionGemmaTextConfig(**copy.deepcopy({**MOE, **text})))
    assert ours.can_denoise and ours.canvas_length == 256


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_gemma_4_config_means_what_transformers_reads_in_it(form: str, nested: bool) -> None:
    text = {**GEMMA4, **FORMS[form]}
    plain, wrapped = {"model_type": "gemma4_text", **text}, {"model_type": "gemma4"}
    ours = read_model_config({**wrapped, "text_config": text} if nested else plain)
    check_text(ours, Gemma4TextConfig(**copy.deepcopy(text)))
    assert not ours.can_denoise


@pytest.mark.parametrize("case", range(20))
def test_a_config_saved_by_transformers_reads_the_same(case: int, tmp_path: Path) -> None:
    oracle = DiffusionGemmaConfig(text_config=DiffusionGemmaTextConfig(**draw(case).text))
    oracle.save_pretrained(tmp_path)
    ours = read_model_config(json.loads((tmp_path / "config.json").read_text()))
    check_text(ours, oracle.text_config)


@pytest.mark.parametrize("form", FORMS)
def test_a_config_written_here_reads_back_here_and_in_transformers(form: str) -> None:
    ours = read_model_config(diffusion(FORMS[form], canvas_length=48))
    written = json.loads(json.dumps(model_config_json(ours)))
    assert read_model_config(written) == ours
    oracle = DiffusionGemmaConfig.from_dict(written)
    assert oracle.canvas_length == 48
    oracle.text_config.eos_token_id = oracle.text_config.eos_token_id[0]
    check_text(ours, oracle.text_config)


@pytest.mark.parametrize("kind", ["gemma4", "gemma4_text"])
def test_a_gemma_4_config_written_here_reads_back(kind: str) -> None:
    text = gemma4_config()["text_config"]
    given = {"model_type": "gemma4", "text_config": text}
    ours = read_model_config(given if kind == "gemma4" else text)
    written = model_config_json(ours)
    assert written["model_type"] == kind
    assert read_model_config(written) == ours
    oracle = Gemma4TextConfig.from_dict(written.get("text_config", written))
    oracle.eos_token_id = oracle.eos_token_id[0]
    check_text(ours, oracle)


def test_the_released_configuration() -> None:
    config = read_model_config(released_config())
    sliding = LayerConfig(False, num_key_value_heads=8, head_dim=256, rope_theta=1e4)
    full = LayerConfig(True, 2, head_dim=512, rope_theta=1e6, rotary_fraction=0.25)
    assert config.text.layers == ((sliding,) * 5 + (full,)) * 5
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (2, (1,), 0)
    assert config.media_token_ids == (258_880, 255_999, 258_882)
    generation = read_generation_defaults(released_generation(), config)
    assert generation == GenerationDefaults(eos_token_ids=(1, 106, 50))
    assert generation_defaults_json(generation) == released_generation()


def test_media_tokens_are_those_that_the_vocabulary_holds() -> None:
    def media(**root: Any) -> tuple[int, ...]:
        text = root.pop("text", {})
        return read_model_config(diffusion(text, **root)).media_token_ids

    assert media() == (258_880, 255_999, 258_882)
    assert media(video_token_id=258_884) == (258_880, 255_999, 258_882, 258_884)
    assert media(text={"vocab_size": 300}) == ()
    assert media(text={"vocab_size": 300}, image_token_id=299) == (299,)
    assert media(image_token_id=None) == (255_999, 258_882)
    for root in ({}, {"video_token_id": 258_884}, dict.fromkeys(["image_token_id"], None)):
        for text in ({}, {"vocab_size": 300}):
            config = read_model_config(diffusion(text, **root))
            again = read_model_config(model_config_json(config))
            assert again.media_token_ids == config.media_token_ids
    gemma = read_model_config(gemma4_config()).media_token_ids
    assert gemma == (258_880, 255_999, 258_882, 258_884, 258_881, 256_000, 258_883)


@pytest.mark.parametrize(
    ("root", "text", "expected"),
    [
        ({}, {}, (1,)),
        ({}, {"eos_token_id": [1, 106]}, (1, 106)),
        ({}, {"eos_token_id": None}, ()),
        ({"eos_token_id": [1, 50]}, {"eos_token_id": 1}, (1, 50)),
    ],
)
def test_end_tokens(root: dict[str, Any], text: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert read_model_config(diffusion(text, **root)).eos_token_ids == expected


# ---- what is not this architecture, and what is no config ---------------------------------------


def text(**values: Any) -> Callable[[], dict[str, Any]]:
    return lambda: diffusion(values)


def root(**values: Any) -> Callable[[], dict[str, Any]]:
    return lambda: diffusion({}, **values)


def gemma(**values: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model_type": "gemma4", "text_config": {**GEMMA4, **values}}


def gemma_without(key: str) -> Callable[[], dict[str, Any]]:
    values = {name: value for name, value in GEMMA4.items() if name != key}
    return lambda: {"model_type": "gemma4", "text_config": values}


# case: (what the file says, the key that is named, and further words that the error must hold)
ELSEWHERE = "use transformers"
REFUSED: dict[str, tuple[Callable[[], Any], str, tuple[str, ...]]] = {
    "no object": (lambda: [1], "", ("expected a json object", "found [1]")),
    "no model type": (lambda: {}, "model_type", ("diffusion_gemma, gemma4", "no such key")),
    "another model": (lambda: {"model_type": "llama"}, "model_type", ('"llama"', ELSEWHERE)),
    "unhashable model type": (lambda: {"model_type": []}, "model_type", ("[]", ELSEWHERE)),
    "no text config": (root(text_config=None), "text_config", ("json object", "found null")),
    "dense": (text(num_experts=None), "num_experts", ("dense", "found null", ELSEWHERE)),
    "dense Gemma 4": (
        gemma_without("enable_moe_block"),
        "text_config.enable_moe_block",
        ("expected true", "no such key, which means false", "dense", ELSEWHERE),
    ),
    "per-layer inputs": (
        gemma_without("hidden_size_per_layer_input"),
        "hidden_size_per_layer_input",
        ("expected 0", "which means 256", "per-layer inputs", ELSEWHERE),
    ),
    "shared keys and values": (
        gemma(num_kv_shared_layers=2),
        "num_kv_shared_layers",
        ("found 2", "share keys and values", ELSEWHERE),
    ),
    "full layers with v_proj": (
        gemma_without("attention_k_eq_v"),
        "attention_k_eq_v",
        ("which means false", "v_proj", ELSEWHERE),
    ),
    "v_proj, said of a diffusion model": (
        text(attention_k_eq_v=False), "attention_k_eq_v", ("v_proj",)
    ),
    "biases": (text(attention_bias=True), "attention_bias", ("found true", "biases", ELSEWHERE)),
    "a prefix that sees ahead": (
        text(use_bidirectional_attention="all"),
        "use_bidirectional_attention",
        ('"all"', "see ahead", ELSEWHERE),
    ),
    "double-wide MLP": (gemma(use_double_wide_mlp=True), "use_double_wide_mlp", ("double-wide",)),
    "activation": (text(hidden_activation="silu"), "hidden_activation", ('"silu"', ELSEWHERE)),
    "untied": (root(tie_word_embeddings=False), "tie_word_embeddings", ("heads", ELSEWHERE)),
    "untied text": (
        text(tie_word_embeddings=False), "text_config.tie_word_embeddings", ("found false",)
    ),
    "quantised": (
        root(quantization_config={"bits": 4}), "quantization_config", ("bits", "quantised")
    ),
    "soft cap that float32 rounds to 0": (
        text(final_logit_softcapping=1e-40), "final_logit_softcapping", ("from 1e-30",)
    ),
    "a thousand layers too many": (
        text(num_hidden_layers=100_000), "num_hidden_layers", ("at most 1000", "found 100000")
    ),
    "a canvas of a million": (
        root(canvas_length=10**6), "canvas_length", ("at most 4096", "found 1000000")
    ),
    "a size of 64 bits": (text(hidden_size=2**63), "hidden_size", ("at most 1048576",)),
    "a size of a hundred digits": (text(sliding_window=10**99), "sliding_window", ("at most",)),
    "an eps of a thousand digits": (text(rms_norm_eps=10**999), "rms_norm_eps", ("to 1e+09",)),
    "a token of 64 bits": (text(eos_token_id=[2**63]), "eos_token_id", ("token id",)),
    "a layer index of a thousand digits": (
        text(per_layer_config={"9" * 5000: {}}), "per_layer_config", ("30 layers",)
    ),
    "a name over two lines": (
        text(per_layer_config={"5": {"x\n\x1b[2J": 1}}), "per_layer_config", ("x\\n\\u001b[2J",)
    ),
    "RoPE of theta 1e-9": (
        text(rope_parameters={SLIDING: {"rope_theta": 1e-9}}),
        f"rope_parameters.{SLIDING}.rope_theta",
        ("at least 1",),
    ),
    "no soft cap": (gemma_without("final_logit_softcapping"), "final_logit_softcapping", ()),
    "soft cap null": (
        text(final_logit_softcapping=None), "final_logit_softcapping", ("found null",)
    ),
    "infinite soft cap": (
        text(final_logit_softcapping=float("inf")), "final_logit_softcapping", ("to 1e+09",)
    ),
    "more experts a token than there are": (
        text(top_k_experts=5), "top_k_experts", ("at most num_experts, which is 4", "found 5")
    ),
    "experts a token": (text(top_k_experts=None), "top_k_experts", ("whole number",)),
    "size of text": (text(hidden_size="32"), "hidden_size", ('found "32"', "whole number")),
    "size of zero": (text(intermediate_size=0), "intermediate_size", ("at least 1", "found 0")),
    "size of true": (text(vocab_size=True), "vocab_size", ("whole number", "found true")),
    "negative eps": (text(rms_norm_eps=-1e-6), "rms_norm_eps", ("above 0", "found -1e-06")),
    "canvas": (root(canvas_length=None), "canvas_length", ("at least 1", "found null")),
    "layer count": (
        text(num_hidden_layers=2, layer_types=[FULL]), "layer_types", ("a list of 2 times",)
    ),
    "layer type": (
        text(num_hidden_layers=1, layer_types=["chunked"]), "layer_types", ("chunked", SLIDING)
    ),
    "layer index": (text(per_layer_config={"30": {}}), "per_layer_config", ("30 layers", '"30"')),
    "layer index twice": (
        text(per_layer_config={"5": {}, "05": {}}), "per_layer_config", ("at most once", '"05"')
    ),
    "layer name": (text(per_layer_config={"five": {}}), "per_layer_config", ('found "five"',)),
    "per-layer list": (text(per_layer_config=[]), "per_layer_config", ("json object", "found []")),
    "per-layer number": (text(per_layer_config={"5": 64}), "per_layer_config.5", ("found 64",)),
    "another per-layer value": (
        text(per_layer_config={"5": {"intermediate_size": 3}}),
        "per_layer_config.5.intermediate_size",
        ("only head_dim and num_key_value_heads", "found 3", ELSEWHERE),
    ),
    "heads that do not divide": (
        text(per_layer_config={"5": {"num_key_value_heads": 3}}),
        "per_layer_config.5.num_key_value_heads",
        ("a divisor of num_attention_heads, which is 8", "found 3"),
    ),
    "odd head": (text(head_dim=9), "text_config.head_dim", ("even", "found 9")),
    "RoPE of one type": (
        text(rope_parameters={FULL: {"rope_theta": 1.0}}), f"rope_parameters.{SLIDING}", ("null",)
    ),
    "RoPE type": (
        text(rope_parameters={SLIDING: {"rope_type": "yarn", "rope_theta": 1.0}}),
        f"rope_parameters.{SLIDING}.rope_type",
        ('"yarn"', ELSEWHERE),
    ),
    "RoPE factor": (
        text(rope_parameters={SLIDING: {"rope_theta": 1.0, "factor": 8.0}}),
        f"rope_parameters.{SLIDING}.factor",
        ("1.0", "found 8.0", ELSEWHERE),
    ),
    "RoPE without theta": (
        text(rope_parameters={SLIDING: {}}), f"rope_parameters.{SLIDING}.rope_theta", ("above 0",)
    ),
    "partial RoPE of the default kind": (
        text(rope_parameters={SLIDING: {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}),
        f"rope_parameters.{SLIDING}.partial_rotary_factor",
        ("proportional", "found 0.5"),
    ),
    "pad outside the vocabulary": (
        text(vocab_size=8, pad_token_id=8), "pad_token_id", ("below vocab_size, which is 8",)
    ),
    "end token": (text(eos_token_id=["</s>"]), "eos_token_id", ("token id", "</s>")),
    "start token": (text(bos_token_id=-1), "bos_token_id", ("token id", "found -1")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_and_broken_configs_are_refused_by_name(case: str) -> None:
    make, key, words = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        read_model_config(make(), source="/models/x/config.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("/models/x/config.json: ")
    for word in (key, "expected", "found", "; ", *words):
        assert word in message


# ---- generation_config.json ----------------------------------------------------------------------


def test_generation_values_that_are_missing_or_null_take_the_defaults() -> None:
    config = read_model_config(diffusion({"eos_token_id": [7, 9], "pad_token_id": 5}))
    expected = GenerationDefaults(eos_token_ids=(7, 9), pad_token_id=5)
    nulls = DiffusionGemmaGenerationConfig().to_dict()
    assert nulls["sampler_config"] is None
    assert read_generation_defaults(None, config) == expected
    assert read_generation_defaults({}, config) == expected
    assert read_generation_defaults(nulls, config) == expected
    own = {"eos_token_id": 3, "sampler_config": {"entropy_bound": 0.3}, "max_denoising_steps": 9}
    read = read_generation_defaults(own, config)
    assert (read.eos_token_ids, read.entropy_bound, read.max_denoising_steps) == ((3,), 0.3, 9)


def test_generation_values_written_here_load_in_transformers(tmp_path: Path) -> None:
    config = read_model_config(diffusion({}))
    ours = GenerationDefaults(
        max_new_tokens=7, max_denoising_steps=5, entropy_bound=0.2, t_min=0.1, t_max=0.9,
        stability_threshold=2, confidence_threshold=0.01, eos_token_ids=(4, 5), pad_token_id=6,
        bos_token_id=8,
    )  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_defaults_json(ours)))
    oracle = DiffusionGemmaGenerationConfig.from_pretrained(tmp_path)
    assert oracle.sampler_config.entropy_bound == 0.2
    assert (oracle.t_min, oracle.t_max, oracle.max_denoising_steps) == (0.1, 0.9, 5)
    assert (oracle.stability_threshold, oracle.confidence_threshold) == (2, 0.01)
    assert (oracle.eos_token_id, oracle.pad_token_id, oracle.bos_token_id) == ([4, 5], 6, 8)
    oracle.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert read_generation_defaults(saved, config) == ours


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ([], "", ("json object", "found []")),
        ({"max_denoising_steps": 0}, "max_denoising_steps", ("at least 1", "found 0")),
        ({"max_new_tokens": 2.5}, "max_new_tokens", ("whole number", "found 2.5")),
        ({"max_denoising_steps": 10**6}, "max_denoising_steps", ("at most 10000",)),
        ({"max_new_tokens": 2**63}, "max_new_tokens", ("at most",)),
        ({"t_min": 1e-40}, "t_min", ("from 1e-30",)),
        ({"t_min": -0.1}, "t_min", ("at least 0", "found -0.1")),
        ({"t_min": 0.9}, "t_max", ("at least t_min, which is 0.9", "which means 0.8")),
        ({"stability_threshold": -1}, "stability_threshold", ("at least 0",)),
        ({"confidence_threshold": 0}, "confidence_threshold", ("above 0",)),
        ({"sampler_config": {"_cls_name": "Other"}}, "sampler_config._cls_name", ('"Other"',)),
        ({"sampler_config": {"entropy_bound": "x"}}, "sampler_config.entropy_bound", ('"x"',)),
        ({"eos_token_id": [1.5]}, "eos_token_id", ("token id",)),
    ],
)
def test_broken_generation_values_are_refused(given: Any, key: str, words: tuple[str, ...]) -> None:
    config = read_model_config(diffusion({}))
    with pytest.raises(CheckpointError) as caught:
        read_generation_defaults(given, config, source="g.json")
    assert str(caught.value).startswith("g.json: ")
    for word in (key, "expected", "found", *words):
        assert word in str(caught.value)
