"""Templates with named slots, as tokens.

A text has the tokenizer's own tokens, and no others. Each slot's choices are tried in the whole template, so a token
may reach over a slot's edge (" yes" behind "is"); slots whose tokens depend on one another are decided together. The
language of the texts, and the posterior of the choices: `slots`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import RequestError, shown

if TYPE_CHECKING:
    from dgemma_core.files.text import Tokenizer

Tokens = tuple[int, ...]
MARK = re.compile(r"(\\?)\{([^\W\d]\w*)\}")
r"""A slot: a name in braces. Other braces stand for themselves, as does \{name}."""
COMBINED = 4096
"""Most combinations of choices of slots that are decided together."""
_TRIED = 64
"""Drawn texts whose tokens are compared with the tokenizer's."""


@dataclass(frozen=True)
class Part:
    """A stretch of the text: one of some sequences of tokens."""

    slots: tuple[int, ...]
    """The slots that it decides; none where it is the template's own."""
    alternatives: tuple[Tokens, ...]
    decisions: tuple[tuple[int, ...], ...]
    """Of each alternative, which choice of each of these slots it holds."""


@dataclass(frozen=True, eq=False)
class Form:
    """A template over a checkpoint's tokens. Make it with `form`."""

    names: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    """Of each slot."""
    pieces: tuple[str, ...]
    """The template's text before, between and behind the slots."""
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """How many assignments there are."""
        return prod(map(len, self.choices))

    @property
    def longest(self) -> int:
        """Most tokens of a text, without its end."""
        return sum(max(map(len, part.alternatives)) for part in self.parts)

    def text(self, decisions: Sequence[int]) -> str:
        """The text that an assignment stands for; decisions: the choice of each slot."""
        return _text(self.pieces, self.choices, decisions)

    def tokens(self, decisions: Sequence[int]) -> Tokens:
        """Its tokens, without its end."""
        found: list[int] = []
        for part in self.parts:
            own = tuple(decisions[slot] for slot in part.slots)
            found += part.alternatives[part.decisions.index(own)]
        return tuple(found)

    def assignments(self) -> Iterator[tuple[int, ...]]:
        """All of them, the last slot's choice changing first."""
        return product(*(range(len(each)) for each in self.choices))


def _text(pieces: Sequence[str], choices: Sequence[Sequence[str]], decisions: Sequence[int]) -> str:
    filled = (each[decision] for each, decision in zip(choices, decisions, strict=True))
    return pieces[0] + "".join(
        choice + piece for choice, piece in zip(filled, pieces[1:], strict=True)
    )


def form(template: str, slots: Mapping[str, Iterable[str]], tokenizer: Tokenizer) -> Form:
    """The form of a template in which each `{name}` of `slots` is to be one of its choices.

    Raises RequestError where template and slots do not fit, choices are missing or doubled, two assignments make the
    same text, or the tokenizer cannot spell one.
    """
    pieces, names = _pieces(template)
    choices = _choices(names, slots)
    spelled: dict[str, Tokens] = {}

    def encode(decisions: Sequence[int]) -> Tokens:
        text = _text(pieces, choices, decisions)
        if text not in spelled:
            spelled[text] = tuple(tokenizer.encode(text))
            if (again := tokenizer.decode(spelled[text])) != text:
                raise RequestError(
                    f"the tokenizer cannot spell {shown(text)}: it reads it back as {shown(again)}; change the choices "
                    "or the template"
                )
        return spelled[text]

    counts = [len(each) for each in choices]
    parts = _Parting(encode, counts, names).parts()
    found = Form(names, choices, pieces, parts)
    random = Random(0)
    for _ in range(_TRIED):
        drawn = [random.randrange(count) for count in counts]
        if found.tokens(drawn) != encode(drawn):
            raise RequestError(
                f"the tokenizer spells the slots of {shown(found.text(drawn))} in a way that depends on other slots: "
                "put text between them"
            )
    return found


def form_of_tokens(name: str, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> Form:
    """The form that is one slot alone, of choices whose tokens are given."""
    part = Part((0,), tuple(map(tuple, tokens)), tuple((i,) for i in range(len(texts))))
    if not texts or len(set(part.alternatives)) < len(texts) or () in part.alternatives:
        raise RequestError(f"slot {name}: its choices must be different texts, got {shown(texts)}")
    return Form((name,), (tuple(texts),), ("", ""), (part,))


def _pieces(template: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts around a template's slots, and the slots' names."""
    if not isinstance(template, str):
        raise RequestError(f"a template must be a text, got {shown(template)}")
    pieces, names, end = [""], [], 0
    for mark in MARK.finditer(template):
        pieces[-1] += template[end : mark.start()]
        end = mark.end()
        if mark[1]:
            pieces[-1] += mark[0][1:]
        else:
            names.append(mark[2])
            pieces.append("")
    pieces[-1] += template[end:]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"slot {name} stands twice in the template: give each place a name of its own"
            )
    return tuple(pieces), tuple(names)


def _choices(names: Sequence[str], slots: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(slots, Mapping):
        raise RequestError(f"slots must map names to lists of choices, got {shown(slots)}")
    for name in names:
        if name not in slots:
            raise RequestError(
                f"the template's slot {name} has no choices: add it to the slots, or write \\{{{name}}} for the text"
            )
    for name in slots:
        if name not in names:
            raise RequestError(
                f"unknown slot {name}: the template has {', '.join(names) or 'no slots'}"
            )
    found = []
    for name in names:
        given = slots[name]
        choices = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else ()
        if not choices or not all(isinstance(choice, str) for choice in choices):
            raise RequestError(
                f"slot {name}: choices must be a list of at least one text, got {shown(given)}"
            )
        doubled = [choice for choice in choices if choices.count(choice) > 1]
        if doubled:
            raise RequestError(f"slot {name}: the choice {shown(doubled[0])} is there twice")
        found.append(choices)
    if all(len(choices) == 1 for choices in found):
        raise RequestError("nothing to decide: give at least one slot two choices")
    return tuple(found)


class _Parting:
    """Finds the tokens of a template that each slot changes.

    encode: decisions → tokens of the whole text. In what a slot changes, the tokens before the first and behind the
    last difference are left out.
    """

    def __init__(
        self, encode: Callable[[Sequence[int]], Tokens], counts: Sequence[int], names: Sequence[str]
    ) -> None:
        self.encode, self.counts, self.names = encode, counts, names
        self.base = encode([0] * len(counts))

    def parts(self) -> tuple[Part, ...]:
        """From left to right; slots of one choice belong to the template."""
        groups: list[tuple[int, ...]] = [
            (slot,) for slot, count in enumerate(self.counts) if count > 1
        ]
        windows = {group: self._window(group) for group in groups}
        while (near := self._dependent(groups, windows)) is not None:
            merged = groups[near] + groups[near + 1]
            groups[near : near + 2] = [merged]
            windows[merged] = self._window(merged)
        found, at = [], 0
        for group in groups:
            begin, end, part = windows[group]
            found += [self._own(at, begin), part]
            at = end
        found.append(self._own(at, len(self.base)))
        return tuple(part for part in found if part.alternatives != ((),))

    def _own(self, begin: int, end: int) -> Part:
        return Part((), (self.base[begin:end],), ((),))

    def _combinations(self, slots: Sequence[int]) -> Iterator[tuple[int, ...]]:
        return product(*(range(self.counts[slot]) for slot in slots))

    def _with(self, slots: Sequence[int], decisions: Sequence[int]) -> Tokens:
        chosen = [0] * len(self.counts)
        for slot, decision in zip(slots, decisions, strict=True):
            chosen[slot] = decision
        return self.encode(chosen)

    def _window(self, slots: tuple[int, ...]) -> tuple[int, int, Part]:
        """Where in the base's tokens the slots' part begins and ends, and the part."""
        number = prod(self.counts[slot] for slot in slots)
        if len(slots) > 1 and number > COMBINED:
            names = ", ".join(self.names[slot] for slot in slots)
            raise RequestError(
                f"the tokens of the slots {names} depend on one another, and they have {number} combinations, more "
                f"than {COMBINED}: put text between them"
            )
        decisions = tuple(self._combinations(slots))
        texts = [self._with(slots, each) for each in decisions]
        before = min(_common(self.base, text) for text in texts)
        room = min(map(len, texts)) - before
        behind = min(room, *(_common(self.base[::-1], text[::-1]) for text in texts))
        alternatives = tuple(text[before : len(text) - behind] for text in texts)
        return before, len(self.base) - behind, Part(slots, alternatives, decisions)

    def _dependent(
        self,
        groups: Sequence[tuple[int, ...]],
        windows: Mapping[tuple[int, ...], tuple[int, int, Part]],
    ) -> int | None:
        """The first of two neighbours whose tokens depend on one another; None where there are none."""
        for place, (one, other) in enumerate(pairwise(groups)):
            (begin, end, first), (next_begin, next_end, second) = windows[one], windows[other]
            if end > next_begin:
                return place
            head, between, tail = self.base[:begin], self.base[end:next_begin], self.base[next_end:]
            pairs = list(product(range(len(first.decisions)), range(len(second.decisions))))
            if len(pairs) > COMBINED:
                pairs = Random(0).sample(pairs, COMBINED)
            for i, j in pairs:
                tokens = head + first.alternatives[i] + between + second.alternatives[j] + tail
                if tokens != self._with(one + other, first.decisions[i] + second.decisions[j]):
                    return place
        return None


def _common(one: Tokens, other: Tokens) -> int:
    """Length of the longest common beginning."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
