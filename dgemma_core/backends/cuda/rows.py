"""Where the rows of a pass keep their keys and values, as one small table on the device.

Notable:
- the rows are the core's own (`cache.RowCache`): each grows in its buffers, and copies before it writes behind a row
  that shares them. So branches and older states stay valid, a row passes from one backend to another without a copy,
  and no second memory has to be managed;
- kernels find the buffers by their addresses, which travel to the device with the prefix lengths in one upload. A
  recorded pass reads the table anew at each replay, so rows may join, leave and grow between replays.

Axes: L layers, G key/value heads, d head dimension, T new tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core.cache import Buffer, RowCache
from dgemma_core.config import TextConfig


@dataclass(frozen=True)
class HeldRow:
    """A row as one pass sees it: `length` positions before the new tokens, and a buffer a layer with space for them."""

    length: int
    buffers: list[Buffer]


@dataclass
class Held:
    """The rows of a pass, by their place in the batch."""

    table: Tensor
    """(places, 1 + 3·L) int64 on the device: prefix length (−1: no row), then of each layer the addresses of keys and
    values, as if position 0 were there, and the positions that the buffer has space for."""
    rows: list[HeldRow | None]
    """The same for the plain form of the kernels."""

    @classmethod
    def empty(cls, places: int, layers: int, device: torch.device) -> Held:
        """No rows in `places` places."""
        shape = (places, 1 + 3 * layers)
        table = torch.full(shape, -1, dtype=torch.long, device=device)
        return cls(table, [None] * places)

    def __getitem__(self, place: int) -> Held:
        """One place."""
        return Held(self.table[place : place + 1], self.rows[place : place + 1])

    def load(self, rows: Sequence[HeldRow]) -> None:
        """Puts `rows` into the first places and empties the others; one upload, for which nobody waits."""
        self.rows[:] = [*rows, *[None] * (len(self.rows) - len(rows))]
        blank = [-1] * self.table.shape[1]
        lines = torch.tensor([blank if row is None else _line(row) for row in self.rows])
        if self.table.is_cuda:
            lines = lines.pin_memory()
        self.table.copy_(lines, non_blocking=True)


def _line(row: HeldRow) -> list[int]:
    line = [row.length]
    for buffer in row.buffers:
        keys = buffer.keys
        offset = buffer.base * keys.shape[2] * keys.element_size()
        line += (keys.data_ptr() - offset, buffer.values.data_ptr() - offset, keys.shape[1])
    return line


class Reserve:
    """Makes space behind rows for the new tokens of a pass."""

    def __init__(self, config: TextConfig, like: Tensor) -> None:
        """like: a weight of the model, whose dtype and device keys and values have."""
        self.likes = [
            like.new_empty(0, layer.num_key_value_heads, layer.head_dim) for layer in config.layers
        ]

    def __call__(
        self, rows: Sequence[RowCache], lengths: Sequence[int], *, causal: bool
    ) -> list[HeldRow]:
        """causal: the tokens are appended, so each buffer now counts them as written; the row's length does not."""
        taken: set[int] = set()
        found = []
        for row, new in zip(rows, lengths, strict=True):
            buffers = []
            for layer, like in enumerate(self.likes):
                buffer = row.reserve(layer, new, like)
                # another row of this pass writes behind it, or kernels would misread it
                if id(buffer) in taken or not _plain(buffer):
                    buffer = row.reallocate(layer, new, like)
                taken.add(id(buffer))
                if causal:
                    buffer.filled = row.length + new
                buffers.append(buffer)
            found.append(HeldRow(row.length, buffers))
        return found


def _plain(buffer: Buffer) -> bool:
    return buffer.keys.is_contiguous() and buffer.values.is_contiguous()
