"""C files of this package as libraries, compiled on the machine that runs them, once.

A wheel cannot know the processor; the processor's own instructions are the point. It takes a second, and the library
is kept in the user's cache folder, named by everything that went into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-std=gnu11", "-O3", PROCESSOR, "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")


def cache_folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/dgemma, or ~/.cache/dgemma."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgemma"


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of the C file `name`.c beside this one. None, with a warning, where it cannot be made."""
    try:
        return ctypes.CDLL(str(compile_library(Path(__file__).with_name(f"{name}.c"))))
    except (OSError, RuntimeError) as error:
        _warn(str(error))
        return None


@cache
def _warn(reason: str) -> None:
    """Once for a reason."""
    warnings.warn(
        f"C files are not used, so that small models run several times slower: {reason}",
        stacklevel=3,
    )


def compile_library(source: Path, flags: Sequence[str] = FLAGS) -> Path:
    """The compiled library of a C file, made if it is not there yet. RuntimeError says why it cannot be made."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("no C compiler found: install gcc (Debian: build-essential), or set CC")
    kept = cache_folder() / f"{source.stem}-{_key(source, compiler, flags)}.so"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Made aside and moved: another process may be making it, too.
    with tempfile.TemporaryDirectory(dir=kept.parent) as aside:
        made = Path(aside) / kept.name
        command = [compiler, *flags, str(source), "-o", str(made), "-lm"]
        done = _run(command)
        if done.returncode and "-fopenmp" in command:  # a compiler without it: one thread then
            command.remove("-fopenmp")
            again = _run(command)
            done = done if again.returncode else again
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip() or done.returncode}")
        made.replace(kept)
    return kept


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def _key(source: Path, compiler: str, flags: Sequence[str]) -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(errors="replace").splitlines() if described.exists() else []
    processor = next((line for line in lines if line.startswith("flags")), "")
    texts = [
        file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))
    ]
    parts = (*texts, *flags, os.path.realpath(compiler), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
