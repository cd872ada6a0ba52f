"""What every writer is: it answers a request, and says what that cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lm_eval.api.instance import Instance

from dgemma_evals.writers.counting import Counts


@dataclass(frozen=True)
class Written:
    """An answer, as lm-eval gets it, and what it cost."""

    text: str
    counts: Counts


@dataclass(frozen=True)
class Traffic:
    """Many requests at once.

    rows: as many at a time. arrivals: seconds at which each arrives (open loop); None: the next comes as one ends
    (closed loop).
    """

    rows: int
    arrivals: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Served:
    """One answer of many. waited: seconds from its arrival until it was begun, which `written.counts` do not hold."""

    written: Written
    waited: float

    @property
    def seconds(self) -> float:
        """From arrival to the end of the text."""
        return self.waited + self.written.counts.seconds

    @property
    def first_seconds(self) -> float | None:
        """From arrival to the first token or canvas."""
        first = self.written.counts.first_seconds
        return None if first is None else self.waited + first


class Writer(Protocol):
    """One side of a comparison."""

    name: str
    deterministic: bool
    """The same text whatever the seed."""
    template: Any
    """Messages → prompt text, for lm-eval; None where there is no chat template."""
    tokenizer_name: str
    identity: str

    def check(self, gen_kwargs: Mapping[str, Any]) -> None:
        """Notes what of a request's arguments is ignored, as `write` does. Raises RequestError for a wrong one."""

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """The answer to a request; `more` overrides its gen_kwargs."""

    def serve(self, instances: Sequence[Instance], seed: int, traffic: Traffic) -> list[Served]:
        """The answers to many requests, in their order."""

    def describe(self) -> dict[str, Any]:
        """Model and settings, as plain values."""


def one_by_one(
    writer: Writer, instances: Sequence[Instance], seed: int, traffic: Traffic
) -> list[Served]:
    """`serve` of a writer that knows no batches: first come, first served."""
    start, served = time.perf_counter(), []
    for place, instance in enumerate(instances):
        now = time.perf_counter() - start
        due = now if traffic.arrivals is None else traffic.arrivals[place]
        if due > now:
            time.sleep(due - now)
        waited = max(0.0, time.perf_counter() - start - due)
        served.append(Served(writer.write(instance, seed, {}), waited))
    return served
