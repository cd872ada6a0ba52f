"""Single clauses: who does what where, in any tense, as a statement, a question or a denial."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from dgemma_core.nano.english.lexicon import (
    INTRANSITIVE,
    TIMES_NOW,
    TIMES_PAST,
    TRANSITIVE,
    VERBS,
    lists,
)
from dgemma_core.nano.english.words import Verb

PRONOUN_SUBJECTS = ("I", "you", "he", "she", "it", "we", "they")


@dataclass(frozen=True)
class Clause:
    """subject (as it stands inside a sentence), verb, what follows the verb, and a time at the end."""

    subject: str
    number: str
    """ "3s", "1s" (I) or "pl" (you, we, they, plural nouns)."""
    verb: Verb
    rest: str
    time: str = ""
    before: str = ""
    """An adverb of frequency in front of the verb: always, often, never."""

    def _sentence(self, *parts: str, mark: str = ".") -> str:
        text = " ".join(part for part in parts if part)
        return text[0].upper() + text[1:] + mark

    @property
    def present_verb(self) -> str:
        """The verb that agrees with the subject."""
        return self.verb.third if self.number == "3s" else self.verb.base

    def present(self) -> str:
        """Mia feeds the cat every day."""
        return self._sentence(self.subject, self.before, self.present_verb, self.rest, self.time)

    def past(self) -> str:
        """Mia fed the cat every day."""
        return self._sentence(self.subject, self.before, self.verb.past, self.rest, self.time)

    def future(self) -> str:
        """Mia will feed the cat every day."""
        if self.before:
            return self._sentence(
                self.subject, "will", self.before, self.verb.base, self.rest, self.time
            )
        return self._sentence(self.subject, "will", self.verb.base, self.rest, self.time)

    def question(self, tense: str = "present") -> str:
        """Does Mia feed the cat every day?"""
        do = "did" if tense == "past" else "does" if self.number == "3s" else "do"
        return self._sentence(
            do, self.subject, self.before, self.verb.base, self.rest, self.time, mark="?"
        )

    def denial(self, tense: str = "present", short: bool = False) -> str:
        """Mia does not feed the cat every day."""
        do = "did" if tense == "past" else "does" if self.number == "3s" else "do"
        no = f"{do}n't" if short else f"{do} not"
        return self._sentence(self.subject, no, self.verb.base, self.rest, self.time)

    def ongoing(self) -> str:
        """Mia is feeding the cat."""
        be = "is" if self.number == "3s" else "am" if self.number == "1s" else "are"
        return self._sentence(self.subject, be, self.verb.ing, self.rest)


def subject(rng: Random) -> tuple[str, str, str]:
    """A subject with its number and its class."""
    words = lists()
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(words["name"]).word, "3s", "name"
    if roll < 0.55:
        job = rng.choice(words["job"])
        return (
            (f"the {job.word}", "3s", "name")
            if rng.random() < 0.7
            else (f"the {job.say('pl')}", "pl", "name")
        )
    if roll < 0.65:
        a, b = rng.sample(words["name"], 2)
        return f"{a.word} and {b.word}", "pl", "name"
    if roll < 0.72:
        noun = rng.choice(
            ("sister", "brother", "mother", "father", "friend", "uncle", "aunt", "neighbour")
        )
        return f"{rng.choice(('my', 'her', 'his', 'our'))} {noun}", "3s", "name"
    if roll < 0.85:
        animal = rng.choice(words["animal"])
        return (
            (f"the {animal.word}", "3s", "animal")
            if rng.random() < 0.7
            else (f"the {animal.say('pl')}", "pl", "animal")
        )
    pronoun = rng.choice(("I", "he", "she", "we", "they"))
    return pronoun, {"I": "1s", "he": "3s", "she": "3s"}.get(pronoun, "pl"), "name"


def predicate(who: str, rng: Random) -> tuple[Verb, str]:
    """A verb that suits the class of the subject, and what follows it."""
    words = lists()
    if who == "animal":
        if rng.random() < 0.6:
            return VERBS[rng.choice(INTRANSITIVE["animal"])], rng.choice(words["place"]).say("in")
        return VERBS[
            rng.choice(("find", "see", "watch", "follow", "hear"))
        ], f"the {rng.choice(words['job']).word}"
    roll = rng.random()
    if roll < 0.3:
        base = rng.choice(INTRANSITIVE["name"])
        rest = (
            rng.choice(words["place"]).say("in")
            if rng.random() < 0.7
            else rng.choice(words["manner"]).word
        )
        return VERBS[base], rest
    kind = rng.choices(("thing", "food", "animal", "place", "job"), (4, 2, 2, 2, 2))[0]
    verb = VERBS[rng.choice(TRANSITIVE[kind])]
    entry = rng.choice(words[kind])
    if kind == "thing":
        roll = rng.random()
        if roll < 0.4:
            colour = rng.choice(words["colour"]).word
            return verb, rng.choice(
                (f"the {colour} {entry.word}", f"{a_or_an(colour)} {colour} {entry.word}")
            )
        return verb, entry.say("one") if roll < 0.7 else f"the {entry.word}"
    if kind == "food":
        return verb, entry.say("some") if rng.random() < 0.6 else f"the {entry.word}"
    if kind in ("animal", "job") and rng.random() < 0.3:
        return verb, entry.say("one")
    return verb, f"the {entry.word}"


def a_or_an(word: str) -> str:
    """The article before `word`."""
    from dgemma_core.nano.english.words import takes_an

    return "an" if takes_an(word) else "a"


def clause(rng: Random, time: str = "") -> Clause:
    """Any clause. time: "now" or "past" adds when, "" does not."""
    who, number, kind = subject(rng)
    verb, rest = predicate(kind, rng)
    if who.removeprefix("the ") in rest.split() or verb.base in who:  # the cook cooks the cook
        return clause(rng, time)
    when = rng.choice(TIMES_NOW if time == "now" else TIMES_PAST) if time else ""
    return Clause(who, number, verb, rest, when)
