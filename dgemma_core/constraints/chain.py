"""The exact posterior over the texts of a language, given independent distributions of every position.

Given that the canvas is in the language, its automaton's path is a Markov chain: from state s at position i it goes
along edge e with probability W_i[symbol e] · β_{i+1}[to e] / β_i[s], where W_i are the classes' masses and
β_i[s] = Σ_e W_i β_{i+1} is the mass of all ways to end from there. β is computed once, backward, in log space: a text
of two hundred given tokens may have a probability of e^-2500, which float64 cannot hold. Edges between the same states
are summed first, for all positions at once (`automaton.Ways`). All else goes forward with probabilities of the chain,
which sum to 1:

- marginals, by the states' distributions from left to right;
- an exact joint sample, one uniform number a position;
- the most probable text (Viterbi; for masked models arXiv 2505.23061), by a backward pass with maxima.

Related: forward filtering, backward sampling (Rabiner 1989, Scott 2002), here with time reversed.

Axes: C positions, S states, K classes and the symbol K ("after the end"), U sets of
symbols, M symbols of all sets together.
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
        self.ways, self.logmass = automaton.ways, logmass
        self.setmass = self._over_sets(logmass)
        self.beta = np.empty((len(logmass) + 1, automaton.states))  # log-masses of all ways to end
        with np.errstate(divide="ignore"):
            self.beta[-1] = np.log(last)
            for i in reversed(range(len(logmass))):
                onward = self.setmass[i].take(self.ways.kind) + self.beta[i + 1].take(self.ways.to)
                peak = np.maximum.reduceat(onward, self.ways.first)
                peak[peak == -np.inf] = 0.0
                onward -= peak.take(self.ways.source)
                np.exp(onward, out=onward)
                self.beta[i] = np.log(np.add.reduceat(onward, self.ways.first)) + peak

    def _over_sets(self, logmass: Floats) -> Floats:
        """(C, K + 1) → (C, U): log-masses of the sets of symbols."""
        held = self._held(logmass)
        peak = self._finite(np.maximum.reduceat(held, self.ways.begins))
        held -= peak.repeat(self._lengths(), axis=0)
        np.exp(held, out=held)
        with np.errstate(divide="ignore"):
            found = np.log(np.add.reduceat(held, self.ways.begins)) + peak
        return np.ascontiguousarray(found.T)

    def _held(self, numbers: Floats) -> Floats:
        """(C, K + 1) → (M, C): of every set's symbols. Long rows of positions make sums over a few symbols fast."""
        return np.ascontiguousarray(numbers.T).take(self.ways.symbols, axis=0)

    def _lengths(self) -> Integers:
        """(U,) how many symbols each set has."""
        return np.diff(self.ways.begins, append=len(self.ways.symbols))

    @property
    def log_probability(self) -> float:
        """log p(the canvas is in the language)."""
        return float(self.beta[0, self.start])

    @staticmethod
    def _finite(logs: Floats) -> Floats:
        return np.where(logs == -np.inf, 0.0, logs)

    def marginals(self) -> Floats:
        """(C, K + 1): the posterior probability of each symbol at each position."""
        ways, length = self.ways, len(self.logmass)
        sets = np.empty_like(
            self.setmass
        )  # (C, U) the probability that a symbol comes by such a set
        states: Floats = np.zeros(self.automaton.states)
        states[self.start] = 1.0
        for i in range(length):
            onward = self.setmass[i].take(ways.kind) + self.beta[i + 1].take(ways.to)
            onward -= self._finite(self.beta[i]).take(ways.source)
            taken: Floats = np.exp(onward)
            taken *= states.take(ways.source)
            taken /= taken.sum()  # 1, but for rounding
            sets[i] = np.bincount(ways.kind, taken, sets.shape[1])
            states = np.bincount(ways.to, taken, len(states)).astype(np.float64, copy=False)
        each = self._held(self.logmass)
        each -= self._finite(self.setmass.T).repeat(self._lengths(), axis=0)
        np.exp(each, out=each)
        each *= sets.T.repeat(self._lengths(), axis=0)
        order = np.argsort(ways.symbols, kind="stable")
        present, begins = np.unique(ways.symbols[order], return_index=True)
        found = np.zeros_like(self.logmass)
        found[:, present] = np.add.reduceat(each[order], begins).T
        return found

    def sample(self, uniform: Floats) -> tuple[Integers, Floats, Integers]:
        """uniform (C,) in [0, 1) → symbols, how far into its mass each number falls, states before; (C,) each."""
        symbols, inside = np.empty(len(uniform), np.int64), np.empty(len(uniform))
        states = np.empty(len(uniform), np.int64)
        state = self.start
        for i, number in enumerate(uniform):
            edges = self.edges_of(state)
            onward = self.logmass[i].take(self.symbol[edges])
            onward += self.beta[i + 1].take(self.to[edges]) - self.beta[i, state]
            cumulative = np.exp(onward, out=onward).cumsum()
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
        length, ways = len(peaks), self.ways
        highest = np.ascontiguousarray(
            np.maximum.reduceat(self._held(peaks), ways.begins).T
        )  # (C, U)
        states = np.empty(length, np.int64)
        value = np.where(self.beta[-1] == -np.inf, -np.inf, 0.0)
        values = [value]
        for i in reversed(range(length)):
            onward = highest[i].take(ways.kind) + value.take(ways.to)
            value = np.maximum.reduceat(onward, ways.first)
            values.append(value)
        values.reverse()
        symbols = np.empty(length, np.int64)
        state = self.start
        for i in range(length):
            edges = self.edges_of(state)
            onward = peaks[i].take(self.symbol[edges]) + values[i + 1].take(self.to[edges])
            place = edges.start + int(onward.argmax())
            states[i], symbols[i], state = state, self.symbol[place], self.to[place]
        return symbols, states
