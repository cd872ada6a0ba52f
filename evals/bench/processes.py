"""Implementations in processes of their own, which have proven equal logits before they are timed."""

from __future__ import annotations

import ctypes.util
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dgemma_core import RequestError
from dgemma_core.backends import check_name
from dgemma_evals.bench.worker import IMPLEMENTATIONS
from dgemma_evals.machine import Others

ENOUGH = 5
"""Rounds from which on a ratio may be a headline."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
"""How far a peer's logits may lie from ours before it counts as another model: root mean square, as a share of the
logits' own spread. In bfloat16 a token whose router wavers between two experts moves all its logits; another model's
lie 1.4 apart."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all implementations have in common in one table row."""

    dtype: str = "float32"
    allocator: str = "system"
    """"system" or "tcmalloc"."""
    threads: int = 2
    rounds: int = 5
    seed: int = 0
    backend: str = "auto"
    """Of this project's models."""


@dataclass
class Measured:
    """One implementation's figures of one setting."""

    name: str
    rounds: list[float] = field(default_factory=list)
    """One figure a round: seconds (lower is better) or tokens a second (higher is better)."""
    others: list[float | None] = field(default_factory=list)
    """Cores that were busy with other processes, one figure a round; None where too little time passed to say."""
    peak_bytes: int = 0
    """The most memory resident, weights included."""
    loaded_bytes: int = 0
    """The most until the weights were loaded and the logits proven."""
    backend: str | None = None
    """What ran this project's passes; None for others."""
    logits_difference: float = 0.0
    """How far its logits lie from this project's (`TOLERANCE`), over the positions that were compared."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


class Worker:
    """An implementation in a process of its own (worker.py)."""

    def __init__(self, name: str, setting: Setting) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(setting.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("LD_PRELOAD", None)
        if setting.allocator == "tcmalloc":
            environment["LD_PRELOAD"] = tcmalloc()
        self.name = name
        # A pipe that nobody reads would fill, and block the process.
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dgemma_evals.bench.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command, and the load of the machine meanwhile (`Measured.others`).

        RequestError with the process's last words if it died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        others = Others([self.process.pid])
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RequestError(f"{self.name} ended in {do!r}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return {**answer, "others": others.cores()}

    def load(self, folder: Path, setting: Setting) -> None:
        """Loads a checkpoint in the public layout, in place of the one before."""
        self.ask("load", folder=str(folder), dtype=setting.dtype, backend=setting.backend)

    def logits(self, prompt: list[int], canvas: list[int]) -> tuple[np.ndarray[Any, Any], Any]:
        """Logits at a few positions of the canvas (of the prompt, if it is empty), and the whole answer."""
        count = len(canvas or prompt)
        positions = sorted({0, count // 3, count // 2, count - 1})
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "logits.npy")
            answer = self.ask(
                "logits", path=path, prompt=prompt, canvas=canvas, positions=positions
            )
            return np.load(path), answer

    def _last_words(self) -> str:
        """Why the process ended, in its own words, or by the signal that ended it."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return name + " (memory ran out?)" if name == "SIGKILL" else name
        self.said.seek(0)
        words = self.said.read().decode(errors="replace").strip().splitlines()
        return words[-1] if words else "no word"

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


def tcmalloc() -> str:
    """The allocator's library. RequestError where it is not installed."""
    found = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    if found is None:
        raise RequestError(
            "tcmalloc is not installed (Debian, Ubuntu: sudo apt-get install libtcmalloc-minimal4); "
            "install it, or pass --allocator system"
        )
    return found


def check_peers(names: Sequence[str]) -> list[str]:
    """Names of implementations, this project first. RequestError for an unknown one."""
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise RequestError(
                f"unknown implementation {name!r}: choose from {', '.join(IMPLEMENTATIONS)}"
            )
    return ["dgemma", *(name for name in names if name != "dgemma")]


@contextmanager
def workers(
    folder: Path, names: Sequence[str], setting: Setting, prompt: list[int], canvas: list[int]
) -> Iterator[list[tuple[Worker, Measured]]]:
    """Loaded implementations that have proven the same logits of the canvas (of the prompt, if it is empty)."""
    with ExitStack() as stack:
        found: list[tuple[Worker, Measured]] = []
        expected: np.ndarray[Any, Any] | None = None
        for name in names:
            worker = Worker(name, setting)
            stack.callback(worker.close)
            worker.load(folder, setting)
            logits, answer = worker.logits(prompt, canvas)
            expected = logits if expected is None else expected
            difference = apart(name, logits, names[0], expected, setting)
            found.append(
                (
                    worker,
                    Measured(
                        name,
                        backend=answer["backend"],
                        logits_difference=difference,
                        loaded_bytes=answer["peak_bytes"],
                    ),
                )
            )
        yield found


def apart(
    name: str, logits: np.ndarray[Any, Any], first: str, expected: np.ndarray[Any, Any],
    setting: Setting,
) -> float:  # fmt: skip
    """How far two implementations' logits lie apart (`TOLERANCE`). RequestError where it is another model's."""
    difference = float(np.sqrt(np.mean((logits - expected) ** 2)) / expected.std())
    if not difference <= TOLERANCE[setting.dtype]:
        raise RequestError(
            f"{name} gives other logits than {first} ({difference:.3g} of their spread apart): not the same model, so "
            "nothing is timed"
        )
    return difference


def settings(base: Setting, dtypes: Sequence[str], allocators: Sequence[str]) -> Iterator[Setting]:
    """All combinations, checked before the first is run."""
    check_name(base.backend)
    for dtype in dtypes:
        if dtype not in TOLERANCE:
            raise RequestError(f"unknown dtype {dtype!r}: choose from {', '.join(TOLERANCE)}")
    for allocator in allocators:
        if allocator not in ("system", "tcmalloc"):
            raise RequestError(f"unknown allocator {allocator!r}: choose system or tcmalloc")
    if "tcmalloc" in allocators:
        tcmalloc()
    for dtype, allocator in itertools.product(dtypes, allocators):
        yield replace(base, dtype=dtype, allocator=allocator)
