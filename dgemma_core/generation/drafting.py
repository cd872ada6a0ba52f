"""Draft rules: how many positions speculation drafts next.

A rule is a value whose `plan` is pure (`speculation.DraftRule`): the text never depends on it, only the passes do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dgemma_core.errors import RequestError, finite_number, shown, whole_number
from dgemma_core.speculation import DraftPlan


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What all rules say of a draft (`speculation.DraftPlan`)."""

    steps: int = 1
    least_probability: float = 0.0
    ahead: float = 0.5

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, low=1)
        for name in ("least_probability", "ahead"):
            number = finite_number(name, getattr(self, name), low=-math.inf)
            if not 0 <= number < 1:
                raise RequestError(f"{name} must lie in 0 … 1, below 1, got {shown(number)}")

    def _of(self, positions: int, canvas_length: int) -> DraftPlan:
        """A draft of so many positions, at most a canvas."""
        most = min(positions, canvas_length)
        return DraftPlan(most, self.steps, self.least_probability, self.ahead)


@dataclass(frozen=True, kw_only=True)
class FixedDraft(_Rule):
    """The same draft every round. positions: None for a whole canvas."""

    positions: int | None = None
    ahead: float = 0.0

    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions is not None:
            whole_number("positions", self.positions, low=2)

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        return self._of(self.positions or canvas_length, canvas_length)


@dataclass(frozen=True, kw_only=True)
class AdaptiveDraft(_Rule):
    """Drafts a little more than the last rounds accepted: wrong tokens cost time, too.

    A round drafts `margin` positions more than the largest acceptance of the last `memory` rounds, at least `least`;
    the first round drafts `first`.
    """

    first: int = 18
    least: int = 8
    margin: int = 6
    memory: int = 2

    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("first", "least"):
            whole_number(option, getattr(self, option), low=2)
        for option in ("margin", "memory"):
            whole_number(option, getattr(self, option), low=1)

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        wanted = self.first
        if accepted:
            wanted = max(self.least, max(accepted[-self.memory :]) + self.margin)
        return self._of(wanted, canvas_length)


@dataclass(frozen=True, kw_only=True)
class PayingDraft(_Rule):
    """Drafts the number of positions that promises most tokens for what a round's passes cost.

    If a drafted token is accepted after an accepted one with chance q, a round over k positions writes
    (1 − qᵏ) / (1 − q) tokens on average (arXiv 2211.17192, eq. 1). Its pass goes over the k tokens and the k positions
    of the next canvas, and costs `pass_tokens` + 2k: a pass over no tokens costs as much as `pass_tokens` tokens do. q
    follows from the mean acceptance of the last `memory` rounds; `expected` stands for a round before the first.
    `facts.cost.pass_tokens` tells what a model's passes cost on a machine.
    """

    pass_tokens: float = 16.0
    expected: float = 8.0
    memory: int = 4

    name: ClassVar[str] = "paying"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("memory", self.memory, low=1)
        for option in ("pass_tokens", "expected"):
            finite_number(option, getattr(self, option))

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        seen = [self.expected, *accepted][-self.memory :]
        mean = sum(seen) / len(seen)
        chance = mean / (mean + 1)

        def tokens_for_cost(positions: int) -> float:
            return (1 - chance**positions) / (self.pass_tokens + 2 * positions)

        return self._of(
            max(range(2, max(3, canvas_length + 1)), key=tokens_for_cost), canvas_length
        )


DRAFT_RULES: Mapping[str, type[FixedDraft | AdaptiveDraft | PayingDraft]] = {
    kind.name: kind for kind in (FixedDraft, AdaptiveDraft, PayingDraft)
}
"""The rules that options name."""
