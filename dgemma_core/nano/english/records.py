"""Kinds that read a paragraph: answers about it, and its facts as JSON or as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from dgemma_core.nano.english.kind import Kind, Message, Slots, said
from dgemma_core.nano.english.knowledge import cap, filled
from dgemma_core.nano.english.lexicon import CAPITALS, PET_NAMES, TIMES_PAST, VERBS, lists
from dgemma_core.nano.english.stories import words as story_words
from dgemma_core.nano.english.words import Verb, with_article

ACKNOWLEDGED = (
    "Thank you, I have read it.",
    "All right.",
    "I see.",
    "Good to know.",
    "Got it.",
    "Thanks, I will keep that in mind.",
)


# Facts about a person: key → (value, ways to say it)
def _facts(rng: Random) -> tuple[Any, dict[str, tuple[Any, str]]]:
    words = lists()
    who = rng.choice(words["name"])
    age, city = rng.randint(5, 90), rng.choice(tuple(CAPITALS.values()))
    job, colour = rng.choice(words["job"]).word, rng.choice(words["colour"]).word
    pet, food = rng.choice(words["animal"]).word, rng.choice(words["food"])
    pet_name, place = rng.choice(PET_NAMES), rng.choice(words["place"])
    choose = rng.choice
    return who, {
        "age": (age, choose((f"is {age} years old", f"is {age}"))),
        "city": (city, choose((f"lives in {city}", f"comes from {city}"))),
        "job": (job, choose((f"works as {with_article(job)}", f"is {with_article(job)}"))),
        "colour": (
            colour,
            choose((f"likes the colour {colour}", f"likes {colour} best of all colours")),
        ),
        "pet": (pet, choose((f"has {with_article(pet)}", f"keeps {with_article(pet)}"))),
        "pet_name": (pet_name, f"has a pet called {pet_name}"),
        "food": (
            food.say("gen"),
            choose((f"likes {food.say('gen')}", f"likes to eat {food.say('gen')}")),
        ),
        "place": (place.word, f"likes to be {place.say('in')}"),
    }


def _told(name: str, he: str, parts: list[str], rng: Random) -> str:
    """The facts in one to three sentences."""
    if len(parts) <= 2 or rng.random() < 0.4:
        return f"{name} {_joined(parts)}."
    cut = rng.randint(1, len(parts) - 1)
    return f"{name} {_joined(parts[:cut])}. {cap(he)} {_joined(parts[cut:])}."


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _draw_record(rng: Random) -> Slots:
    who, facts = _facts(rng)
    keys = rng.sample(list(facts), rng.randint(2, 4))
    text = _told(who.word, who.say("he"), [facts[key][1] for key in keys], rng)
    asked = ["name", *keys]
    only = rng.random() < 0.25
    if only:
        asked = rng.sample(asked, rng.randint(2, len(asked) - 1)) if len(asked) > 2 else asked
    values = {"name": who.word, **{key: facts[key][0] for key in keys}}
    later = rng.random() < 0.4
    return {
        "ask": ("later" if later else "now") + ("_only" if only else ""),
        "text": text,
        "keys": ", ".join(asked[:-1]) + f" and {asked[-1]}",
        "record": {key: values[key] for key in asked},
    }


def _history(slots: Slots, rng: Random) -> list[Message]:
    if not slots["ask"].startswith("later"):
        return []
    return [said("user", slots["text"]), said("assistant", rng.choice(ACKNOWLEDGED))]


def _later(format_: str, short: str) -> tuple[str, ...]:
    return (
        f"[Write|Give me|Show me|Put|Say|Repeat|Tell me] that [{format_}].",
        f"[Now the same|The same|What I said|All that|The facts|What I just told you], [{format_}].",
        f"[Can you write that|Could you put this|Write down what I said|Write what I told you|Make it] [{format_}].",
        f"[Turn that into|Make|Give me|I need] [{short}] of what I [said|told you].",
        f"[{short} of that, please|Make {short} of it|Convert it to {short}].",
    )


def _now(format_: str, short: str) -> tuple[str, ...]:
    return (
        f"[Write this|Give me this|Put this|Show this|Say this] [{format_}]: {{text}}",
        f"{{text}} [Write that|Put that|Give me that|Say it|The same] [{format_}].",
        f"[Turn this into|Make|Convert this to|I need] [{short}]: {{text}}",
        f"[Extract the facts|Collect the facts|Read this and write the facts|Write the facts] [{format_}]: {{text}}",
        f"{{text}} [Make {short} of it|Turn it into {short}|Now {short}, please].",
        f"[Can you write this|Could you put this|Please write the following] [{format_}]: {{text}}",
    )


JSON = Kind(
    name="json",
    about="the facts of a sentence, given now or earlier in the chat, as a JSON object",
    wordings={
        "now": _now("as JSON|in JSON|as a JSON object", "a JSON object"),
        "later": _later("as JSON|in JSON", "a JSON object"),
        "now_only": (
            "[Write|Give me|Extract|Put|I need] {keys} as JSON: {text}",
            "{text} [Write|Give me|I need|Put] {keys} as JSON.",
            "[JSON with|A JSON object with|Only] {keys}, as JSON: {text}",
            "json {keys}: {text}",
        ),
        "later_only": (
            "[Write|Give me|Extract|Put|I need] {keys} as JSON.",
            "[JSON with|A JSON object with|Only] {keys}, as JSON.",
            "From what I said, {keys} as JSON.",
        ),
    },
    draw=_draw_record,
    write=lambda slots, rng: json.dumps(slots["record"]),
    check=lambda slots, text: _is_record(slots["record"], text),
    key=("text",),
    late=True,
    history=_history,
)


def _is_record(record: dict[str, Any], text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        type(found) is dict
        and found == record
        and all(type(found[k]) is type(v) for k, v in record.items())
    )


def table(rows: list[list[str]]) -> str:
    """Rows with bars, the first one a heading."""
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "|".join(" --- " for _ in rows[0]) + "|"
    return "\n".join([head, rule, *others])


def _draw_table(rng: Random) -> Slots:
    keys: list[str] = []
    rows: list[list[str]] = []
    parts: list[str] = []
    for number in range(rng.choice((1, 2, 2, 3))):
        while True:
            who, facts = _facts(rng)
            if all(row[0] != who.word for row in rows):
                break
        keys = keys or rng.sample(
            ("age", "city", "job", "colour", "pet", "food"), 1 if number else rng.choice((1, 2))
        )
        rows.append([who.word, *[str(facts[key][0]) for key in keys]])
        parts.append(f"{who.word} {_joined([facts[key][1] for key in keys])}.")
    later = rng.random() < 0.4
    return {
        "ask": "later" if later else "now",
        "text": " ".join(parts),
        "rows": [["name", *keys], *rows],
    }


def _cells(text: str) -> list[list[str]] | None:
    lines = text.split("\n")
    if not all(line.startswith("| ") and line.endswith(" |") for line in lines) or len(lines) < 3:
        return None
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    if any(cell.strip("-") or len(cell) < 3 for cell in rows[1]) or len(rows[1]) != len(rows[0]):
        return None
    return [rows[0], *rows[2:]]


TABLE = Kind(
    name="table",
    about="the facts about one to three people, given now or earlier in the chat, as a table",
    wordings={
        "now": _now("as a table|in a table", "a table"),
        "later": _later("as a table|in a table", "a table"),
    },
    draw=_draw_table,
    write=lambda slots, rng: table(slots["rows"]),
    check=lambda slots, text: _cells(text) == slots["rows"],
    key=("text",),
    late=True,
    history=_history,
)


DEEDS = {
    "thing": "find lose buy sell carry bring draw paint hide clean mend drop".split(),
    "food": "eat buy taste share bring".split(),
    "animal": "see feed watch chase draw follow".split(),
    "job": "help meet greet thank call".split(),
}
"""What people in a paragraph do to what."""


def _event(rng: Random) -> tuple[Verb, str]:
    kind = rng.choice(("thing", "thing", "food", "animal", "job"))
    entry = rng.choice(story_words()["role_T"] if kind == "thing" else lists()[kind])
    verb = VERBS[rng.choice(DEEDS[kind])]
    if kind == "thing" and rng.random() < 0.4:
        return verb, with_article(f"{rng.choice(lists()['colour']).word} {entry.word}")
    return verb, entry.say("some") if rng.random() < 0.6 else f"the {entry.word}"


@dataclass(frozen=True)
class Event:
    """Who did what, where and when."""

    who: str
    he: str
    verb: Verb
    rest: str
    where: str
    when: str


def _draw_reading(rng: Random) -> Slots:
    words = lists()
    names = rng.sample(words["name"], 3)
    places = rng.sample(words["place"], 3)
    times = rng.sample(TIMES_PAST, 3)
    events: list[Event] = []
    for who, where, when in zip(names, places, times, strict=True):
        while True:
            verb, rest = _event(rng)
            if all(verb != e.verb and rest != e.rest for e in events):
                break
        events.append(Event(who.word, who.say("he"), verb, rest, where.say("in"), when))
    count = rng.choice((2, 2, 3))
    events = events[:count]
    told = []
    for event in events:
        style = rng.randrange(3)
        plain = f"{event.who} {event.verb.past} {event.rest}"
        if style == 0:
            told.append(f"{cap(event.when)} {plain} {event.where}.")
        elif style == 1:
            told.append(f"{plain} {event.where} {event.when}.")
        else:
            stood = f"{event.who} was {event.where} {event.when}"
            told.append(f"{stood} and {event.verb.past} {event.rest}.")
    asked = rng.choice(events)
    ask = rng.choice(("who", "where", "what", "when"))
    verb, rest, name = asked.verb, asked.rest, asked.who
    question = {
        "who": f"Who {verb.past} {rest}?",
        "where": rng.choice((f"Where was {name}?", f"Where did {name} {verb.base} {rest}?")),
        "what": rng.choice((f"What did {name} do?", f"What did {name} {verb.base}?")),
        "when": rng.choice(
            (f"When did {name} {verb.base} {rest}?", f"When was {name} {asked.where}?")
        ),
    }[ask]
    later = rng.random() < 0.4
    return {
        "ask": "later" if later else "now",
        "text": " ".join(told),
        "question": question,
        "about": ask,
        "event": asked,
    }


def _reading_answers(slots: Slots) -> list[str]:
    event: Event = slots["event"]
    about, verb = slots["about"], event.verb
    keys = {"w": event.who, "h": event.he, "v": verb.past, "r": event.rest}
    keys |= {"p": event.where, "t": event.when}
    if about == "who":
        return filled(("{w} did.", "{w}.", "{w} {v} {r}.", "It was {w}."), **keys)
    if about == "where":
        return filled(("{p}.", "{w} was {p}.", "{h} was {p}.", "{w} {v} {r} {p}."), **keys)
    if about == "when":
        return filled(("{t}.", "{w} {v} {r} {t}.", "It was {t}."), **keys)
    short = ("{r}.",) if f"{event.who} {verb.base}?" in slots["question"] else ()
    return filled(("{w} {v} {r}.", "{h} {v} {r}.", *short), **keys)


READING = Kind(
    name="reading",
    about="a question about the paragraph above",
    wordings={
        "now": (
            "{text} {question}",
            "{text} [Question|Now tell me|Now answer|My question]: {question}",
            "[Read this|Read|Listen|Here is a text|Read the text and answer|A short text]: "
            "{text} {question}",
            "{question} {text}",
            "{question} [Here is the text|Look here|Read this|It says here]: {text}",
            "[Answer the question|Answer about the text|Read and answer]. {text} {question}",
            "[I read this|My book says|The paper says|My friend told me this|In my book I found "
            "this]: {text} {question}",
            "{text} [Can you tell me|Do you know|Did you understand|I forgot]: {question}",
            "[Text|Story|News]: {text} [Question|Task]: {question}",
            "{text} [So|Well|And]: {question}",
            "[Use the text to answer|Look into the text and answer|Answer from the text]: "
            "{question} {text}",
        ),
        "later": (
            "{question}",
            "[Now tell me|Question|My question|Now|Now answer this|One question|Tell me]: "
            "{question}",
            "{question} [You have read it|It is in the text|Look at the text|I told you|Think of "
            "what I said].",
            "[About the text|From the text above|In that text|About that paragraph|Back to what "
            "I told you]: {question}",
            "[Do you remember|Did you understand]? {question}",
        ),
    },
    draw=_draw_reading,
    write=lambda slots, rng: rng.choice(_reading_answers(slots)),
    check=lambda slots, text: text in _reading_answers(slots),
    key=("text",),
    exact=("text", "question"),
    history=_history,
)

KINDS: tuple[Kind, ...] = (JSON, TABLE, READING)
