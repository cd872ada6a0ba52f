"""The C files under GCC's sanitizers: random sizes, odd numbers and random bits, in memory that ends where it says.

The drivers stand in fuzz/; a failure names the seed, and `fuzz_… SEED 1` runs that case alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from dgemma_core.backends.cpu import bindings

SOURCES = Path(bindings.__file__).parent
DRIVERS = Path(__file__).with_name("fuzz")
FLAGS = (
    "-std=gnu11", "-O1", "-g", "-fno-math-errno", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-Wno-unused-function", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all",
)  # fmt: skip
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
EIGHT_LANES = pytest.param(
    "small_model", "-march=haswell", 40,
    marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 processor"),
)  # fmt: skip


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("name", "processor", "cases"),
    (("small_model", NATIVE, 150), EIGHT_LANES, ("online_softmax", NATIVE, 400), ("norms", NATIVE, 400),
     ("gradients", NATIVE, 400)),
)  # fmt: skip
def test_no_bits_break_the_c_code(name: str, processor: str, cases: int, tmp_path: Path) -> None:
    driver = tmp_path / name
    source = DRIVERS / f"fuzz_{name}.c"
    command = ["gcc", *FLAGS, processor, f"-I{SOURCES}", str(source), "-o", str(driver), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert not made.returncode, made.stderr
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",  # which needs rights that containers may not have
        "OMP_WAIT_POLICY": "passive",
    }
    done = subprocess.run(
        [str(driver), "0", str(cases)], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{cases} cases\n", done.stderr[-4000:]
