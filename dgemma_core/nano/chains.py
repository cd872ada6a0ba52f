"""The runs behind the shipped weights, one after the other: `dgemma train --recipe nano` makes them from nothing.

They were made leg by leg, over weeks in which data and trainer changed; a chain is the same legs in one command that
resumes. What it makes differs from what ships as far as the data have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dgemma_core.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One recipe's run within a chain; the next leg begins with its weights."""

    recipe: str
    steps: int | None = None
    """Steps after which it ends, before its recipe's last one."""
    share: float = 1.0
    """How far along its weights are taken, from those of `since` to those that the run ended with. Between a model
    and what became of it lie models that have learnt the new and have forgotten less (Wortsman et al., arXiv
    2109.01903)."""
    since: str | None = None
    """An earlier leg; None: the weights that this one began with."""


@dataclass(frozen=True)
class Chain:
    """Legs, and the model that the first one begins with; None: with nothing."""

    legs: tuple[Leg, ...]
    start: str | None = None

    def __post_init__(self) -> None:
        """Raises RequestError where two legs are one recipe's, or weights are to lie behind what is not there."""
        known: list[str] = []
        for leg in self.legs:
            if leg.recipe in known:
                raise RequestError(f"leg {leg.recipe} is in the chain twice")
            between = leg.share != 1
            if leg.since not in (None, *known) or (between and not (known or self.start)):
                raise RequestError(f"leg {leg.recipe}: its share is counted from no earlier leg")
            known.append(leg.recipe)


CHAINS: Mapping[str, Chain] = {
    "nano": Chain(
        (
            Leg(recipe="first", steps=1054),
            Leg(recipe="copy"),
            Leg(recipe="all_families", steps=1708),
            Leg(recipe="finish"),
            Leg(recipe="grids"),
            Leg(recipe="long", steps=1679),
            Leg(recipe="anneal"),
            Leg(recipe="corrected"),
            Leg(recipe="distil"),
            Leg(recipe="walks"),
            Leg(recipe="columns"),
            Leg(recipe="word_sums"),
            Leg(recipe="adding", share=0.6, since="columns"),
            Leg(recipe="regain"),
            Leg(recipe="round_off", share=0.7),
            Leg(recipe="further"),
            Leg(recipe="furthest"),
            Leg(recipe="drafting"),
        )
    ),
    "nano-talk": Chain(
        (
            Leg(recipe="talk"),
            Leg(recipe="talk_replies"),
            Leg(recipe="talk_rest", share=0.75),
            Leg(recipe="talk_everyday", share=0.65),
            Leg(recipe="talk_once", share=0.85),
            Leg(recipe="talk_taught", share=0.65),
            Leg(recipe="talk_again", share=0.6),
            Leg(recipe="talk_promised"),
            Leg(recipe="talk_kept", share=0.85, since="talk_again"),
            Leg(recipe="talk_regained", share=0.6),
            Leg(recipe="talk_settled"),
            Leg(recipe="talk_further", share=0.75),
            Leg(recipe="talk_brief"),
        ),
        start="nano",
    ),
}
