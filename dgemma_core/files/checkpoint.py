"""Loads checkpoints in the public layout of DiffusionGemma.

Notable:
- a model is built on the meta device and filled parameter by parameter from the mapped files: on a
  CPU, in the stored dtype, its weights *are* the files, so loading copies nothing;
- a quantised model is filled from blocks of rows, file after file: the result and one block are all
  the memory that it takes;
- weights that are not finite are refused by name (`load_model` says which are checked).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgemma_core import backends
from dgemma_core.config import GenerationDefaults, ModelConfig
from dgemma_core.errors import RequestError, check_kind, shown
from dgemma_core.files.adapters import read_adapter
from dgemma_core.files.devices import check_memory, resolve_device
from dgemma_core.files.finding import as_name, find_folder, read_config
from dgemma_core.files.lora import Adapter, attach, merge
from dgemma_core.files.names import ENCODER_SCALARS, FLOATS, match
from dgemma_core.files.quantised import Scheme, fill, scheme, stored_sizes
from dgemma_core.files.tensors import StoredTensor, TensorFiles, check_finite, short_name
from dgemma_core.model import DiffusionGemma

if TYPE_CHECKING:
    from dgemma_core.files.text import Tokenizer

CHECKED_MODEL, CHECKED_TENSOR = 4 * 2**30, 16 * 2**20
"""Bytes of a model, and of a single tensor, whose mapped weights are read at load to check them."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to write. None: a checkpoint without a tokenizer; a model without a folder."""

    model: DiffusionGemma
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    name: str
    folder: Path | None = None
    adapter: str | None = None
    """The folder of the adapter that the model carries."""


def check_loaded(loaded: object) -> None:
    """Raises RequestError for what `load` does not return."""
    check_kind("loaded", loaded, Loaded, "what load(…) returns, e.g. load('nano')")


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantize: str | None = None,
    backend: str = "auto",
    adapter: str | os.PathLike[str] | None = None,
) -> Loaded:
    """Loads "nano", "nano-talk", a folder, or a checkpoint of the Hugging Face hub ("owner/name").

    Hub files are taken from its cache, or downloaded; for the options and errors see `load_model`.
    On a CPU "auto" takes a small model as float32, however it is stored: that is quicker there, and
    a text stays the same, bit for bit, whatever its batch.
    """
    from dgemma_core.files.text import load_tokenizer

    name = as_name(name_or_path)
    target, _ = _checked(dtype, device, quantize, backend)  # before a download
    folder = find_folder(name_or_path)
    config, generation = read_config(folder)
    if dtype == "auto" and quantize is None and prefers_float32(config, target):
        dtype = "float32"
    tokenizer = load_tokenizer(folder)
    model = load_model(
        folder, dtype=dtype, device=device, quantize=quantize, backend=backend, adapter=adapter
    )
    return Loaded(
        model, tokenizer, generation, name, folder, None if adapter is None else str(adapter)
    )


def prefers_float32(config: ModelConfig, device: torch.device) -> bool:
    """Whether a model is one of the small ones that a CPU runs faster in float32."""
    from dgemma_core.backends.cpu.small_model import fits

    return device.type == "cpu" and fits(config)


def load_model(
    folder: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantize: str | None = None,
    backend: str = "auto",
    adapter: str | os.PathLike[str] | None = None,
) -> DiffusionGemma:
    """Loads the text model of a checkpoint, frozen (no parameter asks for a gradient).

    dtype: "auto" is the one that most of the weights are stored in. device: "auto" is a GPU where
    PyTorch sees one. quantize: "int8" or "int4" keeps matrices as codes and scales (`quantised`);
    dtype is then that of activations and of what stays as it is. backend: how passes run ("auto",
    "torch", "cpu", "cuda"). adapter: a folder in PEFT's layout (`adapters`); its changes are merged
    into the matrices, so that they cost nothing in a pass. Beside quantised matrices, which cannot
    take them up, they stay products of their own. Of an adapter that changes one mode alone, that
    mode's matrices are held beside the other's.

    All weights are checked to be finite in the dtype that they are loaded to, with one exception:
    of a model whose weights stay in mapped files (on a CPU, in the stored dtype) and take more than
    4 GiB, only tensors up to 16 MiB are (norms, scalars, routers), because loading would otherwise
    read all files.

    Raises CheckpointError for a folder that is damaged, contradicts itself, holds another
    architecture or weights that are not finite, or does not fit into memory, DeviceError for a
    device that is not there, RequestError for an unknown dtype, scheme or backend.
    """
    target, to = _checked(dtype, device, quantize, backend)
    folder = find_folder(folder)
    config, _ = read_config(folder)
    lora = None if adapter is None else read_adapter(adapter, folder, config)
    files = TensorFiles(folder)
    model = DiffusionGemma(config, device="meta")
    sources = match(model, files)
    kind = _dtype(dtype, [stored for group in sources.values() for stored in group])
    if to is not None:
        needed = sum(map(sum, stored_sizes(model, to, kind.itemsize).values()))
        smaller = "" if to.matrices == 4 else "pass quantize='int4', "
        check_memory(folder, needed, to.name, smaller, target)
        _fill_quantised(model, files, sources, to, kind, target)
        return _adapted(model, lora).use(backend)
    needed = sum(p.numel() for p in model.parameters()) * kind.itemsize
    smaller = "dtype='bfloat16'" if kind.itemsize > 2 else "quantize='int4'"
    check_memory(folder, needed, short_name(kind), f"pass {smaller}, ", target)
    _fill(model, files, sources, kind, target, check_all=needed <= CHECKED_MODEL)
    return _adapted(model, lora).use(backend)


def _checked(
    dtype: Any, device: Any, quantize: Any, backend: Any
) -> tuple[torch.device, Scheme | None]:
    """The device and the scheme that options of `load` name. Raises an error for what they cannot be."""
    check_kind("dtype", dtype, str | torch.dtype, "a name, e.g. 'auto', or a torch.dtype")
    check_kind("device", device, str | int | torch.device, "a name, e.g. 'auto', or a torch.device")
    check_kind("quantize", quantize, str | None, "the name of a scheme, or None")
    check_kind("backend", backend, str, "a name, e.g. 'auto'")
    backends.check_name(backend)
    return resolve_device(device), None if quantize is None else scheme(quantize)


def _adapted(model: DiffusionGemma, adapter: Adapter | None) -> DiffusionGemma:
    """The model with its adapter, merged where that can be."""
    if adapter is not None:
        for lora in adapter.modules().values():
            lora.to(model.device)
        attach(model, adapter)
        merge(model)
    return model.eval()


def _fill(
    model: DiffusionGemma,
    files: TensorFiles,
    sources: Mapping[str, list[StoredTensor]],
    kind: torch.dtype,
    device: torch.device,
    *,
    check_all: bool,
) -> None:
    """Fills a model that is on the meta device. check_all: whether mapped weights are read too."""
    for name, group in sources.items():
        tensors = []
        for stored in group:
            mapped = files[stored.name]
            tensor = mapped.to(device=device, dtype=kind)
            if tensor is not mapped:
                check_finite(stored, tensor)
            elif check_all or tensor.nbytes <= CHECKED_TENSOR:
                # Read beside the mapping: weights that no pass asks for take no memory.
                for block in files.row_blocks(stored.name):
                    check_finite(stored, block)
            tensors.append(tensor)
        _assign(model, name, torch.cat(tensors) if name == ENCODER_SCALARS else tensors[0])


def _fill_quantised(
    model: DiffusionGemma,
    files: TensorFiles,
    sources: Mapping[str, list[StoredTensor]],
    to: Scheme,
    kind: torch.dtype,
    device: torch.device,
) -> None:
    """Fills a model that is on the meta device, file after file, a block of rows at a time."""
    from tqdm.auto import tqdm

    files.unmap()
    total = sum(stored.end - stored.begin for group in sources.values() for stored in group)
    order = sorted(sources.items(), key=lambda item: (item[1][0].file, item[1][0].begin))
    computed = torch.float16 if kind == torch.float16 else torch.float32
    with tqdm(
        total=total, desc=to.name, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:

        def blocks(group: list[StoredTensor]) -> Iterator[Tensor]:
            for stored in group:
                for block in files.row_blocks(stored.name):
                    check_finite(stored, block.to(computed))
                    yield block
                    bar.update(block.nbytes)

        fill(model, to, ((name, blocks(group)) for name, group in order), kind, device)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    parameter = nn.Parameter(tensor, requires_grad=False)
    setattr(model.get_submodule(module), attribute, parameter)


def _dtype(asked: str | torch.dtype, stored: list[StoredTensor]) -> torch.dtype:
    if asked == "auto":
        sizes: Counter[torch.dtype] = Counter()
        for tensor in stored:
            sizes[tensor.dtype] += tensor.end - tensor.begin
        return sizes.most_common(1)[0][0]
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if found not in FLOATS:
        names = ", ".join(short_name(dtype) for dtype in FLOATS)
        raise RequestError(
            f"dtype: expected auto, {names}, found {shown(asked)}; choose one of them"
        )
    return found
