"""How long starting takes: imports, and nano's first answer, each in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

_TIMED = "import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
CODES = {
    "import torch": "import torch",
    "import dgemma_core": "import dgemma_core",
    "first answer": (
        "import dgemma_core; "
        "dgemma_core.generate(dgemma_core.load('nano'), ['Spell backward:\\nCANVAS'], seed=0)"
    ),
}


def measure(rounds: int) -> dict[str, Any]:
    """Medians of fresh processes in turn (A B C A B C …), in seconds, and the ratio of the imports."""
    times: dict[str, list[float]] = {name: [] for name in CODES}
    for turn in range(rounds + 1):
        for name, code in CODES.items():
            found = subprocess.run(
                [sys.executable, "-c", _TIMED.format(code=code)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            if turn:  # the first round fills the disk cache
                times[name].append(float(found.stdout.split()[-1]))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "table": "E",
        **medians,
        "ratio": medians["import dgemma_core"] / medians["import torch"],
        "rounds": times,
    }
