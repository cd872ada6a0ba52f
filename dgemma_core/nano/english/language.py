"""Kinds about words and sentences: opposites, plurals, rhymes, spelling, tenses, questions, politeness, typos."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

from dgemma_core.nano.english.clauses import Clause, clause
from dgemma_core.nano.english.grammar import Grammar
from dgemma_core.nano.english.kind import Kind, Slots, mistyped
from dgemma_core.nano.english.knowledge import cap, filled, items_of, known, listed
from dgemma_core.nano.english.lexicon import (
    COMPARATIVES,
    INTRANSITIVE,
    IRREGULAR_PLURALS,
    MORE_NOUNS,
    OPPOSITES,
    RHYMES,
    TIMES_NOW,
    TIMES_PAST,
    TRANSITIVE,
    VERBS,
    lists,
    plain,
    rhymes_of,
)
from dgemma_core.nano.english.words import Entry, plural_of


def about_word(of: str, *more: str) -> tuple[str, ...]:
    """Wordings that ask for the `of` of a word, quoted or not, and `more`."""
    questions = ("What is", "What's", "Do you know", "Can you tell me", "What would be")
    orders = ("Tell me", "Give me", "Name", "Say", "Write", "Find", "I need")
    marks = ('"{word}"', "{word}", "the word {word}")
    found = [f"{q} the {of} {m}?" for q in questions for m in marks[: 2 if len(more) > 4 else 3]]
    found += [f"{o} the {of} {m}." for o in orders for m in marks[:2]]
    found += [
        f"{o} the {of} {{word}}."
        for o in (
            "I forgot",
            "I am looking for",
            "My homework asks for",
            "I want to know",
            "Help me with",
            "Teach me",
            "Show me",
            "Look up",
        )
    ]
    found += [
        f"Which word is the {of} {{word}}?",
        f"Does {{word}} have {'an' if of[0] in 'aio' else 'a'} {of.removesuffix(' of')}?",
    ]
    return (*found, f"{{word}}: {of.removesuffix(' of')}?", f"The {of} {{word}}?", *more)


PAIRS: dict[str, set[str]] = {}
for _a, _b in OPPOSITES:
    PAIRS.setdefault(_a, set()).add(_b)
    PAIRS.setdefault(_b, set()).add(_a)


def _opposite_answers(slots: Slots) -> list[str]:
    found = []
    for other in sorted(PAIRS[slots["word"]]):
        found += filled(
            ("{o}.", "The opposite of {w} is {o}.", "It is {o}.", "The opposite is {o}."),
            o=other,
            w=slots["word"],
        )
    return found


OPPOSITE = known(
    "opposite",
    "the opposite of a word",
    {
        "": about_word(
            "opposite of",
            "[What is not {word}, but the other way round|If it is not {word}, what is it]?",
            "Which word means the opposite of {word}?",
            "{word} and its opposite?",
            "I am looking for the opposite of {word}.",
            "[Turn {word} into its opposite|Turn {word} around].",
            "Not {word}, but...?",
            "{word} is the opposite of what?",
            "[Opposite of|Antonym of|Opposite:] {word}",
        )
    },
    lambda rng: {"word": rng.choice(tuple(PAIRS))},
    _opposite_answers,
    key=("word",),
)


@cache
def plurals() -> dict[str, str]:
    """Every noun with its plural."""
    found = {word: plural_of(word) for word in MORE_NOUNS} | IRREGULAR_PLURALS
    for name in ("animal", "thing", "food", "place", "job"):
        found |= {entry.word: entry.say("pl") for entry in lists()[name] if not entry.say("mass")}
    return found


def _plural_answers(slots: Slots) -> list[str]:
    word = slots["word"]
    if slots["ask"] == "back":
        one = slots["one"]
        return filled(("{o}.", "The singular of {w} is {o}.", "It is {o}."), o=one, w=word)
    return filled(
        ("{p}.", "The plural of {w} is {p}.", "One {w}, two {p}.", "It is {p}."),
        p=plurals()[word],
        w=word,
    )


def _draw_plural(rng: Random) -> Slots:
    one = rng.choice(tuple(IRREGULAR_PLURALS if rng.random() < 0.15 else plurals()))
    if rng.random() < 0.12 and plurals()[one] != one:
        return {"ask": "back", "word": plurals()[one], "one": one}
    return {"ask": "plural", "word": one, "one": one}


PLURAL = known(
    "plural",
    "the plural of a noun, and the singular of a plural",
    {
        "plural": about_word(
            "plural of",
            "One {word}, two what?",
            "More than one {word} are called what?",
            "[How do you say {word} in the plural|How do you write more than one {word}]?",
            "[I have one {word}. Tom has two|One {word}, many]...?",
            "[Put {word} into the plural|Make {word} plural].",
        ),
        "back": about_word("singular of", "Two {word}, one what?", "Make {word} singular."),
    },
    _draw_plural,
    _plural_answers,
    key=("word",),
    closed=False,
)

RHYMING = tuple(
    sorted(
        {
            word
            for row in RHYMES
            for word in row
            if len(rhymes_of(word)) >= 3 and word not in ("june", "one", "none", "are")
        }
    )
)


def _draw_rhyme(rng: Random) -> Slots:
    word = rng.choice(RHYMING)
    count = rng.choice((1, 1, 1, 2, 3))
    return {
        "ask": "one" if count == 1 else "more",
        "word": word,
        "count": count,
        "n": ("one", "one", "two", "three")[count],
    }


def _write_rhyme(slots: Slots, rng: Random) -> str:
    word = slots["word"]
    words = rng.sample(sorted(rhymes_of(word)), slots["count"])
    if slots["count"] > 1:
        return listed(words, rng.choice(("sentence", "sentence", "numbers")))
    return cap(
        rng.choice(("{r}.", "{r} rhymes with {w}.", "{w} and {r}.", "{w} rhymes with {r}.")).format(
            r=words[0], w=word
        )
    )


def _check_rhyme(slots: Slots, text: str) -> bool:
    word, fine = slots["word"], rhymes_of(slots["word"])
    if slots["count"] > 1:
        items = [item.lower() for item in items_of(text) or ()]
        return len(items) == slots["count"] == len(set(items)) and set(items) <= fine
    return any(
        text
        in filled(
            ("{r}.", "{r} rhymes with {w}.", "{w} and {r}.", "{w} rhymes with {r}."), r=r, w=word
        )
        for r in fine
    )


RHYME = Kind(
    name="rhyme",
    about="words that rhyme with a word",
    wordings={
        "one": (
            "[What rhymes with|Which word rhymes with|What word rhymes with|Do you know what "
            "rhymes with|What sounds like|Is there a rhyme for] {word}?",
            "[Give me|Tell me|Find|Name|I need|Say|Write|Think of|Look for] a word that rhymes "
            'with "{word}".',
            "[Give me|Find|I need|I am looking for|Do you have] a rhyme for {word}.",
            "[{word} rhymes with|{word} rhymes with what|A rhyme for {word}|Rhyme with {word}]?",
            "[I am writing a poem and need a rhyme for|My line ends in] {word}.",
            "[Can you find|Can you think of|Could you give me] a word that rhymes with {word}?",
        ),
        "more": (
            "[Give me|Tell me|Find|Name|I need|Say|Write] {n} words that rhyme with {word}.",
            "[What are|Do you know|Can you find|Can you think of] {n} words that rhyme with "
            "{word}?",
            "[Find|Give me|List] {n} rhymes for {word}.",
            "[Which {n} words rhyme|Which {n} words go] with {word}?",
        ),
    },
    draw=_draw_rhyme,
    write=_write_rhyme,
    check=_check_rhyme,
    key=("word",),
)


def _degree_answers(slots: Slots) -> list[str]:
    more, most = COMPARATIVES[slots["word"]]
    w = slots["word"]
    if slots["ask"] == "both":
        return filled(("{w}, {a}, {b}.", "{w}, {a}, the {b}."), w=w, a=more, b=most)
    found = more if slots["ask"] == "more" else most
    name = "comparative" if slots["ask"] == "more" else "superlative"
    return filled(("{f}.", "It is {f}.", "The {n} of {w} is {f}."), f=found, n=name, w=w)


DEGREES = known(
    "degrees",
    "tall, taller, tallest",
    {
        "more": about_word(
            "comparative of",
            "[What comes between {word} and the most {word}|Not just {word}, but]...?",
        ),
        "most": about_word("superlative of"),
        "both": (
            "[Give me|Write|Say|Tell me] the forms of the adjective {word}.",
            "[Compare the adjective|Write the three forms of|Give all three forms of|The three "
            "forms of] {word}.",
            "{word}, then what, then what?",
            "[How do you compare|What are the three forms of] {word}?",
        ),
    },
    lambda rng: {
        "ask": rng.choice(("more", "most", "both")),
        "word": rng.choice(tuple(COMPARATIVES)),
    },
    _degree_answers,
    key=("ask", "word"),
    closed=False,
)


def _verb_answers(slots: Slots) -> list[str]:
    verb = VERBS[slots["word"]]
    form = {"past": verb.past, "participle": verb.participle, "ing": verb.ing}[slots["ask"]]
    if slots["ask"] == "past":
        return filled(
            (
                "{f}.",
                "It is {f}.",
                "The past tense of {w} is {f}.",
                "Today I {w}, yesterday I {f}.",
            ),
            f=form,
            w=verb.base,
        )
    if slots["ask"] == "participle":
        return filled(("{f}.", "It is {f}.", "I have {f}."), f=form)
    return filled(("{f}.", "It is {f}."), f=form)


VERB_FORMS = known(
    "verb_forms",
    "the past and the participles of a verb",
    {
        "past": about_word(
            "past tense of",
            "Today I {word}, yesterday I...?",
            "[How do you say {word} in the past|What did I do yesterday if today I {word}]?",
            "Put the verb {word} into the past.",
            "What is {word} in the past?",
        ),
        "participle": about_word("past participle of", "I {word}, I have...?"),
        "ing": about_word("ing-form of", "I {word}. Right now I am...?"),
    },
    lambda rng: {
        "ask": rng.choice(("past", "past", "participle", "ing")),
        "word": rng.choice([v for v in VERBS if v != "be"]),
    },
    _verb_answers,
    key=("ask", "word"),
    closed=False,
)


def _spelled(word: str) -> list[str]:
    return [
        " ".join(word.upper()) + ".",
        "-".join(word.upper()) + ".",
        f"{cap(word)} is spelled {'-'.join(word.upper())}.",
    ]


def _spell_answers(slots: Slots) -> list[str]:
    word = slots["word"]
    if slots["ask"] == "count":
        n = len(word)
        return filled(
            ("{n}.", "The word {w} has {n} letters.", "{l}, so {n} letters."),
            n=str(n),
            w=word,
            l="-".join(word.upper()),
        )
    if slots["ask"] == "first":
        return [
            f"{word[0].upper()}.",
            f"It begins with {word[0].upper()}.",
            f"The first letter is {word[0].upper()}.",
        ]
    if slots["ask"] == "last":
        return [
            f"{word[-1].upper()}.",
            f"It ends in {word[-1].upper()}.",
            f"The last letter is {word[-1].upper()}.",
        ]
    return _spelled(word)


SPELL = known(
    "spell",
    "a word letter by letter, its first and last letter, how many letters it has",
    {
        "spell": (
            "[Spell|Please spell|Spell the word|Can you spell|How do you spell|How is|Tell me "
            "how to spell|Letter by letter:] {word}",
            "[How do you spell|How do I spell|How do I write|What is the spelling of|What are "
            "the letters of|Which letters are in] {word}?",
            "[Spell out|Write out the letters of|Give me the letters of|Say the letters of|Tell "
            'me the letters of] "{word}".',
            "{word}, letter by letter.",
        ),
        "count": (
            "How many letters [are in|are there in] {word}?",
            "How many letters does {word} have?",
            "How many letters has {word}[| got]?",
            "[Count the letters in|Tell me the number of letters in] {word}.",
            "How long is the word {word}?",
        ),
        "first": (
            "[What is the first letter of|Which letter is the first in|Which is the first letter "
            "of|With which letter begins] {word}?",
            "{word} begins with which letter?",
            "Tell me the first letter of {word}.",
        ),
        "last": (
            "[What is the last letter of|Which letter is the last in|Which is the last letter "
            "of] {word}?",
            "{word} ends with which letter?",
            "Tell me the last letter of {word}.",
        ),
    },
    lambda rng: {
        "ask": rng.choice(("spell", "spell", "spell", "count", "first", "last")),
        "word": rng.choice(tuple(plurals())),
    },
    _spell_answers,
    key=("word",),
    closed=False,
)


def rewriting(
    name: str,
    about: str,
    wordings: tuple[str, ...],
    draw: Callable[[Random], Slots],
    answers: Callable[[Slots], list[str]],
) -> Kind:
    """A kind that turns one sentence into another: unseen sentences are new in whole."""
    return known(name, about, {"": wordings}, draw, answers, key=("text",), closed=False)


def _rewordings(*orders: str) -> tuple[str, ...]:
    found: list[str] = []
    for order in orders:
        low = order[0].lower() + order[1:]
        found += [
            f"{order}: {{text}}",
            f"{{text}} {order}.",
            f"I have a sentence. {order}. {{text}}",
        ]
        found += [f"Here is a sentence: {{text}} {order}.", f"My homework: {low}. {{text}}"]
    return tuple(found)


def _clause_slots(found: Clause, text: str) -> Slots:
    return {"text": text, "clause": found}


def _draw_present(rng: Random) -> Slots:
    found = clause(rng, "now" if rng.random() < 0.4 else "")
    return _clause_slots(found, found.present())


PAST_TENSE = rewriting(
    "past_tense",
    "a sentence put into the past",
    _rewordings(
        "Put this into the past tense",
        "Write it in the past tense",
        "Rewrite this in the past tense",
        "Change it to the past",
        "Say it in the past tense",
        "Make it past",
        "Turn this into the past",
        "Tell it as if it was yesterday",
        "Use the past tense",
    ),
    _draw_present,
    lambda slots: [slots["clause"].past()],
)


FUTURE = rewriting(
    "future_tense",
    "a sentence put into the future",
    _rewordings(
        "Put this into the future tense",
        "Write it in the future tense",
        "Rewrite this in the future",
        "Change it to the future",
        "Say it in the future tense",
        "Turn this into the future",
        "Say that it will happen",
        "Use the future tense",
    ),
    _draw_present,
    lambda slots: [slots["clause"].future()],
)


def _draw_any_tense(rng: Random) -> Slots:
    past = rng.random() < 0.5
    found = clause(rng, ("past" if past else "now") if rng.random() < 0.5 else "")
    return {
        **_clause_slots(found, found.past() if past else found.present()),
        "tense": "past" if past else "present",
    }


AS_QUESTION = rewriting(
    "as_question",
    "a statement turned into a question",
    _rewordings(
        "Turn this into a question",
        "Make a question out of this",
        "Rewrite this as a question",
        "Write it as a question",
        "Ask it as a question",
        "Change it into a question",
        "Say it as a question",
        "Make it a question",
    ),
    _draw_any_tense,
    lambda slots: [slots["clause"].question(slots["tense"])],
)

NEGATION = rewriting(
    "negation",
    "a statement turned into its denial",
    _rewordings(
        "Make this negative",
        "Write the opposite with not",
        "Negate this",
        "Say that it is not so",
        "Put a not into it",
        "Deny this",
        "Turn this into a negative sentence",
        "Write it with not",
    ),
    _draw_any_tense,
    lambda slots: [slots["clause"].denial(slots["tense"], short) for short in (False, True)],
)

ORDERS = (
    "give me the {thing}",
    "bring me {food}",
    "open the door",
    "close the window",
    "help me",
    "wait for {name}",
    "be quiet",
    "come here",
    "clean the {place}",
    "pass me the {thing}",
    "show me the {thing}",
    "tell me your name",
    "carry the {thing}",
    "sit down",
    "listen to me",
    "call the {job}",
    "lend me your {thing}",
    "feed the {animal}",
    "turn off the light",
    "speak more slowly",
    "move your {thing}",
    "clean your shoes",
    "stop it",
    "look for the {animal}",
    "help the {job}",
    "hold my {thing}",
    "buy {food}",
    "send {name} a letter",
    "take the {thing} with you",
    "write to {name}",
    "cook {food}",
    "go to the {place}",
    "wait at the door",
    "read this to {name}",
    "repeat that",
    "sing for {name}",
    "fetch the {job}",
)


def _draw_polite(rng: Random) -> Slots:
    words = lists()
    order = rng.choice(ORDERS).format(
        thing=rng.choice(words["thing"]).word,
        food=rng.choice(words["food"]).say("some"),
        name=rng.choice(words["name"]).word,
        place=rng.choice(words["place"]).word,
        job=rng.choice(words["job"]).word,
        animal=rng.choice(words["animal"]).word,
    )
    mark = rng.choice((".", "!", "."))
    return {"text": cap(order) + mark, "order": order}


def _polite_answers(slots: Slots) -> list[str]:
    order = slots["order"]
    found = [f"Please {order}.", f"{cap(order)}, please."]
    for modal in ("Could", "Would", "Can", "Will"):
        found += [f"{modal} you please {order}?", f"{modal} you {order}, please?"]
    return [*found, f"I would be glad if you could {order}."]


POLITE = rewriting(
    "polite",
    "an order said politely",
    _rewordings(
        "Say this politely",
        "Make this polite",
        "Rewrite this in a polite way",
        "Say it more politely",
        "Write it as a polite request",
        "Make it sound friendly",
        "Ask this nicely",
        "Put it politely",
    ),
    _draw_polite,
    _polite_answers,
)


def _draw_typos(rng: Random) -> Slots:
    found = clause(rng, rng.choice(("now", "past", "")))
    right = found.past() if found.time in TIMES_PAST else found.present()
    words = right[:-1].split(" ")
    while True:
        wrong = list(words)
        for at in rng.sample(range(len(words)), min(len(words), rng.choice((1, 1, 2, 2, 3)))):
            wrong[at] = mistyped(wrong[at], rng)
        if wrong != words:
            break
    text = " ".join(wrong) + right[-1]
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.2:
        text = text[:-1]
    return {"text": text, "right": right}


TYPOS = rewriting(
    "typos",
    "a sentence with its slips corrected",
    _rewordings(
        "Fix the typos",
        "Correct the mistakes",
        "Correct this sentence",
        "Fix the spelling",
        "Write this without mistakes",
        "Repair the spelling",
        "Correct my spelling",
        "Write it correctly",
    ),
    _draw_typos,
    lambda slots: [slots["right"]],
)


def _draw_order(rng: Random) -> Slots:
    while True:
        found = clause(rng, rng.choice(("now", "past")))
        right = found.past() if found.time in TIMES_PAST else found.present()
        words = right[:-1].split(" ")
        if (
            4 <= len(words) <= 9
            and (found.subject[0].isupper() or found.number != "3s")
            and " and " not in right
        ):
            break
    first = words[0] if found.subject[0].isupper() else words[0].lower()
    mixed = [first, *words[1:]]
    rng.shuffle(mixed)
    return {"text": rng.choice((" ", ", ", " / ")).join(mixed), "right": right, "time": found.time}


def _order_answers(slots: Slots) -> list[str]:
    right, time = slots["right"], slots["time"]
    first = right[: -len(time) - 2]
    subject = first.split(" ")[0]
    rest = first if subject == "I" or subject in _names() else first[0].lower() + first[1:]
    return [right, f"{cap(time)} {rest}.", f"{cap(time)}, {rest}."]


@cache
def _names() -> frozenset[str]:
    return frozenset(entry.word for entry in lists()["name"])


ORDER = rewriting(
    "word_order",
    "mixed words put in order",
    _rewordings(
        "Put the words in order",
        "Make a sentence of these words",
        "Unscramble this sentence",
        "Sort these words into a sentence",
        "Put these words into the right order",
        "Build a sentence out of these words",
        "Arrange the words",
        "Make a sentence from this",
    ),
    _draw_order,
    _order_answers,
)


@cache
def sentences() -> Grammar:
    """Sentences around a word N of a known class."""
    words = dict(lists())
    for kind, verbs in TRANSITIVE.items():
        words[f"past_{kind}"] = plain([VERBS[v].past for v in verbs], "verb")
        words[f"third_{kind}"] = plain([VERBS[v].third for v in verbs], "verb")
        words[f"base_{kind}"] = plain(list(verbs), "verb")
    words["time_past"] = plain(TIMES_PAST, "time")
    words["time_now"] = plain(TIMES_NOW, "time")
    rules: dict[str, str | tuple[str, ...]] = {}
    for kind, what in (
        ("thing", "[a|the] {N}"),
        ("food", "[{N.some}|the {N}]"),
        ("animal", "[a|the] {N}"),
        ("place", "the {N}"),
        ("job", "[a|the] {N}"),
    ):
        rules[kind] = (
            f"[{{+name}}|The {{+job}}] {{+past_{kind}}} {what} {{+time_past}}.",
            f"[{{+name}}|My [brother|sister|friend]] {{+third_{kind}}} {what} {{+time_now}}.",
            f"{{+name}} and {{+name}} {{+base_{kind}}} {what} {{+time_now}}.",
            f"{{+name}} [wants|likes|hopes] to {{+base_{kind}}} {what}.",
        )
    rules["weather"] = (
        "{+name} [likes|does not like] the {N}.",
        "The {N} [came|stopped] {+time_past}.",
        "There is a lot of {N} in {+month}.",
    )
    rules["mood"] = (
        "{+name} [is|was] very {N}[ today|], because {+name} [came|called|sang].",
        "I am {N} {+time_now}.",
        "The {+job} felt {N} {+time_past}.",
    )
    rules["intransitive"] = (
        "{+name} [likes|wants|loves] to {N} {+place.in}.",
        "We {N} {+time_now}.",
        "Can you {N}[ with me|]?",
    )
    return Grammar(rules, words)


@cache
def usable() -> dict[str, tuple[str, ...]]:
    """Words that nano puts into a sentence, by class."""
    found = {
        name: tuple(e.word for e in lists()[name])
        for name in ("thing", "food", "animal", "place", "job", "weather", "mood")
    }
    return {**found, "intransitive": tuple(v for v in INTRANSITIVE["name"] if v != "wait")}


def _draw_use(rng: Random) -> Slots:
    name = rng.choice(tuple(usable()))
    return {"class": name, "word": rng.choice(usable()[name])}


def _entry(slots: Slots) -> Entry:
    for entry in lists().get(slots["class"], ()):
        if entry.word == slots["word"]:
            return entry
    return Entry(slots["word"], slots["class"])


USE_WORD = Kind(
    name="use_word",
    about="a sentence with a given word in it",
    wordings={
        "": (
            '[Use|Put|Write|Say] the word "{word}" in a sentence.',
            "[Make|Write|Give me|Tell me|Say|Form|Build|Invent|I need] a sentence with [{word}|"
            "the word {word}].",
            "[Can you make|Could you write|Can you say|Do you know] a sentence with {word}?",
            "[A sentence with|One sentence with|An example sentence for|A sentence that has the "
            "word] {word}, please.",
            "[How do you use|How would you use|How can I use] the word {word}?",
            "[Show me how to use|Show me a sentence with|Give me an example with|I am learning "
            "the word] {word}.",
        )
    },
    draw=_draw_use,
    write=lambda slots, rng: sentences().write(slots["class"], {"N": _entry(slots)}, rng),
    check=lambda slots, text: (
        sentences().reads(slots["class"], text, {"N": _entry(slots)}) is not None
    ),
    key=("word",),
)

KINDS: tuple[Kind, ...] = (
    OPPOSITE,
    PLURAL,
    RHYME,
    DEGREES,
    VERB_FORMS,
    SPELL,
    PAST_TENSE,
    FUTURE,
    AS_QUESTION,
    NEGATION,
    POLITE,
    TYPOS,
    ORDER,
    USE_WORD,
)
