"""The tensors of a model folder, by name: safetensors files, single or sharded, memory-mapped.

Notable:
- the headers are read and checked against the files before any tensor is: a damaged download is
  one CheckpointError that names the file, what was expected and what was found;
- `TensorFiles` hands out views of the mapped files, so that reading costs no memory of its own;
- nothing here knows a model, and nothing is unpickled.

Format: https://github.com/huggingface/safetensors#format. Eight bytes with the header's length, a
json header that gives every tensor's dtype, shape and place, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgemma_core.errors import CheckpointError
from dgemma_core.files.reading import (
    AGAIN,
    file_size,
    plain,
    read_json,
    refuse_placeholder,
    shown,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
_MOST_AXES, _MOST_EXTENT = 8, 2**48
_SHARD = re.compile(r"[\w-][\w.-]{0,200}\.safetensors", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def short_name(dtype: torch.dtype) -> str:
    """A dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


def dtype_name(kind: str) -> str:
    """torch's name of a dtype that a header names; the header's name where torch has none."""
    return short_name(_DTYPES[kind]) if kind in _DTYPES else kind


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in `file` between the bytes `begin` and `end`."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def refuse(self, expected: str, found: str, advice: str) -> CheckpointError:
        """The error of this tensor not being what a model expects."""
        where = f"{self.file}: {plain(self.name)}"
        return CheckpointError(f"{where}: expected {expected}, found {found}; {advice}")


class TensorFiles:
    """The tensors of one folder. `stored` describes them by name; indexing reads one.

    Raises CheckpointError where the folder has no safetensors, or damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.stored = _read_folder(folder)
        except OSError as error:  # a folder that may not be read
            raise CheckpointError(f"{folder}: cannot be read ({error}); {AGAIN}") from error
        self._mapped: dict[Path, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file. Writing to it never reaches the file."""
        stored = self.stored[name]
        if stored.file not in self._mapped:
            size = stored.file.stat().st_size
            self._mapped[stored.file] = torch.from_file(
                str(stored.file), shared=False, size=size, dtype=torch.uint8
            )
        raw = self._mapped[stored.file][stored.begin : stored.end]
        if stored.begin % stored.dtype.itemsize:
            raw = raw.clone()  # some writers do not align; a view would have to
        return raw.view(stored.dtype).view(stored.shape)

    def row_blocks(self, name: str, numbers: int = 2**22) -> Iterator[Tensor]:
        """The tensor's rows (last axis) in blocks (r, K) of about so many numbers, read, not mapped.

        Only the block at hand takes memory, so a tensor of any size can be gone through.
        """
        stored = self.stored[name]
        columns = stored.shape[-1] if stored.shape else 1
        width = columns * stored.dtype.itemsize
        count = max(1, numbers // columns)
        with stored.file.open("rb", buffering=0) as opened:
            for place in range(stored.begin, stored.end, count * width):
                raw = torch.empty(min(count * width, stored.end - place), dtype=torch.uint8)
                opened.seek(place)
                if opened.readinto(raw.numpy().data) != len(raw):
                    expected = f"{stored.end} bytes"
                    raise stored.refuse(expected, "an end before them", AGAIN)
                yield raw.view(stored.dtype).view(-1, columns)

    def unmap(self) -> None:
        """Gives up the mapped files; views that are held keep theirs."""
        self._mapped.clear()


def check_finite(stored: StoredTensor, tensor: Tensor) -> None:
    """Raises CheckpointError unless all numbers of `tensor`, read from `stored`, are finite.

    One pass over the numbers without a copy: a NaN makes both extremes NaN.
    """
    if not tensor.numel():
        return
    low, high = torch.aminmax(tensor.detach())
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        expected = f"finite weights as {short_name(tensor.dtype)}"
        advice = "download the checkpoint again, or train or convert it anew"
        raise stored.refuse(expected, "NaN or infinite ones", advice)


def lacks_shards(folder: Path) -> bool:
    """Whether a folder holds an index but not all weights that it names, or no weights at all.

    A hub's cache looks so where only its json files were downloaded. Other damage is not looked for.
    """
    if not (folder / INDEX).exists():
        return not (folder / SINGLE).exists()
    content = read_json(folder / INDEX)
    places = content.get("weight_map") if isinstance(content, dict) else None
    names = places.values() if isinstance(places, dict) else ()
    return not all(
        isinstance(name, str) and _SHARD.fullmatch(name) and (folder / name).exists()
        for name in names
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file describes, by name.

    Raises CheckpointError where the file is missing, truncated, or not what its name says.
    """
    try:
        size = file_size(file)
        with file.open("rb") as opened:
            start = opened.read(100)
            length = int.from_bytes(start[:8], "little")
            opened.seek(8)
            raw = opened.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); {AGAIN}") from error
    refuse_placeholder(file, start, size)
    try:
        header = json.loads(raw) if len(raw) == length else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
            raise _pickle(file)
        expected = "a safetensors file, which starts with a json header"
        found = f"{size} bytes of something else, or their beginning"
        raise CheckpointError(f"{file}: expected {expected}, found {found}; {AGAIN}")
    header.pop("__metadata__", None)
    stored = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for tensor in sorted(stored.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != end:
            found = f"a gap or an overlap at byte {end}"
            raise tensor.refuse("tensors one after the other", found, AGAIN)
        end = tensor.end
    if size != end:
        raise CheckpointError(f"{file}: expected {end} bytes, found {size}; {AGAIN}")
    return stored


def _entry(file: Path, name: str, entry: object, origin: int) -> StoredTensor:
    """One entry of a header; offsets count from the header's end, at byte `origin`."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            kind in _DTYPES
            and len(shape) <= _MOST_AXES
            and all(type(x) is int and 0 <= x <= _MOST_EXTENT for x in [*shape, begin, end])
        ):
            dtype = _DTYPES[kind]
            stored = StoredTensor(file, name, dtype, tuple(shape), origin + begin, origin + end)
            if end - begin == math.prod(shape) * dtype.itemsize:
                return stored
            expected = f"{math.prod(shape) * dtype.itemsize} bytes for {kind} {shape}"
            raise stored.refuse(expected, f"bytes {begin} to {end}", AGAIN)
    expected = f"a dtype of {', '.join(_DTYPES)}, a shape and two offsets"
    raise CheckpointError(
        f"{file}: {plain(name)}: expected {expected}, found {shown(entry, 100)}; {AGAIN}"
    )


def _read_folder(folder: Path) -> dict[str, StoredTensor]:
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        found = f"{SINGLE} and {INDEX}"
        advice = "remove the one that is left from an earlier checkpoint"
        raise CheckpointError(f"{folder}: expected one set of weights, found {found}; {advice}")
    if index.exists():
        return _read_shards(folder, index)
    if single.exists() or single.is_symlink():
        return read_header(single)
    if pickles := [file for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]:
        raise _pickle(pickles[0])
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    found = ", ".join(others) if others else "no weights"
    raise CheckpointError(f"{folder}: expected {SINGLE} or {INDEX}, found {found}; {AGAIN}")


def _read_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        expected = "a weight_map from tensor names to files"
        raise CheckpointError(f"{index}: expected {expected}, found {shown(places, 60)}; {AGAIN}")
    stored: dict[str, StoredTensor] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            expected = "the name of a safetensors file in the same folder"
            advice = "do not use this checkpoint"
            raise CheckpointError(
                f"{index}: {plain(name)}: expected {expected}, found {shown(shard)}; {advice}"
            )
    for shard in sorted(set(places.values())):
        for name, tensor in read_header(folder / shard).items():
            if places.get(name) != shard:
                found = f"it in {shard}"
                expected = f"the tensor {'in ' + places[name] if name in places else 'nowhere'}"
                raise CheckpointError(
                    f"{index}: {plain(name)}: expected {expected}, found {found}; {AGAIN}"
                )
            stored[name] = tensor
    if missing := sorted(places.keys() - stored.keys()):
        name = missing[0]
        file, expected = folder / places[name], f"the tensor, which {INDEX} places here"
        raise CheckpointError(
            f"{file}: {plain(name)}: expected {expected}, found none{_and_more(missing)}; {AGAIN}"
        )
    listed = set(places.values())
    for other in sorted(folder.glob("model-*-of-*.safetensors")):
        if other.name not in listed:
            found, advice = "no tensor of it", f"{AGAIN}, or remove the shard"
            raise CheckpointError(f"{index}: expected {other.name}, found {found}; {advice}")
    return stored


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _pickle(file: Path) -> CheckpointError:
    advice = "pickles are never opened, convert it with transformers' save_pretrained"
    return CheckpointError(f"{file}: expected safetensors, found a pickle; {advice}")
