"""C files compiled on the user's machine: once, aside, and with one clear line where it cannot be."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from dgemma_core.backends.cpu import compiling as compiled

ANSWER = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "answer.c"
    made.write_text(ANSWER)
    return made


def test_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled.compile_library(source)
    assert ctypes.CDLL(str(made)).answer() == 42
    assert list(made.parent.iterdir()) == [made], "nothing is left beside it"
    assert made.parent.stat().st_mode & 0o077 == 0, "nobody else writes there"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert compiled.compile_library(source) == made


def test_another_source_is_another_library(source: Path) -> None:
    first = compiled.compile_library(source)
    source.write_text(ANSWER.replace("42", "43"))
    second = compiled.compile_library(source)
    assert first != second and ctypes.CDLL(str(second)).answer() == 43


def test_errors_are_the_compilers(source: Path) -> None:
    source.write_text("int answer(void) { return forty_two; }\n")
    with pytest.raises(RuntimeError, match=r"forty_two.* undeclared"):
        compiled.compile_library(source)
    assert not list(compiled.cache_folder().iterdir())


def test_a_compiler_without_openmp(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS brings it: one thread is better than none."""
    lacking = source.with_name("cc")
    lacking.write_text('#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec gcc "$@"\n')
    lacking.chmod(0o755)
    monkeypatch.setenv("CC", str(lacking))
    assert ctypes.CDLL(str(compiled.compile_library(source))).answer() == 42


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no C compiler found: install gcc"):
        compiled.compile_library(source)


def test_without_a_library_one_warning_and_the_same_text(tmp_path: Path) -> None:
    """As a user without a compiler would meet it: in a process of its own."""
    script = (
        "import warnings, torch; warnings.simplefilter('error', RuntimeWarning);"
        "from dgemma_core.files.checkpoint import load_model; from dgemma_core.nano.recipes import NANO;"
        "model = load_model(NANO, dtype='float32', device='cpu').use('cpu');"
        "hidden = [model.encode([[1, 2, 3]]).hidden for _ in range(2)]; model.predict(hidden[0], 0.0);"
        "print('done')"
    )
    environment = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "done\n", done.stderr
    assert done.stderr.count("several times slower") == 1 and "install gcc" in done.stderr


def test_the_library_of_this_machine() -> None:
    """Here, as in CI, there is a compiler: nothing below would be tested without."""
    assert compiled.library("small_model") is not None
