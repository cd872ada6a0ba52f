"""Kinds that tell what things are like: descriptions, comparisons, riddles and their answers."""

from __future__ import annotations

from functools import cache
from random import Random

from dgemma_core.nano.english.grammar import Grammar, Roles
from dgemma_core.nano.english.kind import Kind, Slots
from dgemma_core.nano.english.lexicon import (
    ANIMAL,
    FOOD,
    JOB,
    SPOT,
    THING,
    entry_of,
    lists,
    number_word,
)
from dgemma_core.nano.english.things import SILENT, SKIES
from dgemma_core.nano.english.words import Entry, third_person, with_article

GROUP_PLURAL = {
    "mammal": "mammals",
    "bird": "birds",
    "insect": "insects",
    "fish": "fish",
    "reptile": "reptiles",
    "amphibian": "amphibians",
    "arachnid": "arachnids",
    "mollusc": "molluscs",
    "crustacean": "crustaceans",
}


def fact(text: str, **forms: str) -> Entry:
    """A cell of a table as a word that can play a role."""
    return Entry(text, "fact", forms)


@cache
def facts_of(word: str, mark: str = "") -> tuple[str, dict[str, Entry]]:
    """The class of a noun, and its facts as roles; `mark` is added to the roles' names."""
    entry = entry_of(word)
    found: dict[str, Entry] = {"N": entry}
    kind = entry.kind
    if word in ANIMAL:
        row = ANIMAL[word]
        size = "middle-sized" if row.size == "medium" else row.size
        legs = f"{number_word(row.legs)} legs" if row.legs else "no legs"
        found |= {
            "size": fact(size),
            "group": fact(row.group, pl=GROUP_PLURAL[row.group]),
            "colour": fact(row.colour),
            "legs": fact(legs),
            "home": fact(row.home),
            "eats": fact(row.eats),
            "young": fact(row.young),
            "sound": fact(row.sound, third=third_person(row.sound)),
            "can": fact(row.can),
        }
        kind = "silent" if word in SILENT else "animal"
    elif word in THING:
        thing = THING[word]
        found |= {
            "made": fact(thing.made),
            "colour": fact(thing.colour),
            "shape": fact(thing.shape),
            "use": fact(thing.use),
            "where": fact(thing.where),
        }
    elif word in FOOD:
        food = FOOD[word]
        how, _, rest = food.used.partition(" ")
        found |= {
            "group": fact(food.group),
            "colour": fact(food.colour),
            "taste": fact(food.taste),
            "comes": fact(food.comes),
            "how": fact(how),
            "rest": fact(rest),
        }
        kind = "mass" if food.mass else "food"
    elif word in SPOT:
        spot = SPOT[word]
        found |= {
            "see": fact(spot.see),
            "hear": fact(spot.hear),
            "do": fact(spot.do),
            "feel": fact(spot.feel),
        }
    elif word in JOB:
        job = JOB[word]
        found |= {"where": fact(job.where), "does": fact(job.does), "tool": fact(job.tool)}
    else:
        sky = next(row for row in SKIES if row.name == word)
        found |= {"adj": fact(sky.adjective), "does": fact(sky.does), "people": fact(sky.people)}
    return kind, {f"{role}{mark}": value for role, value in found.items()}


RULES: dict[str, str | tuple[str, ...]] = {
    "animal": (
        "<a_one> <a_look> <a_home> <a_food>[? <a_sound>][? <a_can>][? <a_young>]",
        "<a_one> <a_home> <a_food> <a_look>[? <a_young>] <a_can>",
        "<a_look> <a_home>[? <a_sound>] <a_food>[? <a_can>]",
        "<a_can> <a_one> <a_look> <a_home>[? <a_food>]",
        "<a_many>",
    ),
    "silent": (
        "<a_one> <a_look> <a_home> <a_food>[? <a_can>][? <a_young>]",
        "<a_one> <a_home> <a_food> <a_look>[? <a_young>] <a_can>",
        "<a_look> <a_home> <a_food>[? <a_can>]",
        "<a_can> <a_one> <a_look> <a_home>[? <a_food>]",
        "<a_many_silent>",
    ),
    "a_one": (
        "[{N.one} is|A grown {N} is] a {size} {group}.",
        "{N.gen} are {size} {group.pl}.",
        "The {N} [is one of the|belongs to the] {group.pl}, and it is {size}.",
    ),
    "a_look": (
        "A {N} has {legs}[, and its colour is often {colour}|, and most of them are {colour}| "
        "and is often {colour}].",
        "[Usually|Mostly] a {N} is {colour}, and it has {legs}.",
    ),
    "a_home": ("[You can find it|It lives|It makes its home] {home}.", "{N.gen} live {home}."),
    "a_food": (
        "It [eats|likes to eat|feeds on] {eats}.",
        "[For dinner it has|Its favourite food is] {eats}.",
    ),
    "a_sound": (
        "[Listen, and you can hear it {sound}|When it is excited, it {sound.third}|If you come "
        "near, it may {sound}].",
    ),
    "a_can": (
        "A {N} [can {can}|knows how to {can}].",
        "[The best thing about a {N}|What makes a {N} special] is that it can {can}.",
    ),
    "a_young": (
        "A baby {N} is called a {young}.",
        "[Its young one is|Its baby is] called a {young}.",
    ),
    "a_many": (
        "{N.gen} are {group.pl} [with {legs}|that live {home}]. They [eat|feed on] {eats}, and "
        "[most of them are {colour}|they can {can}].[? You can hear them {sound}.][? Their "
        "babies are called by the name of {young}.]",
    ),
    "a_many_silent": (
        "{N.gen} are {group.pl} [with {legs}|that live {home}]. They [eat|feed on] {eats}, and "
        "[most of them are {colour}|they can {can}].",
    ),
    "thing": (
        "{N.one} is [usually|often] made of {made}. It is {shape}[, and many are {colour}| and "
        "often {colour}]. [People use it to {use}|With it people can {use}].[? You can find it "
        "{where}.]",
        "[You can find a {N} {where}|Look {where}, and you may see a {N}]. It is {shape} and "
        "{colour}, and it is made of {made}.[? It helps people to {use}.]",
        "A {N} is [a thing|something] that people use to {use}. [Most are made of {made}|It is "
        "made of {made}].[? It is {shape}, and its colour is often {colour}.] [You will find it "
        "{where}|It is kept {where}].",
        "[Think of something {shape} and {colour}|Something {shape} and {colour}]: that is a "
        "{N}. People use it to {use}.[? It is made of {made}.]",
    ),
    "food": (
        "{N.one} is a {colour} {group}. It tastes {taste}[? and comes from {comes}]. [People "
        "{how} it {rest}|Many people {how} it {rest}].",
        "{N.gen} come from {comes}. They are {colour} and taste {taste}.[? People {how} them "
        "{rest}.]",
        "[If you like {taste} things, try a {N}|A {N} tastes {taste}]. It is {colour}, and it "
        "comes from {comes}.[? People like to {how} it {rest}.]",
        "A {N} [looks|is] {colour} and tastes {taste}. It is a {group} from {comes}, and people "
        "{how} it {rest}.",
    ),
    "mass": (
        "{N.gen} is a {colour} {group}. It tastes {taste}[? and comes from {comes}]. [People "
        "{how} it {rest}|Many people {how} it {rest}].",
        "{N.gen} comes from {comes}. It is {colour} and tastes {taste}.[? People {how} it {rest}.]",
        "[If you like {taste} things, try {N}|Most {N} tastes {taste}]. It is {colour}, and it "
        "comes from {comes}.[? People like to {how} it {rest}.]",
    ),
    "place": (
        "A {N} is [a {feel} place|a place that feels {feel}]. {N.in} you can see {see}[? and "
        "hear {hear}]. [People {do} there|It is a place where people {do}].",
        "{N.in} people {do}. You [see|find] {see}, [and it is {feel}|and you hear {hear}].",
        "[Close your eyes and think of a {N}|Imagine a {N}]: you hear {hear}, and you see {see}. "
        "It is {feel} there.[? People {do}.]",
        "[The first thing you hear|What you hear first] {N.in} is {hear}. [Then you see {see}|"
        "Look around, and you see {see}].[? Here people {do}.]",
    ),
    "weather": (
        "{N.gen} {does}. [When it is {adj}, people {people}|On {adj} days people {people}].",
        "[On a {adj} day|When there is {N}], people {people}. {N.gen} {does}.",
        "What is {N} like? It {does}, and people {people}.",
    ),
    "job": (
        "A {N} works {where}. [It is somebody who {does}|A {N} {does}].[? For this work you need "
        "{tool}.]",
        "A {N} is [somebody|a person] who {does}. [You can meet one {where}|The work is done "
        "{where}].[? Every {N} needs {tool}.]",
        "[Who {does}|Do you know who {does}]? A {N}. [You can meet one {where}|The work is done "
        "{where}][?, and it needs {tool}].",
    ),
    # comparisons: N and M with their facts, a word that both share or not
    "vs_animal": (
        "<vs_group> <vs_legs>[? <vs_home>][? <vs_eats>]",
        "<vs_home> <vs_group>[? <vs_eats>]",
        "<vs_legs> <vs_home>[? <vs_group>]",
        "<vs_size> <vs_group>[? <vs_home>]",
    ),
    "vs_group": ("[<both_group>|<two_groups>]",),
    "both_group": ("[Both are {group.pl}|A {N} and a {M} are both {group.pl}].",),
    "two_groups": (
        "A {N} is a {group}, [but|while] a {M} is a {groupm}.",
        "[They are not alike|They are different]: a {N} is a {group} and a {M} is a {groupm}.",
    ),
    "vs_legs": ("[<same_legs>|<other_legs>]",),
    "same_legs": ("[Both have {legs}|The {N} has {legs}, and so has the {M}].",),
    "other_legs": ("The {N} has {legs}, [but|while|and] the {M} has {legsm}.",),
    "vs_home": ("A {N} lives {home}, [but|while|and] a {M} lives {homem}.",),
    "vs_eats": ("The {N} eats {eats}, [but|while|and] the {M} eats {eatsm}.",),
    "vs_size": ("A {N} is {size}, [and|while] a {M} is {sizem}.",),
    "vs_food": (
        "They differ: {N.gen} {N.are} {colour}, [but|and|while] {M.gen} {M.are} {colourm}. "
        "<vs_taste>",
        "<vs_taste> {N.gen} {N.are} {colour}, [but|and|while] {M.gen} {M.are} {colourm}.[? "
        "<vs_from>]",
        "<vs_from> <vs_taste>",
    ),
    "vs_taste": ("{N.gen} {N.v:taste} {taste}, [but|and|while] {M.gen} {M.v:taste} {tastem}.",),
    "vs_from": (
        "{N.gen} {N.v:come} from {comes}, [but|and|while] {M.gen} {M.v:come} from {comesm}.",
    ),
    "vs_thing": (
        "A {N} is {shape}, [but|and|while] a {M} is {shapem}. <vs_use>",
        "<vs_use>[? <vs_made>]",
        "<vs_made> <vs_use>",
    ),
    "vs_use": (
        "People use a {N} to {use}, [but|and|while] they use a {M} to {usem}.",
        "With a {N} you can {use}, [but|and] with a {M} you can {usem}.",
    ),
    "vs_made": ("A {N} is made of {made}, [but|and|while] a {M} is made of {madem}.",),
    # riddles: first the answer, then the lines that lead to it
    "riddle_head": ("[Answer: a {N}|The answer is a {N}|It is a {N}].",),
    "riddle_animal": (
        "<r_look> <r_home> <r_food>[? <r_can>]",
        "<r_home> <r_can>[? <r_look>]",
        "<r_can> <r_food> <r_look>",
        "<r_food> <r_look>[? <r_home>]",
    ),
    "r_look": (
        "I am [often|mostly] {colour}, and I have {legs}.",
        "I have {legs}, and I am {size}.",
        "My colour is {colour}, and I am {size}.",
    ),
    "r_home": ("I live {home}.", "You can find me {home}.", "My home is {home}."),
    "r_food": ("I eat {eats}.", "I like {eats}.", "For dinner I have {eats}."),
    "r_can": ("I can {can}.", "Watch me {can}."),
    "riddle_thing": (
        "I am {shape}, and I am made of {made}. [People use me to {use}|With me people {use}].[? "
        "You find me {where}.]",
        "[You find me {where}|Look for me {where}]. [People use me to {use}|I help people to "
        "{use}].[? I am {shape} and {colour}.]",
        "People use me to {use}. I am made of {made}, and I am {shape}.",
    ),
    "riddle_food": (
        "I am {colour}, and I taste {taste}. I come from {comes}.[? People {how} me {rest}.]",
        "I come from {comes}. I am {colour}, and people {how} me {rest}.",
        "People {how} me {rest}. I taste {taste}[?, and I am {colour}].",
    ),
    "riddle_end": ("[What am I|Who am I|Do you know me|Can you guess my name]?",),
}


@cache
def grammar() -> Grammar:
    """The grammar of descriptions."""
    rules = dict(RULES)
    for name in ("animal", "thing", "food"):
        rules[f"full_{name}"] = f"<riddle_head>\n<riddle_{name}> <riddle_end>"
        rules[f"asked_{name}"] = f"<riddle_{name}> <riddle_end>"
    return Grammar(rules, lists())


DESCRIBED = tuple(
    entry.word
    for name in ("animal", "thing", "food", "place", "weather", "job")
    for entry in lists()[name]
)


def _phrase(word: str) -> str:
    entry = entry_of(word)
    return str(entry.say("one"))


def _draw_describe(rng: Random) -> Slots:
    word = DESCRIBED[int(rng.random() * len(DESCRIBED))]
    entry = entry_of(word)
    many = rng.random() < 0.2 and not entry.say("mass")
    return {
        "ask": "many" if many else "one",
        "about": word,
        "topic": _phrase(word),
        "many": entry.say("pl"),
    }


def _write_describe(slots: Slots, rng: Random) -> str:
    kind, roles = facts_of(slots["about"])
    return grammar().write(kind, roles, rng, rng.choice((0.3, 0.6, 0.9)))


def _check_describe(slots: Slots, text: str) -> bool:
    kind, roles = facts_of(slots["about"])
    return grammar().reads(kind, text, roles) is not None


DESCRIBE = Kind(
    name="describe",
    about="what an animal, a thing, a food, a place, weather or a job is like",
    wordings={
        "many": (
            "[What are|Describe|Tell me about|Explain|Tell me something about|Write about] "
            "{many}{end}",
            "[What do you know about|What can you tell me about|What is special about] {many}?",
            "[I want to know about|I would like to know more about|Give me a description of] "
            "{many}.",
            "{many}: [what are they|what are they like]?",
        ),
        "one": (
            "[Describe|Please describe|Explain|Tell me about|Tell me something about|Say "
            "something about] {topic}.",
            "[What is|What's|How would you describe|How would you explain] {topic}?",
            "[What do you know about|What can you tell me about|What can you say about] {topic}?",
            "[What is {topic} like|What does {topic} mean|Do you know what {topic} is|Can you "
            "describe {topic}|Could you explain {topic}]?",
            "[Give me a description of|Write a description of|I want to know about|I need a "
            "description of|Write a few sentences about|Write something about|Write about] "
            "{topic}.",
            "[{topic}, what is that|Which words describe {topic}|What should I know about "
            "{topic}]?",
            "[I have never seen {topic}. Describe it|Explain to a child what {topic} is|Imagine "
            "{topic} and describe it|In a few words: {topic}|Help me to understand what {topic} "
            "is].",
        ),
    },
    draw=_draw_describe,
    write=_write_describe,
    check=_check_describe,
    key=("about",),
    closed=True,
)


@cache
def _comparable(name: str) -> tuple[str, ...]:
    return tuple(e.word for e in lists()[name])


def _draw_compare(rng: Random) -> Slots:
    name = rng.choice(("animal", "animal", "food", "thing"))
    while True:
        first, second = rng.sample(_comparable(name), 2)
        if name != "animal":
            a, b = facts_of(first)[1], facts_of(second)[1]
            if any(
                a[key].word == b[key].word
                for key in (
                    ("colour", "taste", "comes") if name == "food" else ("shape", "use", "made")
                )
            ):
                continue
        else:
            a, b = facts_of(first)[1], facts_of(second)[1]
            if (
                a["home"].word == b["home"].word
                or a["eats"].word == b["eats"].word
                or a["size"].word == b["size"].word
            ):
                continue
        return {
            "class": name,
            "first": first,
            "second": second,
            "a": _phrase(first),
            "b": _phrase(second),
        }


def _compared(slots: Slots) -> tuple[str, Roles]:
    _, first = facts_of(slots["first"])
    _, other = facts_of(slots["second"], "m")
    return f"vs_{slots['class']}", {**first, **other, "M": other["Nm"]}


def _write_compare(slots: Slots, rng: Random) -> str:
    rule, roles = _compared(slots)
    while True:
        text = grammar().write(rule, roles, rng, 0.6)
        if _check_compare(slots, text):
            return text


def _check_compare(slots: Slots, text: str) -> bool:
    rule, roles = _compared(slots)
    if grammar().reads(rule, text, roles) is None:
        return False
    if slots["class"] != "animal":
        return True
    same_group = roles["group"].word == roles["groupm"].word
    same_legs = roles["legs"].word == roles["legsm"].word
    says_both_groups = (
        f"both {roles['group'].say('pl')}" in text or f"Both are {roles['group'].say('pl')}" in text
    )
    says_two_groups = f" is {with_article(roles['groupm'].word)}." in text
    says_same_legs = "Both have" in text or "so has the" in text
    says_other_legs = f"has {roles['legsm'].word}." in text
    return not (
        (says_both_groups and not same_group)
        or (says_two_groups and same_group)
        or (says_same_legs and not same_legs)
        or (says_other_legs and same_legs)
    )


COMPARE = Kind(
    name="compare",
    about="how two animals, foods or things differ",
    wordings={
        "": (
            "[Compare|Please compare|Contrast] {a} and {b}.",
            "[Compare|Contrast] {a} with {b}.",
            "[What is the difference between|What's the difference between|What are the "
            "differences between|How do I tell the difference between|Is there a difference "
            "between] {a} and {b}?",
            "[How is {a} different from|How does {a} differ from|In what way is {a} unlike] {b}?",
            "[How do {a} and {b} differ|How are {a} and {b} different|What do you say about {a} "
            "and {b}]?",
            "[Tell me|Explain|Say|Write] how {a} and {b} differ.",
            "[Tell me the difference between|Explain the difference between|Write a comparison "
            "of|Give me a comparison of|I mix up] {a} and {b}.",
            "[{a} or {b}: what is the difference|Can you compare {a} and {b}|Could you compare "
            "{a} with {b}|Is {a} the same as {b}|Are {a} and {b} the same thing]?",
            "[Put {a} beside {b} and compare them|Look at {a} and {b}. How do they differ|Here "
            "is {a}, there is {b}. Compare them].",
        )
    },
    draw=_draw_compare,
    write=_write_compare,
    check=_check_compare,
    key=("first", "second"),
)

RIDDLES = ("animal", "thing", "food")


def _draw_riddle(rng: Random) -> Slots:
    kind = RIDDLES[int(rng.random() * 3)]
    while True:
        word = rng.choice(_comparable(kind))
        if kind != "food" or not entry_of(word).say("mass"):
            break
    asks = rng.random() < 0.6
    return {
        "ask": "about" if asks else kind,
        "class": kind,
        "about": word if asks else "",
        "topic": _phrase(word),
        "pick": word,
    }


def _write_riddle(slots: Slots, rng: Random) -> str:
    _, roles = facts_of(slots["pick"])
    return grammar().write(f"full_{slots['class']}", roles, rng, 0.6)


def _check_riddle(slots: Slots, text: str) -> bool:
    words = [slots["about"]] if slots["about"] else _comparable(slots["class"])
    head = text.split("\n")[0]
    return any(
        grammar().reads(f"full_{slots['class']}", text, facts_of(word)[1]) is not None
        for word in words
        if f" {word}." in head
    )


_RIDDLE = (
    "[Tell me|Give me|Write|Make|Make up|I want|Invent] a riddle {of} and [say the answer first|"
    "put the answer first|begin with the answer|start with the solution].",
    "[A riddle|Make me a riddle] {of}, [with the answer first|the answer first, please|but give "
    "the answer first].",
    "[Can you tell me|Do you know|Could you make up|How about] a riddle {of}, with the answer "
    "first?",
    "[Answer first, then the riddle|First the answer, then the riddle]: a riddle {of}.",
    "[Tell me|Write|Give me|Make|I would like] a riddle {of}.",
    "[Do you know|Can you make] a riddle {of}?",
)
RIDDLE = Kind(
    name="riddle",
    about="a riddle with its answer first",
    wordings={
        ask: tuple(text.replace("{of}", of) for text in _RIDDLE)
        for ask, of in (
            ("about", "about {topic}"),
            ("animal", "about an animal"),
            ("thing", "about a thing in the house"),
            ("food", "about something to eat"),
        )
    },
    draw=_draw_riddle,
    write=_write_riddle,
    check=_check_riddle,
    key=("about",),
    late=True,
)


def _draw_guess(rng: Random) -> Slots:
    while True:
        kind = RIDDLES[int(rng.random() * 3)]
        word = rng.choice(_comparable(kind))
        if kind == "food" and entry_of(word).say("mass"):
            continue
        text = grammar().write(f"asked_{kind}", facts_of(word)[1], rng, 0.8)
        return {"class": kind, "text": text, "about": word}


GUESSES = (
    "You are {n}.",
    "It is {n}.",
    "{N}.",
    "I think it is {n}.",
    "That must be {n}!",
    "The answer is {n}.",
)


def _guess_words(slots: Slots) -> tuple[str, ...]:
    return tuple(
        word
        for word in _comparable(slots["class"])
        if grammar().reads(f"asked_{slots['class']}", slots["text"], facts_of(word)[1]) is not None
    )


def _said_guess(pattern: str, word: str) -> str:
    phrase = with_article(word)
    return pattern.format(n=phrase, N=phrase[0].upper() + phrase[1:])


def _check_guess(slots: Slots, text: str) -> bool:
    said = {
        word
        for word in _comparable(slots["class"])
        if text in {_said_guess(p, word) for p in GUESSES}
    }
    return bool(said) and said <= set(_guess_words(slots))


GUESS = Kind(
    name="guess",
    about="the answer to a riddle",
    wordings={
        "": (
            "{text}",
            "[Guess|Guess what I am|Solve this riddle|Here is a riddle|A riddle for you|Can you "
            "solve this|Answer this riddle|What is this]: {text}",
            "[I have a riddle|Riddle time|Listen to my riddle|Try this one|Think hard|My brother "
            "asked me this|Who is speaking here|Find the answer|Which thing is meant]: {text}",
            "{text} [Guess!|What is the answer?|Tell me the answer.|Can you solve it?|Do you "
            "know the answer?|I cannot find it.|It is a riddle.|Think about it.|Who is it?]",
            "[Which word am I looking for|Name the thing]: {text}",
            "[Can you guess|Do you know this one|Do you know what this is]? {text}",
        )
    },
    everyday=frozenset(("{text}",)),
    draw=_draw_guess,
    write=lambda slots, rng: _said_guess(rng.choice(GUESSES), slots["about"]),
    check=_check_guess,
    key=("text",),
)

KINDS: tuple[Kind, ...] = (DESCRIBE, COMPARE, RIDDLE, GUESS)
