"""The weights that a run from nothing begins with."""

from __future__ import annotations

import torch

from dgemma_core.model import DiffusionGemma


@torch.no_grad()
def initialise(model: DiffusionGemma, seed: int) -> None:
    """Fills a fresh model: matrices with unit gain, embeddings with unit length, queries and keys with a calm scale."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.text.hidden_size
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.fill_(parameter.shape[0] ** -0.25)  # so that q·k has unit variance
        elif name == "embed_tokens.weight":
            parameter.normal_(0, width**-0.5, generator=generator)
        elif name.endswith("router.proj.weight"):
            parameter.normal_(0, 0.5, generator=generator)
        elif parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0)
