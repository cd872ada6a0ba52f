"""What the model's public calls accept: token ids, rows of them, canvases, and prefix caches.

What can be converted without loss of meaning is converted; everything else raises one RequestError.

Axes: B batch, P prefix length.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache, RowCache
from dgemma_core.config import ModelConfig, TextConfig
from dgemma_core.errors import RequestError, shown

Rows = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]
"""Token ids: a (B, P) tensor, or a list of rows of different length."""


def check_denoiser(config: ModelConfig) -> None:
    """Refuses a checkpoint that has only the causal mode."""
    if not config.can_denoise:
        raise RequestError(
            f"this checkpoint ({config.model_type}) has no denoiser: decode it autoregressively "
            "(mode='autoregressive'), or load a DiffusionGemma checkpoint"
        )


def checked_ids(ids: Tensor, config: ModelConfig, device: torch.device) -> Tensor:
    """Token ids as int64 on the model's device."""
    if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise RequestError(f"token ids are whole numbers (int64), got a tensor of {ids.dtype}")
    if ids.is_cuda:  # what a step made on the card; asking the card would make the host wait
        return ids.long()
    low, high = map(int, torch.aminmax(ids))
    _check_range(low, high, config)
    return ids.to(device, torch.long)


def checked_rows(ids: Rows, config: ModelConfig, least: int = 1) -> list[list[int]]:
    """Rows of at least so many token ids, on the host."""
    try:
        found = [row.tolist() if hasattr(row, "tolist") else row for row in ids]
        rows = [[index(id) for id in row] for row in found]
    except (TypeError, NotImplementedError) as error:
        raise RequestError(
            f"each row must be a list of token ids, as in [[2, 7, 9]] ({error})"
        ) from error
    for i, row in enumerate(rows):
        if len(row) < least:
            raise RequestError(f"row {i} must hold at least one token id")
        _check_range(min(row, default=0), max(row, default=0), config)
    if not rows:
        raise RequestError("no rows of tokens: give at least one prompt, or canvas")
    return rows


def checked_canvases(canvas: Rows | None, rows: int, config: ModelConfig) -> list[list[int]]:
    """A canvas for each of so many rows, an empty one where there is none."""
    if canvas is None:
        return [[]] * rows
    found = checked_rows(canvas, config, least=0)
    if len(found) != rows:
        raise RequestError(f"{len(found)} canvases for {rows} rows: give each row one, or []")
    if any(found):
        check_denoiser(config)
    return found


def _check_range(low: int, high: int, config: ModelConfig) -> None:
    if low < 0 or high >= config.text.vocab_size:
        raise RequestError(
            f"token ids must lie in 0 … {config.text.vocab_size - 1}, got {low} … {high}: "
            "was the text tokenised for another model?"
        )


def checked_cache(
    cache: PrefixCache, lengths: Sequence[int], config: ModelConfig, like: Tensor
) -> list[RowCache]:
    """The cache's rows, each of which has space for so many new tokens. like: a weight of the model."""
    if not isinstance(cache, PrefixCache):
        raise RequestError(
            f"the prefix must be a PrefixCache, got {shown(cache)}: make it by encode"
        )
    if len(cache) != len(lengths):
        raise RequestError(
            f"{len(lengths)} rows of tokens for a prefix cache of {len(cache)} rows: they must be as many"
        )
    limit = config.text.max_position_embeddings
    for row, new in zip(cache.rows, lengths, strict=True):
        if row.length + new > limit:
            raise RequestError(
                f"{row.length + new} tokens are more than the model's {limit}: shorten the prompt"
            )
        check_row(row, config.text, like)
    return cache.rows


def check_row(row: RowCache, config: TextConfig, like: Tensor) -> None:
    """Raises RequestError unless the row is of such a model, in its shapes, and of the dtype and device of `like`."""
    kind = (config, like.dtype, like.device)
    if row.checked == kind:
        return
    fits = len(row.buffers) == len(config.layers) and row.config in (None, config)
    for buffer, layer in zip(row.buffers, config.layers, strict=False):
        if buffer is not None:
            shape = (layer.num_key_value_heads, *buffer.keys.shape[1:2], layer.head_dim)
            for held in (buffer.keys, buffer.values):
                fits &= held.shape == shape and held.is_contiguous()
                fits &= held.dtype == like.dtype and held.device == like.device
    if not fits:
        raise RequestError(
            "the prefix cache is of another model, dtype or device: encode the prompt with this model"
        )
    row.checked = kind
