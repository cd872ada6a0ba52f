"""Memory of this process, as the system counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int | None:
    """Bytes that lie in memory now; None where the system does not say."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """The most bytes that have lain in memory, since the start or since `restart_peak`.

    Linux hands a process the peak of the one that started it, so getrusage alone is not asked.
    """
    found = _field("VmHWM")
    if found is not None:
        return found
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)


def restart_peak() -> bool:
    """The peak is counted from now on; False where the system cannot do that."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _field(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    value = next(found, None)
    return None if value is None else int(value) * 1024
