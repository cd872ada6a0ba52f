"""Tests a constraint against examples: a grammar that does not hold every right answer costs accuracy at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgemma_core.constraints.automaton import NOWHERE
from dgemma_core.constraints.building import pattern_of
from dgemma_core.constraints.patterns import compiled

if TYPE_CHECKING:
    from dgemma_core.constraints.language import Constraint
    from dgemma_core.files.checkpoint import Loaded

_SHOWN = 24
"""Characters of a text around the place where it leaves the language."""


@dataclass(frozen=True)
class Verdict:
    """Whether a text is in a constraint's language, and where it leaves it."""

    text: str
    accepted: bool
    place: int | None = None
    """The character from which no text of the language goes on; the text's length where it ends too soon."""
    expected: str = ""
    """Characters that may stand there, some of them."""
    tokens: int | None = None
    """How many tokens the text takes with its end; None where it was not tokenised."""
    spelled: bool = True
    """Whether the tokenizer's own tokens of the text are in the language over tokens."""

    @property
    def reason(self) -> str:
        """One line."""
        if self.accepted:
            return "accepted" if self.spelled else "accepted, but not by the tokenizer's own tokens"
        assert self.place is not None
        if self.place == len(self.text):
            return f"ends too soon; {self.expected} may follow"
        begun, rest = self.text[: self.place][-_SHOWN:], self.text[self.place :][:_SHOWN]
        return f"leaves the language at character {self.place}: {begun!r} then {rest!r}; {self.expected} may follow"


def examined(
    constraint: Constraint, texts: list[str], loaded: Loaded | None = None
) -> list[Verdict]:
    """A verdict a text. loaded: whose tokens are to spell them; None: the texts alone are looked at.

    Raises RequestError where the constraint itself cannot be met.
    """
    language = compiled(pattern_of(constraint))
    automaton = None if loaded is None else constraint.compile(loaded)
    found = []
    for text in texts:
        data = text.encode()
        count = language.accepted(data)
        if count <= len(data):
            place = len(data[:count].decode(errors="ignore"))
            state = language.start
            for byte in text[:place].encode():
                state = int(language.delta[state, byte])
            may = [chr(b) for b in range(32, 127) if language.delta[state, b] != NOWHERE]
            expected = _listed(may, bool(language.accepting[state]))
            found.append(Verdict(text, False, place, expected))
            continue
        if automaton is None or loaded is None or loaded.tokenizer is None:
            found.append(Verdict(text, True))
            continue
        ids = loaded.tokenizer.encode(text)
        state = automaton.after(ids)
        spelled = state != NOWHERE and bool(automaton.accepting[state])
        found.append(Verdict(text, True, tokens=len(ids) + 1, spelled=spelled))
    return found


def _listed(characters: list[str], may_end: bool) -> str:
    shown = " ".join(map(repr, characters[:8])) + (" …" if len(characters) > 8 else "")
    return (
        " or ".join(filter(None, (shown, "the end" if may_end else ""))) or "no printable character"
    )
