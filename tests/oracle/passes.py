"""The same forward passes on both sides, from the same tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from dgemma_core.model import DiffusionGemma
from tests.oracle.build import Drawn, capped, random_ids, soft_embedding


@dataclass(frozen=True)
class Tokens:
    """One case's tokens: `pieces[k][b]` is row b's k-th piece, `canvases` (2, B, C)."""

    pieces: list[list[Tensor]]
    canvases: Tensor

    @classmethod
    def of(cls, drawn: Drawn) -> Tokens:
        vocab, seeds = drawn.text["vocab_size"], itertools.count(100 * drawn.seed)
        pieces = [
            [random_ids(vocab, (length,), next(seeds)) for length in lengths]
            for lengths in zip(*drawn.rows, strict=True)
        ]
        shape = (2, len(drawn.rows), drawn.canvas_length)
        return cls(pieces, random_ids(vocab, shape, next(seeds)))


@dataclass(frozen=True)
class Passes:
    """Logits, float32: of all encoded tokens, of a first canvas, of a second canvas that is
    self-conditioned on the first logits."""

    encode: Tensor  # (tokens of all rows and pieces, V), row by row
    first: Tensor  # (B, C, V)
    second: Tensor  # (B, C, V)

    def all(self) -> Tensor:
        return torch.cat([self.encode, self.first.flatten(0, 1), self.second.flatten(0, 1)])


@torch.no_grad()
def oracle_passes(model: DiffusionGemmaForBlockDiffusion, drawn: Drawn, tokens: Tokens) -> Passes:
    """Row by row, without padding, piece by piece through the dynamic cache."""
    cap = drawn.text["final_logit_softcapping"]
    encoded, first, second = [], [], []
    for row in range(len(drawn.rows)):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        for piece in tokens.pieces:
            output = model.model.encoder(piece[row][None], past_key_values=cache)
            encoded.append(capped(model, output.last_hidden_state[0], cap))
        canvases = tokens.canvases[:, row]
        logits = model(past_key_values=cache, decoder_input_ids=canvases[:1]).logits
        first.append(logits)
        second.append(
            model(
                past_key_values=cache,
                decoder_input_ids=canvases[1:],
                self_conditioning_logits=(logits / 0.6).to(model.dtype),
            ).logits
        )
    return Passes(torch.cat(encoded), torch.cat(first), torch.cat(second))


@torch.no_grad()
def our_passes(
    model: DiffusionGemma,
    oracle: DiffusionGemmaForBlockDiffusion,
    drawn: Drawn,
    tokens: Tokens,
    theirs: Passes,
) -> Passes:
    """All rows at once. The oracle's first logits condition the second canvas on both sides."""
    cache, by_piece = None, []
    for piece in tokens.pieces:
        cache = model.encode([ids.tolist() for ids in piece], cache)
        by_piece.append(
            [
                model.logits(hidden[: len(ids)])
                for hidden, ids in zip(cache.hidden, piece, strict=True)
            ]
        )
    assert cache is not None and cache.lengths == drawn.prefix_lengths
    encoded = [piece[row] for row in range(len(drawn.rows)) for piece in by_piece]
    soft = soft_embedding(oracle, theirs.first / 0.6)
    first = model.logits(model.denoise(tokens.canvases[0], cache))
    second = model.logits(model.denoise(tokens.canvases[1], cache, soft))
    return Passes(torch.cat(encoded), first, second)
