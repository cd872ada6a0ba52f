"""Kinds that need the chat before them: something told, one more of the same, and a story about whoever asks."""

from __future__ import annotations

from random import Random

from dgemma_core.nano.english import stories
from dgemma_core.nano.english.describing import DESCRIBE, RIDDLE
from dgemma_core.nano.english.kind import Example, Kind, Message, Slots, said
from dgemma_core.nano.english.knowledge import ANIMAL_FACTS, CAPITAL_FACTS, LIST, cap, filled
from dgemma_core.nano.english.language import DEGREES, OPPOSITE, PLURAL, RHYME, SPELL, VERB_FORMS
from dgemma_core.nano.english.lexicon import CAPITALS, lists
from dgemma_core.nano.english.stories import PLOT, PLOTS, cast_for, tell
from dgemma_core.nano.english.talking import FACTS, FILLERS, GREETED, IDENTITY, NOTED, SMALL_TALK
from dgemma_core.nano.english.words import with_article
from dgemma_core.nano.english.writing import COUPLET, POEM, STORY


def _draw_told(rng: Random) -> Slots:
    words = lists()
    ask = rng.choice(("name", "name", "colour", "food", "city", "age", "pet", "topic"))
    pet = rng.choice(words["animal"]).word
    value = {
        "name": rng.choice(words["name"]).word,
        "colour": rng.choice(words["colour"]).word,
        "food": rng.choice(words["food"]).say("gen"),
        "city": rng.choice(tuple(CAPITALS.values())),
        "age": str(rng.randint(5, 90)),
        "pet": rng.choice(("Rex", "Biscuit", "Pepper", "Socks", "Bella", "Coco")),
        "topic": rng.choice(words["animal"]).say("pl"),
    }[ask]
    return {"ask": ask, "v": value, "cap": cap(value), "w": pet, "x": with_article(pet)}


def _told_answers(slots: Slots) -> list[str]:
    if slots["ask"] == "name":
        return filled(GREETED, n=slots["v"])
    if slots["ask"] == "topic":
        return filled(
            (
                "Good, let us talk about {v}. What do you want to know?",
                "{V}, a good topic! What shall we begin with?",
            ),
            v=slots["v"],
            V=cap(slots["v"]),
        )
    return [*NOTED, *(f"{noted} What shall we do?" for noted in NOTED)]


INTRODUCE = Kind(
    name="introduce",
    about="somebody tells a name, a favourite colour, a pet",
    wordings={
        key: tuple(text.replace("{V}", "{cap}") for text in told)
        + (
            (
                "Hello! My name is {v}.",
                "Hey, this is {v}.",
                "I am {v}, who are you?",
                "People call me {v}.",
                "It is me, {v}.",
            )
            if key == "name"
            else ()
        )
        for key, (told, _, _) in FACTS.items()
    },
    draw=_draw_told,
    write=lambda slots, rng: rng.choice(_told_answers(slots)),
    check=lambda slots, text: text in _told_answers(slots),
    key=("ask", "v"),
    courtesy=False,
    everyday=frozenset(
        ("i am {v}", "hello i am {v}", "my name is {v}", "hi my name is {v}", "i like {v}")
    ),
)

MORE: tuple[Kind, ...] = (STORY, POEM, COUPLET, RIDDLE, RHYME)
"""Kinds of which one can ask for another one."""
NEXT: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        OPPOSITE,
        PLURAL,
        SPELL,
        VERB_FORMS,
        DEGREES,
        ANIMAL_FACTS,
        CAPITAL_FACTS,
        DESCRIBE,
        LIST,
    )
}
"""Kinds that can be asked again about another word alone."""
NEXT_WORD = {"animal_facts": "a", "capitals": "country", "describe": "topic", "list": "x"}


def _draw_follow(rng: Random) -> Slots:
    ask = rng.choice(("another", "next", "next", "fresh", "fresh"))
    seed = rng.randrange(10**9)
    if ask == "another":
        kind = MORE[int(rng.random() * len(MORE))]
        first = kind.example(seed, "train")
        while True:
            reply = kind.write(first.slots, rng)
            if reply != first.reply:
                break
        return {
            "ask": ask,
            "kind": kind.name,
            "before": (first,),
            "inner": first.slots,
            "reply": reply,
        }
    if ask == "next":
        kind = NEXT[rng.choice(tuple(NEXT))]
        first = kind.example(seed, "train")
        while True:
            slots = kind.draw(rng)
            same = slots.get("ask") == first.slots.get("ask") and slots.get(
                "count"
            ) == first.slots.get("count")
            word = slots[NEXT_WORD.get(kind.name, "word")]
            fits = kind.name != "capitals" or slots["ask"] == "capital"
            fits = fits and (kind.closed or kind.split_of(slots, 0, "") == "train")
            if (
                same
                and fits
                and word != first.slots[NEXT_WORD.get(kind.name, "word")]
                and not slots.get("letter")
            ):
                break
            first = kind.example(rng.randrange(10**9), "train")
        return {
            "ask": ask,
            "kind": kind.name,
            "before": (first,),
            "inner": slots,
            "other": word,
            "reply": kind.write(slots, rng),
        }
    kind = FRESH[int(rng.random() * len(FRESH))]
    last = kind.example(seed, "train")
    earlier = tuple(
        FILLERS[int(rng.random() * len(FILLERS))].example(rng.randrange(10**9), "train")
        for _ in range(rng.choice((1, 1, 2)))
    )
    return {
        "ask": ask,
        "kind": kind.name,
        "before": earlier,
        "inner": last.slots,
        "request": last.prompt,
        "reply": last.reply,
    }


FRESH: tuple[Kind, ...] = (*FILLERS, IDENTITY, SMALL_TALK, COUPLET, RIDDLE, DESCRIBE, STORY)
_BY_NAME = {kind.name: kind for kind in (*MORE, *NEXT.values(), *FRESH)}


def _follow_history(slots: Slots, rng: Random) -> list[Message]:
    found: list[Message] = []
    before: tuple[Example, ...] = slots["before"]
    for example in before:
        found += [said("user", example.prompt), said("assistant", example.reply)]
    return found


def _check_follow(slots: Slots, text: str) -> bool:
    if slots["ask"] == "another" and text == slots["before"][0].reply:
        return False
    return _BY_NAME[slots["kind"]].accepts(slots["inner"], text)


FOLLOW_UP = Kind(
    name="follow_up",
    about="one more of the same, the same about another word, or something new in the middle of "
    "a chat",
    wordings={
        "another": (
            "[Another one|One more|Another|Again|More|Once more|The next one|Give me another one|"
            "Tell me another|I want another one|Do it again|Write another one|And another one|A "
            "different one|Try again|Make a new one|That was good, another one|Next][!|.]",
            "[Can I have|May I have|Do you know|Can you make|Do you have] another one?",
        ),
        "next": (
            "And {other}?",
            "[What about|How about|And what about|And how about] {other}?",
            "[The same for|Now|And for|Then|Next] {other}.",
            "And now {other}[, please|].",
            "{other}?",
            "[And the same for|Do the same for|I also need it for|One more:] {other}.",
        ),
        "fresh": ("{request}",),
    },
    draw=_draw_follow,
    write=lambda slots, rng: str(slots["reply"]),
    check=_check_follow,
    key=("ask", "request", "other"),
    exact=("request",),
    history=_follow_history,
)


def _draw_me(rng: Random) -> Slots:
    kid = rng.choice(lists()["name"])
    plots = [p for p in PLOTS if p.opening == "open"]
    return {
        "hero": kid.word,
        "plot": rng.choice(plots).name,
        "told": rng.choice(FACTS["name"][0]).format(v=kid.word),
    }


def _write_me(slots: Slots, rng: Random) -> str:
    hero = next(e for e in lists()["name"] if e.word == slots["hero"])
    plot = PLOT[slots["plot"]]
    return tell(plot.name, "", cast_for(plot, "", {"A": hero}, rng), rng)


ABOUT_ME = Kind(
    name="story_about_me",
    about="a story about whoever told a name before",
    wordings={
        "": (
            "[Tell me|Write|Write me|Give me|Make up|I want|I would like] a story about me.",
            "[Can you tell me|Could you write|Do you know|How about] a story about me?",
            "[Now a story with me in it|A story in which I am the hero|Let me be in a story|Tell "
            "a story with my name|Put me into a story|I want to be in a story|Make me the hero "
            "of a story|Use my name in a story].",
            "[Tell me|Write] a story with my name in it.",
            "[Can I be|May I be] [in your story|the hero of a story]?",
            "[Tell me|Write] a tale about me.",
            "[A bedtime story about me|A story about myself|A story about somebody with my "
            "name], please.",
            "[Who am I in a story|What would a story about me be like]? Tell it.",
            "[Write|Tell] my story.",
            "A story, and I am in it.",
        )
    },
    draw=_draw_me,
    write=_write_me,
    check=lambda slots, text: stories.is_story(text, (), hero=slots["hero"], likely=slots["plot"]),
    key=("hero",),
    history=lambda slots, rng: [
        said("user", slots["told"]),
        said("assistant", rng.choice(GREETED).format(n=slots["hero"])),
    ],
)

KINDS: tuple[Kind, ...] = (INTRODUCE, FOLLOW_UP, ABOUT_ME)
