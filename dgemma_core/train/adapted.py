"""The products of a training pass, whether a matrix is plain, quantised, or has an adapter.

Axes: N tokens, D hidden size, w width of an MLP, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.files.quantised import Quantised
from dgemma_core.layers import GatedMLP, Linear
from dgemma_core.model import DiffusionGemma


def gate_and_up(mlp: GatedMLP, x: Tensor) -> Tensor:
    """x (…, D) → (…, 2w), the gate first; of plain matrices by one product."""
    gate, up = mlp.gate_proj, mlp.up_proj
    if type(gate) is Linear and type(up) is Linear and gate.weight.requires_grad:
        return F.linear(x, torch.cat((gate.weight, up.weight)))
    return torch.cat((gate(x), up(x)), dim=-1)


def vocabulary_product(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    """hidden (N, D) → products with the vocabulary's embeddings (N, V)."""
    weight: Tensor | Quantised = model.embed_tokens.weight
    return F.linear(hidden, weight) if isinstance(weight, Tensor) else weight.linear(hidden)
