"""The state cache: states of a run, kept within a number of bytes, so that a reader can continue from an earlier step.

A state (`DecodeState`) holds a soft embedding for every position, so keeping all of them costs much memory for a large
model. The cache drops states so that those left stay evenly spaced. A step in between is reached by replaying the run
from the nearest state before it; that gives the identical state, because random numbers are addressed by step.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import fields

from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.errors import whole_number
from dgemma_core.request import DecodeState

MEBIBYTE = 1 << 20


class StateCache:
    """Keeps the states of one or several runs, each under its run and the number of passes made before it.

    limit: bytes of tensors, prefix caches included; memory that states share counts once. Above it the cache drops the
    state whose absence costs the fewest passes to replay, the oldest of equals; the newest always stays. RequestError
    for a limit below 1.
    """

    def __init__(self, limit: int = 256 * MEBIBYTE) -> None:
        self.limit = whole_number("bytes of kept states", limit, low=1)
        self._states: dict[tuple[Hashable, int], DecodeState] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, place: tuple[Hashable, int]) -> bool:
        return place in self._states

    def add(self, run: Hashable, passes: int, state: DecodeState) -> None:
        """Keeps the state that stood after `passes` passes of `run`; drops others above the limit."""
        self._states.pop((run, passes), None)
        self._states[run, passes] = state
        while len(self._states) > 1 and self.nbytes > self.limit:
            del self._states[self._cheapest()]

    def nearest(self, run: Hashable, passes: int) -> tuple[int, DecodeState] | None:
        """The latest held state of `run` with at most `passes` passes before it; None where none is held."""
        held = [at for of, at in self._states if of == run and at <= passes]
        return (max(held), self._states[run, max(held)]) if held else None

    @property
    def nbytes(self) -> int:
        """Bytes of the memories that the held states use."""
        memories = {}
        caches = {id(state.cache): state.cache for state in self._states.values()}
        tensors = [tensor for state in self._states.values() for tensor in _own(state)]
        for tensor in (*tensors, *(t for cache in caches.values() for t in _cached(cache))):
            storage = tensor.untyped_storage()
            memories[storage.data_ptr()] = storage.nbytes()
        return sum(memories.values())

    def _cheapest(self) -> tuple[Hashable, int]:
        """The place that is cheapest to give up: its neighbours are closest to each other."""
        places: dict[Hashable, list[int]] = {}
        for run, passes in self._states:
            places.setdefault(run, []).append(passes)
        costs: dict[tuple[Hashable, int], int] = {}
        for run, held in places.items():
            ordered = [0, *sorted(held)]
            for before, at, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
                costs[run, at] = after - before
            # Nothing is replayed beyond a run's last state, yet a reader most likely returns to it.
            costs[run, ordered[-1]] = ordered[-1] - ordered[-2] + 1
        newest = next(reversed(self._states))
        return min(
            (place for place in self._states if place != newest), key=lambda place: costs[place]
        )


def _own(state: DecodeState) -> Iterator[Tensor]:
    for item in fields(state):
        value = getattr(state, item.name)
        if isinstance(value, Tensor):
            yield value


def _cached(cache: PrefixCache) -> Iterator[Tensor]:
    for row in cache.rows:
        for buffer in row.buffers:
            if buffer is not None:
                yield buffer.keys
                yield buffer.values
