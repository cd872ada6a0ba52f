"""Opens files that others wrote: regular files only, of bounded size, as bytes, text or json.

A pipe would block, a device may never end, and a large file may not fit into memory: sizes are
checked before anything is read. Every failure is one CheckpointError that names the file.
"""

from __future__ import annotations

import json
import reprlib
import stat
from pathlib import Path
from typing import Any

from dgemma_core.errors import CheckpointError

AGAIN = "download or copy it again"

JSON_LIMIT = 64 * 2**20
"""Bytes of a json file of a checkpoint, at most. The released index has 0.1 MB."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100


def shown(value: object, width: int = 80) -> str:
    """A value from a json file as one short line for an error, however large or deep it is."""
    try:
        text = json.dumps(value)
    except (RecursionError, TypeError, ValueError):  # ValueError: an int of too many digits
        text = _short.repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def plain(name: str) -> str:
    """A name from a file, for an error: on one line, and without a terminal's escapes."""
    return name if name.isprintable() and len(name) <= 160 else shown(name, 160)


def file_size(file: Path) -> int:
    """Bytes of a regular file. Raises CheckpointError for a missing file, and for any other kind."""
    try:
        found = file.stat()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: expected a file, found none; {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); {AGAIN}") from error
    if not stat.S_ISREG(found.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"))
        kind = next((name for test, name in kinds if test(found.st_mode)), "a device")
        raise CheckpointError(f"{file}: expected a regular file, found {kind}; {AGAIN}")
    return found.st_size


def read_bytes(file: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises CheckpointError otherwise."""
    if (size := file_size(file)) > limit:
        raise CheckpointError(f"{file}: expected at most {limit} bytes, found {size}; {AGAIN}")
    try:
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); {AGAIN}") from error
    refuse_placeholder(file, content[:100], len(content))
    return content[:limit]


def read_text(file: Path, limit: int) -> str:
    """The same as text in UTF-8."""
    try:
        return read_bytes(file, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); {AGAIN}") from error


def read_json(file: Path, limit: int = JSON_LIMIT) -> Any:
    """The parsed content of a json file. Raises CheckpointError where it is missing or damaged."""
    text = read_text(file, limit)
    try:
        return json.loads(text)
    except RecursionError:
        found = "brackets nested too deeply"
        raise CheckpointError(f"{file}: expected json, found {found}; {AGAIN}") from None
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        raise CheckpointError(f"{file}: expected json, found {error}; {AGAIN}") from error


def refuse_placeholder(file: Path, start: bytes, size: int) -> None:
    """Raises CheckpointError for an empty file, and for a git-lfs pointer in place of the content."""
    if size == 0:
        raise CheckpointError(f"{file}: expected content, found an empty file; {AGAIN}")
    if start.startswith(b"version https://git-lfs"):
        advice = "fetch the file itself with `git lfs pull`"
        raise CheckpointError(f"{file}: expected content, found a git-lfs pointer; {advice}")
