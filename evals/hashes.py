"""Hashes that stand for settings and checkpoints: equal ones, equal answers."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that stand for plain values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """A hash of what a checkpoint's files hold; when they were changed has no part in it."""
    names = (path for path in sorted(folder.iterdir()) if path.suffix in _DECIDING)
    return digest([(path.name, _content(path, *_version(path))) for path in names])


_DECIDING = (".json", ".jinja", ".safetensors")


def _version(path: Path) -> tuple[int, ...]:
    """What differs once a process's file has been written again (nobody can set st_ctime)."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@lru_cache(maxsize=256)
def _content(path: Path, *version: int) -> str:
    """The hash of a file, which this process reads once as long as it is not written again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
