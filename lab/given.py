"""Whether what a view or a chart is given can be shown: one clear error where it cannot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgemma_core.errors import (
    DgemmaError,
    RequestError,
    check_kind,
    finite_number,
    shown,
    whole_number,
)
from dgemma_core.files.trace import Trace


def check_trace(trace: Any, name: str = "trace") -> None:
    """Raises RequestError for what is no trace."""
    check_kind(name, trace, Trace, "a trace, as dgemma_lab.record and Trace.load return it")


def step_of(trace: Trace, step: Any) -> int:
    """The number of a pass, 1 … passes, as an int. Raises DgemmaError for one that the trace does not have."""
    step = whole_number("step", step)
    if not 1 <= step <= len(trace):
        raise DgemmaError(f"the trace has steps 1 to {len(trace)}, not {step}")
    return step


def listed(name: str, values: Any, what: str) -> list[Any]:
    """The values of a sequence. Raises RequestError, which says `what` they must be, for what is none, a text too."""
    try:
        if isinstance(values, str | bytes):
            raise TypeError
        return list(values)
    except TypeError:
        raise RequestError(f"{name} must be {what}, got {shown(values)}") from None


def whole_numbers(name: str, values: Any, **bounds: int) -> list[int]:
    """Whole numbers within the bounds of `whole_number`, as ints. Raises RequestError."""
    return [whole_number(name, value, **bounds) for value in listed(name, values, "whole numbers")]


def waiting_time(timeout: Any) -> float | None:
    """Seconds to wait at most, as `threading` takes them; None for however long it takes. Raises RequestError."""
    if timeout is None:
        return None
    return min(finite_number("timeout", timeout), threading.TIMEOUT_MAX)


def written(path: Any, write: Callable[[Path], object]) -> Path:
    """The path, once `write` has written the file there. Raises DgemmaError where that fails."""
    try:
        file = Path(path)
    except TypeError:
        raise DgemmaError(f"a file is a text or a path, got {shown(path)}") from None
    try:
        write(file)
    except (OSError, ValueError) as error:  # ValueError: a name that holds a null
        reason = getattr(error, "strerror", None) or error
        raise DgemmaError(
            f"{os.fspath(path)!r} cannot be written ({reason}): name a file in a folder that can be written"
        ) from error
    return file
