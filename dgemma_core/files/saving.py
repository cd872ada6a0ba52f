"""Writes checkpoints in the public layout of DiffusionGemma, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dgemma_core.config import GenerationDefaults, ModelConfig
from dgemma_core.errors import CheckpointError, RequestError, check_kind, whole_number
from dgemma_core.files.config_json import generation_defaults_json, model_config_json
from dgemma_core.files.finding import CONFIG, GENERATION, as_name, find_folder
from dgemma_core.files.names import is_tower, public_tensors
from dgemma_core.files.reading import plain, read_json
from dgemma_core.files.section import JSON
from dgemma_core.files.tensors import INDEX, SINGLE, TensorFiles, short_name
from dgemma_core.model import DiffusionGemma


def save_model(
    model: DiffusionGemma,
    folder: str | os.PathLike[str],
    *,
    generation: GenerationDefaults,
    vision: Mapping[str, Tensor] | None = None,
    vision_config: JSON | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a checkpoint in the public layout, which `load` and transformers read.

    vision, vision_config: a vision tower to store along, from `vision_tensors` or `tiny_vision`;
    transformers builds one in any case, of its own default size where this names none. Weights of
    more than `max_shard_bytes` are sharded. All files are written to a temporary folder and moved
    into place last, so that an earlier checkpoint in `folder` survives a failure; its weights are
    replaced, other files of the folder stay. Raises CheckpointError where writing fails or a
    folder, device or pipe has the name of a file to write, RequestError for a quantised model,
    whose weights are no longer those of the layout.
    """
    check_kind("model", model, DiffusionGemma, "a DiffusionGemma, e.g. load('nano').model")
    check_kind("generation", generation, GenerationDefaults, "the sampler defaults to store")
    check_kind("vision", vision, Mapping | None, "tensors by their public names, or None")
    check_kind("vision_config", vision_config, dict | None, "a JSON object, or None")
    for name, tensor in (vision or {}).items():
        check_kind("the names in vision", name, str, "texts")
        check_kind("each value of vision", tensor, Tensor, "a tensor")
    max_shard_bytes = whole_number("max_shard_bytes", max_shard_bytes, low=1)
    folder = Path(as_name(folder))
    if model.quantized is not None:
        raise RequestError(
            f"a model quantised to {model.quantized} cannot be saved: load it without quantize"
        )
    if model.causal_layers is not None:
        raise RequestError(
            "an adapter changes one mode of this model alone, and a checkpoint holds one set of weights for both: keep"
            " the adapter beside its base, and load both by load(…, adapter=…)"
        )
    if (vision is None) != (vision_config is None):
        raise CheckpointError(f"{folder}: vision tensors and vision_config go together; give both")
    config = {**model_config_json(model.config), "dtype": short_name(model.dtype)}
    if vision_config is not None:
        config["vision_config"] = vision_config
    shards = _shards({**public_tensors(model), **(vision or {})}, max_shard_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            weights = _write_weights(temporary, shards)
            _write_json(temporary / GENERATION, generation_defaults_json(generation))
            _write_json(temporary / CONFIG, config)
            written = (*weights, GENERATION, CONFIG)
            stale = {folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")}
            for file in stale.union(folder / name for name in written):
                check_replaceable(file)
            for name in written:
                os.replace(temporary / name, folder / name)
            for file in stale:
                if file.name not in weights:
                    file.unlink(missing_ok=True)
        finally:
            shutil.rmtree(temporary)
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError(
            f"{plain(str(folder))}: cannot be written ({error}); make room or choose another folder"
        ) from error


def vision_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's vision (and audio) tower by public name, which `load` skips.

    With `vision_config` they can be handed to `save_model`. They are views of the mapped files.
    """
    files = TensorFiles(find_folder(folder))
    return {name: files[name] for name in files.stored if is_tower(name)}


def vision_config(folder: str | os.PathLike[str]) -> JSON | None:
    """The `vision_config` in a checkpoint's config.json, as it stands there; None without one."""
    found: JSON | None = read_json(find_folder(folder) / CONFIG).get("vision_config")
    return found


def tiny_vision(config: ModelConfig) -> tuple[JSON, dict[str, Tensor]]:
    """The smallest vision tower that transformers builds: its `vision_config` and its tensors.

    A checkpoint without images that carries it loads in transformers as quickly as here.
    """
    width, tower = 4, "model.encoder.vision_tower."
    layer = f"{tower}encoder.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}patch_embedder.input_proj.weight": (width, 3),
        f"{tower}patch_embedder.position_embedding_table": (2, 1, width),
        "model.encoder.embed_vision.embedding_projection.weight": (config.text.hidden_size, width),
    }
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"):
        shapes[f"{layer}{part}_proj.linear.weight"] = (width, width)
    for part in ("mlp.gate", "mlp.up", "mlp.down"):
        shapes[f"{layer}{part}_proj.linear.weight"] = (width, width)
    for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        shapes[f"{layer}{part}_layernorm.weight"] = (width,)
    for part in ("self_attn.q", "self_attn.k"):
        shapes[f"{layer}{part}_norm.weight"] = (width,)
    return {
        "model_type": "gemma4_vision",
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": width,
        "patch_size": 1,
        "position_embedding_size": 1,
    }, {name: torch.zeros(shape) for name, shape in shapes.items()}


def check_replaceable(file: Path) -> None:
    """Raises CheckpointError where a folder, device or pipe, or a link to one, has a file's name."""
    if file.exists() and not file.is_file():
        raise CheckpointError(
            f"{file}: expected a regular file or none, found something else;"
            " remove it or choose another folder"
        )


def _shards(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors in order, cut so that no shard of several tensors is larger than `limit` bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if size > limit and shards[-1]:
            shards.append({})
            size = tensor.nbytes
        shards[-1][name] = tensor
    return shards


def _write_weights(folder: Path, shards: list[dict[str, Tensor]]) -> list[str]:
    """Writes the shards, and an index where there are several. Returns the files' names."""
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        ready = {key: tensor.detach().cpu().contiguous() for key, tensor in shard.items()}
        save_file(ready, folder / name, metadata={"format": "pt"})
    if len(shards) == 1:
        return names
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return [*names, INDEX]


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
