"""Checks of the tensors that C receives as bare pointers: dtype, device, layout, shape and bounds.

What can be converted without loss of meaning is converted; everything else raises one RequestError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgemma_core.cache import RowCache
from dgemma_core.config import TextConfig
from dgemma_core.errors import RequestError

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def token_ids(ids: Tensor) -> Tensor:
    """Token ids of any whole-number dtype → (N,) int64, contiguous, on the CPU."""
    if ids.dtype is torch.int64 and ids.is_cpu and ids.is_contiguous():
        return ids
    if ids.dtype not in _WHOLE:
        raise RequestError(f"token ids must be whole numbers (int64), got a tensor of {ids.dtype}")
    return _on_cpu("token ids", ids).to(torch.int64).contiguous()


def floats(
    name: str, numbers: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Floating-point numbers of `shape` → the same in `dtype`, contiguous, on the CPU."""
    if tuple(numbers.shape) != tuple(shape):
        raise RequestError(
            f"{name} must have shape {tuple(shape)}, got {tuple(numbers.shape)}: was it made by another model?"
        )
    if numbers.dtype is dtype and numbers.is_cpu and numbers.is_contiguous():
        return numbers
    if not numbers.dtype.is_floating_point:
        raise RequestError(
            f"{name} must be floating-point numbers, got a tensor of {numbers.dtype}"
        )
    return _on_cpu(name, numbers).to(dtype).contiguous()


def _on_cpu(name: str, numbers: Tensor) -> Tensor:
    if numbers.device.type != "cpu":
        raise RequestError(
            f"{name} must be on the CPU, as the model is, not on {numbers.device}: move them with .cpu()"
        )
    return numbers


def lengths(tokens: int, rows: Sequence[RowCache], sizes: Sequence[int]) -> None:
    """Refuses sizes that are not one a row, at least 1 each, and as many tokens together."""
    if len(rows) != len(sizes) or min(sizes, default=1) < 1 or sum(sizes) != tokens:
        raise RequestError(
            f"{tokens} tokens cannot be split into rows of {list(sizes)} for {len(rows)} rows of a prefix cache"
        )


def positions(config: TextConfig, rows: Sequence[RowCache], sizes: Sequence[int]) -> int:
    """The longest row with its new tokens. Raises RequestError beyond the model's maximum length."""
    longest = max(row.length + size for row, size in zip(rows, sizes, strict=True))
    limit = config.max_position_embeddings
    if longest > limit:
        raise RequestError(
            f"{longest} tokens are more than the model's {limit}: shorten the prompt, or generate less"
        )
    return longest


def row_caches(config: TextConfig, rows: Sequence[RowCache]) -> None:
    """Refuses rows whose keys and values are not those of a float32 model of this shape on the CPU."""
    windows = tuple(None if layer.full else config.sliding_window - 1 for layer in config.layers)
    shapes = [(layer.num_key_value_heads, layer.head_dim) for layer in config.layers]
    for row in rows:
        if row.windows != windows or len(row.buffers) != len(shapes) or row.length < 0:
            raise _another_model()
        for layer, ((heads, dim), buffer) in enumerate(zip(shapes, row.buffers, strict=True)):
            if buffer is None:
                if row.length:
                    raise _another_model()
                continue
            for held in (buffer.keys, buffer.values):
                if (
                    held.dtype is not torch.float32
                    or not held.is_cpu
                    or held.dim() != 3
                    or not held.is_contiguous()
                ):
                    raise _another_model()
            shape = buffer.keys.shape
            if (
                buffer.values.shape != shape
                or shape[0] != heads
                or shape[2] != dim
                or not 0 <= buffer.base <= row.first(layer, row.length)
                or not row.length <= buffer.filled <= buffer.base + shape[1]
            ):
                raise _another_model()


def _another_model() -> RequestError:
    return RequestError(
        "the prefix cache was made by another model, or in another dtype: encode the prompt with this one"
    )


def capped_scale(cap: float, temperatures: Tensor | float) -> Tensor:
    """cap / temperature, float32, kept finite as simd.h does: a temperature near 0 picks the argmax."""
    return (cap / torch.as_tensor(temperatures, dtype=torch.float32)).clamp_max(1e30)
