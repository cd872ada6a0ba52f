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
from torch import Tensor

from dgemma_core.config import GenerationDefaults
from dgemma_core.errors import RequestError
from dgemma_core.files.adapters import ADAPTER_WEIGHTS
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.saving import save_model
from dgemma_core.files.tensors import SINGLE
from dgemma_core.train.distributed import ALONE, Group
from dgemma_core.train.tuning import Tuner, TuneRecipe
from tests.core import tiny
from tests.train.copying import END, copy_text

SCRIPT = Path(__file__).parent / "tune_tiny.py"


RUNS: list[dict[str, Any]] = [
    {"out": "adapter"},
    {"out": "denoiser", "modes": "denoiser", "dtype": "bfloat16", "self_conditioning": 0.0},
    {"out": "all", "full": True, "learning_rate": 3e-4},
    {"out": "half", "full": True, "learning_rate": 3e-4, "dtype": "bfloat16", "half": True},
    {"out": "stopped", "minutes": 1e-9},
    {"out": "stopped", "resume": True},
]
"""Settings of `tune`; one process and several make the same runs."""
SHARDED = [{**run, "out": f"sharded {run['out']}", "shard": True} for run in RUNS]


def made(out: Path, runs: list[dict[str, Any]], processes: int) -> Path:
    """The folder of these runs by so many processes."""
    command = [sys.executable]
    if processes > 1:
        own = f"--standalone --nnodes 1 --nproc-per-node {processes}"
        command += ["-m", "torch.distributed.run", *own.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += [str(SCRIPT), str(out), json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("one"), RUNS, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("two"), [*RUNS[:1], *SHARDED], 2)


def progress(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "progress.json").read_text())
    return found


def written(folder: Path) -> dict[str, Tensor]:
    name = ADAPTER_WEIGHTS if (folder / ADAPTER_WEIGHTS).exists() else SINGLE
    return load_file(folder / name)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("alone", "shared", "tolerance"),
    [("adapter", "adapter", 1e-4), ("adapter", "sharded adapter", 1e-4), ("all", "sharded all", 1e-4),
     ("denoiser", "sharded denoiser", 1e-2), ("half", "sharded half", 2e-2)],
)  # fmt: skip
def test_two_processes_are_one(
    one: Path, two: Path, alone: str, shared: str, tolerance: float
) -> None:
    """DDP and FSDP2: losses, gradient and what is written."""
    a, b = progress(one / alone), progress(two / shared)
    assert a["step"] == b["step"] == 6
    for ours, theirs in zip(a["curve"], b["curve"], strict=True):
        for name in ours.keys() - {"seconds"}:
            assert theirs[name] == pytest.approx(ours[name], rel=tolerance, abs=1e-5), name
    (before, after) = a["validation"][0], b["validation"][0]
    assert before["canvas_loss"] == pytest.approx(after["canvas_loss"], rel=tolerance)
    of_one, of_two = written(one / alone), written(two / shared)
    assert of_one.keys() == of_two.keys()
    moves = 6 * 3e-3  # an update of AdamW's is at most its rate
    for name, numbers in of_one.items():
        assert of_two[name].dtype == numbers.dtype
        torch.testing.assert_close(of_two[name], numbers, atol=moves * 30 * tolerance, rtol=0.02)
        if "lora_B" in name:
            unused = alone == "denoiser" and "self_conditioning" in name
            assert numbers.any() != unused, "it has learnt, where it was used"
    assert [file.name for file in (two / shared).rglob("adapter_model*")] in ([ADAPTER_WEIGHTS], [])


@pytest.mark.subprocess
def test_divided_weights_resume_to_the_bit(two: Path) -> None:
    """A checkpoint holds whole weights and moments, which any number of processes takes up."""
    whole, again = (written(two / f"sharded {name}") for name in ("adapter", "stopped"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], numbers) for name, numbers in whole.items())
    kept = [
        {name: numbers.shape for file in (two / run / "run").glob("*.safetensors")
         for name, numbers in load_file(file).items()}
        for run in ("adapter", "sharded stopped")
    ]  # fmt: skip
    assert kept[0] == kept[1]


@pytest.mark.subprocess
def test_another_number_of_processes_takes_a_run_up(one: Path, tmp_path: Path) -> None:
    made(tmp_path, [{"out": "handed over", "minutes": 1e-9, "shard": True}], 2)
    assert 0 < progress(tmp_path / "handed over")["step"] < 6
    made(tmp_path, [{"out": "handed over", "resume": True}], 1)
    a, b = progress(one / "adapter"), progress(tmp_path / "handed over")
    assert a["step"] == b["step"] == 6
    for name, total in a["sums"].items():
        assert b["sums"][name] == pytest.approx(total, rel=1e-4), name


@pytest.mark.subprocess
def test_all_weights_in_bfloat16_are_written_so(one: Path) -> None:
    assert {n.dtype for n in written(one / "half").values()} == {torch.bfloat16}
    assert {n.dtype for n in written(one / "all").values()} == {torch.float32}


def test_what_cannot_be_divided(tmp_path: Path) -> None:
    recipe = TuneRecipe(steps=1, batch_size=4, micro_batches=2)
    cpu = torch.device("cpu")
    with pytest.raises(
        RequestError, match="this is one process: leave shard out, or start several"
    ):
        Tuner(tiny.model(), copy_text, recipe, tmp_path, end=END, shard=cpu)
    save_model(tiny.model(), tmp_path, generation=GenerationDefaults())
    coded = load_model(tmp_path, quantize="int8", backend="torch")
    with pytest.raises(RequestError, match="quantised weights stay whole: leave shard out"):
        Tuner(coded, copy_text, recipe, tmp_path, end=END, shard=cpu, group=Group(0, 2))


def test_parts_that_do_not_divide(tmp_path: Path) -> None:
    recipe = TuneRecipe(steps=1, batch_size=6, micro_batches=3)
    model = tiny.model(vocab_size=12, canvas_length=4)
    with pytest.raises(RequestError, match="3 parts of a batch do not divide among 2 processes"):
        Tuner(model, copy_text, recipe, tmp_path, end=END, group=Group(0, 2))


def test_alone() -> None:
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.device("cpu") == "cpu"
    ALONE.wait()
