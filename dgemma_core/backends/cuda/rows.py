"""Where the rows of a pass keep their keys and values, as one small table on the device.

Notable:
- the rows are the core's (`cache.RowCache`): each grows in its buffers, and copies before it writes behind a row
  that shares them. So branches and older states stay valid, a row passes from one backend to another without a copy,
  and no second memory has to be managed;
- kernels find the buffers by their addresses, which travel to the device with the prefix lengths in one upload. A
  recorded pass reads the table anew at each replay, so rows may join, leave and grow between replays.

Axes: L layers, G key/value heads, d head dimension, T new tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_

import numpy as np
import torch
from torch import Tensor

from dgemma_core.cache import Buffer, RowCache
from dgemma_core.config import TextConfig

_filled = attrgetter("filled")


@dataclass(frozen=True)
class Layout:
    """Where a row's buffers are."""

    buffers: list[Buffer]
    addresses: np.ndarray
    """(3·L,) int64: of each layer the addresses of keys and values, as if position 0 were there, and the positions that
    the buffer has space for."""
    end: int
    """The first position that some layer has no space for."""

    @classmethod
    def of(cls, buffers: list[Buffer]) -> Layout:
        addresses: list[int] = []
        end = 2**62
        for buffer in buffers:
            _, capacity, d = buffer.keys.shape
            offset = buffer.base * d * buffer.keys.element_size()
            addresses += (
                buffer.keys.data_ptr() - offset,
                buffer.values.data_ptr() - offset,
                capacity,
            )
            end = min(end, buffer.base + capacity)
        return cls(buffers, np.array(addresses, dtype=np.int64), end)

    def __reduce__(self) -> tuple[Callable[[list[Buffer]], Layout], tuple[list[Buffer]]]:
        """A copy's tensors are elsewhere: it is made from them anew."""
        return Layout.of, (self.buffers,)


@dataclass(frozen=True)
class HeldRow:
    """A row as one pass sees it: `length` positions before the new tokens, and buffers with space for these."""

    length: int
    layout: Layout

    def buffer(self, layer: int) -> Buffer:
        return self.layout.buffers[layer]


@dataclass
class Held:
    """The rows of a pass, by their place in the batch."""

    table: Tensor
    """(places, 1 + 3·L) int64 on the device: prefix length (−1: no row), then `Layout.addresses`."""
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
        lines = np.full(self.table.shape, -1, dtype=np.int64)
        for line, row in zip(lines, rows, strict=False):
            line[0], line[1:] = row.length, row.layout.addresses
        host = torch.from_numpy(lines)
        self.table.copy_(host.pin_memory() if self.table.is_cuda else host, non_blocking=True)


class Reserve:
    """Makes space behind rows for the new tokens of a pass.

    A row remembers the layout of its buffers (`RowCache.layout`), so that a step that finds them as they were costs the
    host a few microseconds a row, not a few a layer.
    """

    def __init__(self, config: TextConfig, like: Tensor) -> None:
        """like: a weight of the model, whose dtype and device keys and values have."""
        self.likes = [
            like.new_empty(0, layer.num_key_value_heads, layer.head_dim) for layer in config.layers
        ]

    def __call__(
        self,
        rows: Sequence[RowCache],
        lengths: Sequence[int],
        *,
        causal: bool,
        canvas: Sequence[int] = (),
    ) -> list[HeldRow]:
        """causal: the tokens are appended, so each buffer now counts them as written; the row's length does not.

        canvas: how many of a causal row's last tokens are a canvas, which no buffer counts; none if empty.
        """
        taken: set[int] = set()
        found = []
        for row, new, laid in zip(rows, lengths, canvas or [0] * len(rows), strict=True):
            layout = row.layout
            if not (isinstance(layout, Layout) and _fits(layout, row, new, taken)):
                layout = row.layout = self._layout(row, new, taken)
            taken.update(map(id, layout.buffers))
            if causal:
                for buffer in layout.buffers:
                    buffer.filled = row.length + new - laid
            found.append(HeldRow(row.length, layout))
        return found

    def _layout(self, row: RowCache, new: int, taken: set[int]) -> Layout:
        buffers = []
        for layer, like in enumerate(self.likes):
            buffer = row.reserve(layer, new, like)
            # another row of this pass writes behind it, or kernels would misread it
            if id(buffer) in taken or not _plain(buffer):
                buffer = row.reallocate(layer, new, like)
            buffers.append(buffer)
        return Layout.of(buffers)


def _fits(layout: Layout, row: RowCache, new: int, taken: set[int]) -> bool:
    """Whether the row's buffers are those of the layout and have space for new tokens that no other row reads."""
    return (
        row.length + new <= layout.end
        and all(map(is_, layout.buffers, row.buffers))
        and set(map(_filled, layout.buffers)) == {row.length}
        and taken.isdisjoint(map(id, layout.buffers))
    )


def _plain(buffer: Buffer) -> bool:
    return buffer.keys.is_contiguous() and buffer.values.is_contiguous()
