"""One grammar that writes and reads.

A rule is text with four marks:

    [ran|walked|]      one of several texts, the last one empty
    [?It was late.]    a part that short texts leave out
    {A.he} {+mood}     a form of the word that plays role A; a fresh word of a list
    <ending>           another rule

Writing draws from the choices. Reading finds choices and words that give exactly this text, with
every role played by one word throughout, "a" and "an" by the sound that follows, a capital where a
sentence begins, and spaces where they belong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from dgemma_core.nano.english.words import Entry, takes_an

TOKEN = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*|'[a-z]+|\d+|\n|[^\w\s]|_+|[^\W\d_]+|\S")
MARK = re.compile(r"\[\??|\||\]|\{[^}]*\}|<[a-z_0-9]+>|[^\[\]|{}<>]+")
LONGEST = 600
"""Tokens; longer texts are not read at all."""
PATIENCE = 60_000
"""Steps after which the reader gives up."""

Roles = Mapping[str, Entry]
Words = Mapping[str, Sequence[Entry]]


def tokens_of(text: str) -> list[str]:
    """Words, numbers, line breaks and signs of a text."""
    return TOKEN.findall(text)


def joined(tokens: Iterable[str]) -> str:
    """Tokens as text, with spaces where English wants them."""
    out: list[str] = []
    glue, quoted = True, False
    for token in tokens:
        closing = token == '"' and quoted
        tight = glue or closing or token in {".", ",", "!", "?", ";", ":", "\n"} or token[0] == "'"
        out.append(token if tight else " " + token)
        if token == '"':
            quoted = not quoted
        glue = token == "\n" or (token == '"' and quoted)
    return "".join(out)


def begins_sentence(tokens: Sequence[str]) -> list[bool]:
    """For each token whether a sentence (or quotation, or line) begins there."""
    flags, start, quoted, last = [], True, False, ""
    for token in tokens:
        if token == '"':
            quoted = not quoted
            flags.append(start and quoted)
            start = last != "," if quoted else last == "."
            continue
        flags.append(start)
        start = token in {".", "!", "?", "\n"} or (start and not token[0].isalnum())
        last = token
    return flags


SPACES = re.compile(r" {2,}")
BEFORE_SIGN = re.compile(r" +([.,!?;:\n])")
ARTICLE = re.compile(r"\b([Aa])n? (?=(\"?[A-Za-z0-9-]+))")
SENTENCE = re.compile(r"(^|[.!?\n] ?|\.\" |(?:^|[^,] |\n)\")([a-z])")


def tidy(text: str) -> str:
    """Spaces, articles and capitals set right in a text put together from parts."""
    text = BEFORE_SIGN.sub(r"\1", SPACES.sub(" ", text)).replace("\n ", "\n").strip()
    text = ARTICLE.sub(_article, text)
    return SENTENCE.sub(_capital, text)


def _article(found: re.Match[str]) -> str:
    return f"{found[1]}{'n' if takes_an(found[2].lstrip(chr(34))) else ''} "


def _capital(found: re.Match[str]) -> str:
    return found[1] + found[2].upper()


@dataclass
class Reading:
    """A text as it is read: its tokens, and each as it would be inside a sentence."""

    tokens: list[str]
    inner: list[str]
    steps: int = 0


Continue = Callable[[int, Roles], bool]


class Node:
    """A part of a rule."""

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        """Appends what this part says."""
        raise NotImplementedError

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        """True where this part and what comes after it give the text from token `at` on."""
        raise NotImplementedError


class Literal(Node):
    """Fixed words."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens_of(text)

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        out.append(self.text)

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        end = matched(text, at, self.tokens)
        return end >= 0 and then(end, roles)


def matched(text: Reading, at: int, wanted: Sequence[str]) -> int:
    """The place behind `wanted` where the text has these tokens at `at`, else −1."""
    text.steps += 1
    end = at + len(wanted)
    if end > len(text.tokens) or text.steps > PATIENCE:
        return -1
    for i, token in enumerate(wanted, at):
        seen = text.tokens[i]
        if seen != token and text.inner[i] != token:
            if token not in ("a", "A") or text.inner[i].lower() not in ("a", "an"):
                return -1
            if token == "A" and seen[0] != "A":
                return -1
            if i + 1 < len(text.tokens) and takes_an(text.tokens[i + 1]) != (len(seen) == 2):
                return -1
        elif token in ("a", "A") and i + 1 < len(text.tokens) and takes_an(text.tokens[i + 1]):
            return -1
    return end


class Slot(Node):
    """A form of the word that plays a role; a role that nobody plays yet is taken on by reading."""

    def __init__(self, role: str, form: str, grammar: Grammar) -> None:
        self.role, self.form, self.grammar = role, form, grammar

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        out.append(roles[self.role].say(self.form))

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        entry = roles.get(self.role)
        if entry is not None:
            end = matched(text, at, tokens_of(entry.say(self.form)))
            return end >= 0 and then(end, roles)
        taken = set(roles.values())
        for candidate, end in self.grammar.candidates(
            self.grammar.cast[self.role], self.form, text, at
        ):
            if candidate not in taken and then(end, {**roles, self.role: candidate}):
                return True
        return False


class Fresh(Node):
    """Any word of a list."""

    def __init__(self, name: str, form: str, grammar: Grammar) -> None:
        self.name, self.form, self.grammar = name, form, grammar

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        words = self.grammar.words[self.name]
        out.append(words[int(rng.random() * len(words))].say(self.form))

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        return any(
            then(end, roles) for _, end in self.grammar.candidates(self.name, self.form, text, at)
        )


class Rule(Node):
    """Another rule by name."""

    def __init__(self, name: str, grammar: Grammar) -> None:
        self.name, self.grammar = name, grammar

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        self.grammar.node(self.name).write(out, roles, rng, length)

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        return self.grammar.node(self.name).read(text, at, roles, then)


class Sequence_(Node):
    """Parts one after the other."""

    def __init__(self, parts: list[Node]) -> None:
        self.parts = parts

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        for part in self.parts:
            part.write(out, roles, rng, length)

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        return self._from(0, text, at, roles, then)

    def _from(self, first: int, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        while first < len(self.parts):
            part = self.parts[first]
            first += 1
            if not isinstance(part, Literal):
                return part.read(text, at, roles, self._rest(first, text, then))
            at = matched(text, at, part.tokens)  # most parts are literal: no continuation needed
            if at < 0:
                return False
        return then(at, roles)

    def _rest(self, first: int, text: Reading, then: Continue) -> Continue:
        return lambda end, roles: self._from(first, text, end, roles, then)


class Choice(Node):
    """One of several parts."""

    def __init__(self, options: list[Node]) -> None:
        self.options = options

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        self.options[int(rng.random() * len(self.options))].write(out, roles, rng, length)

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        return any(option.read(text, at, roles, then) for option in self.options)


class Optional(Node):
    """A part that is there with the text's length as its probability."""

    def __init__(self, part: Node) -> None:
        self.part = part

    def write(self, out: list[str], roles: Roles, rng: Random, length: float) -> None:
        if rng.random() < length:
            self.part.write(out, roles, rng, length)

    def read(self, text: Reading, at: int, roles: Roles, then: Continue) -> bool:
        return self.part.read(text, at, roles, then) or then(at, roles)


@dataclass
class Grammar:
    """Rules by name, word lists by name, and the list that each role is played from."""

    rules: Mapping[str, str | Sequence[str]]
    words: Words
    cast: Mapping[str, str] = field(default_factory=dict)
    _nodes: dict[str, Node] = field(default_factory=dict, repr=False)
    _index: dict[tuple[str, str], dict[str, list[tuple[Entry, list[str]]]]] = field(
        default_factory=dict, repr=False
    )

    def node(self, name: str) -> Node:
        """The rule called `name`, compiled at first use."""
        found = self._nodes.get(name)
        if found is None:
            rule = self.rules[name]
            texts = [rule] if isinstance(rule, str) else list(rule)
            options = [self.compiled(text) for text in texts]
            found = self._nodes[name] = options[0] if len(options) == 1 else Choice(options)
        return found

    def compiled(self, text: str) -> Node:
        """A rule's text as nodes."""
        marks = MARK.findall(text)
        node, at = self._choice(marks, 0)
        if at != len(marks):
            raise ValueError(f"unbalanced brackets in {text!r}")
        return node

    def _choice(self, marks: list[str], at: int) -> tuple[Node, int]:
        options: list[list[Node]] = [[]]
        while at < len(marks) and marks[at] != "]":
            mark = marks[at]
            if mark in ("[", "[?"):
                inner, at = self._choice(marks, at + 1)
                if at >= len(marks):
                    raise ValueError(f"an open bracket in {''.join(marks)!r}")
                options[-1].append(Optional(inner) if mark == "[?" else inner)
            elif mark == "|":
                options.append([])
            elif mark[0] == "{":
                name, _, form = mark[1:-1].partition(".")
                if name[0] == "+":
                    options[-1].append(Fresh(name[1:], form, self))
                else:
                    options[-1].append(Slot(name, form, self))
            elif mark[0] == "<":
                options[-1].append(Rule(mark[1:-1], self))
            else:
                options[-1].append(Literal(mark))
            at += 1
        parts: list[Node] = [o[0] if len(o) == 1 else Sequence_(o) for o in options]
        return (parts[0] if len(parts) == 1 else Choice(parts)), at

    def candidates(
        self, name: str, form: str, text: Reading, at: int
    ) -> Iterable[tuple[Entry, int]]:
        """Words of a list whose form stands in the text at `at`, each with the place behind it."""
        if at >= len(text.tokens):
            return
        index = self._index.get((name, form))
        if index is None:
            index = self._index[name, form] = {}
            for entry in self.words[name]:
                wanted = tokens_of(entry.say(form))
                first = "a" if wanted[0] == "an" else wanted[0]
                index.setdefault(first, []).append((entry, wanted))
        seen = {text.tokens[at], text.inner[at], "a" if text.inner[at] == "an" else ""}
        for first in sorted(seen):
            for entry, wanted in index.get(first, ()):
                end = matched(text, at, wanted)
                if end >= 0:
                    yield entry, end

    def write(self, name: str, roles: Roles, rng: Random, length: float = 0.5) -> str:
        """A text that the rule gives. length: the share of the optional parts that are there."""
        out: list[str] = []
        self.node(name).write(out, roles, rng, length)
        return tidy("".join(out))

    def reads(self, name: str, text: str, roles: Roles | None = None) -> Roles | None:
        """The roles under which the rule gives exactly this text, None if it cannot."""
        tokens = tokens_of(text)
        if not tokens or len(tokens) > LONGEST or joined(tokens) != text:
            return None
        inner = list(tokens)
        for i, begins in enumerate(begins_sentence(tokens)):
            if begins and tokens[i][0].isalpha():
                if tokens[i][0].islower():
                    return None
                inner[i] = tokens[i][0].lower() + tokens[i][1:]
        found: list[Roles] = []

        def ended(at: int, roles: Roles) -> bool:
            if at == len(tokens):
                found.append(roles)
            return at == len(tokens)

        self.node(name).read(Reading(tokens, inner), 0, roles or {}, ended)
        return found[0] if found else None

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that the rules can write, in lower case."""
        texts = [
            text
            for rule in self.rules.values()
            for text in ([rule] if isinstance(rule, str) else rule)
        ]
        plain = " ".join(re.sub(r"\{[^}]*\}|<[a-z_0-9]+>|[\[\]|?]", " ", text) for text in texts)
        return frozenset(token.lower() for token in tokens_of(plain) if token[0].isalpha())
