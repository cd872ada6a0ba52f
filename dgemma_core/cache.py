"""The prefix cache: keys and values of the clean tokens before a canvas, a row each.

Notable:
- rows are separate: each has its own length, so a batch of unlike rows needs no padding and no mask, and rows join and
  leave without a copy;
- a row is a value. Appending writes into spare capacity behind it, which its older views never read; appending to an
  older view copies first. So branching from any earlier state is safe;
- a denoising step writes the canvas's keys into the spare capacity too, reads prefix and canvas as one slice, and
  leaves the row's length as it was: the next step overwrites them;
- a sliding layer keeps the last window − 1 positions (spec §3, "Masks").

Axes: P prefix length, T new tokens, C canvas length, H query heads, G key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.config import TextConfig


@dataclass
class Buffer:
    """One layer of one row: positions base … base + capacity − 1, written up to `filled`."""

    keys: Tensor  # (G, capacity, d)
    values: Tensor  # (G, capacity, d)
    base: int
    filled: int

    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values (G, stop − start, d) of positions start … stop − 1."""
        span = slice(start - self.base, stop - self.base)
        return self.keys[:, span], self.values[:, span]

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Puts keys and values (T, G, d) at positions start … start + T − 1."""
        held_keys, held_values = self.slice(start, start + len(keys))
        held_keys.copy_(keys.transpose(0, 1))
        held_values.copy_(values.transpose(0, 1))


class RowCache:
    """The prefix of one row, over all layers, in buffers that grow."""

    def __init__(
        self,
        length: int,
        buffers: list[Buffer | None],
        windows: tuple[int | None, ...],
        tokens: tuple[int, ...] = (),
    ) -> None:
        """windows: positions kept per layer; None keeps all."""
        self.length, self.tokens = length, tokens
        self.buffers = buffers
        self.windows = windows
        self.checked: object = None  # what `check_row` found it to fit
        self.layout: object = None  # what a backend knows of where the buffers are
        self.config: TextConfig | None = None  # of the model that fills them

    def first(self, layer: int, position: int) -> int:
        """The first position that a token at `position` can see on this layer."""
        window = self.windows[layer]
        return 0 if window is None else max(0, position - window)

    def reserve(self, layer: int, extra: int, like: Tensor) -> Buffer:
        """This layer's buffer, with space for `extra` positions behind the row that no other row reads."""
        buffer = self.buffers[layer]
        if (
            buffer is not None
            and buffer.filled == self.length
            and self.length + extra <= buffer.base + buffer.keys.shape[1]
        ):
            return buffer
        return self.reallocate(layer, extra, like)

    def reallocate(self, layer: int, extra: int, like: Tensor) -> Buffer:
        """A new buffer for this layer, with the row's content and space for `extra` positions. like: (…, G, d)."""
        buffer = self.buffers[layer]
        first = self.first(layer, self.length)
        needed = self.length - first + extra
        capacity = needed + max(32, needed // 8)  # growth in proportion keeps appends cheap
        shape = (like.shape[1], capacity, like.shape[2])
        grown = Buffer(like.new_empty(shape), like.new_empty(shape), first, self.length)
        if buffer is not None:
            keys, values = buffer.slice(first, self.length)
            held_keys, held_values = grown.slice(first, self.length)
            held_keys.copy_(keys)
            held_values.copy_(values)
        self.buffers[layer] = grown
        return grown

    def append(
        self, layer: int, keys: Tensor, values: Tensor, *, spare: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Writes T new positions (T, G, d); returns all that the new tokens may see, (G, S, d) each.

        spare: positions of a canvas that `lay` will put behind them in the same pass.
        """
        end = self.length + len(keys)
        buffer = self.reserve(layer, len(keys) + spare, keys)
        buffer.write(self.length, keys, values)
        buffer.filled = end
        return buffer.slice(self.first(layer, self.length), end)

    def lay(
        self, layer: int, keys: Tensor, values: Tensor, *, ahead: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Lays a canvas (C, G, d) behind the prefix for this pass only; returns both as one slice (G, S, d).

        ahead: tokens that this pass has appended before it.
        """
        start = self.length + ahead
        buffer = self.buffers[layer] if ahead else self.reserve(layer, len(keys), keys)
        assert buffer is not None
        buffer.write(start, keys, values)
        return buffer.slice(self.first(layer, start), start + len(keys))

    def view(self) -> RowCache:
        """The same row as another object, which can be lengthened without changing this one."""
        seen = RowCache(self.length, list(self.buffers), self.windows, self.tokens)
        seen.checked, seen.layout, seen.config = self.checked, self.layout, self.config
        return seen

    def first_tokens(self, count: int) -> RowCache:
        """The row's first `count` positions as another row, which shares its memory."""
        shorter = self.view()
        shorter.length, shorter.tokens = count, self.tokens[:count]
        return shorter

    def truncate(self, length: int) -> None:
        """Gives up the positions behind `length`. Only for who has appended them: nobody else may be reading them."""
        self.length, self.tokens = length, self.tokens[:length]
        for buffer in self.buffers:
            if buffer is not None:
                buffer.filled = length

    def copy(self) -> RowCache:
        """The same row in memory of its own, bit for bit."""
        copied = RowCache(self.length, list(self.buffers), self.windows, self.tokens)
        copied.config = self.config
        for layer, buffer in enumerate(copied.buffers):
            if buffer is not None:
                span = slice(0, self.length - buffer.base)
                keys, values = buffer.keys[:, span].clone(), buffer.values[:, span].clone()
                copied.buffers[layer] = Buffer(keys, values, buffer.base, self.length)
        return copied

    @property
    def nbytes(self) -> int:
        """Bytes reserved, spare capacity included."""
        return sum(b.keys.nbytes + b.values.nbytes for b in self.buffers if b is not None)


class PrefixCache:
    """The prefixes of a batch: what `DiffusionGemma.encode` returns.

    `hidden` (B, P, D): the final hidden states of the tokens encoded by the call that made this cache, after the last
    norm; rows shorter than the longest are zero on the right. None after `join` and indexing. `canvas`: those of the
    canvas behind each row (C, D), where the call was given one.
    """

    def __init__(
        self,
        rows: Sequence[RowCache],
        hidden: Tensor | None = None,
        canvas: Sequence[Tensor] = (),
    ) -> None:
        self.rows, self.hidden, self.canvas = list(rows), hidden, canvas

    @classmethod
    def empty(cls, config: TextConfig, batch: int) -> PrefixCache:
        """`batch` rows of length 0."""
        windows = tuple(
            None if layer.full else config.sliding_window - 1 for layer in config.layers
        )
        rows = [RowCache(0, [None] * len(windows), windows) for _ in range(batch)]
        for row in rows:
            row.config = config
        return cls(rows)

    @classmethod
    def join(cls, caches: Sequence[PrefixCache]) -> PrefixCache:
        """All rows of several caches, in order, by reference."""
        return cls([row for cache in caches for row in cache.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> PrefixCache:
        """One row, by reference."""
        return PrefixCache([self.rows[row]])

    @property
    def lengths(self) -> list[int]:
        """Prefix length of each row, in tokens."""
        return [row.length for row in self.rows]

    @property
    def nbytes(self) -> int:
        """Bytes reserved by all rows, spare capacity included; rows that share memory count each."""
        return sum(row.nbytes for row in self.rows)

    def copy(self) -> PrefixCache:
        """All rows in memory of their own, bit for bit."""
        return PrefixCache([row.copy() for row in self.rows])


def stack_heads(queries: Tensor, groups: int) -> Tensor:
    """(T, H, d) → (G, H/G, T, d): the query heads that share a key head, side by side."""
    return queries.unflatten(1, (groups, -1)).permute(1, 2, 0, 3)


def attend_all(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every query sees every key. queries (T, H, d), keys and values (G, S, d) → (T, H, d).

    Queries of one group are stacked, so each key is read once for all of them.
    """
    stacked = stack_heads(queries, len(keys))  # (G, H/G, T, d)
    flat = stacked.flatten(1, 2).unsqueeze(0)  # (1, G, H/G · T, d)
    mixed = F.scaled_dot_product_attention(flat, keys.unsqueeze(0), values.unsqueeze(0), scale=1.0)
    return mixed[0].view_as(stacked).permute(2, 0, 1, 3).flatten(1, 2)


def attend_causal(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """The T queries are the last T of the S keys; each sees itself and the `window` keys before it (None: all).

    queries (T, H, d), keys and values (G, S, d) → (T, H, d).
    """
    count, span = len(queries), keys.shape[1]
    if count == 1:
        return attend_all(queries, keys, values)
    mask = None
    if span > count or (window is not None and span > window + 1):
        query = torch.arange(span - count, span, device=queries.device).unsqueeze(1)
        key = torch.arange(span, device=queries.device)
        mask = key <= query
        if window is not None:
            mask &= key >= query - window
    stacked = stack_heads(queries, len(keys))
    # The key heads stand as the batch, so that a group shares its keys without a copy.
    shape = (len(keys), stacked.shape[1], span, keys.shape[-1])
    mixed = F.scaled_dot_product_attention(
        stacked,
        keys.unsqueeze(1).expand(shape),
        values.unsqueeze(1).expand(shape),
        attn_mask=mask,
        is_causal=mask is None,
        scale=1.0,
    )
    return mixed.permute(2, 0, 1, 3).flatten(1, 2)
