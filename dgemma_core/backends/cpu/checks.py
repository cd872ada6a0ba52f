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


def canvases(sizes: Sequence[int], canvas: Sequence[int]) -> None:
    """Refuses canvases that are not one a row, of at most its tokens."""
    fits = len(canvas) == len(sizes)
    if not fits or any(not 0 <= laid <= size for laid, size in zip(canvas, sizes, strict=True)):
        raise RequestError(f"rows of {list(sizes)} tokens cannot hold canvases of {list(canvas)}")


def positions(config: TextConfig, rows: Sequence[RowCache], sizes: Sequence[int]) -> int:
    """The longest row with its new tokens. Raises RequestError beyond the model's maximum length."""
    longest = max(row.length + size for row, size in zip(rows, sizes, strict=True))
    limit = config.max_position_embeddings
    if longest > limit:
        raise RequestError(
            f"{longest} tokens are more than the model's {limit}: shorten the prompt, or generate less"
        )
    return longest


def positions_held(windows: tuple[int | None, ...], row: RowCache) -> None:
    """Refuses a row whose buffers do not hold all that its next token can see, or more than they have space for.

    windows: positions that each layer keeps. Shapes are looked at by `check_row`.
    """
    length = row.length
    fits = row.windows == windows and length >= 0
    for window, buffer in zip(windows, row.buffers, strict=True):
        if buffer is None:
            fits &= not length
        else:
            first = 0 if window is None else max(0, length - window)
            end = buffer.base + buffer.keys.shape[1]
            fits &= 0 <= buffer.base <= first and length <= buffer.filled <= end
    if not fits:
        raise RequestError(
            "the prefix cache is of another model, dtype or device: encode the prompt with this model"
        )


def capped_scale(cap: float, temperatures: Tensor | float) -> Tensor:
    """cap / temperature, float32, kept finite as simd.h does: a temperature near 0 picks the argmax."""
    return (cap / torch.as_tensor(temperatures, dtype=torch.float32)).clamp_max(1e30)
