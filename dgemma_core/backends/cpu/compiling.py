"""Compiles the C files of this package on the machine that runs them, once, and loads the libraries.

A wheel cannot know the processor, and its own instructions are what makes the code fast. Compiling takes about a
second; the library stays in the user's cache folder under a name made of everything that it depends on.

Notable:
- a library is code: it is loaded only from a folder and a file that belong to the user and that nobody else can write.
  Where the cache folder is not safe, or cannot be written, the library is made in a private temporary folder of this
  process, after one warning;
- the name ends in the digest of the content, so a truncated or damaged library is never loaded, but compiled again;
- a library is written aside, synchronised and renamed: other processes see it whole or not at all.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-std=gnu11", "-O3", PROCESSOR, "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
TIME_LIMIT = 60.0
"""Seconds that a compiler may take."""
_STALE = 3600.0
"""Seconds after which a temporary folder in the cache belongs to a process that was killed."""
_LINES_OF_A_PROCESSOR = (
    "flags", "features", "model name", "cpu implementer", "cpu architecture", "cpu variant", "cpu part", "isa",
)  # fmt: skip
"""Lines of /proc/cpuinfo, on x86, ARM and RISC-V, that tell processors apart."""

_lock = threading.RLock()
_warned: set[str] = set()
_hanging: dict[str, str] = {}
"""Compilers that did not end in time."""
_DIGITS = 32
"""Hexadecimal digits of a library's digest in its name."""


def cache_folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/dgemma, or ~/.cache/dgemma.

    Raises RuntimeError where there is no home folder.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) / "dgemma" if chosen else Path.home() / ".cache" / "dgemma"


def library(name: str, symbols: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The library of the C file `name`.c beside this one, which has these symbols.

    None, after one warning, where it cannot be made.
    """
    with _lock:
        return _library(name, symbols)


@cache
def _library(name: str, symbols: tuple[str, ...]) -> ctypes.CDLL | None:
    source = Path(__file__).with_name(f"{name}.c")
    try:
        for _ in range(2):
            kept = compile_library(source)
            loaded = ctypes.CDLL(str(kept))
            if all(hasattr(loaded, symbol) for symbol in symbols):
                return loaded
            kept.unlink()  # something else under its name: made again
        raise RuntimeError(f"{kept} has not all functions of {source.name}")
    except (OSError, RuntimeError) as error:
        _warn(
            "no library",
            f"C files are not used, so that small models run several times slower: {_one_line(error)}",
        )
        return None


def _warn(kind: str, line: str) -> None:
    """Once a kind in a process."""
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(line, stacklevel=5)


def compile_library(source: Path, flags: Sequence[str] = FLAGS) -> Path:
    """The compiled library of a C file, made if it is not there, whole and safe to load.

    Raises RuntimeError, which says why, where it cannot be made.
    """
    compiler = _compiler()
    stem = f"{source.stem}-{_key(source, compiler, flags)}"
    with _lock:
        folder = _folder()
        for kept in folder.glob(f"{stem}-*.so"):
            if _is_safe(kept) and _is_whole(kept):
                return kept
            with suppress(OSError):
                kept.unlink()
        try:
            return _make(source, compiler, flags, folder, stem)
        except OSError as error:  # a folder that is full, or cannot be written after all
            if folder == _private_folder():
                raise
            _warn_of_private_folder(folder, error.strerror or str(error))
            return _make(source, compiler, flags, _private_folder(), stem)


def _make(source: Path, compiler: str, flags: Sequence[str], folder: Path, stem: str) -> Path:
    """Compiles in a folder inside `folder`, and moves the library into place under its digest."""
    with tempfile.TemporaryDirectory(prefix="tmp", dir=folder) as aside:
        made = Path(aside) / "made.so"
        command = [compiler, *flags, str(source), "-o", str(made), "-lm"]
        status, errors = _run(command)
        if status and "-fopenmp" in command:  # a compiler without it: one thread then
            command.remove("-fopenmp")
            status, further = _run(command)
            errors = errors if status else further
        if status:
            raise RuntimeError(
                f"{compiler} cannot compile {source.name}, which gcc 11 and clang 14 can: "
                f"{_reason(errors) or f'exit status {status}'}"
            )
        made.chmod(0o700)
        with made.open("rb") as file:
            kept = folder / f"{stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:_DIGITS]}.so"
            os.fsync(file.fileno())
        made.replace(kept)
    return kept


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and messages. Raises RuntimeError where the command does not end in time."""
    if command[0] in _hanging:
        raise RuntimeError(_hanging[command[0]])
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what the compiler starts can be ended with it
    ) as running:
        try:
            said, _ = running.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            line = f"{command[0]} did not end within {TIME_LIMIT:g} seconds: set CC to another compiler"
            _hanging[command[0]] = line
            raise RuntimeError(line) from None
        except BaseException:
            os.killpg(running.pid, signal.SIGKILL)
            raise
    return running.returncode, said


def _compiler() -> str:
    """Where the C compiler is: CC, cc or gcc."""
    chosen = os.environ.get("CC")
    found = shutil.which(chosen or "cc") or shutil.which("gcc")
    if found is None:
        raise RuntimeError("no C compiler found: install gcc (Debian: build-essential), or set CC")
    return found


# --- the folder


def _folder() -> Path:
    """The cache folder, made if it is not there; a private one, after a warning, if that is not safe."""
    try:
        folder = cache_folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = _unsafe(folder) or _movable(folder)
        if not reason and not os.access(folder, os.W_OK | os.X_OK):
            reason = "it is read-only"
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        folder, reason = Path("~/.cache/dgemma"), _one_line(error)
    if reason:
        _warn_of_private_folder(folder, reason)
        return _private_folder()
    _remove_stale(folder)
    return folder


def _warn_of_private_folder(folder: Path, reason: str) -> None:
    _warn(
        "no folder",
        f"{folder} does not serve to keep compiled C files ({reason}), so every process compiles them: "
        "set XDG_CACHE_HOME to a folder that belongs to you alone",
    )


@cache
def _private_folder() -> Path:
    """A temporary folder of this process alone."""
    made = Path(tempfile.mkdtemp(prefix="dgemma-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _unsafe(path: Path) -> str:
    """Why somebody else may have written this file or folder; empty where nobody can."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link"
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return "it belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "other users can write it"
    return ""


def _movable(folder: Path) -> str:
    """Whether somebody else can move the folder away and put another one in its place: why, or empty."""
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"all users can write {parent}"
    return ""


def _is_safe(file: Path) -> bool:
    """Whether there is such a file, and nobody else can have written it."""
    try:
        return stat.S_ISREG(file.lstat().st_mode) and not _unsafe(file)
    except OSError:
        return False


def _is_whole(file: Path) -> bool:
    """Whether a library's content is the one that its name says."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return file.stem.endswith(f"-{digest[:_DIGITS]}")


def _remove_stale(folder: Path) -> None:
    """Removes temporary folders that killed processes left."""
    for left in folder.glob("tmp*"):
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > _STALE:
                shutil.rmtree(left)


# --- the name


def _key(source: Path, compiler: str, flags: Sequence[str]) -> str:
    """A digest of everything that the machine code depends on."""
    texts = [
        file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))
    ]
    parts = (*texts, *flags, _compiler_version(os.path.realpath(compiler)), processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def _compiler_version(path: str) -> str:
    """Path, time and size of the compiler, and what it says of itself."""
    found = os.stat(path)
    _, said = _run([path, "--version"])
    return f"{path} {found.st_mtime_ns} {found.st_size} {said}"


def processor(described: Path = Path("/proc/cpuinfo")) -> str:
    """What tells this machine's processors apart, whatever their order."""
    lines = described.read_text(errors="replace").splitlines() if described.exists() else []
    named = {
        line.strip() for line in lines if line.partition(":")[0].strip().lower() in _LINES_OF_A_PROCESSOR
    }  # fmt: skip
    return "\n".join([platform.machine(), platform.processor(), *sorted(named)])


# --- texts


def _reason(errors: str) -> str:
    """The first line of a compiler's messages that says what is wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
