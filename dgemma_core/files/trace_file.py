"""Writes a trace to one `.npz` file and reads it back: plain arrays and one json header.

- Nothing is pickled. Reading checks declared sizes before it allocates, and dtype and rank of each
  array against `trace_schema`.
- Writing replaces only traces: never another file, a folder, a device or a pipe.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Mapping, Set
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError
from dgemma_core.files.reading import file_size
from dgemma_core.files.trace_schema import (
    ARRAYS,
    ATTENTION,
    FORMAT,
    OBSERVED,
    SCHEMA,
    SPECULATION,
    Array,
)

if TYPE_CHECKING:
    from dgemma_core.files.trace import Trace

PLAIN_LIMIT, LARGEST_RATIO = 64 * 2**20, 100
"""Bytes that any file may unpack to, and how many times its size a larger one may."""
_HEADER = Array(np.uint8, ("bytes",))
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)"
    rb"\{'descr': '([<>|]\w\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,200})\), \} *\n",
    re.DOTALL,
)
_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,  # encrypted; RecursionError of nested json
    NotImplementedError,  # an unknown compression
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


def save(trace: Trace, path: Path) -> None:
    """Writes the trace, whole or not at all.

    Raises DgemmaError as `check_destination` does, for metadata that are no json values, and where
    writing fails.
    """
    arrays: dict[str, NDArray[Any]] = {}
    header: dict[str, Any] = {"format": FORMAT, "schema": SCHEMA}
    for item in fields(trace):
        value = getattr(trace, item.name)
        if isinstance(value, np.ndarray):
            arrays[item.name] = np.ascontiguousarray(value)
        elif item.name == "attention" and value is not None:
            arrays.update({f"attention_{r}": part for r, part in enumerate(value)})
            header["attention"] = len(value)
        elif value is not None:
            header[item.name] = dict(value) if isinstance(value, Mapping) else value
    try:
        encoded = json.dumps(header, ensure_ascii=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DgemmaError(f"trace metadata must be json values: {error}") from None
    arrays["header"] = np.frombuffer(encoded, dtype=np.uint8)
    check_destination(path)
    try:
        path = path.resolve()  # a link to an earlier trace stays a link
        temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DgemmaError(
            f"{path}: the trace cannot be written ({error.strerror or error});"
            " make room or choose another folder"
        ) from error


def check_destination(path: Path) -> None:
    """Raises DgemmaError unless a trace may be written to `path`: a new file, an empty one or a trace.

    For use before a long run; `save` checks again.
    """
    try:
        exists = os.path.lexists(path) and path.exists()
        if exists and not path.is_file():
            found = "a folder" if path.is_dir() else "a device or a pipe"
            raise DgemmaError(f"{path}: a trace is a file, found {found}; choose another name")
        if not path.resolve().parent.is_dir():
            raise DgemmaError(f"{path}: its folder does not exist; make it first")
        if exists and path.stat().st_size and not _is_trace(path):
            raise DgemmaError(f"{path}: another file has this name; choose another name")
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
        raise DgemmaError(f"{path}: the trace cannot be written ({error})") from None


def load(path: Path, names: Set[str]) -> dict[str, Any]:
    """The fields of the trace in a file that `save` wrote; `names` are those of the class.

    Raises DgemmaError for a file that is missing, foreign, damaged, of a newer schema, or that
    unpacks to far more than its own size.
    """
    try:
        if not path.exists():
            raise DgemmaError(f"no trace file at {path}")
        size = file_size(path)
        with zipfile.ZipFile(path) as file:
            members = _members(file, size, path)
            header = _read_header(file, members, path)
            count = header.pop("attention", None)
            forms = {name: form for name, form in ARRAYS.items() if name in members}
            values: dict[str, Any] = {
                name: _read_array(file, members[name], form) for name, form in forms.items()
            }
            if count is not None:
                if type(count) is not int or not 0 <= count <= len(members):
                    raise ValueError("attention is no count of passes")
                values["attention"] = tuple(
                    _read_array(file, members[f"attention_{r}"], ATTENTION) for r in range(count)
                )
    except _UNREADABLE as error:
        raise DgemmaError(
            f"{path} is not a whole trace file (truncated, or another kind of file): {_line(error)}"
        ) from None
    return {**_complete(header, values, names, path), **values}


def _is_trace(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            _read_header(file, _members(file, file_size(path), path), path)
    except (DgemmaError, *_UNREADABLE):
        return False
    return True


def _members(file: zipfile.ZipFile, size: int, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of the zip file by name, their sizes checked. zipfile reads no more than they declare."""
    infos = file.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) != len(infos):
        raise ValueError("two arrays have one name")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
        raise ValueError("an unknown compression")
    total = sum(info.file_size for info in infos)
    if total > max(PLAIN_LIMIT, LARGEST_RATIO * size):
        raise DgemmaError(
            f"{path} would unpack from {size / 1e6:.1f} MB to {total / 1e6:.0f} MB: it is no trace"
            " that was recorded here, record the run again"
        )
    return members


def _read_array(file: zipfile.ZipFile, info: zipfile.ZipInfo, form: Array) -> NDArray[Any]:
    """One array. Its header must give the dtype and rank of `form` and a shape that fills its bytes."""
    raw = file.read(info)
    found = _NPY.match(raw)
    if found is None:
        raise ValueError(f"{info.filename!r:.60} is no array of plain numbers")
    descr, fortran, extents = found.group(1).decode(), found.group(2) == b"True", found.group(3)
    shape = tuple(int(extent) for extent in extents.decode().split(",") if extent.strip())
    dtype, expected = np.dtype(descr), np.dtype(form.dtype)
    if dtype.newbyteorder("=") != expected or len(shape) != len(form.axes):
        axes = ", ".join(form.axes)
        raise ValueError(f"{info.filename}: expected {expected} ({axes}), found {dtype} {shape}")
    if prod(shape) * dtype.itemsize != len(raw) - found.end():
        raise ValueError(f"{info.filename}: {shape} does not fill its bytes")
    values = np.frombuffer(raw, dtype, offset=found.end())
    if expected == np.bool_ and len(values) and values.view(np.uint8).max() > 1:
        raise ValueError(f"{info.filename}: holds bytes that are neither true nor false")
    return values.astype(expected).reshape(shape, order="F" if fortran else "C")


def _read_header(
    file: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], path: Path
) -> dict[str, Any]:
    if "header" not in members:
        raise DgemmaError(f"{path} is an npz file but not a trace: it has no header")
    header = json.loads(_read_array(file, members["header"], _HEADER).tobytes())
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise DgemmaError(f"{path} is not a trace: its header does not say {FORMAT!r}")
    schema = header.pop("schema", None)
    if type(schema) is not int or schema > SCHEMA:
        raise DgemmaError(
            f"{path} has trace schema {schema!r:.20}, this version reads {SCHEMA}: update dgemma-lab"
        )
    return header


def _complete(
    header: dict[str, Any], values: Mapping[str, Any], names: Set[str], path: Path
) -> dict[str, Any]:
    """The header's fields, checked to be there, with texts by token id again."""
    plain = names - values.keys() - ARRAYS.keys() - {"attention"}
    known = {name: value for name, value in header.items() if name in plain}
    for name in ("seed", "stop_reason"):
        known.setdefault(name, None)
    for name, what in (("strings", "token ids to texts"), ("onward", "states to what may follow")):
        found = known.get(name, {})
        if not isinstance(found, dict) or not all(
            re.fullmatch(r"-?\d{1,18}", key) for key in found
        ):
            raise DgemmaError(f"{path}: {name} is no mapping from {what}")
        known[name] = {int(number): value for number, value in found.items()}
    if missing := sorted(names - _OPTIONAL - known.keys() - values.keys()):
        raise DgemmaError(f"{path} lacks parts of a trace: {', '.join(missing)}")
    return known


_OPTIONAL = {
    "attention", "metadata", "strings", "onward", *OBSERVED, *SPECULATION,
}  # fmt: skip


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
