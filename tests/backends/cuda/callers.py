"""Which functions of dgemma_core have been called and not returned: for counters of operations."""

from __future__ import annotations

import sys


def callers() -> list[str]:
    """ "file.py:function" of each, outermost first; files by their path inside dgemma_core."""
    found = []
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        _, inside, path = frame.f_code.co_filename.partition("/dgemma_core/")
        if inside:
            found.append(f"{path}:{frame.f_code.co_name}")
    return found[::-1]
