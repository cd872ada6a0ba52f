"""A module's matrix as numbers, whether it is stored so or as codes and scales."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dgemma_core.files.quantised import Holder


def weight(module: nn.Module, dtype: torch.dtype, name: str = "weight") -> Tensor:
    """The matrix that the plain module holds as the parameter `name`, laid out row by row, as kernels read it."""
    if isinstance(module, Holder):
        return module.matrix(name).dequantize(dtype)
    return cast(Tensor, getattr(module, name)).contiguous()


class ExpertWeights(NamedTuple):
    """The matrices of experts, and which of these a token goes to."""

    gate_up: Tensor
    """(E, 2w, D)"""
    down: Tensor
    """(E, D, w)"""
    chosen: Tensor
    """(N, K) indices into both"""


def expert_weights(experts: nn.Module, chosen: Tensor, dtype: torch.dtype) -> ExpertWeights:
    """Of quantised experts, where tokens choose fewer than there are, only the chosen ones are turned back."""
    names = "gate_up_proj", "down_proj"
    if not isinstance(experts, Holder):
        gate_up, down = (weight(experts, dtype, name) for name in names)
        return ExpertWeights(gate_up, down, chosen)
    codes = [experts.matrix(name) for name in names]
    if chosen.numel() < len(codes[0]):
        codes = [matrix[chosen.flatten().long()] for matrix in codes]
        chosen = torch.arange(chosen.numel(), device=chosen.device).view_as(chosen)
    gate_up, down = (matrix.dequantize(dtype) for matrix in codes)
    return ExpertWeights(gate_up, down, chosen)
