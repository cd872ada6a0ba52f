"""C files compiled on the user's machine: once, whole, out of other users' reach, and with one clear line where that
cannot be."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgemma_core.backends.cpu import bindings, compiling
from dgemma_core.backends.cpu.compiling import compile_library

ANSWER = "int answer(void) { return 42; }\n"
FOREIGN = 12_345
"""Some other user."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Warnings and hanging compilers are remembered in a process."""
    yield
    compiling._warned.clear()
    compiling._hanging.clear()
    compiling._compiler_version.cache_clear()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "answer.c"
    made.write_text(ANSWER)
    return made


@pytest.fixture
def folder(source: Path) -> Path:
    return source.parent / "cache" / "dgemma"


def answer(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def compiler_script(source: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = source.with_name("cc")
    made.write_text(f"#!/bin/sh\n{script}\n")
    made.chmod(0o755)
    monkeypatch.setenv("CC", str(made))
    return made


def in_private_folder(library: Path, folder: Path, reason: str, seen: pytest.WarningsRecorder) -> None:  # fmt: skip
    """The library was made in a folder of this process alone, with one line that says why."""
    assert library.parent != folder and answer(library) == 42
    assert library.parent.stat().st_mode & 0o077 == 0
    (line,) = [str(warning.message) for warning in seen]
    assert reason in line and "set XDG_CACHE_HOME" in line and "\n" not in line


# --- once


def test_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compile_library(source)
    assert answer(made) == 42
    assert list(made.parent.iterdir()) == [made], "nothing is left beside it"
    assert made.parent.stat().st_mode & 0o077 == 0 and made.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(compiling, "_make", lambda *_: pytest.fail("compiled again"))
    assert compile_library(source) == made


def test_another_source_is_another_library(source: Path) -> None:
    first = compile_library(source)
    source.write_text(ANSWER.replace("42", "43"))
    second = compile_library(source)
    assert first != second and answer(second) == 43


def test_the_name_holds_what_the_machine_code_depends_on(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [compile_library(source).name]
    source.with_name("new.h").write_text("")
    names.append(compile_library(source).name)
    names.append(compile_library(source, (*compiling.FLAGS, "-g0")).name)
    monkeypatch.setattr(compiling, "processor", lambda: "another processor")
    names.append(compile_library(source).name)
    script = compiler_script(source, 'exec gcc "$@"', monkeypatch)
    names.append(compile_library(source).name)
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo newer\nexec gcc "$@"\n')
    compiling._compiler_version.cache_clear()  # as in another process
    names.append(compile_library(source).name)
    keys = [name.split("-")[1] for name in names]
    assert len(set(keys)) == len(keys) == 6


ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm {features}
CPU implementer\t: 0x41
CPU part\t: {part}
"""


def test_processors_differ_on_arm(tmp_path: Path) -> None:
    described = tmp_path / "cpuinfo"
    found = []
    for features, part in (("sve", "0xd0c"), ("sve2", "0xd0c"), ("sve", "0xd40")):
        described.write_text(ARM.format(features=features, part=part))
        found.append(compiling.processor(described))
    assert len(set(found)) == 3
    text = ARM.format(features="sve", part="0xd0c")
    described.write_text(text.replace("243.75", "50.00") + text)
    assert compiling.processor(described) == found[0], "cores of one kind, at another speed"
    assert compiling.processor(tmp_path / "none")


@pytest.mark.subprocess
def test_threads_and_processes_share_one_library(source: Path, folder: Path) -> None:
    found: list[Path] = []
    at_once = [threading.Thread(target=lambda: found.append(compile_library(source))) for _ in range(8)]  # fmt: skip
    script = (
        f"from dgemma_core.backends.cpu.compiling import *; compile_library(Path({str(source)!r}))"
    )
    others = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert len(set(found)) == 1 and list(folder.iterdir()) == [found[0]]


# --- whole


def test_a_damaged_library_is_compiled_again(source: Path) -> None:
    made = compile_library(source)
    whole = made.read_bytes()
    for damage in (whole[:1000], b"", whole.replace(b"\x2a", b"\x2b")):
        made.unlink()  # as it may be mapped
        made.write_bytes(damage)
        again = compile_library(source)
        assert again.name == made.name and answer(again) == 42


def test_a_library_without_the_functions_is_compiled_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "__file__", str(source.with_name("compiling.py")))
    source.write_text("int other(void) { return 0; }\n")
    made = compile_library(source)
    stem = f"answer-{compiling._key(source, compiling._compiler(), compiling.FLAGS)}"
    source.write_text(ANSWER)
    right = f"answer-{compiling._key(source, compiling._compiler(), compiling.FLAGS)}"
    planted = made.rename(made.with_name(made.name.replace(stem, right)))
    loaded = compiling._library.__wrapped__("answer", ("answer",))
    assert loaded is not None and loaded.answer() == 42 and not planted.exists()
    with pytest.warns(UserWarning, match="has not all functions"):
        assert compiling._library.__wrapped__("answer", ("answer", "missing")) is None


def test_what_killed_processes_left_is_removed(source: Path, folder: Path) -> None:
    (folder / "tmpold").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    (folder / "tmpold" / "made.so").write_text("")
    (folder / "tmpnew").mkdir()
    os.utime(folder / "tmpold", (0, 0))
    made = compile_library(source)
    assert sorted(folder.iterdir()) == sorted([made, folder / "tmpnew"])


# --- out of other users' reach


def test_a_library_that_others_could_write_is_not_loaded(source: Path) -> None:
    made = compile_library(source)
    planted = source.with_name("planted.so")
    for mode in (0o720, 0o702):
        made.chmod(mode)
        before = made.stat().st_mtime_ns
        assert compile_library(source) == made and made.stat().st_mtime_ns > before
    shutil.copy(made, planted)
    made.unlink()
    made.symlink_to(planted)
    assert not compile_library(source).is_symlink()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_a_library_of_another_user_is_not_loaded(source: Path) -> None:
    made = compile_library(source)
    os.chown(made, FOREIGN, FOREIGN)
    assert compile_library(source).stat().st_uid == os.getuid()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user(
    source: Path, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, FOREIGN, FOREIGN)
    in_private_folder(compile_library(source), folder, "belongs to another user", recwarn)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mode", (0o770, 0o707))
def test_a_folder_that_others_can_write(
    source: Path, folder: Path, mode: int, recwarn: pytest.WarningsRecorder
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    in_private_folder(compile_library(source), folder, "other users can write it", recwarn)


def test_a_folder_that_others_can_move(
    source: Path, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o777)
    in_private_folder(compile_library(source), folder, "all users can write", recwarn)
    folder.parent.chmod(0o1777)  # as /tmp: nobody moves what is another's
    assert compile_library(source).parent == folder


def test_a_folder_that_is_a_link(
    source: Path, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder.parent.mkdir()
    folder.symlink_to(source.parent)
    in_private_folder(compile_library(source), folder, "symbolic link", recwarn)


@pytest.mark.parametrize("home", ("/dev/null", "/proc/nowhere"))
def test_a_home_that_cannot_be_written(
    home: str, source: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", home)
    in_private_folder(compile_library(source), Path(home), "does not serve", recwarn)


def test_no_home(
    source: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    in_private_folder(compile_library(source), Path("~"), "home directory", recwarn)


def test_a_folder_that_is_full(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    make = compiling._make

    def full(source: Path, compiler: str, flags: tuple[str, ...], into: Path, stem: str) -> Path:
        if into == folder:
            raise OSError(28, "No space left on device")
        return make(source, compiler, flags, into, stem)

    monkeypatch.setattr(compiling, "_make", full)
    in_private_folder(compile_library(source), folder, "No space left", recwarn)


# --- compilers


def test_errors_are_the_compilers(source: Path, folder: Path) -> None:
    source.write_text("int answer(void) { return forty_two; }\n")
    with pytest.raises(RuntimeError, match=r"forty_two.* undeclared") as raised:
        compile_library(source)
    assert "\n" not in str(raised.value) and not list(folder.iterdir())


def test_a_compiler_without_openmp(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS brings it: one thread is better than none."""
    script = 'case "$*" in *-fopenmp*) exit 1;; esac\nexec gcc "$@"'
    compiler_script(source, script, monkeypatch)
    assert answer(compile_library(source)) == 42


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no C compiler found: install gcc"):
        compile_library(source)


@pytest.mark.slow
def test_a_compiler_that_hangs(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It and what it has started are ended, and it is not asked again."""
    left = source.with_name("left")
    script = f"[ \"$1\" = --version ] && exit 0\n(sleep 3; touch '{left}') &\nwait"
    compiler_script(source, script, monkeypatch)
    monkeypatch.setattr(compiling, "TIME_LIMIT", 0.5)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"did not end within 0\.5 seconds: set CC"):
            compile_library(source)
    assert time.monotonic() - started < 2.5 and not list(folder.iterdir())
    time.sleep(max(0.0, started + 3.5 - time.monotonic()))
    assert not left.exists()


def test_an_old_compiler_is_one_clear_line(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not know an intrinsic: what a user reads, and that there is no library then."""
    script = (
        "[ \"$1\" = --version ] && { echo 'gcc 4.9'; exit 0; }\n"
        "echo \"simd.h: In function 'load_bf16':\" >&2\n"
        "echo \"simd.h:90: error: implicit declaration of '__builtin_convertvector'\" >&2\n"
        "exit 1"
    )
    compiler_script(source, script, monkeypatch)
    with pytest.warns(UserWarning) as seen:
        for name in ("small_model", "online_softmax"):
            assert compiling._library.__wrapped__(name, ()) is None
    (line,) = [str(warning.message) for warning in seen]
    assert "\n" not in line and "several times slower" in line
    assert "which gcc 11 and clang 14 can" in line and "__builtin_convertvector" in line


COMPILERS = [
    name for name in ("gcc", "gcc-11", "gcc-12", "clang", "clang-14") if shutil.which(name)
]


@pytest.mark.subprocess
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ("small_model", "online_softmax", "norms", "gradients"))
def test_every_compiler_that_is_installed(
    compiler: str, name: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    warn = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    made = compile_library(
        Path(bindings.__file__).with_name(f"{name}.c"), (*compiling.FLAGS, *warn)
    )
    getattr(bindings, f"with_{name}_types")(ctypes.CDLL(str(made)))


# --- what a user meets


@pytest.mark.subprocess
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


def test_the_libraries_of_this_machine() -> None:
    """Here, as in CI, there is a compiler: the other tests would test nothing without."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bindings.small_model() is not None and bindings.online_softmax() is not None
