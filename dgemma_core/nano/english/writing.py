"""Kinds of request that ask for a text: stories, their middles and ends, poems and couplets."""

from __future__ import annotations

import re
from random import Random

from dgemma_core.nano.english import stories, verse
from dgemma_core.nano.english.kind import Kind, Slots
from dgemma_core.nano.english.lexicon import lists
from dgemma_core.nano.english.stories import (
    PLOT,
    PLOTS,
    cast_for,
    entry_for,
    roles_of,
    suited,
    tell,
)
from dgemma_core.nano.english.words import with_article

GAP = "___"


def topic_phrase(word: str, rng: Random) -> str:
    """A topic as people name it: a fox, foxes, the fox; rain; friendship."""
    if "H" in roles_of(word):
        return word
    entry = entry_for(roles_of(word)[0], word)
    if entry.say("mass"):
        return word if rng.random() < 0.7 else f"the {word}"
    roll = rng.random()
    if "P" in roles_of(word):
        return entry.say("the") if roll < 0.6 else with_article(word)
    return (
        with_article(word) if roll < 0.75 else entry.say("pl") if roll < 0.87 else entry.say("the")
    )


def _draw_story(rng: Random) -> Slots:
    topics, hero, place = stories.topics(), "", ""
    length = rng.choice(("", "", "", "short", "long"))
    mood = rng.choice(("", "", "", "", "happy", "sad"))
    while True:
        count = rng.choices((0, 1, 2), (1, 7, 2))[0]
        about = tuple(rng.sample(topics, count))
        place = rng.choice(stories.words()["role_P"]).word if rng.random() < 0.12 else ""
        options = suited((*about, *([place] if place else [])), mood)
        if place in about or not options:
            continue
        if place:
            options = tuple(o for o in options if dict(o[2]).get("P") == place)
        if options:
            break
    plot, extras, given = options[int(rng.random() * len(options))]
    kid = rng.choice(lists()["name"])
    if rng.random() < 0.2 and PLOT[plot].opening == "open":
        hero = kid.word
    phrase = " and ".join(topic_phrase(word, rng) for word in about)
    tail = ""
    if hero:
        tail += rng.choice(
            (" with {k} named {h}", " with {k} called {h}", ", and call the hero {h}", " and {h}")
        ).format(k=with_article(kid.say("kid")), h=hero)
        if not about:
            tail = rng.choice(
                (" about {k} named {h}", " about {k} called {h}", " about {h}")
            ).format(k=with_article(kid.say("kid")), h=hero)
    if place:
        inside = entry_for("P", place).say("in")
        tail += rng.choice((f" that happens {inside}", f" {inside}", f", set {inside}"))
    words = [w for w in (length, mood) if w]
    rng.shuffle(words)
    return {
        "ask": "about" if about else "free",
        "topic": phrase,
        "style": "".join(f" {w}" for w in words),
        "tail": tail,
        "about": about,
        "hero": hero,
        "place": place,
        "mood": mood,
        "length": length,
        "plot": plot,
        "extras": extras,
        "given": given,
    }


def _write_story(slots: Slots, rng: Random, headed: bool = False) -> str:
    given = {role: entry_for(role, word) for role, word in slots["given"]}
    if slots["hero"]:
        given["A"] = next(e for e in lists()["name"] if e.word == slots["hero"])
    extras = slots["extras"] + ("W" if not slots["about"] and rng.random() < 0.2 else "")
    plot = PLOT[slots["plot"]]
    return tell(plot.name, extras, cast_for(plot, extras, given, rng), rng, slots["length"], headed)


def _check_story(slots: Slots, text: str, headed: bool = False) -> bool:
    wanted = {name: slots[name] for name in ("mood", "hero", "place", "length")}
    return stories.is_story(text, slots["about"], headed=headed, likely=slots["plot"], **wanted)


_ABOUT = (
    "[Tell me|Write|Write me|Give me|I want|I would like|Can I have|Make up|Invent|Think of] "
    "a{style} story about {topic}{tail}.",
    "[Could you tell me|Can you tell me|Can you write|Would you write|Could you make up] "
    "a{style} story about {topic}{tail}?",
    "[A{style} story about|Story time! I need a{style} story about|I'd love a{style} story about|"
    "Let's have a{style} story about] {topic}{tail}.",
    "[Do you know a{style} story about|Is there a{style} story about|How about a{style} story "
    "about|May I hear a{style} story about] {topic}{tail}?",
    "[Tell|Write] a{style} tale about {topic}{tail}.",
    "I am bored. Tell me a{style} story about {topic}{tail}.",
    "My little sister wants a{style} story about {topic}{tail}.",
    "It is bedtime. I need a{style} story about {topic}{tail}.",
    "Write a{style} story. It should be about {topic}{tail}.",
)
_FREE = (
    *(re.sub(r" about(?=[|\]{ ])| ?\{topic\}", "", text) for text in _ABOUT[:4]),
    "[Tell|Write] a{style} tale{tail}.",
    "I am bored. Tell me a{style} story{tail}.",
    "It is bedtime. I need a{style} story{tail}.",
    "Once upon a time there was a{style} story{tail}. Tell it!",
)

STORY = Kind(
    name="story",
    about=(
        "a story about one or two things, perhaps with a name, in a place, happy or sad, short "
        "or long"
    ),
    wordings={"about": _ABOUT, "free": _FREE},
    draw=_draw_story,
    write=_write_story,
    check=_check_story,
    key=("about", "hero", "place"),
)


def _draw_tale(rng: Random) -> Slots:
    while True:
        slots = _draw_story(rng)
        if slots["about"] and not slots["length"]:
            return slots


ENDING_FIRST = Kind(
    name="ending_first",
    about="a story whose first line tells its ending",
    wordings={
        "about": (
            "[Tell|Write|Give] me a{style} story about {topic}{tail} and [begin with how it ends|"
            "say first how it ends|give away the ending in the first line].",
            "[Write|Tell] a{style} story about {topic}{tail}. [The first line should tell the "
            "ending|Put the ending in the first line|Start with the ending|First say what will "
            "happen|Its first line names its ending].",
            "[Spoil the ending first, then tell|First the ending in one line, then] a{style} "
            "story about {topic}{tail}.",
            "I want to know the ending first: [tell me|write] a{style} story about {topic}{tail}.",
            "Ending first, please: a{style} story about {topic}{tail}.",
            "[How does it end? Say that first, and then tell|In one line say how it ends, then "
            "tell] a{style} story about {topic}{tail}.",
            "[Can|Could] you tell me a{style} story about {topic}{tail} and [begin with the "
            "ending|start from the ending|give the ending away at once]?",
            "A{style} story about {topic}{tail}, but [with a headline that tells everything|with "
            "the ending in the first line|the ending comes first].",
        )
    },
    draw=_draw_tale,
    write=lambda slots, rng: _write_story(slots, rng, True),
    check=lambda slots, text: _check_story(slots, text, True),
    key=("about", "hero", "place"),
    held_with="story",
    late=True,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text; a quotation is not cut."""
    found, start = [], 0
    for end in re.finditer(r"[.!?]\"? ", text):
        if text.count('"', start, end.end()) % 2 == 0:
            found.append(text[start : end.end()].strip())
            start = end.end()
    return [*found, text[start:].strip()]


def _any_story(rng: Random, length: str = "") -> tuple[str, str]:
    plot = PLOTS[int(rng.random() * len(PLOTS))]
    extras = "W" if rng.random() < 0.15 else ""
    return plot.name, tell(plot.name, extras, cast_for(plot, extras, {}, rng), rng, length)


def _draw_continue(rng: Random) -> Slots:
    while True:
        plot, text = _any_story(rng)
        parts = sentences(text)
        first = rng.choice((2, 3, 3))
        if len(parts) < first + 3:
            continue
        if rng.random() < 0.35:  # nothing but the first words
            words = text.split(" ")
            at = rng.randint(2, min(12, len(words) - 12))
            start = " ".join(words[:at])
            if start.count('"') % 2 == 0:
                return {"ask": "words", "text": start, "rest": " ".join(words[at:]), "plot": plot}
        begun, rest = " ".join(parts[:first]), " ".join(parts[first:])
        return {"ask": "sentences", "text": begun, "rest": rest, "plot": plot}


CONTINUE = Kind(
    name="continue_story",
    about="the rest of a story whose beginning, or first words, are given",
    wordings={
        "words": (
            "{text}",
            "{text}...",
            "[Continue|Go on|Finish this|Continue the sentence and the story|Write on|Complete]: "
            "{text}",
            "{text} ... [and then|how does it go on|go on|please continue]",
            "[A story that begins like this|Begin a story with these words|Start a story with|My "
            "story begins]: {text}",
        ),
        "sentences": (
            "[Continue this story|Go on with this story|Finish this story|Complete this story|"
            "Continue the story]: {text}",
            "[How does this story go on|What happens next|And then? What happened|How does it "
            "end]? {text}",
            "{text} [What happens next|How does it go on|And then]?",
            "{text} [Continue|Go on|Please finish the story|Tell me the rest|Write the rest].",
            "[Here is the beginning of a story. Write the rest|I started a story. Can you finish "
            "it|My story is stuck. Help me to finish it|This is how my story begins. How does it "
            "go on]: {text}",
            "[Write what comes next|Tell me how it ends|Please continue|Keep going|Go on]: {text}",
            "The story begins like this. {text} [Now you go on|Now finish it|It is your turn|"
            "Write the ending].",
            "[I wrote this|My teacher gave us this beginning|We started a tale]: {text} [Can you "
            "go on|Can you end it|How should it end]?",
        ),
    },
    everyday=frozenset(("{text}",)),
    draw=_draw_continue,
    write=lambda slots, rng: str(slots["rest"]),
    check=lambda slots, text: bool(text) and stories.is_any_story(f"{slots['text']} {text}"),
    key=("text",),
)


def _draw_infill(rng: Random) -> Slots:
    while True:
        plot, text = _any_story(rng, "short")
        if len(text.split()) <= 62:
            break
    words = [(m.start(), m.end()) for m in re.finditer(r"[A-Za-z'-]+", text)]
    whole = rng.random() < 0.35
    if whole:
        parts = sentences(text)
        part = parts[rng.randrange(1, len(parts))]
        first = text.index(part)
        last = first + len(part)
    else:
        size = rng.randint(1, 6)
        at = rng.randrange(4, len(words) - size)
        first, last = words[at][0], words[at + size - 1][1]
    return {
        "ask": rng.choice(("whole", "whole", "gap")),
        "text": f"{text[:first]}{GAP}{text[last:]}",
        "before": text[:first],
        "after": text[last:],
        "gap": text[first:last],
        "plot": plot,
    }


def _write_infill(slots: Slots, rng: Random) -> str:
    if slots["ask"] == "gap":
        return str(slots["gap"])
    return f"{slots['before']}{slots['gap']}{slots['after']}"


def _check_infill(slots: Slots, text: str) -> bool:
    before, after = slots["before"], slots["after"]
    if slots["ask"] == "gap":
        return bool(text) and stories.is_any_story(f"{before}{text}{after}")
    fits = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    return fits and stories.is_any_story(text)


def _blank(slots: Slots, reply: str) -> tuple[int, int]:
    if slots["ask"] == "gap":
        return 0, len(reply)
    return len(slots["before"]), len(reply) - len(slots["after"])


INFILL = Kind(
    name="infill",
    about="a story with a gap: the whole story with the gap filled, or what belongs in the gap",
    wordings={
        "whole": (
            "[Fill in the blank|Fill the gap|Fill in the missing part|Complete the text|Close "
            "the gap]: {text}",
            "[Something is missing here. Write the whole story|A part got lost. Write the story "
            "again without the gap|Write this story again with the gap filled]: {text}",
            "{text} [Fill in the blank|Fill the gap|Write it again without the gap|Complete the "
            "story].",
            "[Can you fill the gap in|Could you fill in the blank in|Please fill the hole in] "
            "this story: {text}",
            "[There is a hole in my story|I spilled ink on my story|Some words got lost], please "
            "[repair it|complete it|fill it in]: {text}",
            "[Complete this story|Repair this story|Restore this story|Make this story whole]: "
            "{text}",
            "[Write the full story|Give me the full text|Tell the whole story]: {text}",
        ),
        "gap": (
            "[What is missing|What belongs in the gap|What goes in the blank|Which words are "
            "missing|What could stand in the gap]? {text}",
            "{text} [What is missing|What belongs in the gap|Which words fit in the blank|What "
            "goes there]?",
            "[Only give me the missing words|Write only what is missing|Just the missing part|"
            "Say only the missing words]: {text}",
            "[Find the missing words|Guess the missing words|Which words did I cover|Which words "
            "got lost here]: {text}",
            "{text} [Only the missing words|Just tell me what goes in the gap|Say only what fits "
            "there].",
        ),
    },
    draw=_draw_infill,
    write=_write_infill,
    check=_check_infill,
    key=("text",),
    blank=_blank,
    late=True,
)


def verse_topic(word: str, rng: Random) -> str:
    """A poem's topic as people name it."""
    entry = verse.topics()[word]
    if entry.say("the") == word:
        return word
    if word in verse.MASS or any(
        e.word == word and e.say("mass") for e in (*lists()["weather"], *lists()["food"])
    ):
        return word if rng.random() < 0.6 else f"the {word}"
    if word in ("moon", "sun", "sea", "night", "morning", "evening", "ocean"):
        return f"the {word}"
    return with_article(word) if rng.random() < 0.6 else f"the {word}"


STANZAS = {"short": (1,), "": (1, 1, 2), "long": (2, 3)}


def _draw_poem(rng: Random) -> Slots:
    length = rng.choice(("", "", "short", "long"))
    topics = tuple(verse.topics())
    topic = topics[int(rng.random() * len(topics))] if rng.random() < 0.85 else ""
    return {
        "ask": "about" if topic else "free",
        "topic": verse_topic(topic, rng) if topic else "",
        "about": topic,
        "style": f" {length}" if length else "",
        "length": length,
        "stanzas": rng.choice(STANZAS[length]),
    }


def _write_poem(slots: Slots, rng: Random) -> str:
    return verse.poem(slots["about"] or rng.choice(tuple(verse.topics())), slots["stanzas"], rng)


def _check_poem(slots: Slots, text: str) -> bool:
    if text.count("\n\n") + 1 not in STANZAS[slots["length"]]:
        return False
    if slots["about"]:
        return verse.is_verse(text, slots["about"])
    named = [topic for topic in verse.topics() if topic[:3].lower() in text.lower()]
    return any(verse.is_verse(text, topic) for topic in named)


POEM = Kind(
    name="poem",
    about="a rhymed poem about a thing, or whatever comes to mind, of one to three stanzas",
    wordings={
        "about": (
            "[Write|Write me|Tell me|Give me|Make|I want|I would like|Compose|Make up|Recite] "
            "a{style} poem about {topic}.",
            "[Can you write|Could you write|Would you write|Can you make up|May I have|Can I "
            "have] a{style} poem about {topic}?",
            "[A{style} poem about|I'd love a{style} poem about|Let's have a{style} poem on|I "
            "need a{style} poem about] {topic}.",
            "[Do you know|Can you say|How about] a{style} poem about {topic}?",
            "[Write|Give me] a{style} poem on {topic}.",
            "[Put|Turn] {topic} into a{style} poem.",
            "My mother likes poems. Write her a{style} one about {topic}.",
            "Be a poet! Write a{style} poem about {topic}.",
            "[Write|Make] some{style} verses about {topic}.",
            "I am in love with {topic}. Write a{style} poem.",
            "My class needs a{style} poem about {topic}.",
            "{topic}, as a{style} poem.",
        ),
        "free": (
            "[Write|Write me|Tell me|Give me|Make|I want|I would like|Compose|Make up|Recite] "
            "a{style} poem.",
            "[Can you write|May I have|Can I have|Do you know|Can you say|How about] a{style} poem?",
            "[A{style} poem|I need a{style} poem|Some{style} verses].",
            "Be a poet!",
        ),
    },
    everyday=frozenset(("Write a{style} poem.", "A{style} poem.")),
    draw=_draw_poem,
    write=_write_poem,
    check=_check_poem,
    key=("about",),
    late=True,
)


def _draw_couplet(rng: Random) -> Slots:
    topics = tuple(verse.topics())
    topic = topics[int(rng.random() * len(topics))]
    return {"topic": verse_topic(topic, rng), "about": topic}


COUPLET = Kind(
    name="couplet",
    about="two lines that rhyme",
    wordings={
        "": (
            "[Write|Give me|Make|Tell me|Say|Make up|Invent] two lines that rhyme about {topic}.",
            "[Write|Give me|Make|Compose|I want|I would like] a couplet about {topic}.",
            "[Write|Make|Give me] a rhyme about {topic}.",
            "[Can you|Could you] [rhyme about|make a rhyme about|write a couplet about|write two "
            "rhyming lines about] {topic}?",
            "[Rhyme about|Two rhyming lines about|A rhyme about|A couplet on|Just two lines of "
            "verse about] {topic}.",
            "[A very small poem about|A two-line poem about|The shortest poem about] {topic}.",
            "Rhyme something about {topic}.",
            "[I need a rhyme|Two lines, please, and they should rhyme|My card needs two rhyming "
            "lines] about {topic}.",
            "[What rhymes can you make|Which couplet comes to your mind|How would you rhyme] "
            "about {topic}?",
        )
    },
    draw=_draw_couplet,
    write=lambda slots, rng: verse.couplet(slots["about"], rng),
    check=lambda slots, text: verse.is_verse(text, slots["about"], 1, size=2),
    key=("about",),
    held_with="poem",
    late=True,
)

KINDS: tuple[Kind, ...] = (STORY, ENDING_FIRST, CONTINUE, INFILL, POEM, COUPLET)
