"""Adapters in PEFT's layout: `peft`'s load here, those written here load in `peft`, with the same logits."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

import dgemma_core as dg
from dgemma_core.backends.guard import Guarded
from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.files.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    DIGEST,
    base_digest,
    read_adapter,
    save_adapter,
)
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.finding import NANO, read_config
from dgemma_core.files.lora import Adapter, attach, merge
from dgemma_core.files.saving import save_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.tuning import TuneRecipe, new_adapter
from tests.core import tiny
from tests.oracle import adapters
from tests.oracle.build import aligned, diffusion_oracle, draw, gemma4_oracle, reloaded, save
from tests.oracle.passes import Passes, Tokens, oracle_passes, our_passes

BACKENDS = ("torch", "cpu", "cuda")
SEEDS = (0, 1, 3)
PARTS = {"both": "", "denoiser": adapters.DENOISER, "causal": adapters.CAUSAL}


def close(ours: Passes, theirs: Passes) -> None:
    torch.testing.assert_close(ours.all(), theirs.all(), atol=1e-4, rtol=0)


def random_adapter(model: DiffusionGemma, modes: Any = "both", rank: int = 2) -> Adapter:
    """An adapter of every matrix whose factors are all random."""
    recipe = TuneRecipe(steps=1, modes=modes, rank=rank, alpha=3 * rank, seed=5)
    adapter = new_adapter(model, recipe)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for lora in adapter.modules().values():
            lora.lora_B.normal_(0, 0.1, generator=generator)
    return adapter


def oracle_of(base: Path) -> DiffusionGemmaForBlockDiffusion:
    """A fresh copy of the oracle that the folder holds."""
    return reloaded(base, aligned(draw(3), 32), torch.float32)


def same_logits(base: Path, folder: Path, adapted: DiffusionGemmaForBlockDiffusion) -> None:
    drawn = aligned(draw(3), 32)
    tokens = Tokens.of(drawn)
    theirs = oracle_passes(adapted, drawn, tokens)
    model = load_model(base, dtype="float32", backend="torch", adapter=folder)
    close(our_passes(model, adapted, drawn, tokens, theirs), theirs)


def saved(folder: Path, adapter: Adapter, base: Path, rank: int = 2) -> Path:
    digest = base_digest(base)
    return save_adapter(folder, adapter, base=str(base), digest=digest, rank=rank, alpha=3 * rank)


@pytest.mark.slow
@pytest.mark.parametrize("modes", PARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_adapter_of_peft(tmp_path: Path, seed: int, modes: str) -> None:
    """Of each mode its own factors, on every backend; and it does change the logits."""
    drawn = draw(seed)
    oracle = diffusion_oracle(drawn)
    save(oracle, tmp_path / "base")
    tokens = Tokens.of(drawn)
    before = oracle_passes(oracle, drawn, tokens)
    adapted = adapters.write(oracle, tmp_path / "adapter", PARTS[modes])
    theirs = oracle_passes(adapted, drawn, tokens)
    assert float((theirs.all() - before.all()).abs().max()) > 0.1
    for backend in BACKENDS:
        model = load_model(
            tmp_path / "base", dtype="float32", backend=backend, adapter=tmp_path / "adapter"
        )
        close(our_passes(model, adapted, drawn, tokens, theirs), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("modes", PARTS)
def test_an_adapter_of_ours(tmp_path: Path, modes: str) -> None:
    """`peft` reads it without a complaint; the model here says the same with factors beside the weights, merged, and
    read back."""
    drawn = draw(2)
    oracle = diffusion_oracle(drawn)
    base = save(oracle, tmp_path / "base")
    model = load_model(base, dtype="float32", backend="torch")
    adapter = random_adapter(model, modes)
    saved(tmp_path / "adapter", adapter, base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing and unexpected keys
        adapted = adapters.load(oracle, tmp_path / "adapter")
    tokens = Tokens.of(drawn)
    theirs = oracle_passes(adapted, drawn, tokens)
    attach(model, adapter)
    close(our_passes(model, adapted, drawn, tokens, theirs), theirs)
    merge(model)
    close(our_passes(model, adapted, drawn, tokens, theirs), theirs)
    again = load_model(base, dtype="float32", adapter=tmp_path / "adapter")
    assert (again.causal_layers is None) == (modes == "both")
    close(our_passes(again, adapted, drawn, tokens, theirs), theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"target_parameters": None},
        {"target_modules": [], "target_parameters": [adapters.STACKS[0]]},
        {"target_modules": [], "target_parameters": [adapters.STACKS[1]]},
        {"use_rslora": True},
        {"alpha_pattern": {"layers.0.self_attn.q_proj": 40}},
        {"target_modules": r"model\.(decoder|encoder\.language_model)\.layers\.1\..*q_proj"},
    ],
    ids=["no experts", "gate and up", "down", "rslora", "an alpha of its own", "by expression"],
)
def test_kinds_of_adapters(tmp_path: Path, options: dict[str, Any]) -> None:
    drawn = draw(1)
    oracle = diffusion_oracle(drawn)
    save(oracle, tmp_path / "base")
    adapted = adapters.write(oracle, tmp_path / "adapter", **options)
    tokens = Tokens.of(drawn)
    theirs = oracle_passes(adapted, drawn, tokens)
    model = load_model(tmp_path / "base", dtype="float32", adapter=tmp_path / "adapter")
    close(our_passes(model, adapted, drawn, tokens, theirs), theirs)


def test_an_adapter_of_gemma_4(tmp_path: Path) -> None:
    """One mode alone: its factors have one name."""
    from peft import LoraConfig, get_peft_model

    drawn = draw(4)
    theirs = gemma4_oracle(diffusion_oracle(drawn), drawn)
    save(theirs, tmp_path / "base")
    modules = ["q_proj", "o_proj", "mlp.up_proj"]
    config = LoraConfig(r=2, target_modules=modules, target_parameters=["experts.down_proj"])
    adapted = get_peft_model(theirs, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(3))
    adapted.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "base", dtype="float32", adapter=tmp_path / "adapter")
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        logits = adapted(ids).logits
    hidden = model.encode(ids).hidden
    assert hidden is not None
    torch.testing.assert_close(model.logits(hidden), logits, atol=1e-4, rtol=0)


# --- one mode alone


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that C serves."""
    drawn = aligned(draw(3), 32)
    return save(diffusion_oracle(drawn), tmp_path_factory.mktemp("aligned"))


def passes(model: DiffusionGemma) -> tuple[Tensor, Tensor]:
    """Hidden states of the causal mode, and of the denoiser behind it."""
    cache = model.encode([[3, 9, 4, 7, 5], [6, 2]])
    assert cache.hidden is not None
    canvas = torch.arange(2 * model.config.canvas_length).view(2, -1)
    return cache.hidden, model.denoise(canvas, cache)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_other_mode_stays_bit_for_bit(base: Path, tmp_path: Path, backend: str) -> None:
    plain = load_model(base, dtype="float32", backend=backend)
    causal, denoised = passes(plain)
    found = {}
    for modes in PARTS:
        adapter = random_adapter(load_model(base, dtype="float32"), modes)
        folder = saved(tmp_path / modes, adapter, base)
        model = load_model(base, dtype="float32", backend=backend, adapter=folder)
        assert model.backend.name == backend
        if backend == "cpu":
            assert isinstance(model.backend, Guarded), "C serves it"
        found[modes] = passes(model)
    assert torch.equal(found["denoiser"][0], causal)
    assert not torch.allclose(found["denoiser"][1], denoised, atol=1e-3)
    assert torch.equal(found["causal"][0], found["both"][0])
    assert not torch.allclose(found["causal"][0], causal, atol=1e-3)
    assert not torch.allclose(found["causal"][1], found["both"][1], atol=1e-3)


def test_what_is_not_adapted_is_held_once(base: Path, tmp_path: Path) -> None:
    model = load_model(base, dtype="float32")
    folder = saved(tmp_path, random_adapter(model, "denoiser"), base)
    adapted = load_model(base, dtype="float32", adapter=folder)
    assert adapted.causal_layers is not None
    a, b = adapted.typed_layers()[0], adapted.typed_layers(True)[0]
    assert a.input_layernorm is b.input_layernorm and a.router.proj is b.router.proj
    assert a.layer_scalar is b.layer_scalar and a.self_attn.q_proj is not b.self_attn.q_proj
    with pytest.raises(RequestError, match="one mode of this model alone"):
        save_model(adapted, tmp_path / "merged", generation=read_config(base)[1])


def test_the_guard_sees_the_other_modes_layers(base: Path, tmp_path: Path) -> None:
    """A changed weight of the causal mode's own layers is noticed like any other."""
    folder = saved(tmp_path, random_adapter(load_model(base), "causal"), base)
    model = load_model(base, dtype="float32", backend="cpu", adapter=folder)
    passes(model)
    with torch.no_grad():
        model.typed_layers(True)[0].self_attn.q_proj.weight.mul_(1.5)
    with pytest.warns(UserWarning, match="were changed or replaced"):
        changed = passes(model)
    model.use("torch")
    for ours, plain in zip(changed, passes(model), strict=True):
        assert torch.equal(ours, plain)


# --- what the configuration says, as `peft` understands it


@pytest.mark.parametrize(
    "options",
    [
        {"alpha_pattern": {"experts.gate_up_proj": 40}},
        {"alpha_pattern": {"down_proj": 40}},
        {"alpha_pattern": {"experts": 40}},
        {"alpha_pattern": {"experts.base_layer": 40}},
        {
            "alpha_pattern": {
                r"decoder\.layers\.\d+\.(self_attn|experts)\..*q?_proj": 40,
                "q_proj": 2,
            }
        },
        {"rank_pattern": {"experts.down_proj": 2, "o_proj": 1}, "use_rslora": True},
        {"target_modules": ["q_proj.linear", "o_proj"], "exclude_modules": ".*vision.*"},
        {
            "target_modules": ["k_proj", "self_conditioning.up_proj"],
            "layers_to_transform": [1],
            "exclude_modules": ".*(vision_tower|layers.0).*",
        },
        {
            "target_modules": [],
            "target_parameters": ["q_proj.weight", "experts.down_proj"],
            "alpha_pattern": {"q_proj": 9, "down_proj": 40},
        },
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"target_modules": ["router.proj"], "target_parameters": None},
    ],
    ids=lambda options: str(*list(options.items())[-1:])[:40],
)
def test_the_same_configuration(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapted = adapters.write(oracle_of(base), tmp_path, **options)
    same_logits(base, tmp_path, adapted)


def test_all_linear(base: Path, tmp_path: Path) -> None:
    """The vision tower's factors are left out with one line."""
    adapted = adapters.write(oracle_of(base), tmp_path, target_modules="all-linear")
    with pytest.warns(UserWarning, match="vision tower is not run here: .* tensors") as caught:
        same_logits(base, tmp_path, adapted)
    assert "\n" not in str(caught[0].message)
    edit(tmp_path, target_modules="ALL-LINEAR")
    with pytest.warns(UserWarning, match="vision tower is not run here"):
        same_logits(base, tmp_path, adapted)


def test_all_linear_of_gemma_4(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    drawn = draw(4)
    theirs = gemma4_oracle(diffusion_oracle(drawn), drawn, multimodal=True)
    save(theirs, tmp_path / "base")
    adapted = get_peft_model(theirs, LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="vision tower is not run here"):
        model = load_model(tmp_path / "base", dtype="float32", adapter=tmp_path / "adapter")
    assert not model.config.can_denoise


# --- quantised bases, and merging


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_beside_quantised_matrices(base: Path, tmp_path: Path, quantize: str) -> None:
    """The factors' products are added to the codes' own; a fast backend that cannot do that says so in one line."""
    folder = saved(tmp_path, random_adapter(load_model(base)), base)
    plain = load_model(base, dtype="float32", quantize=quantize, backend="torch")
    adapter = read_adapter(folder, base, plain.config)
    with torch.no_grad():  # the same numbers as plain matrices, with the adapter merged
        copy = load_model(base, dtype="float32", backend="torch")
        for path, module in plain.named_modules():
            for name in getattr(module, "columns", {}):
                weight = copy.get_parameter(f"{path}.{name}")
                weight.copy_(module.matrix(name).dequantize(torch.float32))
        attach(copy, adapter)
        merge(copy)
    wanted = passes(copy)
    for backend in ("torch", "cpu"):
        model = load_model(
            base, dtype="float32", quantize=quantize, backend=backend, adapter=folder
        )
        for ours, theirs in zip(passes(model), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    with pytest.raises(dg.DeviceError, match="beside quantised matrices"):
        model.use("cuda")


def test_a_merged_checkpoint(base: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", random_adapter(load_model(base)), base)
    model = load_model(base, dtype="float32", adapter=folder)
    save_model(model, tmp_path / "merged", generation=read_config(base)[1])
    again = load_model(tmp_path / "merged", dtype="float32")
    for ours, theirs in zip(passes(again), passes(model), strict=True):
        assert torch.equal(ours, theirs)


# --- errors


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return saved(tmp_path / "adapter", random_adapter(load_model(base)), base)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, **changes}))


def rewrite(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata)


def refused(base: Path, folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(base, adapter=folder)
    assert "\n" not in str(caught.value)


def test_no_adapter(base: Path, tmp_path: Path) -> None:
    refused(base, tmp_path, "found no adapter_config.json")
    refused(base, tmp_path / "absent", "found no adapter_config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("peft_type", "IA3"), ("use_dora", True), ("bias", "all"), ("modules_to_save", ["norm"])],
)
def test_kinds_that_are_not_run(base: Path, folder: Path, key: str, value: Any) -> None:
    edit(folder, **{key: value})
    refused(base, folder, f"{key}.*this kind of adapter cannot run here")


def test_an_adapter_of_another_base(base: Path, folder: Path, tmp_path: Path) -> None:
    """The digest tells other weights of the same shape; without one, names and shapes are looked at."""
    other = tmp_path / "other"
    model = load_model(base, dtype="float32")
    with torch.no_grad():
        model.norm.weight.mul_(2)
    save_model(model, other, generation=read_config(base)[1])
    refused(other, folder, "made for other weights")
    rewrite(folder, load_file(folder / ADAPTER_WEIGHTS))
    assert load_model(other, adapter=folder) is not None
    third = tmp_path / "third"
    save_model(tiny.model(1), third, generation=dg.GenerationDefaults())
    refused(third, folder, "this is an adapter of another base")


def test_the_digest_is_of_the_numbers(base: Path, tmp_path: Path) -> None:
    """The same model in bfloat16 and in float32 is one base."""
    half = load_model(base, dtype="bfloat16")
    generation = read_config(base)[1]
    save_model(half, tmp_path / "half", generation=generation)
    save_model(half.float(), tmp_path / "whole", generation=generation)
    assert base_digest(tmp_path / "half") == base_digest(tmp_path / "whole")
    assert len(base_digest(base)) == 32


def test_damaged_adapters(base: Path, folder: Path) -> None:
    whole = load_file(folder / ADAPTER_WEIGHTS)
    name = next(name for name in whole if "self_attn.q_proj.lora_A" in name)
    rewrite(folder, {key: value for key, value in whole.items() if key != name})
    refused(base, folder, "both lora_A and lora_B")
    rewrite(folder, {**whole, name: whole[name][:, :-1].contiguous()})
    refused(base, folder, r"expected factors \(1 · r, \d+\)")
    rewrite(folder, {**whole, name: whole[name] * torch.nan})
    refused(base, folder, "NaN or infinite")
    rewrite(folder, {**whole, "base_model.model.model.decoder.norm.weight": torch.ones(3)})
    refused(base, folder, "lora_A or lora_B of a matrix")
    moved = {
        key.replace("layers.0.self_attn", "layers.99.self_attn"): v for key, v in whole.items()
    }
    rewrite(folder, moved)
    refused(base, folder, "a matrix of this model's layers")
    moved = {key.replace("decoder.self_cond", "encoder.language_model.self_cond"): v
             for key, v in whole.items()}  # fmt: skip
    rewrite(folder, moved)
    refused(base, folder, "a matrix of this model's layers")
    edit(folder, alpha_pattern={"(a+)+": 3})
    rewrite(folder, whole)
    refused(base, folder, "without repeated groups")
    edit(folder, alpha_pattern={})
    (folder / ADAPTER_WEIGHTS).write_bytes(b"")
    refused(base, folder, ADAPTER_WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": "4"}, "r: expected a whole number"),
        ({"r": None}, "r: expected a whole number"),
        ({"lora_alpha": True}, "lora_alpha: expected a number"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
        ({"alpha_pattern": 5}, "alpha_pattern: expected a json object"),
        ({"alpha_pattern": "q_proj"}, "alpha_pattern: expected a json object"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern: expected a json object"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern.q_proj: expected a number"),
        ({"alpha_pattern": {"(q_proj": 4}}, "alpha_pattern: .*regular expression"),
        ({"alpha_pattern": {".*" * 20: 4}}, "alpha_pattern: .*regular expression"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern.q_proj: expected a whole number"),
        ({"rank_pattern": {"q_proj": 7}}, "q_proj: expected rank 7, .* found 2"),
        ({"r": 3}, "expected rank 3, .* found 2"),
        ({"target_modules": 5}, "target_modules: expected a list of names"),
        ({"target_modules": "("}, "target_modules: .*regular expression"),
        ({"target_parameters": 5}, "target_parameters: expected a list of names"),
        ({"target_parameters": "down_proj"}, "target_parameters: expected a list of names"),
        ({"exclude_modules": {}}, "exclude_modules: expected a list of names"),
        ({"layers_to_transform": "1"}, "layers_to_transform: expected a layer's index"),
        ({"layers_pattern": 5}, "layers_pattern: .*regular expression"),
        ({"target_modules": None, "target_parameters": None}, "names of the adapted matrices"),
        ({"target_modules": []}, "to target this matrix"),
        ({"exclude_modules": ["q_proj"]}, "q_proj: .*to target this matrix"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "fit a changed base"),
        ({"init_lora_weights": "corda"}, "fit a changed base"),
        ({"init_lora_weights": "loftq"}, "fit a changed base"),
        ({"init_lora_weights": "lora_ga"}, "fit a changed base"),
        ({"init_lora_weights": 5}, "init_lora_weights: expected true, false or"),
    ],
    ids=str,
)
def test_a_configuration_with_wrong_values(
    base: Path, folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder, **changes)
    refused(base, folder, message)


def test_a_configuration_with_other_forms(base: Path, folder: Path) -> None:
    """An empty list of modules that peft keeps whole, and a file with a byte order mark."""
    whole = json.loads((folder / ADAPTER_CONFIG).read_text())
    edit(folder, modules_to_save=[], init_lora_weights="orthogonal", alpha_pattern=None)
    text = (folder / ADAPTER_CONFIG).read_text()
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8-sig")
    load_model(base, adapter=folder)
    (folder / ADAPTER_CONFIG).write_text("{", encoding="utf-8-sig")
    refused(base, folder, "expected json")
    (folder / ADAPTER_CONFIG).write_text("{}")
    refused(base, folder, "r: expected a whole number of at least 1, found no such key")
    for key in ("r", "lora_alpha"):
        rest = {name: value for name, value in whole.items() if name != key}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(rest))
        refused(base, folder, f"{key}: expected .* found no such key")


def test_a_file_that_lacks_factors(base: Path, folder: Path) -> None:
    whole = load_file(folder / ADAPTER_WEIGHTS)
    save_file({}, folder / ADAPTER_WEIGHTS)
    refused(base, folder, "found no tensors")
    rest = {name: value for name, value in whole.items() if "decoder.layers.0.mlp.up" not in name}
    rewrite(folder, rest)
    refused(base, folder, "model.decoder.layers.0.mlp.up_proj: expected factors")
    rest = {name: value for name, value in whole.items() if "0.experts.base_layer" not in name}
    rewrite(folder, rest)
    refused(base, folder, r"0.experts.base_layer: expected factors, .* \(and 1 more\)")
    edit(folder, target_modules=["absent"], target_parameters=None)
    vision = "base_model.model.model.encoder.embed_vision.embedding_projection"
    rewrite(folder, {f"{vision}.lora_{factor}.weight": torch.zeros(2, 2) for factor in "AB"})
    with pytest.warns(UserWarning, match="vision tower"):
        refused(base, folder, "names of matrices in this model's layers")


def test_numbers_that_cannot_be_used(base: Path, folder: Path) -> None:
    whole = load_file(folder / ADAPTER_WEIGHTS)
    name = next(name for name in whole if "self_attn.q_proj.lora_A" in name)
    for change, message in {
        whole[name].to(torch.float8_e4m3fn): "numbers as float32.* found float8_e4m3fn",
        whole[name].double() * 1e300: "finite numbers in float32",
        torch.tensor(1.0): r"expected factors .* found \(\)",
    }.items():
        rewrite(folder, {**whole, name: change})
        refused(base, folder, message)
    other = name.replace("lora_A", "lora_B")
    rewrite(folder, {**whole, name: whole[name] * 1e30, other: whole[other] * 1e30})
    refused(base, folder, r"layers.0.self_attn.q_proj.weight: expected finite numbers as float32")
    experts = next(name for name in whole if "experts.lora_A" in name)
    rewrite(folder, {**whole, experts: whole[experts] * 1e9})
    load_model(base, dtype="float32", adapter=folder)
    with pytest.raises(CheckpointError, match=r"experts.down_proj: expected finite .* as float16"):
        load_model(base, dtype="float16", adapter=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["lm_head"]}, "found a change of the vocabulary head"),
        ({"target_modules": ["embed_tokens"]}, "found a change of the embeddings"),
        ({"target_parameters": ["embed_tokens.weight"]}, "found a change of the embeddings"),
        ({"use_dora": True}, "found a magnitude of DoRA"),
        ({"lora_bias": True}, "found a trained bias"),
    ],
    ids=str,
)
def test_tensors_that_are_not_run(
    base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """Also where the configuration does not say so."""
    modules = ["model.decoder.layers.0.self_attn.q_proj"]
    wanted = {"target_modules": modules, "target_parameters": None, **options}
    adapters.write(oracle_of(base), tmp_path, **wanted)
    edit(tmp_path, use_dora=False, lora_bias=False)
    refused(base, tmp_path, f"{message}, which cannot run here")


def test_a_failed_write_leaves_the_earlier_adapter(base: Path, folder: Path) -> None:
    before = (folder / ADAPTER_WEIGHTS).read_bytes()
    adapter = random_adapter(load_model(base))
    (folder / ADAPTER_CONFIG).unlink()
    (folder / ADAPTER_CONFIG).mkdir()
    with pytest.raises(CheckpointError, match="expected a regular file or none"):
        save_adapter(folder, adapter, base="x", digest="y", rank=2, alpha=6)
    assert not list(folder.glob(".saving-*"))
    assert (folder / ADAPTER_WEIGHTS).read_bytes() == before


def test_a_loaded_model_names_its_adapter(tmp_path: Path) -> None:
    nano = dg.load("nano", backend="torch")
    adapter = random_adapter(nano.model, "denoiser")
    folder = saved(tmp_path, adapter, NANO)
    loaded = dg.load("nano", adapter=folder)
    assert loaded.adapter == str(folder) and loaded.model.backend.name == "cpu"
    assert nano.adapter is None
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as opened:
        assert opened.metadata()[DIGEST] == base_digest(NANO)
