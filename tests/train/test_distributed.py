"""Two processes that share a run, by `torchrun` and gloo: the losses of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgemma_core.errors import RequestError
from dgemma_core.files.adapters import ADAPTER_WEIGHTS
from dgemma_core.train.distributed import ALONE, Group
from dgemma_core.train.tuning import Tuner, TuneRecipe
from tests.core import tiny
from tests.train.copying import END, copy_text

SCRIPT = Path(__file__).parent / "tune_tiny.py"


def run(out: Path, processes: int) -> dict[str, Any]:
    """What a run of so many processes found."""
    command = [sys.executable]
    if processes > 1:
        own = f"--standalone --nnodes 1 --nproc-per-node {processes}"
        command += ["-m", "torch.distributed.run", *own.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "run" / "progress.json").read_text())
    return found


@pytest.mark.subprocess
def test_two_processes_are_one(tmp_path: Path) -> None:
    one, two = (run(tmp_path / str(count), count) for count in (1, 2))
    (a,), (b,) = one["curve"], two["curve"]
    for name in ("canvas_loss", "autoregressive_loss", "gradient_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-3), name
    (before, after) = one["validation"][0], two["validation"][0]
    assert before["canvas_loss"] == pytest.approx(after["canvas_loss"], rel=1e-3)
    a, b = (load_file(tmp_path / str(count) / ADAPTER_WEIGHTS) for count in (1, 2))
    for name, numbers in a.items():
        torch.testing.assert_close(b[name], numbers, atol=5e-3, rtol=0.05)
        assert numbers.any(), "B, too: it has learnt"


def test_parts_that_do_not_divide(tmp_path: Path) -> None:
    recipe = TuneRecipe(steps=1, batch_size=6, micro_batches=3)
    model = tiny.model(vocab_size=12, canvas_length=4)
    with pytest.raises(RequestError, match="3 parts of a batch do not divide among 2 processes"):
        Tuner(model, copy_text, recipe, tmp_path, end=END, group=Group(0, 2))


def test_alone() -> None:
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.device("cpu") == "cpu"
    ALONE.wait()
