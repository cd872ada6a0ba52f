"""Checkpoints: a run that was stopped, killed or crashed goes on to the same bits; damage is told."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma_core.errors import CheckpointError
from dgemma_core.model import DiffusionGemma
from dgemma_core.train import Trainer, checkpoints
from dgemma_core.train.initial import initialise
from tests.train.copying import COPYING, END, RECIPE, copy_text, equal, stop_after, trainer, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("uninterrupted"))
    assert run.run(curve_every=3)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_resumes_to_the_bit(uninterrupted: Trainer, tmp_path: Path, steps: int) -> None:
    """Sitting by sitting, `steps` updates each, in fresh processes' stead fresh models."""
    sittings, ended = 0, False
    while not ended:
        run = trainer(tmp_path)
        assert run.resume() == (sittings > 0)
        for p, stored in zip(run.model.parameters(), run.optimiser.param_groups, strict=False):
            assert p.requires_grad and stored["betas"] == RECIPE.betas
        ended = stop_after(run, steps)
        sittings += 1
    assert sittings == math.ceil(RECIPE.steps / steps)
    assert equal(weights(run), weights(uninterrupted))
    assert run.progress.step == RECIPE.steps
    assert not trainer(tmp_path / "elsewhere").resume()
    after = trainer(tmp_path)
    assert after.resume() and after.run() and equal(weights(after), weights(run)), "nothing left"


@pytest.mark.subprocess
def test_a_killed_run_resumes_to_the_bit(uninterrupted: Trainer, tmp_path: Path) -> None:
    """kill -9, at whatever place a process that saves all the time happens to be."""
    script = (
        "import sys; from pathlib import Path; from tests.train.copying import trainer\n"
        "run = trainer(Path(sys.argv[1])); run.resume()\n"
        "run.run(checkpoint_minutes=0, report=lambda progress, _: print(progress.step, flush=True))"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    step = next(int(line) for line in process.stdout if int(line) >= 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    record = json.loads((tmp_path / "progress.json").read_text())
    assert step - 1 <= record["step"] < RECIPE.steps
    run = trainer(tmp_path)
    assert run.resume() and run.progress.step == record["step"] and run.run()
    assert equal(weights(run), weights(uninterrupted))


@pytest.mark.slow
@pytest.mark.parametrize("place", range(3))
def test_a_crash_while_saving(
    uninterrupted: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Whichever file is not renamed any more: the checkpoint before is whole, and is taken up."""
    run = trainer(tmp_path)
    stop_after(run, 2)
    run.resume()
    renamed = []

    def replace_(source: Any, target: Any) -> None:
        if len(renamed) == place:
            raise OSError("killed")
        renamed.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", replace_)
        with pytest.raises(CheckpointError, match=r"step 5 cannot be saved \(killed\)"):
            stop_after(run, 3)
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 2 and again.run()
    assert equal(weights(again), weights(uninterrupted))
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == [
        f"optimiser-{RECIPE.steps}.safetensors",
        f"weights-{RECIPE.steps}.safetensors",
    ], "what the crash left is cleared away"


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    run = trainer(tmp_path)
    stop_after(run, 2)
    run.progress.curve.append({"step": 2})
    run.save()
    assert trainer(tmp_path).resume()
    names = {"curve.csv", "progress.json", "weights-2.safetensors", "optimiser-2.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert equal(load_file(tmp_path / "weights-2.safetensors"), weights(run))


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def damage_garble(file: Path) -> None:
    file.write_bytes(b"\x80\x04garbage")


def damage_name(file: Path) -> None:
    tensors = load_file(file)
    tensors["another"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, file)


def damage_record(file: Path) -> None:
    record = json.loads(file.read_text())
    del record["recipe"]
    file.write_text(json.dumps(record))


DAMAGES = [
    *[(file, damage) for file in ("progress.json", "weights-2.safetensors", "optimiser-2.safetensors")
      for damage in (damage_cut, damage_garble)],
    ("weights-2.safetensors", Path.unlink),
    ("optimiser-2.safetensors", Path.unlink),
    ("weights-2.safetensors", damage_name),
    ("optimiser-2.safetensors", damage_name),
    ("progress.json", damage_record),
    ("progress.json", lambda file: file.write_text("[]")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_damaged_checkpoints(tmp_path: Path, file: str, damage: Callable[[Path], Any]) -> None:
    stop_after(trainer(tmp_path), 2)
    damage(tmp_path / file)
    run = trainer(tmp_path)
    before = weights(run)
    with pytest.raises(CheckpointError, match=r"damaged|another model") as caught:
        run.resume()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert equal(weights(run), before) and run.progress.step == 0, "nothing half taken up"


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    stop_after(trainer(tmp_path), 2)
    for name, value in asdict(RECIPE).items():
        if name == "micro_batches":
            changed = 3
        elif name == "drafts":
            changed = (2,)
        elif name == "betas":
            changed = (0.9, 0.99)
        elif name == "batch_size":
            changed = 12
        elif value is None:
            changed = 1
        else:
            changed = (value / 2 or 0.5) if isinstance(value, float) else value + 1
        with pytest.raises(CheckpointError, match=rf"another recipe \({name} differ"):
            trainer(tmp_path, replace(RECIPE, **{name: changed})).resume()


def test_another_model_is_refused(tmp_path: Path) -> None:
    stop_after(trainer(tmp_path), 2)
    wider = DiffusionGemma(replace(COPYING, text=replace(COPYING.text, vocab_size=13)))
    initialise(wider, 0)
    with pytest.raises(CheckpointError, match="another model: resume with the same configuration"):
        Trainer(wider, copy_text, RECIPE, tmp_path, end=END).resume()


@pytest.mark.slow
def test_a_run_saved_before_its_first_step(uninterrupted: Trainer, tmp_path: Path) -> None:
    trainer(tmp_path).save()
    run = trainer(tmp_path)
    assert run.resume() and run.progress.step == 0 and run.run()
    assert equal(weights(run), weights(uninterrupted))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to do, nothing half written stays, and the checkpoint before is taken up."""
    run = trainer(tmp_path)
    stop_after(run, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(CheckpointError) as caught:
            run.save()
    told = str(caught.value)
    assert str(tmp_path) in told and "No space left on device" in told and "--resume" in told
    assert "\n" not in told
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="step 0 cannot be saved"):
        trainer(tmp_path / "file" / "run").save()
