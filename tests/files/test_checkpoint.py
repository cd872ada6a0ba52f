"""Checkpoints: read, written, refused. The model's numbers themselves are test_parity_model's."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
)

from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig, TextConfig
from dgemma_core.errors import CheckpointError, DeviceError, DgemmaError, RequestError
from dgemma_core.files import checkpoint, devices, finding, saving
from dgemma_core.files.checkpoint import load, load_model
from dgemma_core.files.config_json import read_model_config
from dgemma_core.files.description import describe
from dgemma_core.files.devices import available_memory
from dgemma_core.files.finding import find_folder, read_config
from dgemma_core.files.names import public_shapes
from dgemma_core.files.saving import save_model, tiny_vision, vision_config, vision_tensors
from dgemma_core.files.tensors import INDEX, SINGLE, TensorFiles
from dgemma_core.model import DiffusionGemma
from tests.oracle.build import diffusion_oracle, draw, gemma4_oracle, save
from tests.oracle.released import (
    TEXT_PARAMETERS,
    TEXT_TENSORS,
    gemma4_config,
    released_config,
)

SLIDING = LayerConfig(False, num_key_value_heads=2, head_dim=4, rope_theta=1e4)
FULL = LayerConfig(True, num_key_value_heads=1, head_dim=8, rope_theta=1e6, rotary_fraction=0.25)
CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=40, hidden_size=12, intermediate_size=10, num_attention_heads=4, num_experts=3,
        top_k_experts=2, moe_intermediate_size=6, sliding_window=5, rms_norm_eps=1e-6,
        final_logit_softcapping=30.0, max_position_embeddings=512, layers=(SLIDING, SLIDING, FULL),
    ),
    canvas_length=8,
)  # fmt: skip
GENERATION = GenerationDefaults(max_new_tokens=16, t_min=0.3, eos_token_ids=(1, 7))
DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."
QUERY = f"{DECODER}layers.0.self_attn.q_proj.weight"


def random_model(config: ModelConfig = CONFIG, seed: int = 0) -> DiffusionGemma:
    model = DiffusionGemma(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.uniform_(0.2, 1.0, generator=generator)
    return model


def write(folder: Path, model: DiffusionGemma | None = None, **options: Any) -> Path:
    """A good checkpoint, with a vision tower as the public ones have."""
    model = model or random_model()
    config, tensors = tiny_vision(model.config)
    options = {"generation": GENERATION, "vision": tensors, "vision_config": config, **options}
    save_model(model, folder, **options)
    return folder


def logits(model: DiffusionGemma) -> Tensor:
    """Logits of a canvas after a prompt, with the soft embedding of a first pass: every weight."""
    cache = model.encode([[2, 5, 9, 11, 3, 4, 8]])
    canvas = torch.arange(8)[None]
    soft = model.denoise(canvas, cache)
    return model.logits(model.denoise(canvas, cache, soft))


def same(one: DiffusionGemma, other: DiffusionGemma) -> bool:
    theirs = other.state_dict()
    return one.config == other.config and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
        for name, tensor in one.state_dict().items()
    )


# ---- the released checkpoints, on the meta device ------------------------------------------------


@pytest.mark.slow
def test_the_released_checkpoint_has_its_names_shapes_and_size() -> None:
    shapes = public_shapes(read_model_config(released_config()))
    with torch.device("meta"):
        oracle = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_dict(released_config()))
    theirs = {
        name: tuple(tensor.shape)
        for name, tensor in oracle.state_dict().items()
        if name.startswith(DECODER) or (name.startswith(ENCODER) and name.endswith("layer_scalar"))
    }
    assert shapes == theirs
    assert len(shapes) == TEXT_TENSORS
    assert sum(math.prod(shape) for shape in shapes.values()) == TEXT_PARAMETERS
    assert f"{DECODER}layers.5.self_attn.v_proj.weight" not in shapes
    assert shapes[f"{DECODER}layers.29.experts.gate_up_proj"] == (128, 1408, 2816)
    assert shapes[f"{ENCODER}layers.29.layer_scalar"] == (1,)


@pytest.mark.parametrize("kind", ["gemma4", "gemma4_text"])
def test_the_released_gemma_4_has_its_names_and_shapes(kind: str) -> None:
    given = gemma4_config()
    config = read_model_config(given if kind == "gemma4" else given["text_config"])
    shapes = public_shapes(config)
    with torch.device("meta"):
        oracle: torch.nn.Module
        if kind == "gemma4":
            oracle = Gemma4ForConditionalGeneration(
                Gemma4ForConditionalGeneration.config_class.from_dict(given)
            )
        else:
            text = Gemma4ForCausalLM.config_class.from_dict(given["text_config"])
            oracle = Gemma4ForCausalLM(text)
    theirs = {name: tuple(tensor.shape) for name, tensor in oracle.state_dict().items()}
    assert shapes == {name: shape for name, shape in theirs.items() if name != "lm_head.weight"}


# ---- reading -------------------------------------------------------------------------------------


def test_a_model_is_a_view_of_its_file(tmp_path: Path) -> None:
    model = load_model(write(tmp_path), device="cpu")
    weights = {name: p for name, p in model.named_parameters() if name != "encoder_layer_scalars"}
    assert len({p.untyped_storage().data_ptr() for p in weights.values()}) == 1
    assert model.embed_tokens.weight.untyped_storage().nbytes() == os.path.getsize(
        tmp_path / SINGLE
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert same(model, random_model()) and not model.training


def test_writing_to_a_loaded_model_leaves_the_file_alone(tmp_path: Path) -> None:
    write(tmp_path)
    model = load_model(tmp_path, device="cpu")
    for parameter in model.parameters():
        parameter.zero_()
    assert same(load_model(tmp_path, device="cpu"), random_model())


@pytest.mark.parametrize("limit", [1, 2_000, 8_000])
def test_shards_make_the_same_model(limit: int, tmp_path: Path) -> None:
    write(tmp_path, max_shard_bytes=limit)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(shards) > 2 and not (tmp_path / SINGLE).exists()
    sizes = [sum(tensor.nbytes for tensor in load_file(shard).values()) for shard in shards]
    assert sum(sizes) == index["metadata"]["total_size"]
    for shard, size in zip(shards, sizes, strict=True):
        assert size <= limit or len(load_file(shard)) == 1
    assert same(load_model(tmp_path, device="cpu"), random_model())


@pytest.mark.parametrize("dtype", ["float64", torch.float32, "float16", torch.bfloat16])
def test_a_dtype_that_is_asked_for(dtype: str | torch.dtype, tmp_path: Path) -> None:
    model = load_model(write(tmp_path), dtype=dtype, device="cpu")
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert same(model, random_model().to(expected))


def test_a_small_model_is_taken_as_float32_on_a_cpu(tmp_path: Path) -> None:
    """Unless somebody says otherwise; one that small_model.c does not serve stays as it is stored."""
    assert list(describe("nano").stored) == ["bfloat16"]
    assert load("nano", device="cpu").model.dtype == torch.float32
    assert load("nano", device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load("nano", device="cpu", quantize="int4").model.dtype == torch.bfloat16
    assert load_model(find_folder("nano"), device="cpu").dtype == torch.bfloat16
    folder = write(tmp_path, random_model().to(torch.bfloat16))
    assert load(folder, device="cpu").model.dtype == torch.bfloat16


def test_the_dtype_is_that_of_most_weights_where_a_few_are_stored_otherwise(tmp_path: Path) -> None:
    folder = write(tmp_path, random_model().to(torch.bfloat16))
    tensors = load_file(folder / SINGLE)
    scalars = [name for name in tensors if name.endswith(("layer_scalar", "router.scale"))]
    for name in scalars:
        tensors[name] = torch.full_like(tensors[name], 1.001, dtype=torch.float32)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    model = load_model(folder, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.encoder_layer_scalars.tolist() == [1.0] * 3  # 1.001, rounded
    exact = load_model(folder, dtype="float32", device="cpu")
    assert torch.equal(exact.encoder_layer_scalars, torch.full((3,), 1.001))
    assert exact.layers[1].router.scale[0] == torch.tensor(1.001)
    assert torch.equal(exact.embed_tokens.weight, model.embed_tokens.weight.float())


def test_the_encoder_keeps_layer_scalars_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path)
    stored = load_file(folder / SINGLE)
    names = [f"layers.{index}.layer_scalar" for index in range(3)]
    encoder = torch.cat([stored[ENCODER + name] for name in names])
    decoder = torch.cat([stored[DECODER + name] for name in names])
    model = load_model(folder, device="cpu")
    assert torch.equal(model.encoder_layer_scalars, encoder)
    assert torch.equal(torch.cat([layer.layer_scalar for layer in model.layers]), decoder)
    assert not torch.equal(encoder, decoder)


def test_tensors_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    header, data = split(folder / SINGLE)
    header["__metadata__"]["padding"] = ""
    while (8 + len(json.dumps(header))) % 4 == 0:
        header["__metadata__"]["padding"] += "."
    join(folder / SINGLE, header, data)
    assert same(load_model(folder, device="cpu"), random_model())


def test_vision_is_listed_apart_and_skipped_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    with caplog.at_level(logging.INFO, logger="dgemma_core"):
        model = load_model(tmp_path, device="cpu")
    expected_config, expected = tiny_vision(CONFIG)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: skipped {len(expected)} vision tensors, text only"
    ]
    assert not any("vision" in name for name, _ in model.named_parameters())
    found = vision_tensors(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert vision_config(tmp_path) == expected_config


def test_a_checkpoint_without_vision_says_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, vision=None, vision_config=None)
    with caplog.at_level(logging.INFO, logger="dgemma_core"):
        assert same(load_model(tmp_path, device="cpu"), random_model())
    assert not caplog.records
    assert (vision_tensors(tmp_path), vision_config(tmp_path)) == ({}, None)


def test_copies_of_tied_weights_are_accepted(tmp_path: Path) -> None:
    folder = write(tmp_path)
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors[f"{DECODER}embed_tokens.weight"].clone()
    tensors[f"{ENCODER}norm.weight"] = tensors[f"{DECODER}norm.weight"].clone()
    save_file(tensors, folder / SINGLE)
    assert same(load_model(folder, device="cpu"), random_model())


@pytest.mark.slow
@pytest.mark.parametrize("multimodal", [False, True])
@pytest.mark.parametrize("case", [1, 4])
def test_gemma_4_loads_and_saves_under_both_of_its_names(
    case: int, multimodal: bool, tmp_path: Path
) -> None:
    drawn = draw(case)
    diffusion = diffusion_oracle(drawn)
    oracle = gemma4_oracle(diffusion, drawn, multimodal=multimodal)
    model = load_model(save(oracle, tmp_path / "theirs"), device="cpu")
    assert not model.config.can_denoise and model.self_conditioning is None
    ours = load_model(save(diffusion, tmp_path / "diffusion"), device="cpu")
    for name, tensor in model.state_dict().items():
        if not name.endswith("layer_scalar"):
            assert torch.equal(tensor, ours.state_dict()[name]), name
    assert torch.equal(model.encoder_layer_scalars, ours.encoder_layer_scalars)
    scalars = torch.cat([layer.layer_scalar for layer in model.layers])
    assert torch.equal(scalars, model.encoder_layer_scalars)

    theirs = tmp_path / "theirs"
    save_model(
        model,
        tmp_path / "ours",
        generation=GENERATION,
        vision=vision_tensors(theirs) if multimodal else None,
        vision_config=vision_config(theirs) if multimodal else None,
    )
    assert same(load_model(tmp_path / "ours", device="cpu"), model)
    back, report = type(oracle).from_pretrained(
        tmp_path / "ours", attn_implementation=drawn.attention, output_loading_info=True
    )
    back.set_experts_implementation("eager")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        difference = back(input_ids=ids).logits - oracle(input_ids=ids).logits
    assert difference.abs().max() < 1e-5


def test_what_a_gemma_4_is_trained_to_is_what_is_saved(tmp_path: Path) -> None:
    model = random_model(replace(CONFIG, model_type="gemma4_text", can_denoise=False))
    assert not torch.equal(model.layers[0].layer_scalar, model.encoder_layer_scalars[:1])
    write(tmp_path, model, vision=None, vision_config=None)
    loaded = load_model(tmp_path, device="cpu")
    assert torch.equal(loaded.encoder_layer_scalars, model.encoder_layer_scalars)


@pytest.mark.parametrize("given", [None, {}, "nulls"])
def test_the_sampler_defaults_of_a_folder(given: Any, tmp_path: Path) -> None:
    write(tmp_path)
    assert read_config(tmp_path) == (CONFIG, GENERATION)
    file = tmp_path / "generation_config.json"
    if given is None:
        file.unlink()
    else:
        nulls = dict.fromkeys(json.loads(file.read_text()))
        file.write_text(json.dumps(nulls if given == "nulls" else given))
    assert read_config(tmp_path)[1] == GenerationDefaults()


def test_load_gives_model_sampler_defaults_and_name(tmp_path: Path) -> None:
    loaded = load(write(tmp_path), device="cpu")
    assert same(loaded.model, random_model())
    assert (loaded.tokenizer, loaded.generation) == (None, GENERATION)
    assert loaded.name == str(tmp_path)


def test_nano_is_the_embedded_checkpoint_unless_a_path_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("nano"))
    assert find_folder("nano") == finding.NANO
    assert find_folder("./nano") == find_folder(Path("nano")) == Path("nano")
    assert same(load(Path("nano"), device="cpu").model, random_model())


def test_weights_that_overflow_the_dtype_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    tensors = load_file(folder / SINGLE)
    tensors[QUERY][0, 0] = 1e5
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    assert load_model(folder, device="cpu").dtype == torch.float32
    for quantize in (None, "int4"):
        with pytest.raises(CheckpointError, match=f"{QUERY}: expected finite weights as float16"):
            load_model(folder, device="cpu", dtype="float16", quantize=quantize)


def test_of_a_large_mapped_model_only_small_tensors_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    tensors = load_file(folder / SINGLE)
    tensors[QUERY][0, 0] = math.nan
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    monkeypatch.setattr(checkpoint, "CHECKED_MODEL", 0)
    monkeypatch.setattr(checkpoint, "CHECKED_TENSOR", tensors[QUERY].nbytes - 1)
    assert load_model(folder, device="cpu").layers[0].self_attn.q_proj.weight[0, 0].isnan()
    with pytest.raises(CheckpointError, match=f"{QUERY}: expected finite"):
        load_model(folder, device="cpu", dtype="float64")  # a copy, which is always checked
    tensors[QUERY][0, 0], tensors[SCALAR][0] = 0.0, math.nan
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{SCALAR}: expected finite"):
        load_model(folder, device="cpu")


def test_checking_reads_beside_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that no pass asks for, as of experts that are never chosen, then take no memory."""
    folder, checked = write(tmp_path), []
    monkeypatch.setattr(checkpoint, "check_finite", lambda stored, tensor: checked.append(tensor))
    mapped = {t.untyped_storage().data_ptr() for t in load_model(folder, device="cpu").parameters()}
    assert len(checked) > 10
    assert not mapped & {tensor.untyped_storage().data_ptr() for tensor in checked}


@pytest.mark.parametrize("name", [5, None, b"nano", ["nano"], "x" * 5000, "\0", "~no-such-user/x"])
def test_what_is_no_name_is_one_error(name: Any, hub: Path) -> None:
    for attempt in (load, load_model, find_folder, describe):
        with pytest.raises(CheckpointError) as caught:
            attempt(name)
        assert "\n" not in str(caught.value)


def test_the_backend_is_chosen_at_load(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert load_model(folder, device="cpu", backend="torch").backend.name == "torch"
    assert load(folder, device="cpu", backend="torch").model.backend.name == "torch"
    assert (
        load_model(folder, device="cpu").backend.name == DiffusionGemma(CONFIG).use().backend.name
    )
    for attempt in (load, load_model):
        with pytest.raises(
            RequestError, match="unknown backend 'abacus': choose one of auto, torch"
        ):
            attempt(tmp_path / "even before the folder is looked at", backend="abacus")


# ---- devices, dtypes, memory ---------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta", "cpu:x", ""])
def test_a_device_that_is_not_there_is_one_line(device: str, tmp_path: Path) -> None:
    write(tmp_path)
    for attempt in (load_model, load):
        with pytest.raises(DeviceError) as caught:
            attempt(tmp_path, device=device)
        assert "\n" not in str(caught.value)
        assert f"device {device}: cannot be used here" in str(caught.value)
        assert "choose auto or cpu" in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="device cuda: cannot be used here"):
        load(tmp_path / "even before the folder is looked at", device="cuda")


@pytest.mark.parametrize("dtype", ["int8", "float7", torch.int64, "nn"])
def test_a_dtype_that_is_none(dtype: Any, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(RequestError, match=r"expected auto, float64, .*choose one"):
        load_model(tmp_path, dtype=dtype, device="cpu")


@pytest.mark.parametrize("option", ["dtype", "device", "quantize", "backend"])
@pytest.mark.parametrize(
    "value", [[], {}, 1.5, np.array([1, 2]), object()], ids=lambda value: type(value).__name__
)
def test_options_of_another_kind(option: str, value: Any) -> None:
    for attempt in (load_model, load):
        with pytest.raises(RequestError, match=f"{option} must be ") as caught:
            attempt("nano", **{option: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model": None}, {"model": 5}, {"folder": None}, {"folder": 5}, {"folder": "\0"},
        {"generation": 5}, {"generation": None}, {"max_shard_bytes": "x"}, {"max_shard_bytes": 0},
        {"vision": 5, "vision_config": {}}, {"vision": {"a": 5}, "vision_config": {}},
        {"vision": {}, "vision_config": 5},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_saved(change: dict[str, Any], tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": random_model(), "folder": tmp_path / "new"}
    given |= {"generation": GENERATION, **change}
    with pytest.raises(DgemmaError) as caught:
        save_model(**given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_too_little_memory_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    count = sum(parameter.numel() for parameter in random_model().parameters())
    monkeypatch.setattr(devices, "available_memory", lambda device: 4 * count - 1)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    for words in ("expected 0.0 GB", "found 0.0 GB", "on cpu", "as float32", "dtype='bfloat16'"):
        assert words in message
    assert load_model(tmp_path, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    monkeypatch.setattr(devices, "available_memory", lambda device: 4 * count)
    assert same(load_model(tmp_path, device="cpu"), random_model())


def test_the_released_checkpoint_does_not_fit_a_small_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_memory", lambda device: 16 * 10**9)
    needed = 2 * TEXT_PARAMETERS
    with pytest.raises(CheckpointError) as caught:
        devices.check_memory(tmp_path, needed, "bfloat16", "", torch.device("cpu"))
    message = str(caught.value)
    assert "expected 50.5 GB of free memory on cpu for the weights as bfloat16" in message
    assert "found 16.0 GB; free memory, or load a smaller checkpoint" in message


def test_available_memory_is_less_than_there_is() -> None:
    free = available_memory(torch.device("cpu"))
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ---- writing -------------------------------------------------------------------------------------


def test_a_checkpoint_with_the_tiny_vision_tower_loads_in_transformers(tmp_path: Path) -> None:
    write(tmp_path)
    oracle, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert oracle.dtype == torch.float32
    assert oracle.generation_config.sampler_config.entropy_bound == GENERATION.entropy_bound
    oracle.save_pretrained(tmp_path / "back")
    assert same(load_model(tmp_path / "back", device="cpu"), random_model())


@pytest.mark.parametrize("name", [SINGLE, "config.json", INDEX])
def test_pipes_and_devices_are_never_replaced(name: str, tmp_path: Path) -> None:
    for put in (os.mkfifo, lambda path: os.symlink("/dev/null", path), os.mkdir):
        folder = tmp_path / put.__name__.strip("<>")
        folder.mkdir()
        put(folder / name)
        before = os.lstat(folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: expected a regular file or none"):
            write(folder)
        assert [file.name for file in folder.iterdir()] == [name]
        assert os.lstat(folder / name).st_ino == before.st_ino


def test_saving_to_where_the_model_came_from(tmp_path: Path) -> None:
    """The weights are views of the very file that is replaced."""
    (tmp_path / "tokenizer.json").write_text("kept")
    model = load_model(write(tmp_path, max_shard_bytes=5_000), device="cpu")
    before = logits(model)
    write(tmp_path, model)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", SINGLE, "tokenizer.json"
    ]  # fmt: skip
    assert torch.equal(logits(model), before)
    write(tmp_path, model, max_shard_bytes=20_000)
    assert not (tmp_path / SINGLE).exists()
    assert torch.equal(logits(load_model(tmp_path, device="cpu")), before)
    assert (tmp_path / "tokenizer.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("_write_json", OSError(28, "No space left on device")),
        ("save_file", SafetensorError("I/O error: No space left on device")),
    ],
)
def test_a_failure_while_writing_leaves_the_earlier_checkpoint(
    writer: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, max_shard_bytes=5_000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(saving, writer, full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left.*; make room"):
        write(tmp_path, random_model(seed=1))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "file")


def test_vision_comes_with_its_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="go together"):
        write(tmp_path, vision_config=None)
    assert not list(tmp_path.iterdir())


# ---- the hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache(hub: Path) -> Path:
    """A good checkpoint in the hub's cache: links into a folder of blobs, as the hub lays out."""
    repository = hub / "models--someone--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("0" * 40)
    write(blobs, max_shard_bytes=5_000)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_cached_checkpoint_of_the_hub_loads_offline(hub: Path) -> None:
    snapshot = cache(hub)
    assert find_folder("someone/tiny") == snapshot
    assert same(load_model("someone/tiny", device="cpu"), random_model())


def test_a_checkpoint_that_is_not_cached_says_so_offline(hub: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model("someone/tiny", device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for words in ("someone/tiny: expected", "hub's cache", "found none", "check name"):
        assert words in message


def test_a_hub_checkpoint_of_another_kind_is_refused_before_its_weights(hub: Path) -> None:
    config = cache(hub) / "config.json"
    config.unlink()
    config.write_text(json.dumps({"model_type": "llama"}))
    for shard in config.parent.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(CheckpointError, match=r'model_type: .*found "llama"'):
        find_folder("someone/tiny")


def test_a_shard_that_the_cache_has_lost(hub: Path) -> None:
    cache(hub)
    lost = "model-00002-of-00006.safetensors"
    (hub / "models--someone--tiny" / "blobs" / lost).unlink()
    with pytest.raises(CheckpointError, match=f"{lost}: expected a file, found none; download"):
        load_model("someone/tiny", device="cpu")


@pytest.mark.parametrize("name", ["nanoo", "a/b/c", "./a/b", "../x/y", "/no/such", "a b/c", ""])
def test_a_name_that_is_neither_folder_nor_hub(name: str, hub: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder or a hub name"):
        find_folder(name)


# ---- broken checkpoints --------------------------------------------------------------------------


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def join(file: Path, header: object, data: bytes) -> None:
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def edit_header(change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> Breaker:
    def breaker(folder: Path) -> None:
        header, kept = split(folder / SINGLE)
        change(header)
        join(folder / SINGLE, header, kept if data is None else data)

    return breaker


def edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Breaker:
    def breaker(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})

    return breaker


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Breaker:
    def breaker(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return breaker


def replace_by(name: str, content: bytes | None) -> Breaker:
    def breaker(folder: Path) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return breaker


def in_text(**values: object) -> Breaker:
    return edit_json("config.json", lambda config: config["text_config"].update(values))


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def a_pickle_by_another_name(folder: Path) -> None:
    only_a_pickle(folder)
    (folder / "pytorch_model.bin").rename(folder / SINGLE)


def cut(name: str, keep: Callable[[int], int]) -> Breaker:
    def breaker(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: keep(len(raw))])

    return breaker


def pipe(name: str) -> Breaker:
    def breaker(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return breaker


def link(name: str, target: str) -> Breaker:
    def breaker(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return breaker


def vanished(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file_for_a_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def dangling(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(folder / "pruned")


def renamed_weights(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "weights.safetensors")


def a_second_set_of_weights(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {QUERY: "model-1-of-1.safetensors"}}))


def swap(header: dict[str, Any]) -> None:
    """Two tensors in the same place, and a hole where one of them was."""
    one, other = f"{DECODER}layers.0.layer_scalar", f"{DECODER}layers.1.layer_scalar"
    header[one]["data_offsets"] = header[other]["data_offsets"]


def moved(index: dict[str, Any]) -> None:
    index["weight_map"][QUERY] = SHARD_1 if index["weight_map"][QUERY] != SHARD_1 else SHARD_2


Breaker = Callable[[Path], object]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 51650000000\n"
SHARD_1, SHARD_2 = (f"model-{n:05d}-of-00006.safetensors" for n in (1, 2))
AGAIN, OTHER = "download or copy it again", "of different models"
VALUE = f"{DECODER}layers.2.self_attn.v_proj.weight"
SCALAR = f"{ENCODER}layers.1.layer_scalar"
BAND = f"{DECODER}self_conditioning.gate_proj.weight"

# case: (how a good checkpoint is broken, what the error must say: place, expected, found, advice)
BROKEN: dict[str, tuple[Breaker, tuple[str, ...]]] = {
    "no folder": (vanished, ("expected 'nano' or 'nano-talk', a folder", "no such folder", "check the spelling")),
    "a file": (a_file_for_a_folder, ("expected a folder", "found a file", "name the file's")),
    "no config": (replace_by("config.json", None), ("config.json", "found none", AGAIN)),
    "empty config": (replace_by("config.json", b""), ("config.json", "an empty file", AGAIN)),
    "config is no json": (
        replace_by("config.json", b'{"model_type":'), ("config.json: expected json", AGAIN)
    ),
    "config is no text": (
        replace_by("config.json", b"\xff\xfe{}"), ("config.json: cannot be read", "utf-8", AGAIN)
    ),
    "config is a list": (
        replace_by("config.json", b"[]"), ("config.json", "json object", "found []")
    ),
    "config is a pointer": (
        replace_by("config.json", LFS), ("config.json", "git-lfs pointer", "git lfs pull")
    ),
    "another model": (
        edit_json("config.json", lambda config: config.update(model_type="llama")),
        ("config.json: model_type", "diffusion_gemma", '"llama"', "use transformers"),
    ),
    "a dense model": (in_text(num_experts=None), ("num_experts", "dense", "use transformers")),
    "broken sampler defaults": (
        edit_json("generation_config.json", lambda values: values.update(t_max=0.1)),
        ("generation_config.json: t_max", "at least t_min", "found 0.1"),
    ),
    "a number of thousands of digits": (
        replace_by("config.json", b'{"canvas_length": ' + b"9" * 5000 + b"}"),
        ("config.json: expected json", "digits", AGAIN),
    ),
    "deep nesting": (
        replace_by("config.json", b"[" * 100_000 + b"]" * 100_000),
        ("config.json: expected json", "nested", AGAIN),
    ),
    "too large a config": (
        lambda folder: os.truncate(folder / "config.json", 2**30),
        ("config.json: expected at most", f"found {2**30}", AGAIN),
    ),
    "config is a pipe": (pipe("config.json"), ("config.json", "regular file", "a pipe", AGAIN)),
    "config is a device": (
        link("config.json", "/dev/zero"), ("config.json", "regular file", "a device", AGAIN)
    ),
    "sampler defaults are a pipe": (
        pipe("generation_config.json"), ("generation_config.json", "found a pipe")
    ),
    "weights are a pipe": (pipe(SINGLE), (SINGLE, "regular file", "found a pipe", AGAIN)),
    "weights are a device": (link(SINGLE, "/dev/zero"), (SINGLE, "found a device", AGAIN)),
    "weights are a folder": (
        lambda folder: ((folder / SINGLE).unlink(), (folder / SINGLE).mkdir()),
        (SINGLE, "found a folder", AGAIN),
    ),
    "a header longer than the file": (
        replace_by(SINGLE, (10**8).to_bytes(8, "little") + b"{}"), (SINGLE, "10 bytes", AGAIN)
    ),
    "a shape of huge numbers": (
        edit_header(lambda header: header[QUERY].update(shape=[2**63] * 8)), (QUERY, "a shape")
    ),
    "a shape of a thousand axes": (
        edit_header(lambda header: header[QUERY].update(shape=[1] * 1000)), (QUERY, "a shape")
    ),
    "a name with terminal escapes": (
        edit_header(lambda header: header.update({"\x1b[2J\n": header.pop(QUERY)})),
        (f"{QUERY}: expected shape",),
    ),
    "a NaN": (
        edit_tensors(lambda tensors: tensors[QUERY][3].fill_(math.nan)),
        (f"{SINGLE}: {QUERY}", "finite weights as float32", "NaN or infinite", "download"),
    ),
    "an infinite weight": (
        edit_tensors(lambda tensors: tensors[SCALAR].fill_(-math.inf)),
        (f"{SINGLE}: {SCALAR}", "finite weights as float32", "NaN or infinite"),
    ),
    "no weights": (
        replace_by(SINGLE, None), (f"expected {SINGLE} or {INDEX}", "found no weights", AGAIN)
    ),
    "weights of another name": (renamed_weights, ("found weights.safetensors", AGAIN)),
    "dangling link": (dangling, (f"{SINGLE}: expected a file", "found none", AGAIN)),
    "only a pickle": (
        only_a_pickle, ("pytorch_model.bin", "found a pickle", "never opened", "save_pretrained")
    ),
    "a pickle by another name": (
        a_pickle_by_another_name, (SINGLE, "found a pickle", "never opened")
    ),
    "two sets of weights": (
        a_second_set_of_weights, (f"found {SINGLE} and {INDEX}", "remove the one")
    ),
    "empty weights": (replace_by(SINGLE, b""), (f"{SINGLE}: expected", "an empty file", AGAIN)),
    "weights are a pointer": (
        replace_by(SINGLE, LFS), (f"{SINGLE}: expected", "git-lfs pointer", "git lfs pull")
    ),
    "truncated": (cut(SINGLE, lambda size: size - 100), (f"{SINGLE}: expected", "bytes", AGAIN)),
    "truncated in the header": (
        cut(SINGLE, lambda size: 500), (f"{SINGLE}: expected", "found 500 bytes", AGAIN)
    ),
    "three bytes": (cut(SINGLE, lambda size: 3), (f"{SINGLE}: expected", "3 bytes", AGAIN)),
    "something behind the tensors": (
        edit_header(lambda header: header.pop(f"{DECODER}norm.weight")), (SINGLE, AGAIN)
    ),
    "no json in the header": (
        replace_by(SINGLE, b"\x10" + b"\0" * 7 + b"<html>not found</html>"), (SINGLE, AGAIN)
    ),
    "a page in place of a file": (
        replace_by(SINGLE, b"<!doctype html><html>404</html>"), (SINGLE, "something else", AGAIN)
    ),
    "a header that is a list": (lambda folder: join(folder / SINGLE, [], b""), (SINGLE, AGAIN)),
    "an unknown dtype": (
        edit_header(lambda header: header[QUERY].update(dtype="F4")), (QUERY, "BF16", '"F4"', AGAIN)
    ),
    "an entry without a place": (
        edit_header(lambda header: header[QUERY].pop("data_offsets")), (QUERY, "offsets", AGAIN)
    ),
    "a negative shape": (
        edit_header(lambda header: header[QUERY].update(shape=[-16, -12])), (QUERY, "[-16, -12]")
    ),
    "a shape that does not fill its bytes": (
        edit_header(lambda header: header[QUERY].update(shape=[16, 11])),
        (QUERY, "expected 704 bytes for F32 [16, 11]", "found bytes", AGAIN),
    ),
    "overlapping tensors": (edit_header(swap), (SINGLE, "gap or an overlap", AGAIN)),
    "a missing tensor": (
        edit_tensors(lambda tensors: tensors.pop(QUERY)),
        (QUERY, "expected shape [16, 12]", "found no such tensor;", OTHER),
    ),
    "missing tensors": (
        edit_tensors(lambda tensors: [tensors.pop(x) for x in list(tensors) if ".mlp." in x]),
        (f"{DECODER}layers.0.mlp.", "no such tensor (and 8 others neither)", OTHER),
    ),
    "no self-conditioning": (
        edit_tensors(lambda tensors: tensors.pop(BAND)), (BAND, "[10, 12]", "no such tensor", OTHER)
    ),
    "no layer scalar of the encoder": (
        edit_tensors(lambda tensors: tensors.pop(f"{ENCODER}layers.1.layer_scalar")),
        (f"{ENCODER}layers.1.layer_scalar", "expected shape [1]", "no such tensor", OTHER),
    ),
    "an unexpected tensor": (
        edit_tensors(lambda tensors: tensors.update(extra=torch.ones(3))),
        (f"{SINGLE}: extra", "expected no such tensor", "found shape [3]", OTHER),
    ),
    "a full layer with v_proj": (
        edit_tensors(lambda tensors: tensors.update({VALUE: torch.ones(8, 12)})),
        (VALUE, "expected no such tensor", "found shape [8, 12]", OTHER),
    ),
    "a wrong shape": (
        edit_tensors(lambda tensors: tensors.update({QUERY: torch.ones(12, 16)})),
        (f"{SINGLE}: {QUERY}", "expected shape [16, 12]", "found [12, 16]", OTHER),
    ),
    "whole numbers": (
        edit_tensors(lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.int8)})),
        (QUERY, "expected a dtype of float64", "found int8", "load the original"),
    ),
    "eight-bit floats": (
        edit_tensors(
            lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.float8_e4m3fn)})
        ),
        (QUERY, "found float8_e4m3fn", "quantised", "load the original"),
    ),
    "a head of its own": (
        edit_tensors(lambda tensors: tensors.update({"lm_head.weight": torch.ones(40, 12)})),
        ("lm_head.weight", f"a copy of {DECODER}embed_tokens.weight", "found other", "untied"),
    ),
    "weights of the encoder's own": (
        edit_tensors(lambda tensors: tensors.update({f"{ENCODER}norm.weight": torch.zeros(12)})),
        (f"{ENCODER}norm.weight", f"a copy of {DECODER}norm.weight", "untied"),
    ),
    "a config of more layers": (
        in_text(num_hidden_layers=4, layer_types=None, per_layer_config={"3": {"head_dim": 8}}),
        ("layers.3.", "no such tensor (and 22 others neither)", OTHER),
    ),
    "a config of fewer layers": (
        in_text(num_hidden_layers=1, layer_types=None, per_layer_config={}),
        ("model.decoder.layers.", "expected", OTHER),
    ),
    "a config of another vocabulary": (
        in_text(vocab_size=41),
        ("model.decoder.embed_tokens.weight", "expected shape [41, 12]", "found [40, 12]", OTHER),
    ),
    "a config of another expert count": (
        in_text(num_experts=4), ("layers.0.", "expected shape [4", "found [3", OTHER)
    ),
}  # fmt: skip
BROKEN_SHARDS: dict[str, tuple[Breaker, tuple[str, ...]]] = {
    "a missing shard": (
        replace_by(SHARD_2, None), (f"{SHARD_2}: expected a file", "found none", AGAIN)
    ),
    "an empty shard": (replace_by(SHARD_2, b""), (SHARD_2, "an empty file", AGAIN)),
    "a truncated shard": (
        cut(SHARD_1, lambda size: size - 1), (f"{SHARD_1}: expected", "found", AGAIN)
    ),
    "an index that is no json": (replace_by(INDEX, b"{"), (f"{INDEX}: expected json", AGAIN)),
    "an index without a map": (
        edit_json(INDEX, lambda index: index.pop("weight_map")),
        (INDEX, "expected a weight_map", "found null", AGAIN),
    ),
    "an empty map": (
        edit_json(INDEX, lambda index: index["weight_map"].clear()), (INDEX, "found {}", AGAIN)
    ),
    "a tensor that its shard lacks": (
        edit_json(INDEX, lambda index: index["weight_map"].update(ghost=SHARD_1)),
        (f"{SHARD_1}: ghost", f"which {INDEX} places here", "found none", AGAIN),
    ),
    "a tensor in another shard than said": (
        edit_json(INDEX, moved), (f"{INDEX}: {QUERY}", "expected the tensor in", AGAIN)
    ),
    "a tensor that the index lacks": (
        edit_json(INDEX, lambda index: index["weight_map"].pop(QUERY)),
        (f"{INDEX}: {QUERY}", "expected the tensor nowhere", "found it in", AGAIN),
    ),
    "a shard that the index lacks": (
        edit_json(
            INDEX,
            lambda index: index.update(
                weight_map={k: v for k, v in index["weight_map"].items() if v != SHARD_2}
            ),
        ),
        (f"{INDEX}: expected {SHARD_2}", "found no tensor of it", "remove the shard"),
    ),
    "an index that points outside": (
        edit_json(INDEX, lambda index: index["weight_map"].update({QUERY: "../x.safetensors"})),
        (f"{INDEX}: {QUERY}", "file in the same folder", "\"../x.safetensors\"", "do not use"),
    ),
    "an index that points to a file of the system": (
        edit_json(INDEX, lambda index: index["weight_map"].update({QUERY: "/etc/passwd"})),
        (f"{INDEX}: {QUERY}", "file in the same folder", "\"/etc/passwd\""),
    ),
    "an index that points up": (
        edit_json(INDEX, lambda index: index["weight_map"].update({QUERY: ".."})), (INDEX, QUERY)
    ),
    "an index of numbers": (
        edit_json(INDEX, lambda index: index["weight_map"].update({QUERY: 1})), (QUERY, "found 1")
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    return {
        "single": write(folder / "single"),
        "sharded": write(folder / "sharded", max_shard_bytes=5_000),
    }


def test_the_checkpoints_to_break_are_good(good: dict[str, Path]) -> None:
    assert len(BROKEN) + len(BROKEN_SHARDS) > 15
    assert {SHARD_1, SHARD_2} <= {file.name for file in good["sharded"].iterdir()}
    for folder in good.values():
        assert same(load_model(folder, device="cpu"), random_model())
        assert len(TensorFiles(folder).stored) == len(public_shapes(CONFIG)) + 16


@pytest.mark.parametrize("case", [*BROKEN, *BROKEN_SHARDS])
def test_a_broken_checkpoint_is_one_clear_error(
    case: str, good: dict[str, Path], tmp_path: Path, hub: Path
) -> None:
    breaker, words = {**BROKEN, **BROKEN_SHARDS}[case]
    folder = tmp_path / "broken"
    shutil.copytree(good["sharded" if case in BROKEN_SHARDS else "single"], folder)
    breaker(folder)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    for word in words:
        assert word in message
