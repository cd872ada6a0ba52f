"""Checkpoints of a run: everything that it needs to go on to the same bits.

A folder holds `weights-STEP.safetensors`, `optimiser-STEP.safetensors` and `progress.json`, and for readers `curve.csv`
and `validation.csv`. Every file is written under another name and renamed into place, `progress.json` last: a kill at
any moment leaves the previous checkpoint whole.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dgemma_core.errors import CheckpointError, check_kind, finite_number, whole_number
from dgemma_core.train.recipe import Recipe

PROGRESS = "progress.json"


class Optimiser(Protocol):
    """What a run asks of its optimiser, torch's own or another, besides torch's `state` and `step`."""

    state: Any

    def step(self) -> Any:
        """One update from the gradients that are there."""

    def updates(self) -> list[Callable[[], Any]]:
        """One update as parts that may run side by side."""

    def set_rate(self, share: float) -> None:
        """Every learning rate becomes `share` of its peak."""

    def state_names(self) -> dict[Tensor, tuple[str, ...]]:
        """The names of every parameter's state after the first update."""


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    """Rows of the learning curve: the mean figures of so many steps."""
    validation: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Figures summed since the last row of the curve."""
    count: int = 0
    """Steps in `sums`."""

    def __post_init__(self) -> None:
        """Raises RequestError for what a damaged file may hold."""
        for name in ("step", "count"):
            whole_number(name, getattr(self, name))
        finite_number("seconds", self.seconds)
        for name in ("curve", "validation"):
            check_kind(name, getattr(self, name), list, "a list")
        for row in (self.sums, *self.curve, *self.validation):
            check_kind("a row", row, dict, "figures by name")
            for name, figure in row.items():
                check_kind(name, figure, int | float, "a number")

    def add(self, figures: dict[str, float]) -> None:
        """Counts one more step."""
        self.step += 1
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close_row(self, batch_size: int) -> None:
        """Ends a row of the curve."""
        row: dict[str, float] = {
            "step": self.step,
            "examples": self.step * batch_size,
            "seconds": round(self.seconds, 1),
        }
        means = {name: round(value / self.count, 5) for name, value in self.sums.items()}
        self.curve.append({**row, **means})
        self.sums, self.count = {}, 0


def save(
    folder: Path,
    recipe: Recipe,
    progress: Progress,
    model: nn.Module,
    optimiser: Optimiser,
    *,
    writes: bool = True,
) -> None:
    """Writes a checkpoint of the weights that learn, whole or not at all. writes: False in all but one of the processes
    that hold parts of these weights, which only hand theirs over. Raises CheckpointError where the folder is full or
    read-only."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    names = _learning(model)
    weights = {name: whole(parameter.detach()).contiguous() for name, parameter in names.items()}
    states = {
        f"{name}.{key}": whole(value).contiguous()
        for name, parameter in names.items()
        for key, value in optimiser.state[parameter].items()
    }
    if not writes:
        return
    record = json.dumps({"recipe": asdict(recipe), **asdict(progress)})
    files = {
        f"weights-{progress.step}.safetensors": weights,
        f"optimiser-{progress.step}.safetensors": states,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            put_in_place(folder / name, lambda part, tensors=tensors: save_file(tensors, part))  # type: ignore[misc]
        put_in_place(folder / PROGRESS, lambda part: part.write_text(record))
        for stale in folder.glob("*-*.safetensors*"):
            if stale.name not in files:
                stale.unlink()
        write_rows(folder / "curve.csv", progress.curve)
        write_rows(folder / "validation.csv", progress.validation)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: step {progress.step} cannot be saved ({_reason(error)}); the checkpoint before it is whole: "
            "make room, or make the folder writable, and go on with --resume"
        ) from error


def load(folder: Path, recipe: Recipe, model: nn.Module, optimiser: Optimiser) -> Progress | None:
    """Fills model and optimiser from the folder's checkpoint and returns where it stands; None where there is none.
    Raises CheckpointError, and changes nothing, if it is damaged or belongs to another recipe or model."""
    from safetensors.torch import load_file

    path = folder / PROGRESS
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        found = dict(record.pop("recipe"))
        progress = Progress(**record)
        step = progress.step
        weights = load_file(folder / f"weights-{step}.safetensors")
        states = load_file(folder / f"optimiser-{step}.safetensors")
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds a damaged training checkpoint ({_reason(error)}); remove the folder to start anew"
        ) from error
    wanted = json.loads(json.dumps(asdict(recipe)))
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        raise CheckpointError(
            f"{path} was written by another recipe ({', '.join(changed)} differ): "
            "resume with the same settings, or train into another folder"
        )
    parameters = _learning(model)
    kept = {name: tensor.shape for name, tensor in weights.items()}
    if kept != {name: parameter.shape for name, parameter in parameters.items()}:
        raise CheckpointError(
            f"{folder} holds the weights of another model: resume with the same configuration, "
            "or train into another folder"
        )
    kinds = optimiser.state_names() if step else {}  # before the first update there are none
    moments = {name: kinds.get(parameter, ()) for name, parameter in parameters.items()}
    if states.keys() != {f"{name}.{key}" for name in parameters for key in moments[name]}:
        raise CheckpointError(
            f"{folder} holds a damaged training checkpoint (weights and optimiser do not belong together); "
            "remove the folder to start anew"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(divided(weights[name], parameter))
            if step:
                optimiser.state[parameter] = {
                    key: divided(states[f"{name}.{key}"].to(parameter.device), parameter)
                    for key in moments[name]
                }
    return progress


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes hold in parts, put together; all of them must ask. Another as it is."""
    full = getattr(tensor, "full_tensor", None)  # of a DTensor, whose module takes long to import
    return tensor if full is None else cast(Tensor, full())


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`: in parts as `like` is, where it is and has the same shape."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def write_rows(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Rows of figures as CSV; nothing where there are none."""
    if not rows:
        return

    def write(part: Path) -> None:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    put_in_place(path, write)


def put_in_place(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file or a folder beside `path` and renames it, so that it is there as a whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    _remove(part)
    try:
        write(part)
        os.replace(part, path)
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
