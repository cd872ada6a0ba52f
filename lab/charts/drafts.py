"""What speculation would bring on a machine that waits for memory: a prediction, from the bytes that its passes read.

    predicted_speculation()                  # the released 26B model on one H100, one request at a time
    least_acceptance(Card(), config, 256)    # drafted tokens that a round must accept to match autoregression

A round verifies a draft and writes the accepted tokens and one more. Its pass goes over the draft and, behind it, over
the canvas of the next one. Where all of the draft is accepted, that canvas is the next draft, and the round was one
pass; else it is given up, and another pass drafts anew. A pass takes as long as reading its weights and the prefix's
keys and values once, or as long as its arithmetic, whichever is longer (`dgemma_core.facts.cost.work`). What a router
does with several tokens is estimated: each chooses its experts evenly, which touches more of them than a trained router
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from dgemma_core.config import ModelConfig
from dgemma_core.errors import RequestError, check_kind, whole_number
from dgemma_core.facts.cost import Work, weights_of, work
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.generation.drafting import AdaptiveDraft
from dgemma_core.model import DiffusionGemma
from dgemma_lab import theme
from dgemma_lab.charts.roofline import PUBLISHED, Published, check_published, explained
from dgemma_lab.given import whole_numbers
from dgemma_lab.theme import Figure

ACCEPTED = range(2, 33)


@cache
def _in_bfloat16(config: ModelConfig) -> DiffusionGemma:
    """The model without its weights."""
    return DiffusionGemma(config, device="meta", dtype=torch.bfloat16)


@cache
def _weights(config: ModelConfig) -> dict[str, tuple[int, int]]:
    return weights_of(_in_bfloat16(config))


@cache
def _work(config: ModelConfig, prefix: int, tokens: int, denoises: bool) -> Work:
    model, weights = _in_bfloat16(config), _weights(config)
    return work(model, prefix=prefix, tokens=tokens, denoises=denoises, weights=weights)


@dataclass(frozen=True)
class Card:
    """What a card can do at most, by its data sheet, and the format of the weights on it."""

    name: str = "H100"
    bandwidth: float = 3.35e12  # bytes/s
    matrix_rate: float = 989e12  # FLOP/s
    bytes_a_weight: float = 2.0

    def seconds(
        self, config: ModelConfig, prefix: int, tokens: int, *, denoises: bool = False
    ) -> float:
        """Of one pass over `tokens` behind a prefix: the least that it can take."""
        needed = _work(config, prefix, tokens, denoises)
        share = self.bytes_a_weight / torch.bfloat16.itemsize
        read = {part: n if part == "prefix" else share * n for part, n in needed.read.items()}
        return replace(needed, read=read).floor(self.bandwidth, self.matrix_rate)

    def speedup(
        self, config: ModelConfig, accepted: float, drafted: int, *, prefix: int = 1000
    ) -> float:
        """Tokens a second of speculation over autoregression's, where a round drafts `drafted` positions.

        One pass a round where all of them are accepted, and two where not.
        """
        round_seconds = self.seconds(config, prefix, 2 * drafted, denoises=True)
        if accepted + 1 < drafted:
            round_seconds = self.seconds(config, prefix, drafted)
            round_seconds += self.seconds(config, prefix, 1 + drafted, denoises=True)
        return (accepted + 1) * self.seconds(config, prefix, 1) / round_seconds


def least_acceptance(
    card: Card, config: ModelConfig, drafted: int | None = None, *, prefix: int = 1000
) -> float:
    """The drafted tokens that a round must accept to be as fast as autoregression, between whole numbers by a line.

    drafted: positions of a draft; None: a few more than are accepted, as `AdaptiveDraft` does; 0: as many as are
    accepted. Infinite where no number of a canvas is enough.
    """
    most = config.canvas_length - 1
    counts = range(most + 1)
    gains = [
        card.speedup(config, count, _positions(config, count, drafted), prefix=prefix)
        for count in counts
    ]
    above = next((count for count in counts if gains[count] >= 1), None)
    if above is None:
        return float("inf")
    if above == 0:
        return 0.0
    low, high = gains[above - 1], gains[above]
    return above - 1 + (1 - low) / (high - low)


def _positions(config: ModelConfig, accepted: int, drafted: int | None) -> int:
    if drafted is None:
        return AdaptiveDraft(first=2, least=2).plan([accepted], config.canvas_length).positions
    return drafted or accepted + 1


def predicted_speculation(
    config: ModelConfig | None = None,
    *,
    card: Card | None = None,
    prefix: int = 1000,
    accepted: Sequence[int] = ACCEPTED,
    published: Published | None = PUBLISHED,
) -> Figure:
    """Predicted speed over autoregression's against the drafted tokens that a round accepts, with break-evens.

    config: None for the released 26B model's. published: others' figures beside it, None to leave them out. Raises
    RequestError for fewer than two acceptances or one that no canvas holds.
    """
    config = CONFIGS[DIFFUSION_26B] if config is None else config
    card = Card() if card is None else card
    check_kind("config", config, ModelConfig, "a ModelConfig")
    check_kind("card", card, Card, "a Card")
    check_published(published)
    prefix = whole_number("prefix", prefix, high=config.text.max_position_embeddings)
    canvas = config.canvas_length
    counts = sorted(whole_numbers("accepted", accepted, high=canvas - 1))
    if len(counts) < 2:
        raise RequestError(f"accepted must be two numbers or more of 0 … {canvas - 1}")
    token = card.seconds(config, prefix, 1)
    margin = AdaptiveDraft().margin
    figure, highest = Figure(), 1.0
    longer = f"drafts {margin} positions more than are accepted: two passes"
    for name, drafted, colour, dash in (
        ("all that is drafted is accepted: one pass a round", 0, theme.BLUE, "solid"),
        (longer, None, theme.BLUE, "dash"),
        (f"drafts a whole canvas of {canvas}: two passes", canvas, theme.GREEN, "dash"),
    ):
        positions = [_positions(config, count, drafted) for count in counts]
        gains = [
            card.speedup(config, count, many, prefix=prefix)
            for count, many in zip(counts, positions, strict=True)
        ]
        least = least_acceptance(card, config, drafted, prefix=prefix)
        figure.add_scatter(
            x=counts, y=gains, mode="lines", name=f"{name}, pays from {least:.1f} accepted on",
            line={"color": colour, "width": 3, "dash": dash},
            customdata=[[many, gain / token] for many, gain in zip(positions, gains, strict=True)],
            hovertemplate="predicted: %{y:.2f} × autoregression, at most %{customdata[1]:.0f} tokens/s<br>"
            "%{x} accepted of %{customdata[0]} positions drafted<extra></extra>",
        )  # fmt: skip
        highest = max(highest, *gains)
    figure.add_hline(
        y=1, line={"color": theme.VERMILION, "width": 2},
        name=f"autoregression, predicted: at most {1 / token:.0f} tokens/s", showlegend=True,
    )  # fmt: skip
    if published is not None:
        passes = 2 * published.steps_ratio
        figure.add_scatter(
            x=counts, y=[(count + 1) / passes for count in counts], mode="lines",
            name=f"published step time, not measured here ({published.where}): pays from {passes - 1:.1f} on",
            line={"color": theme.PURPLE, "width": 2, "dash": "dot"},
            hovertemplate="from a published step time: %{y:.2f} × autoregression at %{x} accepted<extra></extra>",
        )  # fmt: skip
        highest = max(highest, (counts[-1] + 1) / passes)
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    figure.update_layout(
        title=theme.titled(
            "Predicted, not measured: speculation over autoregression",
            f"{'26B' if config is CONFIGS[DIFFUSION_26B] else 'a model'}, {card.name}, "
            f"{card.bytes_a_weight:g} bytes a weight, prompt of {prefix} tokens, one request",
        ),
        xaxis={"title": "drafted tokens accepted a round"},
        yaxis={
            "type": "log", "title": "times as fast as autoregression",
            "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks],
            "range": np.log10([0.2, highest * 1.3]).tolist(),
        },
    )  # fmt: skip
    return explained(figure, entries=4 + (published is not None))
