"""The published loss (spec §5): both modes from one set of weights.

Notable:
- the clean text runs through the causal mode once: that pass gives the keys that the canvases read and the
  autoregressive loss. Both gradients meet in the same weights;
- a canvas is noised with its own t ~ U(0, 1) and predicted at *every* position, clean ones too;
- a share of the canvases is denoised twice: a first pass without gradient, whose soft embedding conditions the second.

Axes: B texts, C canvas length, D hidden size, V vocabulary, N tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dgemma_core.experts import Routing
from dgemma_core.head import soft_capped
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.adapted import vocabulary_product
from dgemma_core.train.batches import IGNORED, Batch, Canvases
from dgemma_core.train.dense_pass import DensePass, Noised
from dgemma_core.train.functions import capped_loss, capped_probabilities
from dgemma_core.train.noise import noisy_canvases
from dgemma_core.train.own_steps import take_steps
from dgemma_core.train.packed_pass import PackedPass, packs
from dgemma_core.train.recipe import Recipe

Modes = Literal["both", "denoiser", "causal"]
"""Which modes learn."""
AT_ONCE = 2**26
"""Logits that are held at once; more are computed in pieces, and again for the gradient."""
COUNTED = 256
"""The loss reads a multiple of so many tokens, so that shapes recur (dense_pass.py says why)."""


@dataclass(frozen=True)
class Losses:
    """The parts of one step's loss, nats a token; each a scalar tensor."""

    canvas: Tensor
    autoregressive: Tensor
    balance: Tensor

    def total(self, recipe: Recipe) -> Tensor:
        """What is minimised."""
        return (
            self.canvas
            + recipe.autoregressive * self.autoregressive
            + recipe.balance * self.balance
        )


def loss(
    model: DiffusionGemma,
    batch: Batch,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    modes: Modes = "both",
    recomputes: bool = False,
) -> Losses:
    """The loss of one batch. modes: of a mode that does not learn the loss is 0; where the denoiser learns alone, the
    causal pass has no gradient. recomputes: as in `DensePass`.

    The first ⌈share · B⌉ rows are the self-conditioned ones; in distillation those that a step came before, conditioned
    on that step's prediction; where the model makes steps of its own, those on which it has made any, conditioned on
    its last.
    """
    device = model.device
    packed = modes == "both" and not recomputes and packs(model)
    both = PackedPass(model, batch) if packed else DensePass(model, batch, recomputes=recomputes)
    none = torch.zeros((), device=device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and modes != "denoiser"):
        both.begin()
    noised = [] if modes == "causal" else _noised(model, both, batch, recipe, generator)
    encoded, *denoised = both.run(noised)
    causal = none
    if modes != "denoiser":
        causal = token_loss(model, encoded.flatten(0, 1), batch.targets.to(device).flatten())
    losses = []
    for (group, _, _), hidden in zip(noised, denoised, strict=True):
        targets = canvas_targets(batch.canvases[group], recipe, generator).to(device)
        losses.append(token_loss(model, hidden.flatten(0, 1), targets.flatten()))
    canvas = torch.stack(losses).mean() if losses else none
    return Losses(canvas, causal, balance_loss(both.routings))


def _noised(
    model: DiffusionGemma,
    both: DensePass | PackedPass,
    batch: Batch,
    recipe: Recipe,
    generator: torch.Generator,
) -> list[Noised]:
    """The canvases of every group to predict from, with the soft embedding that conditions them."""
    canvases = list(noisy_canvases(batch, recipe, model.config.text.vocab_size, generator))
    walked = None
    if batch.steps is not None:
        first = canvases[0][0].to(model.device)
        walked = take_steps(model, both, first, batch.steps, generator)
    befores = [before for _, before in canvases]
    softs = _first_passes(model, both, befores, skip_first=walked is not None)
    noised: list[Noised] = []
    for i, ((canvas, _), soft) in enumerate(zip(canvases, softs, strict=True)):
        canvas = canvas.to(model.device)
        if i == 0 and walked is not None:
            canvas, soft = walked
        if soft is not None:
            soft = F.pad(soft, (0, 0, 0, 0, 0, len(canvas) - len(soft)))
        noised.append((i, canvas, soft))
    return noised


def canvas_targets(group: Canvases, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """(B, C) the clean tokens. End marks behind the first `end_marks` count `tail` of the times, else IGNORED: on most
    canvases they are the larger part, and nearly all are easy."""
    if recipe.tail == 1:
        return group.tokens
    places = torch.arange(group.tokens.shape[1])
    behind = places >= (group.ends + recipe.end_marks).unsqueeze(1)
    skipped = torch.rand(group.tokens.shape, generator=generator) >= recipe.tail
    return group.tokens.masked_fill(behind & skipped, IGNORED)


def balance_loss(routings: Sequence[Routing]) -> Tensor:
    """E · Σ_e share of choices · mean probability, averaged over layers: 1 when the load is even."""
    losses = []
    for routing in routings:
        probabilities = routing.probabilities.flatten(0, -2)  # (N, E)
        experts = probabilities.shape[1]
        share = torch.bincount(routing.chosen.flatten(), minlength=experts) / routing.chosen.numel()
        losses.append(experts * (share * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


@torch.no_grad()
def _first_passes(
    model: DiffusionGemma,
    both: DensePass | PackedPass,
    canvases: Sequence[Tensor],
    *,
    skip_first: bool,
) -> list[Tensor | None]:
    """Of each group the soft embedding (rows, C, D) after the canvases (rows, C) of its first rows; None for no rows.
    Groups of as many rows share one pass."""
    softs: list[Tensor | None] = [None] * len(canvases)
    wanted = [i for i, canvas in enumerate(canvases) if len(canvas) and not (skip_first and i == 0)]
    for rows in sorted({len(canvases[i]) for i in wanted}):
        members = [i for i in wanted if len(canvases[i]) == rows]
        noised = [(i, canvases[i].to(model.device), None) for i in members]
        for i, hidden in zip(members, both.look(noised, rows), strict=True):
            softs[i] = _soft_embedding(model, hidden)
    return softs


def _raw_logits(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    cap = model.config.text.final_logit_softcapping
    return soft_capped(vocabulary_product(model, hidden), cap)


def _soft_embedding(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    """The mean embedding under the raw prediction, times √D: what the samplers feed back at temperature 1."""
    weight: Any = model.embed_tokens.weight
    if hidden.shape[:-1].numel() * weight.shape[0] > AT_ONCE or not isinstance(weight, Tensor):
        found = model.head.predict(hidden, 0.0, reference="raw").soft_embedding
        assert found is not None
        return found.clone()  # what inference mode has made takes no part in gradients
    weight, cap = weight.to(hidden.dtype), model.config.text.final_logit_softcapping
    mean = capped_probabilities(hidden.flatten(0, -2), weight, cap) @ weight
    return mean.view_as(hidden) * hidden.shape[-1] ** 0.5


def token_loss(model: DiffusionGemma, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of hidden states (N, D) against targets (N,), over those that are not IGNORED."""
    counted = (targets != IGNORED).nonzero().squeeze(1)
    missing = -len(counted) % COUNTED
    hidden = F.pad(hidden[counted], (0, 0, 0, missing))
    targets = F.pad(targets[counted], (0, missing), value=IGNORED)
    rows = max(1, AT_ONCE // model.config.text.vocab_size)
    weight: Any = model.embed_tokens.weight
    if len(hidden) <= rows and isinstance(weight, Tensor):
        return capped_loss(hidden, weight, targets, model.config.text.final_logit_softcapping)

    def summed(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_raw_logits(model, hidden), targets, reduction="sum")

    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [checkpoint(summed, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(parts).sum() / len(counted)
