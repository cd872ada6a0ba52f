"""What a constraint did to one pass: for every position what it forbids, and where its automaton stands.

Conditioning keeps the order of the tokens that it allows. So of the model's k most probable tokens one is forbidden
just where it is not among the k most probable tokens given the constraint.

Axes: n positions, k alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgemma_core.files.recording import as_array
from dgemma_core.files.trace import Trace

NO_STATE = 2**16 - 1
FIELDS = (
    "top_ids", "top_probabilities", "forbidden", "automaton_states", "free_top_ids", "free_top_probabilities",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """The observed fields of one pass of a trace, named like an event's; None for what was not asked for."""

    top_ids: NDArray[Any] | None
    top_probabilities: NDArray[Any] | None
    forbidden: NDArray[Any] | None
    automaton_states: NDArray[Any] | None
    free_top_ids: NDArray[Any] | None
    free_top_probabilities: NDArray[Any] | None

    @classmethod
    def of(cls, trace: Trace, cut: slice) -> Seen:
        values = {name: getattr(trace, name) for name in FIELDS}
        return cls(**{name: None if v is None else v[cut] for name, v in values.items()})


def conditioning(observed: Any, pinned: NDArray[Any], count: int) -> dict[str, NDArray[Any]]:
    """The fields of a `packing.Pass` that are of its constraint; empty ones where it had none.

    `states` (n,) −1 where not known; `forbidden` (n,); `barred` (n, count) ids of forbidden tokens, −1 for none, and
    `barred_probabilities`. What a pin leaves out is not forbidden by the constraint: pinned positions have none.
    """
    n = len(pinned)
    found: dict[str, NDArray[Any]] = {
        "states": np.full(n, -1), "forbidden": np.zeros(n, np.float32), "barred": np.full((n, count), -1),
        "barred_probabilities": np.zeros((n, count), np.float32),
    }  # fmt: skip
    states = getattr(observed, "automaton_states", None)
    if states is None:
        return found
    found["states"] = as_array(states, np.int64).reshape(n)
    known = (found["states"] >= 0) & ~pinned
    found["forbidden"] = np.where(known, as_array(observed.forbidden, np.float32).reshape(n), 0)
    if observed.top_ids is None or observed.free_top_ids is None:
        return found
    held = as_array(observed.top_ids, np.int64).reshape(n, -1)
    possible = as_array(observed.top_probabilities, np.float32).reshape(n, -1) > 0
    free = as_array(observed.free_top_ids, np.int64).reshape(n, -1)
    chances = as_array(observed.free_top_probabilities, np.float32).reshape(n, -1)
    allowed = ((free[:, :, None] == held[:, None, :]) & possible[:, None, :]).any(axis=2)
    barred = ~allowed & known[:, None] & (free >= 0)
    k = min(count, free.shape[1])
    found["barred"][:, :k] = np.where(barred, free, -1)[:, :k]
    found["barred_probabilities"][:, :k] = np.where(barred, chances, 0)[:, :k]
    return found


def left(barred: NDArray[Any], chances: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Barred ids and probabilities (n, k), moved to the left of as few columns as hold them all."""
    width = int((barred >= 0).sum(axis=1).max(initial=0))
    first = np.argsort(barred < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(barred, first, 1), np.take_along_axis(chances, first, 1)
