"""`dgemma bench memory`: a fresh process whose memory is what the plan's arithmetic says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgemma_core import RequestError
from dgemma_evals.bench import memory as bench_memory
from dgemma_evals.commands.bench import bench_app

SMALL = {**bench_memory.SHAPE, "vocab": 64, "width": 64, "layers": 6, "expert_width": 16}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefix_takes_what_was_predicted(tmp_path: Path, dtype: str) -> None:
    row = bench_memory.measure(tmp_path / "model", prefix=2500, dtype=dtype, threads=1, shape=SMALL)
    held, peak = row["parts"]
    assert held["name"] == "held" and peak["name"] == "peak"
    # 5 sliding layers of 1023 places (they hold more until they move), 1 full one of 2500.
    size = 4 if dtype == "float32" else 2
    least = size * (5 * 1023 * 2 * 4 * 256 + 2500 * 2 * 2 * 512 + 2500 * 64)
    assert least <= held["predicted"] <= 2 * least
    for part in (held, peak):
        assert part["predicted"] == sum(size for size, _ in part["lines"].values())
        assert part["error"] == pytest.approx(part["predicted"] / part["measured"] - 1)
        assert abs(part["error"]) < 0.15
        assert part["within"] == (abs(part["error"]) <= 0.1)


@pytest.mark.slow
def test_the_command_writes_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory.measure, "__kwdefaults__", {"shape": SMALL})
    asked = ["memory", "--out", str(tmp_path), "--dtype", "float32", "--prefix", "1500"]
    done = CliRunner().invoke(bench_app, [*asked, "--threads", "1"], catch_exceptions=False)
    assert "a prefix of 1,500 tokens in float32: held" in done.stdout
    (row,) = json.loads((tmp_path / "memory.json").read_text())["rows"]
    page = (tmp_path / "bench.html").read_text()
    assert (
        "The memory of a long prompt" in page and f"{row['parts'][0]['error'] * 100:+.1f}" in page
    )


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--prefix 70000: the model takes 65536 tokens at most"):
        bench_memory.measure(tmp_path / "m", prefix=70_000, dtype="float32", threads=1, shape=SMALL)
    with pytest.raises(RequestError, match="unknown dtype 'int3'"):
        CliRunner().invoke(bench_app, ["memory", "--dtype", "int3"], catch_exceptions=False)


def test_a_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no room <here>')")
    with pytest.raises(RequestError, match=r"encoding 9 tokens failed: .*no room <here>"):
        bench_memory.measure(tmp_path / "m", prefix=9, dtype="float32", threads=1, shape=SMALL)
