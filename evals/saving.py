"""Writes results so that a reader sees the old file or the whole new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dgemma_core.errors import DgemmaError


def write_json(path: Path, record: Any) -> None:
    """Makes the folder if need be. Raises DgemmaError where it cannot be written."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise DgemmaError(
            f"{path.parent}: the results cannot be written ({error.strerror}); choose another --out"
        ) from error


def resumed(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What a stopped run left in the file, where its `settings` are those of the new `record`; else that one."""
    if not path.exists():
        return record
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept if kept["settings"] == record["settings"] else record
