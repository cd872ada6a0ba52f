"""The store of states: within its bound, evenly thinned, the newest kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.events import StepEvent
from dgemma_core.request import DecodeState, Request
from dgemma_lab.session.states import StateCache
from tests.core import tiny


@pytest.fixture(scope="module")
def states() -> list[DecodeState]:
    """The states of a run of two canvases, after each pass."""
    request = Request([3, 4, 5], max_new_tokens=16)
    events = denoise_canvases(tiny.model(1), [request], steps=8, stop_rule=None, eos=())
    return [event.state for event in events if isinstance(event, StepEvent)]


def bytes_of(*states: DecodeState) -> int:
    """Counted apart from the store: every memory that any of the states holds, once."""
    memories = {}
    for state in states:
        tensors = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
        for row in state.cache.rows:
            tensors += [t for b in row.buffers if b is not None for t in (b.keys, b.values)]
        memories.update(
            {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        )
    return sum(memories.values())


def test_all_states_are_kept_within_the_bound(states: list[DecodeState]) -> None:
    store = StateCache()
    for passes, state in enumerate(states, 1):
        store.add("run", passes, state)
    assert len(store) == len(states) == 16
    assert store.nbytes == bytes_of(*states)
    assert store.nearest("run", 7) == (7, states[6])
    assert store.nearest("run", 99) == (16, states[15])
    assert store.nearest("run", 0) is None
    assert store.nearest("another", 7) is None


def test_over_the_bound_the_eldest_are_thinned_and_the_newest_stays(
    states: list[DecodeState],
) -> None:
    """Worked by hand: with room for four, the state goes whose neighbours are closest, the eldest of equals."""
    store = StateCache(bytes_of(*states[:4]))
    held = []
    for passes, state in enumerate(states[:8], 1):
        store.add("run", passes, state)
        assert store.nbytes <= store.limit
        held.append([at for at in range(1, 9) if ("run", at) in store])
    assert held[3:] == [[1, 2, 3, 4], [2, 3, 4, 5], [2, 4, 5, 6], [2, 4, 6, 7], [2, 4, 6, 8]]


def test_a_bound_smaller_than_one_state_keeps_the_newest(states: list[DecodeState]) -> None:
    store = StateCache(1)
    for passes, state in enumerate(states, 1):
        store.add("run", passes, state)
    assert len(store) == 1
    assert store.nearest("run", 16) == (16, states[-1])


def test_runs_share_the_bound(states: list[DecodeState]) -> None:
    store = StateCache(bytes_of(*states[:3]))
    for run in "ab":
        for passes, state in enumerate(states[:3], 1):
            copied = replace(
                state, soft_embedding=state.soft_embedding.clone(), canvas=state.canvas.clone()
            )
            store.add(run, passes, copied)
    assert store.nbytes <= store.limit
    assert ("b", 3) in store


def test_adding_again_replaces(states: list[DecodeState]) -> None:
    store = StateCache()
    store.add("run", 1, states[0])
    store.add("run", 1, states[1])
    assert store.nearest("run", 1) == (1, states[1])
    assert len(store) == 1


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="bytes of kept states must be at least 1"):
        StateCache(0)
