"""Draft rules that learn from the rounds before: how many positions speculation drafts next.

A rule is a value whose `plan` is pure (`speculation.DraftRule`): the text never depends on it, only the passes do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dgemma_core.errors import finite_number, whole_number
from dgemma_core.speculation import DraftPlan, FixedDraft, check_draft


@dataclass(frozen=True, kw_only=True)
class AdaptiveDraft:
    """Drafts a little more than the last rounds accepted: wrong tokens cost a pass over them.

    A round drafts `margin` positions more than the largest acceptance of the last `memory` rounds, at least `least`;
    the first round drafts `first`.
    """

    first: int = 16
    least: int = 8
    margin: int = 6
    memory: int = 2
    steps: int = 1
    least_probability: float = 0.0

    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        check_draft(self.steps, self.least_probability)
        for option in ("first", "least"):
            whole_number(option, getattr(self, option), low=2)
        for option in ("margin", "memory"):
            whole_number(option, getattr(self, option), low=1)

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        wanted = self.first
        if accepted:
            wanted = max(self.least, max(accepted[-self.memory :]) + self.margin)
        return DraftPlan(min(wanted, canvas_length), self.steps, self.least_probability)


@dataclass(frozen=True, kw_only=True)
class PayingDraft:
    """Drafts the number of positions that promises most tokens for what a round's passes cost.

    If a drafted token is accepted after an accepted one with chance q, a round over k positions writes
    (1 − qᵏ) / (1 − q) tokens on average (arXiv 2211.17192, eq. 1). Each of its passes costs `pass_tokens` + k: a pass
    over no tokens costs as much as `pass_tokens` tokens do. q follows from the mean acceptance of the last `memory`
    rounds; `expected` stands for a round before the first. `facts.cost.pass_tokens` tells what a model's passes cost on
    a machine.
    """

    pass_tokens: float = 16.0
    expected: float = 8.0
    memory: int = 4
    steps: int = 1
    least_probability: float = 0.0

    name: ClassVar[str] = "paying"

    def __post_init__(self) -> None:
        check_draft(self.steps, self.least_probability)
        whole_number("memory", self.memory, low=1)
        for option in ("pass_tokens", "expected"):
            finite_number(option, getattr(self, option))

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        seen = [self.expected, *accepted][-self.memory :]
        mean = sum(seen) / len(seen)
        chance = mean / (mean + 1)

        def tokens_for_cost(positions: int) -> float:
            return (1 - chance**positions) / (self.pass_tokens + positions)

        positions = max(range(2, max(3, canvas_length + 1)), key=tokens_for_cost)
        return DraftPlan(min(positions, canvas_length), self.steps, self.least_probability)


DRAFT_RULES: Mapping[str, type[FixedDraft | AdaptiveDraft | PayingDraft]] = {
    kind.name: kind for kind in (FixedDraft, AdaptiveDraft, PayingDraft)
}
"""The rules that options name."""
