"""How a denoising step grows with its work: one axis at a time, the others as in a base shape.

Notable:
- the implementations stay alive over all points and load what a point needs; at each point they take
  turns, after proving equal logits at that very shape;
- a point that an implementation cannot run is recorded with its reason, never left out;
- every point is written when it is done. A run that was killed goes on where it stopped.

Prefixes are encoded anew in every round, which is not part of the time of a step.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dgemma_core import RequestError
from dgemma_evals.bench import processes, random_model
from dgemma_evals.bench.processes import Measured, Setting, Worker


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The work of a step: what a point varies."""

    prefix: int = 128
    canvas: int = 64
    batch: int = 1
    vocabulary: int = 16_384
    experts: int = 32
    """Of which 4 serve a token; each has the width 256."""


Axes = Mapping[str, Sequence[int]]

AXES: Axes = {
    "prefix": (128, 256, 512, 1024, 2048, 4096, 8192),
    "canvas": (16, 32, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16, 32),
    "vocabulary": (4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144),
    "experts": (8, 16, 32, 64, 128),
}
_LEAST = {"prefix": 1, "canvas": 1, "batch": 1, "vocabulary": 64, "experts": 4}
_MODEL = "growth-model"


def parse_axes(texts: Sequence[str]) -> Axes:
    """`prefix=128,1024` … → values by axis, rising; all of `AXES` if none is given."""
    axes = {}
    for text in texts:
        name, values = _named("--axis", text, "prefix=128,1024")
        axes[name] = sorted({_whole("--axis", name, value) for value in values.split(",")})
    return axes or AXES


def parse_base(texts: Sequence[str]) -> Shape:
    """`canvas=256` … → the shape that an axis starts from."""
    named = (_named("--base", text, "canvas=256") for text in texts)
    return Shape(**{name: _whole("--base", name, value) for name, value in named})


def _named(option: str, text: str, example: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    known = [f.name for f in fields(Shape)]
    if not (equals and values) or name not in known:
        raise RequestError(
            f"{option} {text}: expected NAME=VALUE, e.g. {example}; names are {', '.join(known)}"
        )
    return name, values


def _whole(option: str, name: str, text: str) -> int:
    least = _LEAST[name]
    if not text.strip().isdecimal() or int(text) < least:
        raise RequestError(f"{option} {name}: expected whole numbers from {least}, got {text!r}")
    return int(text)


def shapes(base: Shape, axes: Axes) -> list[Shape]:
    """All points, each once, those that share weights side by side."""
    found = {replace(base, **{name: value}) for name, values in axes.items() for value in values}
    return sorted(found, key=lambda s: (s.vocabulary, s.experts, s.canvas, s.batch, s.prefix))


def on_axis(row: Mapping[str, Any], base: Mapping[str, int], axis: str) -> bool:
    """Whether a point differs from the base in nothing but `axis`."""
    return all(value == base[name] for name, value in row["shape"].items() if name != axis)


class Crew:
    """The implementations of one setting, each in its process, with the model that they hold."""

    def __init__(self, names: Sequence[str], setting: Setting) -> None:
        self.names, self.setting = names, setting
        self.workers: dict[str, Worker] = {}
        self.holds: dict[str, Any] = {}

    def hold(self, name: str, folder: Path, weights: Any) -> Worker:
        """The worker of that name with these weights, started or loaded if need be."""
        if name not in self.workers:
            self.workers[name] = Worker(name, self.setting)
        if self.holds.get(name) != weights:
            self.workers[name].load(folder, self.setting)
            self.holds[name] = weights
        return self.workers[name]

    def dismiss(self, name: str) -> None:
        """Ends a worker that failed; the next point starts it anew."""
        self.holds.pop(name, None)
        if worker := self.workers.pop(name, None):
            worker.close()

    def close(self) -> None:
        """Ends all."""
        for name in list(self.workers):
            self.dismiss(name)


def measure_point(shape: Shape, folder: Path, crew: Crew, *, count: int) -> list[dict[str, Any]]:
    """One entry an implementation: its seconds a step of each round, or why it has none."""
    setting = crew.setting
    prompts = [
        random_model.random_ids(shape.vocabulary, shape.prefix, 1 + i) for i in range(shape.batch)
    ]
    canvas = random_model.random_ids(shape.vocabulary, shape.canvas, 0)
    weights = (shape.vocabulary, shape.experts, shape.canvas)
    expected: Any = None
    failed: dict[str, str] = {}
    measured: dict[str, Measured] = {}

    def fail(name: str, error: RequestError) -> None:
        failed[name] = str(error)
        measured.pop(name, None)
        crew.dismiss(name)

    for name in crew.names:
        if name != crew.names[0] and expected is None:
            failed[name] = f"{crew.names[0]} failed: nothing to prove equal logits against"
            continue
        try:
            logits, answer = crew.hold(name, folder, weights).logits(prompts[0], canvas)
            expected = logits if expected is None else expected
            difference = processes.apart(name, logits, crew.names[0], expected, setting)
            measured[name] = Measured(name, backend=answer["backend"], logits_difference=difference)
        except RequestError as error:
            fail(name, error)
    for turn in range(setting.rounds + 1):
        for name in list(measured):
            try:
                answer = crew.workers[name].ask(
                    "steps", prompts=prompts, count=count, seed=setting.seed + turn
                )
            except RequestError as error:
                fail(name, error)
                continue
            if turn:  # the first warms up
                measured[name].rounds.append(statistics.median(answer["result"]))
                measured[name].others.append(answer["others"])
    return [
        {"name": name, "failed": failed[name]} if name in failed else _entry(measured[name])
        for name in crew.names
    ]


def _entry(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured.name,
        "backend": measured.backend,
        "rounds": measured.rounds,
        "others": measured.others,
        "median": measured.median,
        "logits_difference": measured.logits_difference,
    }


def ratio(row: Mapping[str, Any]) -> float | None:
    """The fastest peer's time to ours; None where either is missing."""
    own, *peers = row["implementations"]
    times = [peer["median"] for peer in peers if "median" in peer]
    return min(times) / own["median"] if times and "median" in own else None


def measure(
    out: Path,
    names: Sequence[str],
    settings: Sequence[Setting],
    *,
    base: Shape,
    axes: Axes,
    count: int,
    earlier: Sequence[Mapping[str, Any]],
    model: Mapping[str, Any],
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Rows so far and how many are still to come, whenever a point is done.

    earlier: rows of a run that was killed; its points of the same settings are taken over. model: other
    arguments of `random_model.random_checkpoint`.
    """
    from tqdm.auto import tqdm

    points = shapes(base, axes)
    kept = {_key(row): dict(row) for row in earlier}
    rows: list[dict[str, Any]] = []
    todo = []
    for setting, shape in itertools.product(settings, points):
        facts = {
            "table": "D", "unit": "s/step", "shape": asdict(shape), "steps": count,
            "model": dict(model), "setting": asdict(setting),
        }  # fmt: skip
        known = kept.get(_key({**facts, "implementations": [{"name": name} for name in names]}))
        if known is not None and not any("failed" in found for found in known["implementations"]):
            rows.append(known)
        else:
            todo.append((setting, shape, facts))
    folder = out / _MODEL
    yield rows, len(todo)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bar = stack.enter_context(tqdm(total=len(todo), desc="growth", unit="point"))
        crew: Crew | None = None
        lies: Any = None
        for done, (setting, shape, facts) in enumerate(todo, 1):
            if crew is None or crew.setting != setting:
                crew = Crew(names, setting)
                stack.callback(crew.close)
            weights = (shape.vocabulary, shape.experts)
            if lies != weights:
                lies = weights
                shutil.rmtree(folder, ignore_errors=True)
                random_model.random_checkpoint(
                    folder, vocab=shape.vocabulary, experts=shape.experts, autoregressive=False,
                    **model,
                )  # fmt: skip
            _set_canvas(folder, shape.canvas)
            found = measure_point(shape, folder, crew, count=count)
            rows.append({**facts, "implementations": found})
            rows[-1]["ratio_to_fastest_peer"] = ratio(rows[-1])
            bar.update()
            yield rows, len(todo) - done
            if done < len(todo) and todo[done][0] != setting:
                crew.close()


def _key(row: Mapping[str, Any]) -> str:
    """What makes two rows the same measurement."""
    facts = {name: row[name] for name in ("shape", "steps", "model", "setting")}
    names = [found["name"] for found in row["implementations"]]
    return json.dumps([facts, names], sort_keys=True)


def _set_canvas(folder: Path, canvas: int) -> None:
    """The canvas length is a value of the configuration: the weights stay."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "canvas_length": canvas}))
