"""The exact posterior over the texts of a language, given independent distributions of every position.

Given that the canvas is in the language, its automaton's path is a Markov chain: from state s at position i it goes
along edge e with probability W_i[symbol e] · β_{i+1}[to e] / β_i[s], where W_i are the classes' masses and
β_i[s] = Σ_e W_i β_{i+1} is the mass of all ways to end from there. β is computed once, backward, in log space: a text
of two hundred given tokens may have a probability of e^-2500, which float64 cannot hold. All else goes forward with
probabilities of the chain, which sum to 1:

- marginals, by the states' distributions from left to right;
- an exact joint sample, one uniform number a position;
- the most probable text (Viterbi; for masked models arXiv 2505.23061), by a backward pass with maxima.

Related: forward filtering, backward sampling (Rabiner 1989, Scott 2002), here with time reversed.

Axes: C positions, S states, K classes and the symbol K ("after the end"), E edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dgemma_core.constraints.automaton import TokenAutomaton
from dgemma_core.draws import BELOW_ONE

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Chain:
    """The posterior of C positions.

    logmass (C, K + 1): log-masses of the classes and of "after the end"; −inf forbids. last (S,) bool: states in which
    the positions may end.
    """

    def __init__(
        self, automaton: TokenAutomaton, logmass: Floats, start: int, last: NDArray[np.bool_]
    ) -> None:
        self.automaton, self.start = automaton, start
        self.source, self.symbol, self.to, self.first = automaton.edges
        self.logmass = logmass
        self.beta = np.empty((len(logmass) + 1, automaton.states))  # log-masses of all ways to end
        with np.errstate(divide="ignore"):
            self.beta[-1] = np.log(last)
            for i in reversed(range(len(logmass))):
                ways = logmass[i].take(self.symbol) + self.beta[i + 1].take(self.to)
                peak = np.maximum.reduceat(ways, self.first)
                peak[peak == -np.inf] = 0.0
                ways -= peak.take(self.source)
                self.beta[i] = np.log(np.add.reduceat(np.exp(ways, out=ways), self.first)) + peak

    @property
    def log_probability(self) -> float:
        """log p(the canvas is in the language)."""
        return float(self.beta[0, self.start])

    def _onward(self, i: int, edges: slice = slice(None)) -> Floats:
        """Probabilities of edges, each given its state at position i."""
        ways = self.logmass[i].take(self.symbol[edges]) + self.beta[i + 1].take(self.to[edges])
        return np.exp(ways - self._finite(self.beta[i]).take(self.source[edges]))

    @staticmethod
    def _finite(logs: Floats) -> Floats:
        return np.where(logs == -np.inf, 0.0, logs)

    def marginals(self) -> Floats:
        """(C, K + 1): the posterior probability of each symbol at each position."""
        found = np.empty_like(self.logmass)
        states: Floats = np.zeros(self.automaton.states)
        states[self.start] = 1.0
        for i in range(len(found)):
            edges = states.take(self.source) * self._onward(i)
            found[i] = np.bincount(self.symbol, edges, found.shape[1])
            total = edges.sum()  # 1, but for rounding
            states = np.bincount(self.to, edges, len(states)) / total
            found[i] /= total
        return found

    def sample(self, uniform: Floats) -> tuple[Integers, Floats, Integers]:
        """uniform (C,) in [0, 1) → symbols, how far into its mass each number falls, states before; (C,) each."""
        symbols, inside = np.empty(len(uniform), np.int64), np.empty(len(uniform))
        states = np.empty(len(uniform), np.int64)
        state = self.start
        for i, number in enumerate(uniform):
            edges = self.edges_of(state)
            cumulative = self._onward(i, edges).cumsum()
            target = number * cumulative[-1]
            place = min(int(cumulative.searchsorted(target, "right")), len(cumulative) - 1)
            before = cumulative[place - 1] if place else 0.0
            inside[i] = min(max((target - before) / (cumulative[place] - before), 0.0), BELOW_ONE)
            states[i], symbols[i] = state, self.symbol[edges.start + place]
            state = self.to[edges.start + place]
        return symbols, inside, states

    def edges_of(self, state: int) -> slice:
        """The edges of one state."""
        end = self.first[state + 1] if state + 1 < len(self.first) else len(self.source)
        return slice(int(self.first[state]), int(end))

    def best(self, peaks: Floats) -> tuple[Integers, Integers]:
        """peaks (C, K + 1): the largest log-probability of a token of each class, the log-mass of "after the end" →
        symbols of the most probable text, and the states before each, (C,) both."""
        length = len(peaks)
        states = np.empty(length, np.int64)
        value = np.where(self.beta[-1] == -np.inf, -np.inf, 0.0)
        values = [value]
        for i in reversed(range(length)):
            ways = peaks[i].take(self.symbol) + value.take(self.to)
            value = np.maximum.reduceat(ways, self.first)
            values.append(value)
        values.reverse()
        symbols = np.empty(length, np.int64)
        state = self.start
        for i in range(length):
            edges = self.edges_of(state)
            ways = peaks[i].take(self.symbol[edges]) + values[i + 1].take(self.to[edges])
            place = edges.start + int(ways.argmax())
            states[i], symbols[i], state = state, self.symbol[place], self.to[place]
        return symbols, states
