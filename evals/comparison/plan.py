"""What a comparison asks of whom: plain values, so that a fresh process can be told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dgemma_core import RequestError
from dgemma_core.events import Mode
from dgemma_evals.writers.base import Writer
from dgemma_evals.writers.options import Options

Overrides = tuple[tuple[str, Any], ...]
"""Sampler settings of a sweep's point, by name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison.

    limit: documents of each task. seeds: blocks, each with its own seed, and in a process of its own where they are
    fresh. examples: few-shot examples before each question, one number or more to compare; None: the task's own.
    metric: as `questions.check_metric`. batches: requests at a time (closed loop). rates: requests a second (open
    loop). within: seconds in which an answer must have come to count as good. price: of the machine an hour, in any
    currency.
    """

    tasks: tuple[str, ...]
    limit: int = 50
    seeds: int = 3
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    chat: bool = True
    examples: tuple[int | None, ...] = (None,)
    system: str | None = None
    max_new_tokens: int | None = None
    metric: str | None = None
    unsafe: bool = False
    batches: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    within: float = 1.0
    price: float | None = None

    def __post_init__(self) -> None:
        if self.limit < 1 or self.seeds < 1:
            raise RequestError("--limit and --seeds must be at least 1")
        if any(batch < 1 for batch in self.batches):
            raise RequestError("--batch: expected whole numbers from 1, e.g. 1,2,4,8")
        if any(not 0 < rate < float("inf") for rate in self.rates):
            raise RequestError("--rate: expected requests a second above 0, e.g. 0.5,1,2")
        if not self.within > 0:
            raise RequestError("--within: expected seconds above 0")
        if self.price is not None and not self.price > 0:
            raise RequestError("--price: expected a price an hour above 0")

    def to_json(self) -> str:
        """Plain values, from which `from_json` makes an equal plan."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """As `to_json` wrote it."""
        values: dict[str, Any] = json.loads(text)
        tuples = {f.name for f in fields(cls) if str(f.type).startswith("tuple")}
        given: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Contestant:
    """A writer with the settings of one point of a sweep; () is the writer as it is."""

    writer: Writer
    overrides: Overrides = ()

    @property
    def side(self) -> str:
        """Whose prompts it gets."""
        return self.writer.name

    @property
    def label(self) -> str:
        """As tables name it."""
        settings = ", ".join(f"{name}={value}" for name, value in self.overrides)
        return f"{self.side} ({settings})" if settings else self.side


def contestants(writers: Sequence[Writer], sweep: Mapping[str, Sequence[Any]]) -> list[Contestant]:
    """The writers, then every combination of the sweep's values with the first of them.

    Raises RequestError for fewer than two, and for two of one name.
    """
    names = [writer.name for writer in writers]
    if len(names) < 2:
        raise RequestError(
            "a comparison needs two sides or more, e.g. `dgemma compare nano nano:ar`"
        )
    if len(set(names)) < len(names):
        raise RequestError(f"two sides have the same name: {', '.join(names)}")
    points = itertools.product(*([(name, value) for value in sweep[name]] for name in sweep))
    swept = [Contestant(writers[0], point) for point in points] if sweep else []
    return [*map(Contestant, writers), *swept]


def parse_sweep(texts: Sequence[str], mode: Mode = "diffusion") -> dict[str, list[Any]]:
    """`steps=4,8 entropy_bound=.05,.1` → values by name; each combination must be valid in the mode."""
    sweep: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise RequestError(f"--sweep {text}: expected NAME=VALUE,VALUE, e.g. steps=4,8,16")
        sweep[name] = [_number(value) for value in values.split(",")]
    for point in itertools.product(*sweep.values()):
        Options.parse(mode, dict(zip(sweep, point, strict=True)))
    return sweep


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
