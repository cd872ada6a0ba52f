"""Stories: which plot suits a request, the story itself, and whether a text is such a story."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from random import Random

from dgemma_core.nano.english.grammar import Grammar, Roles
from dgemma_core.nano.english.lexicon import FOOD, lists, plain
from dgemma_core.nano.english.plots import EXTRA_WORDS, PLOTS, RULES, Plot
from dgemma_core.nano.english.words import Entry, noun

VEHICLES = "boat bicycle train truck wagon bus".split()
UNPORTABLE = {*VEHICLES, "carpet", "chair", "ladder"}
BREAKABLE = (
    "lamp drum bell flute violin guitar lantern telescope clock mirror umbrella cup kettle "
    "bottle doll "
    "sled kite compass crown chair ladder bicycle basket"
).split()
GRAND = "lion tiger elephant bear wolf".split()
TALES = "dragon unicorn giant monster ghost troll".split()
IN_WATER = (
    "whale dolphin shark octopus goldfish crab seal crocodile giraffe camel kangaroo zebra".split()
)
TOO_SMALL = "bee ant butterfly beetle cricket spider snail".split()
COURT = (
    "king queen knight wizard pirate princess prince astronaut detective witch captain "
    "hunter inventor"
).split()
GROWN = (
    "apple pear plum cherry peach lemon strawberry blueberry bean pumpkin melon tomato pea grape"
).split()
EATEN = {"fruit", "baked food", "sweet food", "snack"}
INDOORS = "kitchen library museum school bakery attic workshop theatre city desert jungle".split()
WONDERS = (
    "volcano planet rocket rainbow star cloud comet waterfall tower palace pyramid submarine "
    "spaceship "
    "airplane helicopter computer robot telephone piano trumpet castle dinosaur mermaid fairy "
    "snowman "
    "mountain river bridge ship moon garden flower tree rose tulip oak birch statue fountain "
    "windmill "
    "treasure diamond sword shield wheel engine tunnel maze balloon circus tent island lighthouse"
).split()
THEMES: dict[str, str] = {
    "friendship": (
        "lost_thing race quarrel picnic waiting_letter big_friend vehicle_trip drawing_of"
    ),
    "courage": "night_noise broken_thing light_in_storm big_friend sore_tooth rescue",
    "kindness": "rescue shy_animal gift race trading sore_tooth big_friend",
    "patience": "apprentice planting shy_animal waiting_letter vehicle_repair",
    "honesty": "return_to_owner broken_thing",
    "hope": "waiting_letter save_place light_in_storm planting search_for",
    "trust": "shy_animal big_friend rescue waiting_letter",
    "sharing": "animal_hero trading gift picnic",
    "love": "gift baking waiting_letter",
}
"""What a story can be a lesson in, and the plots that are."""


def _irregular(word: str) -> str | None:
    return {"snowman": "snowmen", "witch": "witches"}.get(word)


@cache
def words() -> dict[str, tuple[Entry, ...]]:
    """The word lists that stories draw from, roles included."""
    known = lists()
    tales = tuple(noun(word, "tale") for word in TALES)
    small = [e for e in known["animal"] if e.word not in {*GRAND, *IN_WATER, *TOO_SMALL}]
    foods = {e.word: e for e in known["food"]}

    wonders = tuple(noun(word, "wonder", _irregular(word)) for word in WONDERS)
    anything: dict[str, Entry] = {}
    for entry in (
        *known["animal"],
        *tales,
        *known["thing"],
        *known["place"],
        *wonders,
        *(e for e in known["food"] if not e.say("mass")),
    ):
        anything.setdefault(entry.word, entry)
    return {
        **known,
        **{name: plain(found, name) for name, found in EXTRA_WORDS.items()},
        "looks": plain(
            "old new shiny strange wonderful beautiful little small fine".split(), "looks"
        ),
        "little": plain("small little tiny young thin lonely".split(), "little"),
        "role_Z": tuple(small),
        "role_G": (*tales, *(e for e in known["animal"] if e.word in GRAND)),
        "role_T": tuple(e for e in known["thing"] if e.word not in UNPORTABLE),
        "role_D": tuple(e for e in known["thing"] if e.word in BREAKABLE),
        "role_V": tuple(e for e in known["thing"] if e.word in VEHICLES),
        "role_F": tuple(e for w, e in foods.items() if FOOD[w].group in EATEN and w != "sugar"),
        "role_N": tuple(foods[w] for w in GROWN),
        "role_P": tuple(e for e in known["place"] if e.word not in INDOORS),
        "role_J": (*known["job"], *(noun(w, "court", _irregular(w)) for w in COURT)),
        "role_X": tuple(anything.values()),
        "role_H": tuple(Entry(w, "theme", {"the": w}) for w in THEMES),
    }


CAST = {
    "A": "name",
    "B": "name",
    "Z": "role_Z",
    "G": "role_G",
    "T": "role_T",
    "D": "role_D",
    "V": "role_V",
    "F": "role_F",
    "N": "role_N",
    "P": "role_P",
    "J": "role_J",
    "X": "role_X",
    "W": "weather",
    "H": "role_H",
}
"""The list that each role is played from."""

PLOT = {plot.name: plot for plot in PLOTS}


def rule_name(plot: Plot, extras: Iterable[str], headed: bool = False) -> str:
    """The rule of a plot with weather (W) or a theme (H) worked in, perhaps under its headline."""
    return "_".join(("tale", plot.name, *sorted(extras), *(["headed"] if headed else []))).lower()


HERO_ACTS = re.compile(r"((?:[.!?,] |\[|\|))\{A\} (?=[a-z\[])")


def with_pronouns(plot: Plot) -> str:
    """The body of a plot; the hero, where there is no other person, is now and then he or she."""
    if set("BJ") & set(plot.roles):
        return plot.body
    return HERO_ACTS.sub(r"\1[{A}|{A.he}] ", plot.body)


@cache
def grammar() -> Grammar:
    """The grammar of stories."""
    rules: dict[str, str | tuple[str, ...]] = dict(RULES)
    for plot in PLOTS:
        for extras in ("", "W", "H", "HW"):
            sky = " <sky>" if "W" in extras else ""
            theme = " <theme>" if "H" in extras else ""
            body = with_pronouns(plot)
            story = f"<{plot.opening}>[?[?[? <more>]]]{sky} {body}[?[?[? <later>]]]{theme}"
            rules[rule_name(plot, extras)] = story
            head = f"[This is the story of|This story tells|Here you will read] {plot.headline}."
            rules[rule_name(plot, extras, True)] = f"{head}\n{story}"
    for opening in ("open", "open_beast"):
        bodies = "|".join(with_pronouns(plot) for plot in PLOTS if plot.opening == opening)
        rules[f"any_{opening}"] = (
            f"<{opening}>[?[?[? <more>]]][? <sky>] [{bodies}][?[?[? <later>]]][? <theme>]"
        )
    return Grammar(rules, words(), CAST)


@cache
def roles_of(word: str) -> tuple[str, ...]:
    """The roles that a topic can play in stories."""
    return tuple(
        role
        for role, name in CAST.items()
        if role not in "AB" and any(entry.word == word for entry in words()[name])
    )


@cache
def topics() -> tuple[str, ...]:
    """Everything that a story can be about."""
    found: dict[str, None] = {}
    for role, name in CAST.items():
        if role not in "AB":
            found.update(dict.fromkeys(entry.word for entry in words()[name]))
    return tuple(found)


@cache
def entry_for(role: str, word: str) -> Entry:
    """The word in the role's list."""
    return next(entry for entry in words()[CAST[role]] if entry.word == word)


def _teaches(plot: Plot, given: list[tuple[str, str]]) -> bool:
    return all(plot.name in THEMES[word].split() for role, word in given if role == "H")


@cache
def suited(
    topics_: tuple[str, ...], mood: str
) -> tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]:
    """Plots that give each topic a role: (plot, extras, ((role, word), …))."""
    found: list[tuple[str, str, tuple[tuple[str, str], ...]]] = []
    for plot in PLOTS:
        if mood and plot.mood != mood:
            continue
        if not topics_:
            found.append((plot.name, "", ()))
            continue
        for first in roles_of(topics_[0]):
            for second in roles_of(topics_[1]) if len(topics_) > 1 else ("",):
                given = [(first, topics_[0])] + ([(second, topics_[1])] if second else [])
                used = [role for role, _ in given]
                if len(set(used)) < len(used) or not _teaches(plot, given):
                    continue
                if all(role in plot.roles or role in "WH" for role in used):
                    extras = "".join(role for role in used if role in "WH")
                    found.append((plot.name, extras, tuple(given)))
    return tuple(found)


def cast_for(plot: Plot, extras: str, given: Mapping[str, Entry], rng: Random) -> dict[str, Entry]:
    """A word for every role of the plot, the given ones kept, no word in two roles."""
    roles = dict(given)
    for role in plot.roles + extras:
        if role not in roles:
            options = words()[CAST[role]]
            while True:
                entry = options[int(rng.random() * len(options))]
                if all(entry.word != other.word for other in roles.values()):
                    break
            roles[role] = entry
    return roles


LENGTHS = {"": 0.5, "short": 0.0, "long": 1.0}


def tell(
    plot: str, extras: str, roles: Roles, rng: Random, length: str = "", headed: bool = False
) -> str:
    """A story."""
    share = LENGTHS[length] if length else rng.choice((0.15, 0.5, 0.85))
    return grammar().write(rule_name(PLOT[plot], extras, headed), roles, rng, share)


def is_story(
    text: str,
    about: tuple[str, ...] = (),
    *,
    mood: str = "",
    hero: str = "",
    place: str = "",
    length: str = "",
    headed: bool = False,
    likely: str = "",
) -> bool:
    """True where the grammar gives this text as a story that keeps to the request. `likely`: the plot tried first."""
    count = len(text.split())
    if (length == "short" and count > 95) or (length == "long" and count < 70):
        return False
    topics_ = (*about, *([place] if place else []))
    for name, extras, given in sorted(suited(topics_, mood), key=lambda found: found[0] != likely):
        roles = {role: entry_for(role, word) for role, word in given}
        if place and roles.get("P") != entry_for("P", place):
            continue
        if hero:
            roles["A"] = next(e for e in words()["name"] if e.word == hero)
        for more in (extras, "W") if not about else (extras,):
            if grammar().reads(rule_name(PLOT[name], more, headed), text, roles) is not None:
                return True
    return False


def is_any_story(text: str) -> bool:
    """True for a story of any plot, whatever it is about."""
    return any(
        grammar().reads(f"any_{opening}", text) is not None for opening in ("open", "open_beast")
    )


def plot_of(text: str) -> str | None:
    """The plot of a story, None if it is none."""
    for plot in PLOTS:
        for extras in ("", "W", "H", "HW"):
            if grammar().reads(rule_name(plot, extras), text) is not None:
                return plot.name
    return None
