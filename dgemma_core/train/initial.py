"""The weights that a run begins with: from nothing, from a model with another tokenizer, or from the experts of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgemma_core.model import DiffusionGemma

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dgemma_core.files.text import Tokenizer

    Weights = Mapping[str, Tensor]

OF_EXPERTS = (
    "experts.gate_up_proj",
    "experts.down_proj",
    "router.proj.weight",
    "router.per_expert_scale",
)
"""Parameters of a layer with a row an expert."""


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


def carried_embeddings(embeddings: Tensor, old: Tokenizer, new: Tokenizer) -> Tensor:
    """Embeddings [new vocabulary, width] for the tokens of `new`, from those of `old` [old vocabulary, width].

    A token that `old` writes in several pieces begins as the mean of theirs, at their mean length: a word then means
    what its pieces meant together.
    """
    known = old.backend.get_vocab()
    rows = []
    for token in range(new.vocab_size):
        name = new.backend.id_to_token(token)
        pieces = [known[name]] if name in known else old.encode(new.decode([token])) or [0]
        found = embeddings[pieces]
        mean = found.mean(0)
        longer = found.norm(dim=-1).mean() / mean.norm().clamp(min=1e-6)
        rows.append(mean if len(pieces) == 1 else mean * longer)
    return torch.stack(rows)


def joined_experts(weights: Weights, others: Weights) -> dict[str, Tensor]:
    """`weights`, with the experts of `others` behind each layer's own, and what routers score them by.

    All else is that of `weights`. An expert of the other model reads what it was not trained on, but a router that
    rarely chooses it changes little (a mixture of trained experts, as in Branch-Train-MiX, arXiv 2403.07816).
    """
    return {
        name: torch.cat((tensor, others[name])) if name.endswith(OF_EXPERTS) else tensor
        for name, tensor in weights.items()
    }
