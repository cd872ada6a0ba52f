"""What a kind of request is: its wordings, what it is about, its reply and its verifier; and how examples are drawn.

Held out of training, by hash: a tenth of each kind's wordings, but for those that everybody types, and
a tenth of what requests are about (a twentieth for validation, a twentieth for the test). A request that is
about nothing ("hello") is tested in held-out wordings alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from random import Random
from typing import Any, Literal

from dgemma_core.nano.english.words import takes_an

Slots = dict[str, Any]
Message = dict[str, str]
Split = Literal["train", "validation", "test_slots", "test_wordings"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test_slots", "test_wordings")


@dataclass(frozen=True)
class Example:
    """One request and a reply that its verifier accepts.

    `messages` is the chat so far, the request last. `wording` numbers the wording among those of
    the kind. `noise` names what was done to the request: "typo", "case", "mark", "courtesy".
    `blank` is the part of the reply that a gap in the request asks for, as (first, last + 1)
    characters: what stands around it may be pinned.
    """

    kind: str
    seed: int
    split: Split
    messages: tuple[Message, ...]
    reply: str
    slots: Slots = field(repr=False)
    wording: int = 0
    noise: tuple[str, ...] = ()
    blank: tuple[int, int] | None = None

    @property
    def prompt(self) -> str:
        """The request: the last message."""
        return self.messages[-1]["content"]

    @property
    def family(self) -> str:
        """The kind, by the name that families.py uses."""
        return self.kind

    @property
    def answer(self) -> str:
        """The reply, by the name that families.py uses."""
        return self.reply


def bucket(*parts: object) -> int:
    """0 … 99, from a hash of the parts."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100


def expanded(pattern: str) -> list[str]:
    """All texts of a pattern with choices in brackets: "[a|b] c" gives "a c" and "b c"."""
    found = re.search(r"\[([^\[\]]*)\]", pattern)
    if found is None:
        return [re.sub(r" {2,}", " ", pattern).strip()]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [text for choice in found[1].split("|") for text in expanded(before + choice + after)]


SLOT = re.compile(r"\{([a-z_]+)\}")
QUESTION = re.compile(
    r"(so |and )?(who|what|which|why|how|where|when|are|is|am|do|does|did|can|could|will|would|may|shall)\b"
)


def marked(text: str) -> str:
    """A wording with "{end}" replaced by the mark that its first word asks for."""
    return text.replace("{end}", "?" if QUESTION.match(text.lower()) else ".")


COURTESY = re.compile(r"\b(please|hey|hi|hello|nano|thanks|thank you|can you|could you|will you)\b")


def plain_form(wording: str) -> str:
    """A wording without what noise may add or take: two wordings with one plain form are the same one."""
    low = re.sub(r"\{[^}]*\}", lambda slot: slot[0].lower() + "0", wording.lower())
    low = COURTESY.sub(" ", low)
    return " ".join(re.findall(r"[a-z0-9]+", low))


def words_of(wording: str) -> str:
    """A wording in small letters, without marks."""
    return " ".join(re.findall(r"[a-z0-9{_}']+", wording.lower()))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of request.

    `wordings` are patterns by the value of slots["ask"] (one group, "", where a kind asks in one
    way). `draw` chooses what a request is about, `write` its reply, `check` judges any reply.
    `key` names the slots whose values are held out together (none: those that the wording shows).
    A `closed` kind asks for facts that must all be learnt: there a fact in a certain wording is
    held out, not the fact. `history` gives the chat before the request. `late`: late words of the
    reply decide early ones.
    """

    name: str
    about: str
    wordings: Mapping[str, Sequence[str]]
    draw: Callable[[Random], Slots]
    write: Callable[[Slots, Random], str]
    check: Callable[[Slots, str], bool]
    key: tuple[str, ...] = ()
    closed: bool = False
    held_with: str = ""
    """The kind whose held-out slots are held out here, too; "": its own."""
    late: bool = False
    history: Callable[[Slots, Random], list[Message]] | None = None
    blank: Callable[[Slots, str], tuple[int, int]] | None = None
    exact: tuple[str, ...] = ("text", "word")
    """Slots that noise leaves as they are."""
    courtesy: bool = True
    """Whether "please" and the like may be put around a request."""
    everyday: frozenset[str] = frozenset()
    """Wordings that are never held out, as everybody types them."""
    brief: Callable[[Slots], str] | None = None
    """The canonical reply, where it is another than `write` with a seed of one's choice."""

    @cached_property
    def texts(self) -> dict[str, tuple[tuple[int, str, bool], ...]]:
        """For each way to ask: the wordings as (number, text, whether it is held out of training).

        Where noise puts courtesies around a request, "Good night" and "Good night, nano!" are one wording. Where it
        does not, as a courtesy may be all that is said, they are two that share a number and a side.
        """
        number, found = 0, {}
        for ask, patterns in self.wordings.items():
            seen: dict[str, tuple[int, str, bool]] = {}
            numbers: dict[str, int] = {}
            for text in (marked(text) for pattern in patterns for text in expanded(pattern)):
                form = plain_form(text)
                if form not in numbers:
                    numbers[form] = number
                    number += 1
                held = bucket("wording", form) < 10
                key = form if self.courtesy else words_of(text)
                seen.setdefault(key, (numbers[form], text, held))
            found[ask] = tuple(seen.values())
        return found

    def is_everyday(self, wording: str) -> bool:
        """Whether everybody types it, so that it must be learnt; courtesies around it change nothing."""
        return plain_form(wording) in self._everyday_forms

    @cached_property
    def _everyday_forms(self) -> frozenset[str]:
        return frozenset(map(plain_form, self.everyday))

    @cached_property
    def chosen(self) -> dict[tuple[str, bool], tuple[tuple[int, str], ...]]:
        """Wordings by (way to ask, held out). Where a way has none of a sort, its last wording is held out; what is
        everyday never is."""
        table: dict[tuple[str, bool], tuple[tuple[int, str], ...]] = {}
        for ask, texts in self.texts.items():
            if not any(held for _, _, held in texts) and len(texts) > 4:
                number, text, _ = texts[-1]
                texts = (*texts[:-1], (number, text, True))
            for side in (False, True):
                table[ask, side] = tuple(
                    (number, text)
                    for number, text, held in texts
                    if (held and not self.is_everyday(text)) == side
                )
        return table

    @property
    def wording_count(self) -> int:
        """How many different wordings there are."""
        return sum(len(texts) for texts in self.texts.values())

    def split_of(self, slots: Slots, number: int, wording: str) -> Split:
        """The split that a request about these slots, in a wording that is trained, belongs to.

        Where nothing is asked about, only wordings can be held out: tests then ask in those that are.
        """
        about = self._about(slots, wording)
        if not any(about):
            own = not self.is_everyday(wording) and bucket(self.name, plain_form(wording)) < 5
            return "validation" if own else "train"
        number = bucket(self.held_with or self.name, about, number if self.closed else "")
        return "test_slots" if number < 5 else "validation" if number < 10 else "train"

    def _about(self, slots: Slots, wording: str) -> tuple[Any, ...]:
        return tuple(slots.get(name, "") for name in (self.key or SLOT.findall(wording)))

    def _free(self, slots: Slots, wording: str) -> bool:
        """Whether nothing is asked about."""
        return not any(self._about(slots, wording))

    def example(self, seed: int, split: Split) -> Example:
        """The example that `seed` draws for `split`."""
        rng = Random(f"{self.name} {split} {seed}")
        unseen = split == "test_wordings"
        wanted = "train" if unseen else split
        while True:
            slots = self.draw(rng)
            texts = self.chosen[slots.get("ask", ""), unseen]
            if not texts:
                continue
            number, wording = texts[int(rng.random() * len(texts))]
            free = self._free(slots, wording)
            if unseen and (self.closed or free):
                break
            if self.split_of(slots, number, wording) == wanted:
                break
            if free and split == "test_slots" and rng.random() < 0.05:  # as rare as unseen slots
                held = self.chosen[slots.get("ask", ""), True]
                others = [each for each in held if self._free(slots, each[1])]
                if others:
                    number, wording = rng.choice(others)
                    break
        reply = self.write(slots, rng)
        request, noise = asked(wording, slots, rng, self.exact, self.courtesy)
        before = self.history(slots, rng) if self.history else []
        return Example(
            self.name,
            seed,
            split,
            (*before, {"role": "user", "content": request}),
            reply,
            slots,
            number,
            noise,
            self.blank(slots, reply) if self.blank else None,
        )

    def canonical(self, example: Example, seed: int) -> Example:
        """The same request with its brief reply, or else the one that `seed` writes, not its own."""
        slots = example.slots
        return replace(
            example, reply=self.brief(slots) if self.brief else self.write(slots, Random(seed))
        )

    def accepts(self, slots: Slots, reply: str) -> bool:
        """The verifier's verdict on any text; white space around it is left out."""
        return self.check(slots, reply.strip())


NEIGHBOURS = {
    "a": "sq",
    "b": "vn",
    "c": "xv",
    "d": "sf",
    "e": "wr",
    "f": "dg",
    "g": "fh",
    "h": "gj",
    "i": "uo",
    "j": "hk",
    "k": "jl",
    "l": "k",
    "m": "n",
    "n": "bm",
    "o": "ip",
    "p": "o",
    "q": "w",
    "r": "et",
    "s": "ad",
    "t": "ry",
    "u": "yi",
    "v": "cb",
    "w": "qe",
    "x": "zc",
    "y": "tu",
    "z": "x",
}


def mistyped(word: str, rng: Random) -> str:
    """A word with one slip of the fingers: two letters swapped, one left out, doubled, or its neighbour hit."""
    if len(word) < 3 or not word.isascii() or not word.isalpha():
        return word
    at = rng.randrange(1, len(word))
    how = rng.randrange(4)
    if how == 0 and at + 1 < len(word) and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if how == 1:
        return word[:at] + word[at + 1 :]
    if how == 2:
        return word[:at] + word[at] + word[at:]
    near = NEIGHBOURS.get(word[at].lower(), "e")
    return word[:at] + rng.choice(near) + word[at + 1 :]


BEFORE = (
    "please ",
    "hey, ",
    "hi nano, ",
    "hello, ",
    "nano, ",
    "hey nano, ",
    "ok, ",
    "now ",
    "and now ",
    "so, ",
)
AFTER = (" please", ", please", ", thanks", " thanks", ", thank you", ", nano", " for me", " now")


def asked(
    wording: str, slots: Slots, rng: Random, exact: tuple[str, ...], courtesy: bool = True
) -> tuple[str, tuple[str, ...]]:
    """A wording with its slots filled in, as somebody types it, and what was done to it."""
    parts = SLOT.split(wording)  # text, slot, text, slot, …, text
    for i in range(1, len(parts), 2):
        if parts[i - 1].endswith((" a ", "A ")) and takes_an(str(slots[parts[i]])):
            parts[i - 1] = parts[i - 1][:-1] + "n "
    noise: list[str] = []
    low = upper = False
    if rng.random() < 0.55:
        if rng.random() < 0.3:
            noise.append("typo")
            for _ in range(1 if rng.random() < 0.7 else 2):
                i = 2 * rng.randrange(len(parts) // 2 + 1)
                words = parts[i].split(" ")
                if words:
                    at = rng.randrange(len(words))
                    words[at] = mistyped(words[at], rng)
                    parts[i] = " ".join(words)
        if rng.random() < 0.5:
            noise.append("case")
            low = rng.random() < 0.93
            upper = not low
        if rng.random() < 0.5:
            last = parts[-1].rstrip()
            if last and last[-1] in ".?!":
                parts[-1] = last[:-1]
                noise.append("mark")
        if courtesy and rng.random() < 0.2 and len(parts[0]) > 1:
            noise.append("courtesy")
            if rng.random() < 0.6:
                first = parts[0]
                parts[0] = rng.choice(BEFORE) + (
                    first if first[:2] in ("I ", "I'") else first[0].lower() + first[1:]
                )
                parts[0] = parts[0][0].upper() + parts[0][1:]
            elif parts[-1].strip(" ") in ("", ".", "?", "!") and (
                len(parts) == 1 or parts[-2] not in exact
            ):
                parts[-1] = rng.choice(AFTER) + parts[-1]
    out = []
    for i, part in enumerate(parts):
        text = str(slots[part]) if i % 2 else part
        kept = i % 2 and part in exact
        out.append(text if kept else text.lower() if low else text.upper() if upper else text)
    return "".join(out), tuple(noise)


def said(role: str, text: str) -> Message:
    """A message of a chat."""
    return {"role": role, "content": text}
