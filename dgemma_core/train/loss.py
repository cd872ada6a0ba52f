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
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.adapted import vocabulary_product
from dgemma_core.train.batches import IGNORED, Batch, Canvases
from dgemma_core.train.dense_pass import DensePass
from dgemma_core.train.noise import noisy_canvases
from dgemma_core.train.own_steps import take_steps
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
    both = DensePass(model, batch, recomputes=recomputes)
    causal, denoised = torch.zeros((), device=device), []
    with torch.set_grad_enabled(torch.is_grad_enabled() and modes != "denoiser"):
        encoded = both.encode()
    if modes != "denoiser":
        causal = token_loss(model, encoded.flatten(0, 1), batch.targets.to(device).flatten())
    if modes == "causal":
        return Losses(torch.zeros_like(causal), causal, balance_loss(both.routings))
    canvases = noisy_canvases(batch, recipe, model.config.text.vocab_size, generator)
    for i, (canvas, before) in enumerate(canvases):
        targets = canvas_targets(batch.canvases[i], recipe, generator).to(device)
        canvas, before = canvas.to(device), before.to(device)
        if i == 0 and batch.steps is not None:
            canvas, soft = take_steps(model, both, canvas, batch.steps, generator)
        else:
            soft = _first_pass(model, both, before, i)
        if soft is not None:
            soft = F.pad(soft, (0, 0, 0, 0, 0, len(canvas) - len(soft)))
        hidden = both.denoise(canvas, soft, i)
        denoised.append(token_loss(model, hidden.flatten(0, 1), targets.flatten()))
    return Losses(torch.stack(denoised).mean(), causal, balance_loss(both.routings))


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
def _first_pass(
    model: DiffusionGemma, both: DensePass, canvas: Tensor, group: int
) -> Tensor | None:
    """The soft embedding (rows, C, D) after the canvases (rows, C) of the first rows; None for no rows."""
    if not len(canvas):
        return None
    kept = len(both.routings)
    soft = _soft_embedding(model, both.denoise(canvas, None, group, slice(len(canvas))))
    del both.routings[kept:]
    return soft


def _raw_logits(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    cap = model.config.text.final_logit_softcapping
    return cap * torch.tanh(vocabulary_product(model, hidden).float() / cap)


def _soft_embedding(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    """The mean embedding under the raw prediction, times √D: what the samplers feed back at temperature 1."""
    weight: Any = model.embed_tokens.weight
    if hidden.shape[:-1].numel() * weight.shape[0] > AT_ONCE or not isinstance(weight, Tensor):
        found = model.head.predict(hidden, 0.0, reference="raw").soft_embedding
        assert found is not None
        return found.clone()  # what inference mode has made takes no part in gradients
    probabilities = _raw_logits(model, hidden).softmax(dim=-1).to(hidden.dtype)
    return (probabilities @ weight.to(hidden.dtype)) * hidden.shape[-1] ** 0.5


def token_loss(model: DiffusionGemma, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of hidden states (N, D) against targets (N,), over those that are not IGNORED."""
    counted = (targets != IGNORED).nonzero().squeeze(1)
    missing = -len(counted) % COUNTED
    hidden = F.pad(hidden[counted], (0, 0, 0, missing))
    targets = F.pad(targets[counted], (0, missing), value=IGNORED)
    rows = max(1, AT_ONCE // model.config.text.vocab_size)
    if len(hidden) <= rows:
        return F.cross_entropy(_raw_logits(model, hidden), targets)

    def summed(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_raw_logits(model, hidden), targets, reduction="sum")

    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [checkpoint(summed, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(parts).sum() / len(counted)
