"""Languages small enough to enumerate: every canvas is looked at, and what the posterior must be is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton, assemble
from dgemma_core.constraints.predicting import Condition
from dgemma_core.errors import RequestError

ENDED = "ended"
EOS, PAD = 0, 1


@dataclass(frozen=True)
class Toy:
    """A drawn automaton over V tokens, as a table of its own, and distributions of C positions."""

    leads: np.ndarray  # (V, states), NOWHERE where no text goes on
    accepting: np.ndarray
    start: int
    logits: np.ndarray  # (C, V)
    remaining: int
    pins: dict[int, int] = field(default_factory=dict)

    @property
    def automaton(self) -> TokenAutomaton:
        return assemble(
            np.arange(len(self.leads)), self.leads, start=self.start, accepting=self.accepting, eos=(EOS,), pad=PAD
        )  # fmt: skip

    @property
    def condition(self) -> Condition:
        automaton = self.automaton
        return Condition(automaton, automaton.start, self.remaining, self.pins)

    def shortest(self, state: int) -> int:
        """Fewest tokens to an accepting state; a large number where there is none."""
        seen, level = {state}, {state}
        for count in range(len(self.accepting) + 1):
            if any(self.accepting[one] for one in level):
                return count
            level = {
                int(to) for one in level for token, to in enumerate(self.leads[:, one])
                if to != NOWHERE and token not in (EOS, PAD)
            } - seen  # fmt: skip
            seen |= level
        return 10**6

    def text_of(self, canvas: tuple[int, ...]) -> tuple[int | str, ...] | None:
        """The canvas with what stands behind its end made one symbol; None where it is not in the language."""
        if any(canvas[place] != token for place, token in self.pins.items() if place < len(canvas)):
            return None
        state, text = self.start, []
        for place, token in enumerate(canvas):
            if place == self.remaining:
                if not self.accepting[state]:
                    return None
                return (*text, *[ENDED] * (len(canvas) - place))
            if token == EOS:
                if not self.accepting[state]:
                    return None
                behind = {p: t for p, t in self.pins.items() if place < p < self.remaining}
                tail = (*canvas[place + 1 : self.remaining], *behind.values())
                if any(token not in (EOS, PAD) for token in tail):
                    return None
                return (*text, EOS, *[ENDED] * (len(canvas) - place - 1))
            state = int(self.leads[token, state]) if token != PAD else NOWHERE
            if state == NOWHERE:
                return None
            text.append(token)
        left = self.remaining - len(canvas)
        return tuple(text) if self.shortest(state) <= left else None

    def probabilities(self) -> np.ndarray:
        """(C, V): the free distributions; a pin is given."""
        p = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        for place, token in self.pins.items():
            if place < len(p):
                p[place] = np.arange(p.shape[1]) == token
        return p

    def canvases(self) -> Iterator[tuple[tuple[int, ...], tuple[int | str, ...], float]]:
        """Every canvas of the language, its text, and its probability in the free distributions."""
        p = self.probabilities()
        for canvas in product(range(p.shape[1]), repeat=len(p)):
            text = self.text_of(canvas)
            mass = float(np.prod(p[np.arange(len(p)), canvas]))
            if text is not None and mass > 0:
                yield canvas, text, mass


def drawn(seed: int, pinned: bool = False) -> Toy:
    """A toy with at least one text within its limit."""
    rng = np.random.default_rng(seed)
    while True:
        vocab, states, length = rng.integers(3, 7), rng.integers(1, 5), rng.integers(1, 6)
        leads = rng.integers(0, states, (vocab, states))
        leads[rng.random((vocab, states)) < rng.uniform(0.1, 0.7)] = NOWHERE
        leads[[EOS, PAD]] = NOWHERE
        accepting = rng.random(states) < 0.4
        logits = rng.normal(0, rng.choice([0.3, 2.0, 6.0]), (length, vocab))
        remaining = int(length + rng.integers(-2, 4))
        pins = {}
        if pinned:
            pins = {int(rng.integers(0, length)): int(rng.integers(0, vocab))}
        toy = Toy(leads, accepting, 0, logits, max(1, remaining), pins)
        try:
            toy.automaton  # noqa: B018 (refuses an empty language)
        except RequestError:
            continue
        if any(True for _ in toy.canvases()):
            return toy


def hidden(logits: np.ndarray, cap: float = 30.0) -> Tensor:
    """(C, V) → hidden states of a head whose embedding is the unit matrix."""
    return cap * torch.from_numpy(logits / cap).atanh().float()
