"""Kinds that ask for facts: animals, things, food, work, colours, the calendar, capitals, lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random

from dgemma_core.nano.english import things
from dgemma_core.nano.english.kind import Kind, Slots
from dgemma_core.nano.english.lexicon import (
    ANIMAL,
    BOYS,
    CAPITALS,
    COLOURS,
    DAYS,
    FOOD,
    GIRLS,
    JOB,
    MONTH_DAYS,
    MONTHS,
    MOODS,
    OPPOSITES,
    ORDINALS,
    SPOT,
    THING,
    THING_COLOURS,
    entry_of,
    number_word,
)
from dgemma_core.nano.english.words import third_person, with_article


def cap(text: str) -> str:
    """A text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def filled(patterns: Sequence[str], **slots: str) -> list[str]:
    """Patterns with their slots filled, each with a capital."""
    return [cap(pattern.format(**slots)) for pattern in patterns]


def known(
    name: str,
    about: str,
    wordings: dict[str, tuple[str, ...]],
    draw: Callable[[Random], Slots],
    answers: Callable[[Slots], Sequence[str]],
    key: tuple[str, ...] = (),
    closed: bool = True,
) -> Kind:
    """A kind whose right replies can be listed."""
    return Kind(
        name=name,
        about=about,
        wordings=wordings,
        draw=draw,
        write=lambda slots, rng: rng.choice(list(answers(slots))),
        check=lambda slots, text: text in answers(slots),
        key=key,
        closed=closed,
    )


SINGLE = ("It ", "The ", "A ", "An ", "You use it", "With a", "Usually")
"""How replies begin that speak of one thing, where a question speaks of many."""


def by_number(wordings: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The wordings, those that speak of many ("What do foxes eat?") apart under "…_many"."""
    found: dict[str, tuple[str, ...]] = {}
    for ask, patterns in wordings.items():
        many = tuple(p for p in patterns if "{many}" in p)
        found[ask] = tuple(p for p in patterns if "{many}" not in p) or many
        if many and found[ask] != many:
            found[f"{ask}_many"] = many
    return found


def in_number(ask: str, replies: Sequence[str]) -> list[str]:
    """The replies that fit a question in its number."""
    if not ask.endswith("_many"):
        return list(replies)
    return [reply for reply in replies if not reply.startswith(SINGLE)] or list(replies)


NOISY = tuple(word for word in ANIMAL if word not in things.SILENT)
LEGS = tuple(word for word, row in ANIMAL.items() if row.legs)


def _draw_animal(rng: Random) -> Slots:
    ask = rng.choice(
        (
            "sound",
            "sound_many",
            "legs_many",
            "home_many",
            "eats_many",
            "can_many",
            "young",
            "legs",
            "home",
            "eats",
            "can",
            "group",
            "who_sound",
            "who_young",
        )
    )
    word = rng.choice(NOISY if "sound" in ask else tuple(ANIMAL))
    row = ANIMAL[word]
    return {
        "ask": ask,
        "x": word,
        "a": with_article(word),
        "many": row.plural,
        "sound": third_person(row.sound),
        "young": row.young,
        "ayoung": with_article(row.young),
    }


@cache
def _animal_answers(ask: str, word: str) -> tuple[str, ...]:
    row = ANIMAL[word]
    a, many = with_article(word), row.plural
    if ask == "sound":
        third = third_person(row.sound)
        return tuple(
            filled(
                ("{a} {t}.", "{many} {s}.", "It {t}.", "The {x} {t}."),
                a=a,
                t=third,
                many=many,
                s=row.sound,
                x=word,
            )
        )
    if ask == "young":
        return tuple(
            filled(
                (
                    "A baby {x} is called {y}.",
                    "{y}.",
                    "It is called {y}.",
                    "The young of {a} is called {y}.",
                ),
                x=word,
                a=a,
                y=with_article(row.young),
            )
        )
    if ask == "legs":
        n = f"{number_word(row.legs)} legs" if row.legs else "no legs"
        return tuple(
            filled(("{a} has {n}.", "It has {n}.", "{many} have {n}.", "{n}."), a=a, n=n, many=many)
        )
    if ask == "home":
        return tuple(
            filled(
                ("{a} lives {h}.", "{many} live {h}.", "It lives {h}.", "{h}."),
                a=a,
                many=many,
                h=row.home,
            )
        )
    if ask == "eats":
        return tuple(
            filled(
                ("{a} eats {f}.", "{many} eat {f}.", "It eats {f}.", "{f}."),
                a=a,
                many=many,
                f=row.eats,
            )
        )
    if ask == "can":
        return tuple(
            filled(("{a} can {c}.", "It can {c}.", "{many} can {c}."), a=a, many=many, c=row.can)
        )
    if ask == "group":
        g = with_article(row.group)
        return tuple(filled(("{a} is {g}.", "It is {g}.", "{g}."), a=a, g=g))
    found = []
    for other, its in ANIMAL.items():
        if ask == "who_sound" and its.sound == row.sound and other in NOISY:
            t = third_person(row.sound)
            found += filled(("{a} {t}.", "{a}.", "It is {a} that {t}."), a=with_article(other), t=t)
        if ask == "who_young" and its.young == row.young:
            found += filled(
                ("{y} is a young {x}.", "{y} becomes {a}.", "{a}."),
                a=with_article(other),
                x=other,
                y=with_article(row.young),
            )
    return tuple(found)


def _animal_reply(slots: Slots) -> Sequence[str]:
    return in_number(slots["ask"], _animal_answers(slots["ask"].removesuffix("_many"), slots["x"]))


ANIMAL_FACTS = known(
    "animal_facts",
    "what animals say, eat, can do, where they live, what their young are called",
    by_number(
        {
            "sound": (
                "[What|Which] sound does {a} make?",
                "What does {a} say?",
                "How does {a} sound?",
                "[What noise does|What kind of noise does] {a} make?",
                "What sound do {many} make?",
                "Tell me the sound of {a}.",
            ),
            "young": (
                "What is a baby {x} called?",
                "What's a baby {x} called?",
                "What do you call a baby {x}?",
                "[What do you call the young of|What is the young of] {a}[ called|]?",
                "[Name of a baby {x}|The word for a baby {x}]?",
                "How do you call a young {x}?",
            ),
            "legs": (
                "How many legs does {a} have?",
                "How many legs has {a}[| got]?",
                "[Count the legs of|Tell me the number of legs of] {a}.",
                "How many legs do {many} have?",
                "Does {a} have legs, and how many?",
            ),
            "home": (
                "Where does {a} live?",
                "Where do {many} live?",
                "[Where can I find|Where would I find|Where do I look for] {a}?",
                "[What is the home of|Where is the home of] {a}?",
            ),
            "eats": (
                "What does {a} eat?",
                "What do {many} eat?",
                "[What is the food of|What food does] {a}[ like|]?",
                "What do I feed {a}?",
                "[Tell me what {many} eat|I want to feed {a}. What does it eat].",
            ),
            "can": (
                "What can {a} do?",
                "What can {many} do[| well]?",
                "What is {a} good at?",
                "What is special about {a}?",
                "Tell me what {a} can do.",
            ),
            "group": (
                "What kind of animal is {a}?",
                "[Which|What] group of animals does {a} belong to?",
                "What sort of animal is {a}?",
                "[What class of animal is {a}|What type of animal is {a}]?",
            ),
            "who_sound": (
                "[Which|What] animal {sound}?",
                "Who {sound}?",
                "[Name|Tell me|Find] an animal that {sound}.",
                "I hear an animal that {sound}. What is it?",
            ),
            "who_young": (
                "What does {ayoung} grow up to be?",
                "What does {ayoung} become?",
                "[Which|What] animal has a young one called {ayoung}?",
                "[Whose baby is|Whose child is] {ayoung}?",
            ),
        }
    ),
    _draw_animal,
    _animal_reply,
)


SHAPED = "round flat long curved thin tall".split()


def _draw_thing(rng: Random) -> Slots:
    ask = rng.choice(
        (
            "made_many",
            "job_where_many",
            "job_does_many",
            "use",
            "made",
            "colour",
            "from",
            "taste",
            "job_where",
            "job_does",
            "job_who",
            "shape",
            "place_do",
        )
    )
    if ask == "shape":
        x = rng.choice([w for w, row in THING.items() if row.shape in SHAPED])
    elif ask in ("use", "made", "made_many"):
        x = rng.choice(tuple(THING))
    elif ask in ("from", "taste", "colour"):
        x = rng.choice(tuple(FOOD))
    elif ask == "place_do":
        x = rng.choice(tuple(SPOT))
    else:
        x = rng.choice(tuple(JOB))
    entry = entry_of(x)
    slots: Slots = {"ask": ask, "x": x, "a": entry.say("one"), "many": entry.say("pl")}
    if x in JOB:
        slots["does"] = JOB[x].does
    if x in FOOD:
        slots["be"], slots["do"] = entry.say("are"), "does" if FOOD[x].mass else "do"
    if x in SPOT:
        slots["inside"] = entry.say("in")
    return slots


@cache
def _thing_answers(ask: str, x: str) -> tuple[str, ...]:
    entry = entry_of(x)
    a, many, are, they = entry.say("one"), entry.say("gen"), entry.say("are"), entry.say("they")
    s = "" if are == "are" else "s"
    if ask == "use":
        return tuple(
            filled(
                (
                    "People use {a} to {u}.",
                    "With {a} you can {u}.",
                    "To {u}.",
                    "You use it to {u}.",
                ),
                a=a,
                u=THING[x].use,
            )
        )
    if ask == "made":
        return tuple(
            filled(
                ("{a} is made of {m}.", "It is made of {m}.", "{m}.", "Usually it is made of {m}."),
                a=a,
                m=THING[x].made,
            )
        )
    if ask == "shape":
        return tuple(
            filled(("{a} is {s}.", "It is {s}.", "Usually {a} is {s}."), a=a, s=THING[x].shape)
        )
    if ask == "colour":
        return tuple(
            filled(
                ("{many} {are} {c}.", "{c}.", "{many} {are} usually {c}.", "{they} {are} {c}."),
                many=many,
                are=are,
                they=they,
                c=FOOD[x].colour,
            )
        )
    if ask == "from":
        return tuple(
            filled(
                ("{many} come{s} from {c}.", "{they} come{s} from {c}.", "From {c}."),
                many=many,
                they=they,
                s=s,
                c=FOOD[x].comes,
            )
        )
    if ask == "taste":
        return tuple(
            filled(
                ("{many} taste{s} {t}.", "{they} taste{s} {t}.", "{t}."),
                many=many,
                they=they,
                s=s,
                t=FOOD[x].taste,
            )
        )
    if ask == "place_do":
        spot = SPOT[x]
        return tuple(
            filled(
                ("{i} people {d}.", "People {d} there.", "You can {d} there.", "People {d}."),
                i=entry.say("in"),
                d=spot.do,
            )
        )
    job = JOB[x]
    if ask == "job_where":
        return tuple(
            filled(
                ("{a} works {w}.", "{many} work {w}.", "{w}."),
                a=a,
                many=entry.say("pl"),
                w=job.where,
            )
        )
    if ask == "job_does":
        return tuple(
            filled(
                ("{a} {d}.", "{a} is somebody who {d}.", "That is somebody who {d}."),
                a=a,
                d=job.does,
            )
        )
    return tuple(
        filled(("{a} {d}.", "{a}.", "{a} does that.", "It is {a} who {d}."), a=a, d=job.does)
    )


def _thing_reply(slots: Slots) -> Sequence[str]:
    return in_number(slots["ask"], _thing_answers(slots["ask"].removesuffix("_many"), slots["x"]))


THING_FACTS = known(
    "thing_facts",
    "what things are for and made of, how food looks and tastes, what people do at work",
    by_number(
        {
            "use": (
                "What is {a} for?",
                "What do you use {a} for?",
                "What can I do with {a}?",
                "[What do people do with|What is the use of|Why do people have] {a}?",
                "[Tell me what|Explain what] {a} is for.",
            ),
            "made": (
                "What is {a} made of?",
                "What's {a} made of?",
                "What are {many} made of?",
                "[From what is {a} made|Which material is {a} made of]?",
                "Do you know what {a} is made of?",
                "Tell me what {a} is made of.",
            ),
            "shape": (
                "What shape is {a}?",
                "What shape does {a} have?",
                "[How would you describe the shape of|What is the shape of] {a}?",
                "How is {a} shaped?",
            ),
            "colour": (
                "What [colour|color] {be} {many}?",
                "[Which|What] [colour|color] {do} {many} have?",
                "What is the [colour|color] of {many}?",
                "[Tell me|Name] the [colour|color] of {many}.",
                "What [colour|color] is {a}?",
            ),
            "from": (
                "Where {do} {many} come from?",
                "[Where do people get|Where do you get|Where do we get] {many}?",
                "[What gives us|Who or what gives us] {many}?",
                "From where {do} {many} come?",
            ),
            "taste": (
                "What {do} {many} taste like?",
                "How {do} {many} taste?",
                "What is the taste of {many}?",
                "Describe the taste of {many}.",
                "What taste {do} {many} have?",
            ),
            "job_where": (
                "Where does {a} work?",
                "Where do {many} work?",
                "[Where can I meet|Where would I meet] {a}?",
                "[What is|Where is] the workplace of {a}?",
            ),
            "job_does": (
                "What does {a} do?",
                "What do {many} do?",
                "What is {a}'s job?",
                "[What is the job of|What is the work of] {a}?",
                "What does {a} do all day?",
            ),
            "job_who": (
                "Who {does}?",
                "[Which|What] job is it: somebody who {does}?",
                "[What do you call somebody|What is the name for a person|What do you call a "
                "person] who {does}?",
            ),
            "place_do": (
                "What [do|can] people do {inside}?",
                "What can [you|I|we] do {inside}?",
                "[What happens|What do you do|What is there to do] {inside}?",
            ),
        }
    ),
    _draw_thing,
    _thing_reply,
)

MIXED = {
    ("red", "blue"): "purple",
    ("red", "yellow"): "orange",
    ("blue", "yellow"): "green",
    ("red", "white"): "pink",
    ("black", "white"): "grey",
    ("red", "green"): "brown",
}


def _draw_colour(rng: Random) -> Slots:
    if rng.random() < 0.25:
        pair = rng.choice(tuple(MIXED))
        x, y = pair if rng.random() < 0.5 else pair[::-1]
        return {"ask": "mix", "x": x, "y": y, "colour": MIXED[pair]}
    if rng.random() < 0.6:
        x = rng.choice(tuple(THING_COLOURS))
        return {"ask": "of", "x": x, "y": "", "colour": THING_COLOURS[x]}
    word = rng.choice(tuple(ANIMAL))
    return {"ask": "of", "x": with_article(word), "y": "", "colour": ANIMAL[word].colour}


def _colour_answers(slots: Slots) -> list[str]:
    x, y, c = slots["x"], slots["y"], slots["colour"]
    if slots["ask"] == "mix":
        return filled(
            (
                "{x} and {y} make {c}.",
                "You get {c}.",
                "{c}.",
                "If you mix {x} and {y}, you get {c}.",
            ),
            x=x,
            y=y,
            c=c,
        )
    return filled(("{x} is {c}.", "{c}.", "It is {c}.", "Usually {x} is {c}."), x=x, c=c)


COLOUR_FACTS = known(
    "colours",
    "the colour of things, and what colours give when they are mixed",
    {
        "of": (
            "What [colour|color] is {x}?",
            "What is the [colour|color] of {x}?",
            "Which [colour|color] is {x}?",
            "Tell me which [colour|color] {x} is.",
            "What [colour|color] does {x} have?",
            "[Tell me the|Name the|Say the|I want to know the] [colour|color] of {x}.",
            "[Do you know the|Can you tell me the|Have you any idea about the] [colour|color] of "
            "{x}?",
            "{x}: [which|what] [colour|color]?",
        ),
        "mix": (
            "What do you get when you mix {x} and {y}?",
            "What [colour|color] do {x} and {y} make?",
            "Mix {x} and {y}.",
            "What [happens|comes out] if I mix {x} and {y}?",
            "What is {x} mixed with {y}?",
            "[If I mix {x} with {y}, what do I get|{x} plus {y} gives which colour|{x} and {y} "
            "together give what]?",
        ),
    },
    _draw_colour,
    _colour_answers,
)

HOW_MANY = {
    "days in a week": 7,
    "days are in a week": 7,
    "months in a year": 12,
    "hours in a day": 24,
    "minutes in an hour": 60,
    "seconds in a minute": 60,
    "seasons in a year": 4,
    "fingers on one hand": 5,
    "wheels on a bicycle": 2,
    "wheels on a car": 4,
    "days in a weekend": 2,
    "weeks in a year": 52,
    "letters in the alphabet": 26,
    "sides of a triangle": 3,
    "sides of a square": 4,
    "wheels on a tricycle": 3,
    "toes on one foot": 5,
    "planets around the sun": 8,
    "colours in a rainbow": 7,
    "eggs in a dozen": 12,
    "legs on a stool with three legs": 3,
    "strings on a violin": 4,
    "strings on a guitar": 6,
    "years in a century": 100,
    "years in a decade": 10,
}
del HOW_MANY["days are in a week"], HOW_MANY["legs on a stool with three legs"]


def _draw_calendar(rng: Random) -> Slots:
    ask = rng.choice(
        (
            "day_after",
            "day_before",
            "month_after",
            "month_before",
            "month_days",
            "month_number",
            "count",
            "two_days",
        )
    )
    if ask == "count":
        x = rng.choice(tuple(HOW_MANY))
    elif ask == "month_number":
        number = rng.randrange(12)
        return {"ask": ask, "x": ORDINALS[number], "number": number}
    else:
        x = rng.choice(DAYS if "day_" in ask or ask == "two_days" else MONTHS)
    return {"ask": ask, "x": x}


def _calendar_answers(slots: Slots) -> list[str]:
    ask, x = slots["ask"], slots["x"]
    if ask == "count":
        count = HOW_MANY[x]
        what = x.split(" ")[0]
        word = number_word(count)
        return filled(
            ("There are {w} {x}.", "{n}.", "{w}.", "{n} {what}.", "{w} {what}."),
            w=word,
            n=str(count),
            x=x,
            what=what,
        )
    if ask == "month_number":
        return filled(
            ("{m}.", "The {x} month is {m}.", "It is {m}."), m=MONTHS[slots["number"]], x=x
        )
    if ask == "month_days":
        n = str(MONTH_DAYS[MONTHS.index(x)])
        if x == "February":
            return [
                "February has 28 days, and 29 in a leap year.",
                "28 days, or 29 in a leap year.",
            ]
        return filled(("{x} has {n} days.", "{n} days.", "There are {n} days in {x}."), x=x, n=n)
    row = DAYS if "day" in ask else MONTHS
    step = -1 if "before" in ask else 2 if ask == "two_days" else 1
    y = row[(row.index(x) + step) % len(row)]
    where = {-1: "before", 1: "after", 2: "two days after"}[step]
    sentences = ("{y}.", "{y} comes {w} {x}.", "It is {y}.")
    if step == 2:
        sentences = ("{y}.", "It is {y}.", "{y} is {w} {x}.")
    return filled(sentences, y=y, w=where, x=x)


CALENDAR = known(
    "calendar",
    "days, months, and how many of what are in what",
    {
        "day_after": (
            "[What|Which] day comes after {x}?",
            "[What|Which] day is after {x}?",
            "What comes after {x}?",
            "[Today is {x}. What day is tomorrow|If today is {x}, what is tomorrow]?",
            "What is the day after {x}?",
            "The day after {x}?",
        ),
        "day_before": (
            "[What|Which] day comes before {x}?",
            "[What|Which] day is before {x}?",
            "What comes before {x}?",
            "[Today is {x}. What day was yesterday|If today is {x}, what was yesterday]?",
            "What is the day before {x}?",
        ),
        "two_days": (
            "[What|Which] day is two days after {x}?",
            "[Today is {x}. What day is it in two days|If today is {x}, what day is the day "
            "after tomorrow]?",
            "What day comes two days after {x}?",
            "In two days from {x} it is what day?",
        ),
        "month_after": (
            "[What|Which] month comes after {x}?",
            "[What|Which] month is after {x}?",
            "[It is {x}. What is the next month|What month follows {x}]?",
            "What is the month after {x}?",
        ),
        "month_before": (
            "[What|Which] month comes before {x}?",
            "[What|Which] month is before {x}?",
            "What is the month before {x}?",
            "It is {x}. What was last month?",
        ),
        "month_days": (
            "How many days does {x} have?",
            "How many days are in {x}?",
            "How many days are there in {x}?",
            "[How long is|Tell me how many days there are in] {x}?",
            "[Days in|Number of days in] {x}?",
        ),
        "month_number": (
            "[What|Which] is the {x} month[| of the year]?",
            "[Name|Tell me] the {x} month[| of the year].",
            "[What|Which] month is the {x} one?",
        ),
        "count": (
            "How many {x}?",
            "How many {x} are there?",
            "[Tell me how many|Say how many|I forgot how many] {x} there are.",
            "Do you know how many {x} there are?",
            "What is the number of {x}?",
        ),
    },
    _draw_calendar,
    _calendar_answers,
)


def _draw_capital(rng: Random) -> Slots:
    country = rng.choice(tuple(CAPITALS))
    city = CAPITALS[country]
    ask = rng.choice(("capital", "capital", "country", "check"))
    asked = city if rng.random() < 0.6 or ask != "check" else rng.choice(tuple(CAPITALS.values()))
    return {"ask": ask, "country": country, "city": asked, "true": city}


def _capital_answers(slots: Slots) -> list[str]:
    c, t = slots["country"], slots["true"]
    if slots["ask"] == "capital":
        return filled(
            ("The capital of {c} is {t}.", "{t}.", "It is {t}.", "{t} is the capital of {c}."),
            c=c,
            t=t,
        )
    if slots["ask"] == "country":
        return filled(("{t} is the capital of {c}.", "{c}.", "It is the capital of {c}."), c=c, t=t)
    if slots["city"] == t:
        return filled(("Yes, {t} is the capital of {c}.", "Yes, it is.", "Yes."), c=c, t=t)
    return filled(("No, the capital of {c} is {t}.", "No, it is {t}."), c=c, t=t)


CAPITAL_FACTS = known(
    "capitals",
    "the capitals of some thirty countries, both ways",
    {
        "capital": (
            "What is the capital of {country}?",
            "What's the capital of {country}?",
            "[Tell me|Name|Give me|Say] the capital of {country}.",
            "[Which|What] city is the capital of {country}?",
            "[The capital of {country}|{country}'s capital|Capital of {country}]?",
            "[Do you know|Can you tell me] the capital of {country}?",
            "[I forgot|Remind me of|I need|I am looking for] the capital of {country}.",
            "What is {country}'s capital[| city]?",
        ),
        "country": (
            "[Which|What] country has the capital {city}?",
            "{city} is the capital of [which|what] country?",
            "Of [which|what] country is {city} the capital?",
            "[What is {city} the capital of|Which country's capital is {city}]?",
            "[In which country is|Where is|In what country is] {city}?",
        ),
        "check": (
            "Is {city} the capital of {country}?",
            "[Is it true that|Am I right that|Did you know that] {city} is the capital of "
            "{country}?",
            "The capital of {country} is {city}, [right|isn't it|yes]?",
            "[I think|They say] the capital of {country} is {city}. [Is that right|Is that true]?",
        ),
    },
    _draw_capital,
    _capital_answers,
)


def _draw_yes_no(rng: Random) -> Slots:
    ask = rng.choice(("is_a", "can", "opposite"))
    true = rng.random() < 0.5
    if ask == "opposite":
        pair, wrong = rng.sample(OPPOSITES, 2)
        a, b = pair if rng.random() < 0.5 else pair[::-1]
        return {"ask": ask, "x": a, "y": b if true else wrong[0], "good": b, "true": true}
    word = rng.choice(tuple(ANIMAL))
    row = ANIMAL[word]
    if ask == "can":
        other = ANIMAL[rng.choice(tuple(ANIMAL))]
        if not true:
            return {
                "ask": "legs",
                "x": word,
                "a": with_article(word),
                "y": number_word(other.legs) if other.legs else "no",
                "good": number_word(row.legs) if row.legs else "no",
                "true": row.legs == other.legs,
            }
        return {
            "ask": "can",
            "x": word,
            "a": with_article(word),
            "y": row.can,
            "good": row.can,
            "true": True,
        }
    groups = sorted({r.group for r in ANIMAL.values()} - {row.group})
    group = row.group if true else rng.choice(groups)
    return {
        "ask": ask,
        "x": word,
        "a": with_article(word),
        "y": with_article(group),
        "good": with_article(row.group),
        "true": true,
    }


def _yes_no_answers(slots: Slots) -> list[str]:
    ask, x, y, good = slots["ask"], slots["x"], slots["y"], slots["good"]
    yes: tuple[str, ...]
    no: tuple[str, ...] = ()
    if ask == "opposite":
        yes, no = (
            ("Yes, {x} is the opposite of {y}.", "Yes, it is.", "Yes."),
            ("No, the opposite of {x} is {g}.", "No, it is {g}."),
        )
    elif ask == "legs":
        yes, no = (
            ("Yes, {a} has {y} legs.", "Yes, it has.", "Yes."),
            ("No, {a} has {g} legs.", "No, it has {g} legs."),
        )
    elif ask == "can":
        yes = ("Yes, {a} can {y}.", "Yes, it can.", "Yes.")
    else:
        yes, no = ("Yes, {a} is {y}.", "Yes, it is.", "Yes."), ("No, {a} is {g}.", "No, it is {g}.")
    return filled(yes if slots["true"] else no, x=x, y=y, g=good, a=slots.get("a", ""))


YES_NO = known(
    "yes_no",
    "questions that are answered with yes or no",
    {
        "is_a": (
            "Is {a} {y}?",
            "Is it true that {a} is {y}?",
            "{a} is {y}, [right|isn't it|yes or no]?",
            "[Do you think|Would you say|Am I right] that {a} is {y}?",
            "[My friend says|I read|Somebody told me] that {a} is {y}. Is that [right|true]?",
            "True or false: {a} is {y}?",
            "Yes or no: is {a} {y}?",
        ),
        "can": (
            "Can {a} {y}?",
            "Is it true that {a} can {y}?",
            "[Do you think|Would you say] that {a} can {y}?",
            "[My friend says|Somebody told me] that {a} can {y}. Is that [right|true]?",
            "Yes or no: can {a} {y}?",
            "Is {a} able to {y}?",
        ),
        "legs": (
            "Does {a} have {y} legs?",
            "Has {a} {y} legs?",
            "Is it true that {a} has {y} legs?",
            "[My friend says|Somebody told me] that {a} has {y} legs. Is that [right|true]?",
            "Yes or no: does {a} have {y} legs?",
        ),
        "opposite": (
            "Is {y} the opposite of {x}?",
            "Is it true that {y} is the opposite of {x}?",
            "The opposite of {x} is {y}, [right|isn't it]?",
            "[My friend says|Somebody told me] that {y} is the opposite of {x}. Is that [right|"
            "true]?",
            "Are {x} and {y} opposites?",
        ),
    },
    _draw_yes_no,
    _yes_no_answers,
)


def _animal_names(**wanted: object) -> tuple[str, ...]:
    return tuple(
        word
        for word, row in ANIMAL.items()
        if all(getattr(row, key) == value for key, value in wanted.items())
    )


@cache
def classes() -> dict[str, tuple[str, ...]]:
    """What can be listed, by the plural that requests use."""
    food = {
        group: tuple(w for w, row in FOOD.items() if row.group == group)
        for group in {r.group for r in FOOD.values()}
    }
    group = {
        g: tuple(w for w, row in THING.items() if row.group == g)
        for g in {r.group for r in THING.values()}
    }
    found: dict[str, tuple[str, ...]] = {
        "animals": tuple(ANIMAL),
        "birds": _animal_names(group="bird"),
        "insects": _animal_names(group="insect"),
        "mammals": _animal_names(group="mammal"),
        "farm animals": _animal_names(home="on a farm"),
        "forest animals": ("fox", "deer", "bear", "wolf", "owl", "squirrel", "badger", "hedgehog"),
        "animals of the sea": ("whale", "dolphin", "seal", "shark", "crab", "octopus"),
        "fruits": food["fruit"],
        "vegetables": food["vegetable"],
        "drinks": food["drink"],
        "sweet things to eat": tuple(w for w, row in FOOD.items() if row.taste == "sweet"),
        "things to eat": tuple(w for w, row in FOOD.items() if row.group != "drink"),
        "colours": tuple(COLOURS),
        "days of the week": tuple(DAYS),
        "months": tuple(MONTHS),
        "seasons": tuple(things.SEASONS),
        "jobs": tuple(JOB),
        "places": tuple(SPOT),
        "tools": group["tool"],
        "toys": group["toy"],
        "instruments": group["instrument"],
        "pieces of clothing": group["clothing"],
        "vehicles": group["vehicle"],
        "flowers": tuple(things.FLOWERS),
        "trees": tuple(things.TREES),
        "sports": tuple(things.SPORTS),
        "games": tuple(things.GAMES),
        "shapes": tuple(things.SHAPES),
        "metals": tuple(things.METALS),
        "rooms": tuple(things.ROOMS),
        "parts of the body": tuple(word.split("/")[0] for word in things.BODY),
        "kinds of weather": tuple(row.name for row in things.SKIES),
        "feelings": tuple(MOODS),
        "countries": tuple(CAPITALS),
        "capitals": tuple(CAPITALS.values()),
        "girls' names": tuple(GIRLS),
        "boys' names": tuple(BOYS),
        "things in a kitchen": (
            "cup",
            "spoon",
            "kettle",
            "bottle",
            "pan",
            "plate",
            "knife",
            "bowl",
            "stove",
        ),
        "things in a school bag": ("pencil", "notebook", "book", "ruler", "apple", "map", "letter"),
    }
    return {name: words for name, words in found.items() if len(words) >= 3}


ORDERED = {"days of the week": DAYS, "months": MONTHS, "seasons": things.SEASONS}


def _draw_list(rng: Random) -> Slots:
    table = classes()
    while True:
        name = rng.choice(tuple(table))
        count = rng.choice((2, 3, 3, 4, 5, 5, 5, 6, 7, 8))
        if count <= len(table[name]):
            break
    number = str(count) if rng.random() < 0.4 else number_word(count)
    letter = ""
    if rng.random() < 0.12 and name not in ORDERED:
        firsts = [w[0] for w in table[name]]
        good = [f for f in sorted(set(firsts)) if firsts.count(f) >= 2]
        if good:
            letter = rng.choice(good)
            count = rng.randint(2, min(3, firsts.count(letter)))
            number = number_word(count)
    return {
        "ask": "letter" if letter else "plain",
        "x": name,
        "count": count,
        "n": number,
        "letter": letter,
        "with": letter.upper(),
    }


def listed(items: Sequence[str], style: str) -> str:
    """Items as a numbered list, a list with dashes, or a sentence."""
    if style == "numbers":
        return "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    if style == "dashes":
        return "\n".join(f"- {item}" for item in items)
    if len(items) == 1:
        return f"{cap(items[0])}."
    return cap(f"{', '.join(items[:-1])} and {items[-1]}.")


def _write_list(slots: Slots, rng: Random) -> str:
    words = [w for w in classes()[slots["x"]] if w[0] == slots["letter"] or not slots["letter"]]
    count = slots["count"]
    items = words[:count] if slots["x"] in ORDERED else rng.sample(words, count)
    return listed(items, rng.choice(("numbers", "numbers", "dashes", "sentence")))


def items_of(text: str) -> list[str] | None:
    """The items of a list in any of the three styles; None if it is none."""
    lines = text.split("\n")
    if all(re.fullmatch(r"\d+\. .+", line) for line in lines):
        if [int(line.split(".")[0]) for line in lines] != list(range(1, len(lines) + 1)):
            return None
        return [line.split(". ", 1)[1] for line in lines]
    if all(line.startswith("- ") for line in lines):
        return [line[2:] for line in lines]
    if len(lines) > 1 or not text.endswith(".") or not text[0].isupper():
        return None
    return re.split(r", | and ", text[:-1])


def _check_list(slots: Slots, text: str) -> bool:
    items = items_of(text)
    if items is None or len(items) != slots["count"]:
        return False
    table = classes()[slots["x"]]
    allowed = {w.lower() for w in table if not slots["letter"] or w[0] == slots["letter"]}
    names = {w for w in table if w[0].isupper()}
    low = [item.lower() for item in items]
    first = "\n" not in text and ". " not in text  # a sentence begins with a capital
    spelled = all(
        item in names or item.islower() or (first and i == 0) for i, item in enumerate(items)
    )
    return len(set(low)) == len(low) and set(low) <= allowed and spelled


LIST = Kind(
    name="list",
    about="a list of so many animals, fruits, colours and so on",
    wordings={
        "plain": (
            "[List|Name|Give me|Tell me|Write down|Write|Say|I need|Find|Show me|Think of] {n} "
            "{x}.",
            "[Can you name|Can you list|Could you give me|Do you know|What are|Can you think of] "
            "{n} {x}?",
            "[I need a list of|Make a list of|Give me a list of|Write a list of|Please make me a "
            "list with] {n} {x}.",
            "[Which {n} {x} do you know|Which {n} {x} can you name|Tell me, which {n} {x} come "
            "to mind]?",
            "[{n} {x}|{n} {x}, go|Quick: {n} {x}|For my homework I need {n} {x}|For a game we "
            "need {n} {x}].",
            "[Help me to name|Count up|Put together] {n} {x}.",
        ),
        "letter": (
            "[List|Name|Give me|Tell me|Write|Say] {n} {x} that begin with {with}.",
            "[Can you name|Do you know|Could you find] {n} {x} that start with {with}?",
            "[{n} {x} with {with}|I need {n} {x} beginning with the letter {with}|Find {n} {x} "
            "whose first letter is {with}].",
        ),
    },
    draw=_draw_list,
    write=_write_list,
    check=_check_list,
    key=("x", "count", "letter"),
    closed=True,
)

KINDS: tuple[Kind, ...] = (
    ANIMAL_FACTS,
    THING_FACTS,
    COLOUR_FACTS,
    CALENDAR,
    CAPITAL_FACTS,
    YES_NO,
    LIST,
)
