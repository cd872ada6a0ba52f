"""Words and their forms: what the grammar asks of a noun, a person, a place or a verb.

Regular forms follow from spelling; the irregular ones are written out where a word is listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

VOWELS = "aeiou"
AN_BEFORE_CONSONANT = ("hour", "honest", "heir")
A_BEFORE_VOWEL = ("uni", "use", "usual", "one", "once", "ukulele", "eucalyptus", "euro")
DOUBLED = frozenset(
    "stop plan drop hop skip clap hug hum nod pat pet rub shop slip step tip trip wrap plod trot "
    "tap "
    "grab drag chat knit sob beg jog swim run sit get win dig cut put set begin forget shut spin "
    "hit "
    "zip mop chop grin stir let travel big sad hot wet thin fat flat red".split()
)
"""Words that double their last letter before -ed, -ing, -er."""


def takes_an(word: str) -> bool:
    """True where the indefinite article before `word` is "an"."""
    low = word.lower()
    if low.startswith(AN_BEFORE_CONSONANT):
        return True
    if low[:1].isdigit():
        return low.startswith("8") or low in ("11", "18")
    return low[:1] in VOWELS and low[:1] != "" and not low.startswith(A_BEFORE_VOWEL)


def with_article(phrase: str) -> str:
    """`phrase` with "a" or "an" before it."""
    return f"{'an' if takes_an(phrase) else 'a'} {phrase}"


def plural_of(noun: str) -> str:
    """The regular plural by spelling."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if noun[-1] == "y" and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def third_person(verb: str) -> str:
    """The third person singular of the present."""
    if verb in ("go", "do"):
        return verb + "es"
    return "has" if verb == "have" else "is" if verb == "be" else plural_of(verb)


def regular_past(verb: str) -> str:
    """The regular past by spelling."""
    if verb[-1] == "e":
        return verb + "d"
    if verb[-1] == "y" and verb[-2] not in VOWELS:
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in DOUBLED else "") + "ed"


def ing_form(verb: str) -> str:
    """The present participle by spelling."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb[-1] == "e" and verb[-2:] not in ("ee", "oe", "ye") and verb != "be":
        return verb[:-1] + "ing"
    return verb + (verb[-1] if verb in DOUBLED else "") + "ing"


def comparative_of(adjective: str) -> tuple[str, str]:
    """The regular comparative and superlative by spelling."""
    if adjective[-1] == "e":
        return adjective + "r", adjective + "st"
    if adjective[-1] == "y" and adjective[-2] not in VOWELS:
        return adjective[:-1] + "ier", adjective[:-1] + "iest"
    stem = adjective + (adjective[-1] if adjective in DOUBLED else "")
    return stem + "er", stem + "est"


@dataclass(frozen=True)
class Entry:
    """A word of the lexicon that a slot of the grammar can hold, with its forms by name."""

    word: str
    kind: str
    forms: dict[str, str] = field(default_factory=dict, compare=False)

    def say(self, form: str) -> str:
        """The form called `form`; "" is the word itself. KeyError if it has no such form."""
        if not form:
            return self.word
        found = self.forms.get(form)
        if found is None:
            if not form.startswith("v:"):
                raise KeyError(f"{self.word} ({self.kind}) has no form {form}")
            verb = form[2:]
            many = self.forms["are"] == "are"
            found = self.forms[form] = verb if many else third_person(verb)
        return found

    def __hash__(self) -> int:
        return hash((self.word, self.kind))


def noun(word: str, kind: str, plural: str | None = None, mass: bool = False) -> Entry:
    """A common noun.

    Forms: pl; the; one ("an apple", "milk"); some ("an apple", "some milk"); gen ("apples", "milk")
    with are, they, them, their.
    """
    many = word if mass else (plural or plural_of(word))
    forms = {
        "pl": many,
        "the": f"the {word}",
        "one": word if mass else with_article(word),
        "some": f"some {word}" if mass else with_article(word),
        "gen": many,
        "are": "is" if mass else "are",
        "they": "it" if mass else "they",
        "them": "it" if mass else "them",
        "their": "its" if mass else "their",
        "was": "was" if mass else "were",
        "this": f"this {word}" if mass else f"these {many}",
        "mass": "yes" if mass else "",
    }
    return Entry(word, kind, forms)


PRONOUNS = {
    "she": ("she", "her", "her", "herself", "girl", "sister", "woman"),
    "he": ("he", "him", "his", "himself", "boy", "brother", "man"),
}


def person(name: str, pronoun: str) -> Entry:
    """A person by name. Forms: he, him, his, himself, kid, sib, adult, whichever pronoun is theirs."""
    keys = ("he", "him", "his", "himself", "kid", "sib", "adult")
    forms = dict(zip(keys, PRONOUNS[pronoun], strict=True))
    return Entry(name, "name", {**forms, "are": "is"})


def place(word: str, preposition: str) -> Entry:
    """A place with its preposition: in the forest, at the market, on the beach."""
    plain = noun(word, "place").forms
    forms = {**plain, "in": f"{preposition} the {word}", "to": f"to the {word}"}
    return Entry(word, "place", forms)


@dataclass(frozen=True)
class Verb:
    """A verb with all its forms."""

    base: str
    past: str
    participle: str

    @property
    def third(self) -> str:
        """He eats."""
        return third_person(self.base)

    @property
    def ing(self) -> str:
        """He is eating."""
        return ing_form(self.base)

    @property
    def forms(self) -> tuple[str, ...]:
        """All five forms."""
        return self.base, self.third, self.past, self.participle, self.ing


def verb(text: str) -> Verb:
    """`walk` or `eat/ate/eaten`."""
    base, *others = text.split("/")
    if not others:
        return Verb(base, regular_past(base), regular_past(base))
    return Verb(base, others[0], others[-1])
