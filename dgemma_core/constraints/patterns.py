"""Regular expressions as automata over bytes, by outlines-core (Rust's regex-automata).

outlines-core makes an index of a vocabulary; given the 256 bytes as its vocabulary, that is the automaton over bytes.
It searches like Perl: of `a|ab`, only `a` is found. A mark behind the expression, a character that stands for nothing
(U+10FFFF), makes it go on to the end of the text.

A short expression may need more states than there is memory, and the library knows no bound. So it works in a process
of its own, which has a limit of time and of memory; starting it takes some 0.1 s.
"""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgemma_core.constraints.automaton import NOWHERE, Bools, Ints, _passed
from dgemma_core.errors import RequestError

MARK = "\U0010ffff"
STATES = 20_000
"""Most states of an automaton over bytes."""
SECONDS = 20
"""Most time that the library may take for one expression."""
_WORK = """
import contextlib, resource, sys
with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
import numpy as np
from outlines_core import Index, Vocabulary
try:
    index = Index(sys.stdin.buffer.read().decode(), Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)}))
except ValueError as error:
    sys.exit(f"refused: {error}")
ways = [(state, byte, to) for state, each in index.get_transitions().items() for byte, to in each.items()]
np.savez(sys.stdout.buffer, ways=np.array(ways, np.int64).reshape(-1, 3), start=index.get_initial_state(),
         final=np.array(sorted(index.get_final_states()), np.int64))
"""


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """delta (S, 256): the state that a byte leads to, or NOWHERE; accepting (S,). Minimal."""

    delta: Ints
    accepting: Bools
    start: int

    def accepted(self, text: bytes) -> int:
        """How many bytes of a text go on, from its beginning; their number + 1 where the text is in the language."""
        state = self.start
        for place, byte in enumerate(text):
            state = int(self.delta[state, byte])
            if state == NOWHERE:
                return place
        return len(text) + int(self.accepting[state])


def compiled(pattern: str) -> ByteAutomaton:
    """The automaton of a regular expression, which holds for the whole text.

    Raises RequestError for one that is none, or whose language is empty or needs too many states.
    """
    if MARK in pattern:
        raise RequestError("a regular expression cannot hold the character U+10FFFF: leave it out")
    try:
        written = f"(?:{pattern}){MARK}".encode()
    except UnicodeEncodeError as error:
        raise RequestError(_reason(pattern, f"error: it is no valid text, {error}")) from error
    many = f"this constraint needs too many states, more than {STATES}: shorten counted repetitions"
    command = [sys.executable, "-c", _WORK]
    try:
        done = subprocess.run(command, input=written, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RequestError(many) from error
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        why = said.removeprefix("refused: ")
        raise RequestError(many if why == said else _reason(pattern, why))
    found = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    source, byte, to = found["ways"].T
    names = np.unique(np.concatenate((source, to)))
    if len(names) > STATES:
        raise RequestError(many)
    delta = np.full((len(names), 256), NOWHERE, np.int32)
    known = byte < 256
    delta[np.searchsorted(names, source[known]), byte[known]] = np.searchsorted(names, to[known])
    final = np.isin(names, found["final"])
    accepting = _marked(delta, final)
    start = int(np.searchsorted(names, found["start"]))
    kept = _passed(delta, start, accepting)
    if not kept[start]:
        raise RequestError("no text satisfies this constraint: its language is empty")
    return _minimal(delta, accepting, start, kept)


def _reason(pattern: str, error: str) -> str:
    shown = pattern if len(pattern) <= 60 else f"{pattern[:57]}…"
    if "Found no transitions" in error:
        return f"no text satisfies the regular expression {shown!r}: its language is empty"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "")
    return (
        f"the regular expression {shown!r} cannot be an automaton ({reason.removeprefix('error: ')}): write it in "
        "Rust's syntax, without look-around and backreferences"
    )


def _marked(delta: Ints, final: Bools) -> Bools:
    """(S,) bool: states from which the mark leads to a final one."""
    states = np.arange(len(delta))
    for byte in MARK.encode():
        states = np.where(states == NOWHERE, NOWHERE, delta[states, byte])
    return np.where(states == NOWHERE, False, final[states])


def _minimal(delta: Ints, accepting: Bools, start: int, kept: Bools) -> ByteAutomaton:
    """Without the states that are not kept, and states that accept the same texts made one (Moore's refinement)."""
    names = np.full(len(delta) + 1, NOWHERE, np.int32)
    names[:-1][kept] = np.arange(kept.sum())
    delta, accepting = names[delta[kept]], accepting[kept]
    columns, column_of = np.unique(delta, axis=1, return_inverse=True)
    group: NDArray[np.int64] = accepting.astype(np.int64)
    count = 0
    while count != (count := group.max() + 1):
        led = np.append(group, NOWHERE)[columns]
        rows = np.ascontiguousarray(np.column_stack((group, led)))
        _, group = np.unique(rows.view([("", rows.dtype)] * rows.shape[1]), return_inverse=True)
        group = group.reshape(-1)
    _, first = np.unique(group, return_index=True)
    smaller = np.append(group, NOWHERE)[columns[first]]
    return ByteAutomaton(
        delta=smaller[:, column_of.reshape(-1)].astype(np.int32),
        accepting=accepting[first],
        start=int(group[names[start]]),
    )
