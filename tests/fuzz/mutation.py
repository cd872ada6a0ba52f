"""Small mutations of json values and bytes, named by whole numbers so that hypothesis can shrink them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

HUGE = "<a number of 5,000 digits>"
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 7, 64, 1.5, -0.0, 1e-40, 1e308, 3e38, math.nan, math.inf, -math.inf,
    2**31, 2**63, 10**20, -(2**63), HUGE, 10**6, 100_000, "", "x", "x" * 10_000, "\ud800", "\x1b[2J\n", "é",
    [], {}, [None], [[]], {"x": 1}, [0] * 1000, "sliding_attention", "full_attention", "<bos>",
)  # fmt: skip
DELETE, NEST, COPY = len(NASTY), len(NASTY) + 1, len(NASTY) + 2
CHOICES = len(NASTY) + 3

Edit = tuple[int, int]
"""Which place, and which of `NASTY` stands there afterwards (or deletion, nesting, another place's value)."""


def places(value: Any, most: int = 40) -> list[tuple[Any, ...]]:
    """Paths to the values within a json value; of a long list or mapping to the first ones."""
    found: list[tuple[Any, ...]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        path, part = waiting.pop()
        keys: Sequence[Any] = ()
        if isinstance(part, dict):
            keys = list(part)[:most]
        elif isinstance(part, list):
            keys = range(min(len(part), 3))
        for key in keys:
            found.append((*path, key))
            waiting.append(((*path, key), part[key]))
    return found


def mutated(value: Any, edits: Sequence[Edit]) -> Any:
    """A copy of a json value with some places changed."""
    value = copy.deepcopy(value)
    for place, choice in edits:
        paths = places(value)
        if not paths:
            return NASTY[choice % len(NASTY)]
        *path, last = paths[place % len(paths)]
        owner = value
        for key in path:
            owner = owner[key]
        choice %= CHOICES
        if choice == DELETE:
            del owner[last]
        elif choice == NEST:
            owner[last] = [owner[last]]
        elif choice == COPY:
            other = value
            for key in paths[(place * 7 + 1) % len(paths)]:
                other = other[key]
            owner[last] = copy.deepcopy(other)
        else:
            owner[last] = copy.deepcopy(NASTY[choice])
    return value


def encoded(value: Any) -> bytes:
    """Json in which `HUGE` is that number."""
    return json.dumps(value).replace(json.dumps(HUGE), "9" * 5000).encode()


def with_bytes(raw: bytes, edits: Sequence[Edit]) -> bytes:
    """Bytes with some changed, put in or cut off."""
    for place, choice in edits:
        at = place % (len(raw) + 1)
        match choice % 4:
            case 0:
                raw = raw[:at] + bytes([choice % 256]) + raw[at + 1 :]
            case 1:
                raw = raw[:at] + bytes([choice % 256]) * (choice % 9) + raw[at:]
            case 2:
                raw = raw[:at]
            case _:
                raw = raw[:at] + raw[at + choice % 9 :]
    return raw
