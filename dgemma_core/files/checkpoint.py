"""Checkpoints in the public layout of DiffusionGemma, in and out.

Notable:
- a model is built on the meta device and filled parameter by parameter from the mapped files: on a
  CPU, in the stored dtype, its weights *are* the files, so loading copies nothing;
- a quantised model is filled from blocks of rows, file after file: the result and one block are all
  the memory that it takes;
- names: a parameter `x` of the model is stored as `model.decoder.x`; the encoder keeps nothing of
  its own but one layer scalar a layer; Gemma 4 stores `model.x` or `model.language_model.x`;
- vision and audio towers are listed apart and not loaded.

Source of names and shapes: spec §2.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from dgemma_core.config import GEMMA_4, JSON, GenerationDefaults, ModelConfig
from dgemma_core.errors import CheckpointError, DeviceError, RequestError
from dgemma_core.files.quantised import Scheme, fill, scheme, stored_sizes
from dgemma_core.files.tensors import (
    INDEX,
    SINGLE,
    StoredTensor,
    TensorFiles,
    dtype_name,
    lacks_shards,
    read_json,
)
from dgemma_core.model import DiffusionGemma

if TYPE_CHECKING:
    from dgemma_core.text import Tokenizer

CONFIG, GENERATION = "config.json", "generation_config.json"
NANO = Path(__file__).parents[1] / "nano" / "weights"

_log = logging.getLogger(__name__)
_ENCODER_SCALARS = "encoder_layer_scalars"
_DECODER, _ENCODER = "model.decoder.", "model.encoder.language_model."
_TOWERS = re.compile(r"model\.(encoder\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\.")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OTHER_MODEL = f"the weights and {CONFIG} are of different models, download both again"


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to write: `tokenizer` is None where the checkpoint has none."""

    model: DiffusionGemma
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    name: str


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantize: str | None = None,
    backend: str = "auto",
) -> Loaded:
    """Loads "nano", a folder, or a checkpoint of the Hugging Face hub ("owner/name").

    Hub files are taken from its cache, or downloaded; for `dtype`, `device`, `quantize` and errors
    see `load_model`. On a CPU "auto" takes a small model as float32, however it is stored: that is
    quicker there (`native`), and a text stays the same, bit for bit, whatever its batch.
    """
    from dgemma_core.backends import check_name
    from dgemma_core.backends.cpu.native import fits
    from dgemma_core.text import load_tokenizer

    check_name(backend)
    target = resolve_device(device)  # before a download
    if quantize is not None:
        scheme(quantize)
    folder = find_folder(name_or_path)
    config, generation = read_config(folder)
    if dtype == "auto" and target.type == "cpu" and quantize is None and fits(config):
        dtype = "float32"
    model = load_model(folder, dtype=dtype, device=device, quantize=quantize).use(backend)
    name = os.fspath(name_or_path)
    return Loaded(model, load_tokenizer(folder), generation, name)


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself, without its weights."""

    config: ModelConfig
    generation: GenerationDefaults
    stored: Mapping[str, int]
    """Bytes of all its tensors, by dtype."""
    place: str
    """The folder, or where on the hub it lies."""


def describe(name_or_path: str | os.PathLike[str]) -> Description:
    """Configuration and headers of "nano", a folder or a hub checkpoint, whose weights stay on the hub.

    Raises CheckpointError where there is none, or it is damaged.
    """
    name = os.fspath(name_or_path)
    on_hub = _is_hub_name(name)
    folder = _hub_configs(name) if on_hub else find_folder(name)
    config, generation = read_config(folder)
    stored: Counter[str] = Counter()
    if on_hub and lacks_shards(folder):
        stored.update(_hub_headers(name))
        return Description(config, generation, stored, "on the Hugging Face hub")
    for tensor in TensorFiles(folder).stored.values():
        stored[_short(tensor.dtype)] += tensor.end - tensor.begin
    return Description(config, generation, stored, str(folder))


def find_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder that "nano", a path or a hub name stands for; the hub's is downloaded if need be.

    Raises CheckpointError where there is none.
    """
    if name_or_path == "nano":
        return NANO
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        found = "a pickle, which is never opened" if path.suffix in (".bin", ".pt") else "a file"
        raise CheckpointError(f"{path}: expected a folder, found {found}; name the file's folder")
    if _is_hub_name(name):
        return _download(name)
    raise CheckpointError(
        f"{name}: expected 'nano', a folder or a hub name (owner/name), found no such folder;"
        " check the spelling"
    )


def read_config(folder: str | os.PathLike[str]) -> tuple[ModelConfig, GenerationDefaults]:
    """The configuration and the sampler defaults of a checkpoint.

    generation_config.json may be missing or hold nulls. Raises CheckpointError where a file is
    damaged or describes another architecture.
    """
    folder = find_folder(folder)
    file = folder / CONFIG
    config = ModelConfig.from_json(read_json(file), source=str(file))
    file = folder / GENERATION
    given = read_json(file) if file.exists() else None
    return config, GenerationDefaults.from_json(given, config, source=str(file))


def public_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The text tensors of a checkpoint of this configuration, by public name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in DiffusionGemma(config, device="meta").named_parameters():
        shapes |= _public_shapes(name, parameter, config, _prefix(config))
    return shapes


def load_model(
    folder: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantize: str | None = None,
) -> DiffusionGemma:
    """Loads the text model of a checkpoint, frozen (no parameter asks for a gradient).

    dtype: "auto" is the one that most of the weights are stored in. device: "auto" is a GPU where
    PyTorch sees one. quantize: "int8" or "int4" keeps matrices as codes and scales (`quantise`);
    dtype is then that of activations and of what stays as it is. Raises CheckpointError for a
    folder that is damaged, contradicts itself, holds another architecture or does not fit into
    memory, DeviceError for a device that is not there, RequestError for a dtype or a scheme that
    is none.
    """
    target = resolve_device(device)
    to = None if quantize is None else scheme(quantize)
    folder = find_folder(folder)
    config, _ = read_config(folder)
    files = TensorFiles(folder)
    model = DiffusionGemma(config, device="meta")
    sources = _match(model, files)
    kind = _dtype(dtype, [stored for group in sources.values() for stored in group])
    if to is not None:
        needed = sum(map(sum, stored_sizes(model, to, kind.itemsize).values()))
        smaller = "" if to.matrices == 4 else "pass quantize='int4', "
        _check_memory(folder, needed, to.name, smaller, target)
        _fill_quantised(model, files, sources, to, kind, target)
        return model.eval()
    needed = sum(p.numel() for p in model.parameters()) * kind.itemsize
    smaller = "dtype='bfloat16'" if kind.itemsize > 2 else "quantize='int4'"
    _check_memory(folder, needed, _short(kind), f"pass {smaller}, ", target)
    for name, group in sources.items():
        tensors = [files[stored.name].to(device=target, dtype=kind) for stored in group]
        _assign(model, name, torch.cat(tensors) if name == _ENCODER_SCALARS else tensors[0])
    return model.eval()


def _fill_quantised(
    model: DiffusionGemma,
    files: TensorFiles,
    sources: Mapping[str, list[StoredTensor]],
    to: Scheme,
    kind: torch.dtype,
    device: torch.device,
) -> None:
    """Fills a model that is on the meta device, a file after the other, a block of rows at a time."""
    from tqdm.auto import tqdm

    files.unmap()
    total = sum(stored.end - stored.begin for group in sources.values() for stored in group)
    order = sorted(sources.items(), key=lambda item: (item[1][0].file, item[1][0].begin))
    with tqdm(
        total=total, desc=to.name, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:

        def blocks(group: list[StoredTensor]) -> Iterator[Tensor]:
            for stored in group:
                for block in files.row_blocks(stored.name):
                    if not bool(block.isfinite().all()):
                        advice = "such a model cannot be quantised"
                        raise stored.refuse("finite weights", "others", advice)
                    yield block
                    bar.update(block.nbytes)

        fill(model, to, ((name, blocks(group)) for name, group in order), kind, device)


def vision_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's vision (and audio) tower by public name, which `load` skips.

    With `vision_config` they can be handed to `save_model`. They are views of the mapped files.
    """
    files = TensorFiles(find_folder(folder))
    return {name: files[name] for name in files.stored if _TOWERS.match(name)}


def vision_config(folder: str | os.PathLike[str]) -> JSON | None:
    """The `vision_config` in a checkpoint's config.json, as it stands there; None without one."""
    found: JSON | None = read_json(find_folder(folder) / CONFIG).get("vision_config")
    return found


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
    more than `max_shard_bytes` are sharded. All files are written aside and moved into place last,
    so that an earlier checkpoint in `folder` survives a failure; its weights are replaced, other
    files of the folder stay. Raises CheckpointError where writing fails, RequestError for a
    quantised model, whose weights are no longer those of the layout.
    """
    if model.quantized is not None:
        raise RequestError(
            f"a model quantised to {model.quantized} cannot be saved: load it without quantize"
        )
    if (vision is None) != (vision_config is None):
        raise CheckpointError(f"{folder}: vision tensors and vision_config go together; give both")
    folder = Path(folder)
    config = {**model.config.to_json(), "dtype": str(model.dtype).removeprefix("torch.")}
    if vision_config is not None:
        config["vision_config"] = vision_config
    shards = _shards({**_public_tensors(model), **(vision or {})}, max_shard_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            weights = _write_weights(aside, shards)
            _write_json(aside / GENERATION, generation.to_json())
            _write_json(aside / CONFIG, config)
            for name in (*weights, GENERATION, CONFIG):
                os.replace(aside / name, folder / name)
            for file in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
                if file.name not in weights:
                    file.unlink(missing_ok=True)
        finally:
            shutil.rmtree(aside)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error}); make room or choose another folder"
        ) from error


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


def _prefix(config: ModelConfig, stored: Mapping[str, StoredTensor] | None = None) -> str:
    """What stands before a parameter's name in `stored`, or in a checkpoint written here."""
    if config.can_denoise:
        return _DECODER
    nested = "model.language_model."
    if stored is not None:
        return nested if any(name.startswith(nested) for name in stored) else "model."
    return nested if config.model_type == GEMMA_4 else "model."


def _public_shapes(
    parameter: str, tensor: Tensor, config: ModelConfig, prefix: str
) -> dict[str, tuple[int, ...]]:
    """What a parameter is stored as: one tensor, or of the encoder's layer scalars one a layer."""
    if parameter != _ENCODER_SCALARS:
        return {prefix + parameter: tuple(tensor.shape)}
    owner = _ENCODER if config.can_denoise else prefix  # Gemma 4 has one mode, so one set of them
    return {f"{owner}layers.{index}.layer_scalar": (1,) for index in range(len(tensor))}


def _public_tensors(model: DiffusionGemma) -> dict[str, Tensor]:
    """A model's parameters by public name. Gemma 4 stores the one set of scalars that it uses."""
    tensors: dict[str, Tensor] = {}
    named = sorted(model.named_parameters(), key=lambda item: item[0] == _ENCODER_SCALARS)
    for parameter, tensor in named:  # the encoder's scalars last, so that they are kept
        names = _public_shapes(parameter, tensor, model.config, _prefix(model.config))
        parts = tensor.split(1) if parameter == _ENCODER_SCALARS else [tensor]
        tensors |= dict(zip(names, parts, strict=True))
    return tensors


def _match(model: DiffusionGemma, files: TensorFiles) -> dict[str, list[StoredTensor]]:
    """Which stored tensors fill which parameter. Raises CheckpointError unless all fit exactly."""
    config, left = model.config, dict(files.stored)
    prefix = _prefix(config, left)
    if towers := [left.pop(name) for name in files.stored if _TOWERS.match(name)]:
        _log.info("%s: skipped %d vision tensors, text only", files.folder, len(towers))
    expected = {
        parameter: _public_shapes(parameter, tensor, config, prefix)
        for parameter, tensor in model.named_parameters()
    }
    shapes = {name: shape for group in expected.values() for name, shape in group.items()}
    if missing := [name for name in shapes if name not in left]:
        more = f" (and {len(missing) - 1} others neither)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{files.folder}: {missing[0]}: expected shape {list(shapes[missing[0]])}, found no"
            f" such tensor{more}; {_OTHER_MODEL}"
        )
    for name, stored in left.items():
        if name in shapes:
            _check_fits(stored, shapes[name])
        else:
            _check_tied_copy(files, stored, prefix)
    return {parameter: [left[name] for name in group] for parameter, group in expected.items()}


def _check_fits(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise stored.refuse(f"shape {list(shape)}", str(list(stored.shape)), _OTHER_MODEL)
    if stored.dtype not in _FLOATS:
        expected = f"a dtype of {', '.join(_short(dtype) for dtype in _FLOATS)}"
        advice = "quantised weights cannot run here, load the original checkpoint"
        raise stored.refuse(expected, _short(stored.dtype), advice)


def _check_tied_copy(files: TensorFiles, stored: StoredTensor, prefix: str) -> None:
    """Raises unless `stored` is one of the copies of tied weights that some writers keep."""
    name = stored.name.removeprefix(_ENCODER)
    original = prefix + ("embed_tokens.weight" if name == "lm_head.weight" else name)
    if original == stored.name or original not in files.stored:
        raise stored.refuse("no such tensor", f"shape {list(stored.shape)}", _OTHER_MODEL)
    if not torch.equal(files[stored.name], files[original]):
        advice = "a checkpoint with untied weights cannot run here"
        raise stored.refuse(f"a copy of {original}", "other values", advice)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    parameter = nn.Parameter(tensor, requires_grad=False)
    setattr(model.get_submodule(module), attribute, parameter)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(asked: str | torch.dtype, stored: list[StoredTensor]) -> torch.dtype:
    if asked == "auto":
        sizes: Counter[torch.dtype] = Counter()
        for tensor in stored:
            sizes[tensor.dtype] += tensor.end - tensor.begin
        return sizes.most_common(1)[0][0]
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if found not in _FLOATS:
        names = ", ".join(_short(dtype) for dtype in _FLOATS)
        raise RequestError(f"dtype: expected auto, {names}, found {asked}; choose one of them")
    return found


def resolve_device(asked: str | torch.device) -> torch.device:
    """The device to load to. Raises DeviceError where it is unknown or not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(
            f"device {asked}: cannot be used here ({reason}); choose auto or cpu"
        ) from error
    return device


def available_memory(device: torch.device) -> int | None:
    """Bytes that a model may take on this device now; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not meminfo.exists():  # macOS says how much there is, used or not
        known = hasattr(os, "sysconf")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    free = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
    if limit != "max":  # a container: what its limit leaves beside memory that cannot be dropped
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(limit) - int(held["anon"]))
    return free


def _check_memory(folder: Path, needed: int, form: str, smaller: str, device: torch.device) -> None:
    free = available_memory(device)
    if free is None or needed <= free:
        return
    raise CheckpointError(
        f"{folder}: expected {needed / 1e9:.1f} GB of free memory on {device} for the weights as"
        f" {form}, found {free / 1e9:.1f} GB; {smaller}free memory, or load a smaller checkpoint"
    )


_SMALL = ("*.json", "*.jinja")
"""What of a hub checkpoint is downloaded first."""


def _is_hub_name(name: str) -> bool:
    """Whether nothing here has this name, and it is one that the hub may have."""
    known = name == "nano" or Path(name).expanduser().exists()
    return not known and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def _download(name: str) -> Path:
    """A hub checkpoint's folder in the hub's cache. Its config is judged before weights come."""
    from huggingface_hub import snapshot_download

    read_config(_hub_configs(name))
    with _asking_hub(name):
        return Path(snapshot_download(name, allow_patterns=[*_SMALL, "model*.safetensors"]))


def _hub_configs(name: str) -> Path:
    """The same with no weights but those that were in the cache already."""
    from huggingface_hub import snapshot_download

    with _asking_hub(name):
        return Path(snapshot_download(name, allow_patterns=list(_SMALL)))


def _hub_headers(name: str) -> dict[str, int]:
    """Bytes by dtype, from the beginnings of the files on the hub."""
    from huggingface_hub import HfApi

    sizes: Counter[str] = Counter()
    with _asking_hub(name):
        for file in HfApi().get_safetensors_metadata(name).files_metadata.values():
            for tensor in file.tensors.values():
                begin, end = tensor.data_offsets
                sizes[dtype_name(tensor.dtype)] += end - begin
    return sizes


@contextmanager
def _asking_hub(name: str) -> Iterator[None]:
    """Whatever network, hub and cache may raise, as CheckpointError."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name}: expected a folder, or a checkpoint in the hub's cache or on the hub, found"
            f" none ({type(error).__name__}: {reason}); check name, connection and access rights"
        ) from error


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
