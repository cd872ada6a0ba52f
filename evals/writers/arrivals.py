"""Requests that come in over time, for a loop that takes them as rows become free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class Arrivals(Generic[Item]):
    """An iterator over items, each at its second; `StopIteration` may mean "not yet".

    A loop that writes texts asks for the next request whenever a row is free, and ends where no row is at work and
    nothing comes. So while `at_work` rows are, the next item is handed out only once it has arrived; while none is, it
    is waited for. due: seconds after the first question, rising; None: all are there at once.
    """

    items: Sequence[Item]
    due: Sequence[float] | None
    at_work: Callable[[], int] = lambda: 0
    waited: list[float] = field(default_factory=list)
    """Of each item that was handed out, the seconds since it had arrived."""
    _start: float | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        place = len(self.waited)
        if place == len(self.items):
            raise StopIteration
        if self._start is None:
            self._start = time.perf_counter()
        now = time.perf_counter() - self._start
        due = now if self.due is None else self.due[place]
        if due > now:
            if self.at_work():
                raise StopIteration
            time.sleep(due - now)
        self.waited.append(max(0.0, time.perf_counter() - self._start - due))
        return self.items[place]
