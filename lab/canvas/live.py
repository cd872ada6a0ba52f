"""A live run as the browser is told of it: which passes are sent as rows, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgemma_core.files.recording import as_array
from dgemma_core.files.trace import KINDS
from dgemma_lab.canvas.packing import Pass, TokenTable, joined, marks, pack, pass_from_event

ROWS_A_SECOND = 30  # at most, while a run is live: a browser draws no more


class Live:
    """A run under way: how many passes it has made, and of which of them the browser may still be told."""

    def __init__(self, eos: frozenset[int]) -> None:
        self.eos = eos
        self.passes = 0
        self.initial: list[int] | None = None
        self.sent = self.sent_tokens = (
            0  # passes that the rows sent reach up to; entries of the token table
        )
        self.states: set[int] = set()  # of a constraint's automaton, that occur in rows sent
        self.times: list[float] = []  # when the rows of the last second went out
        # (passes made by then, the pass, its marks): of each canvas the last; in autoregression every pass
        self._kept: list[tuple[int, Pass, NDArray[np.uint8]]] = []

    def add(self, event: Any, table: TokenTable, alternatives: int) -> None:
        diffusion = type(event).__name__ == "StepEvent"
        now = pass_from_event(event, len(event.tokens_out) if diffusion else 1, alternatives)
        self.passes += 1
        if not diffusion:
            self._kept.append((self.passes, now, marks(now, None, frozenset())))
            return
        if not self._kept:
            self.initial = table.local(as_array(event.tokens_in, int)).tolist()
        before = (
            self._kept.pop()[1] if self._kept and self._kept[-1][1].canvas == now.canvas else None
        )
        self._kept.append((self.passes, now, marks(now, before, self.eos)))

    def room(self, now: float) -> int:
        """How many rows may go out: none within a thirtieth of a second, 30 within a second whichever."""
        if self.times and now - self.times[-1] < 1 / ROWS_A_SECOND:
            return 0
        self.times = [at for at in self.times if now - at < 1]
        return ROWS_A_SECOND - len(self.times)

    def take(self, table: TokenTable, count: int) -> list[tuple[int, bytes]]:
        """The first `count` rows that wait, each with the passes made by its end; they count as sent."""
        waiting = [kept for kept in self._kept if kept[0] > self.sent]
        if waiting and waiting[0][1].kind == KINDS.index("token"):
            ends, passes, bits = zip(*waiting, strict=True)
            waiting = [(ends[-1], joined(passes), np.concatenate(bits))]
        self.sent = max([self.sent, *(end for end, _, _ in waiting[:count])])
        for _, now, _ in waiting[:count]:
            self.states.update(now.states[now.states >= 0].tolist())
        return [(end, pack(now, bits, table)) for end, now, bits in waiting[:count]]

    def back_to(self, first: int, first_token: int) -> None:
        """A view that came late has only so many passes and tokens: what is behind them waits again."""
        self.sent, self.sent_tokens = min(self.sent, first), min(self.sent_tokens, first_token)
