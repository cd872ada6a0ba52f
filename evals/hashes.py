"""Hashes that stand for settings and checkpoints: equal ones, equal answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_SMALL = 64 * 2**20


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that stand for plain values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """A hash of a checkpoint's files; of a file over 64 MB, of its name, size and time of change."""
    parts = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors"):
            state = path.stat()
            large = state.st_size > _SMALL
            content = state.st_mtime_ns if large else hashlib.sha256(path.read_bytes()).hexdigest()
            parts.append((path.name, state.st_size, content))
    return digest(parts)
