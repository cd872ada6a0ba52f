"""What an observer may ask of a pass beyond the usual, and how it is recorded.

Nothing here runs unless it is asked for; attention is computed again for the asked positions alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core.errors import check_kind, whole_number
from dgemma_core.experts import Routing
from dgemma_core.head import Prediction
from dgemma_core.request import token_ids


@dataclass(frozen=True)
class Observe:
    """What to record of every pass.

    top_k: the most probable tokens of the reference distribution, which is also what self-conditioning carries over.
    router: every token's experts and weights. attention_positions: canvas positions whose attention is recorded.
    """

    top_k: int = 0
    router: bool = False
    attention_positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positions = token_ids("attention_positions", self.attention_positions)
        object.__setattr__(self, "top_k", whole_number("top_k", self.top_k, high=2**31 - 1))
        object.__setattr__(self, "attention_positions", positions)
        check_kind("router", self.router, bool, "True or False")


@dataclass(frozen=True)
class Observed:
    """The record of one pass of one row; a field is None unless asked for."""

    top_ids: Tensor | None = None
    """(C, k)"""
    top_probabilities: Tensor | None = None
    """(C, k)"""
    router_ids: Tensor | None = None
    """(layers, C, K)"""
    router_weights: Tensor | None = None
    """(layers, C, K) float32"""
    attention: Tensor | None = None
    """(layers, positions, H, P + C) float32; 0 where a sliding layer does not look."""
    forbidden: Tensor | None = None
    """(C,) float32, of a constrained text: the free probability of tokens that its language does not hold there."""
    automaton_states: Tensor | None = None
    """(C,) int64, before each position of the argmax."""
    free_top_ids: Tensor | None = None
    """(C, k) before conditioning."""
    free_top_probabilities: Tensor | None = None


class Watcher:
    """Collects what `Observe` asks for during one pass of B rows (`model.Watch`)."""

    def __init__(self, observe: Observe, prefixes: list[int], canvas_length: int) -> None:
        for position in observe.attention_positions:
            whole_number("an attention position", position, high=canvas_length - 1)
        self.observe = observe
        self.prefixes = prefixes
        self.length = canvas_length
        self.routings: list[Routing] = []
        self.attentions: list[list[Tensor]] = [[] for _ in prefixes]

    def router(self, layer: int, routing: Routing) -> None:
        if self.observe.router:
            self.routings.append(routing)

    def attention(self, layer: int, row: int, queries: Tensor, keys: Tensor) -> None:
        positions = self.observe.attention_positions
        if not positions:
            return
        asked = queries[list(positions)].float()  # (p, H, d)
        grouped = asked.unflatten(1, (len(keys), -1))  # (p, G, H/G, d)
        scores = torch.einsum("pgrd,gsd->pgrs", grouped, keys.float())
        weights = scores.softmax(dim=-1).flatten(1, 2)
        unseen = self.prefixes[row] + self.length - keys.shape[1]
        self.attentions[row].append(torch.nn.functional.pad(weights, (unseen, 0)))

    def observed(self, row: int, prediction: Prediction) -> Observed:
        """The record of one row, once the pass is over."""
        top = self.observe.top_k
        ids, probabilities = prediction.top_ids, prediction.top_probabilities
        routed = slice(row * self.length, (row + 1) * self.length)
        seen: dict[str, Tensor] = {}
        if top and ids is not None and probabilities is not None:
            seen |= {"top_ids": ids[row, :, :top], "top_probabilities": probabilities[row, :, :top]}
        if self.routings:
            seen["router_ids"] = torch.stack([r.chosen[routed] for r in self.routings])
            seen["router_weights"] = torch.stack([r.weights[routed] for r in self.routings])
        if self.observe.attention_positions:
            seen["attention"] = torch.stack(self.attentions[row])
        if prediction.posterior is not None:
            seen |= prediction.posterior.seen(row, top)
        return Observed(**seen)
