"""Stories differ in plot and words, and verse rhymes."""

import re
from random import Random

import pytest

from dgemma_core.nano.english import kinds, stories, verse
from dgemma_core.nano.english.lexicon import lists, rhymes_of
from dgemma_core.nano.english.plots import PLOTS

NAME = re.compile(r"\b(" + "|".join(entry.word for entry in lists()["name"]) + r")\b")


def masked(text: str) -> str:
    """A story without its names and the pronouns that follow from them."""
    return re.sub(
        r"\b(he|she|his|her|him|boy|girl)\b", "_", NAME.sub("N", text), flags=re.IGNORECASE
    )


def test_a_hundred_stories_are_a_hundred_stories():
    texts = [kinds.draw("story", seed, "train").reply for seed in range(100)]
    assert len({masked(text) for text in texts}) == 100
    plots = [stories.plot_of(text) for text in texts[:12]]
    assert all(stories.is_any_story(text) for text in texts)
    assert None not in plots and len(set(plots)) >= 8


def test_plots_cover_their_roles():
    for plot in PLOTS:
        text = plot.headline + plot.body
        used = set(re.findall(r"\{([A-Z])", text)) - {"H", "W"}
        assert used <= set(plot.roles), plot.name
        assert set(plot.roles) - used <= {"Z", "P"}, plot.name
        assert plot.body.endswith("_end>" if "_end>" in plot.body else "."), plot.name


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_every_plot_is_read_as_itself(plot):
    for seed in range(4):
        rng = Random(f"{plot.name} {seed}")
        extras = ("", "W")[seed % 2]
        text = stories.tell(plot.name, extras, stories.cast_for(plot, extras, {}, rng), rng)
        assert stories.grammar().reads(stories.rule_name(plot, extras), text) is not None


def test_requests_are_kept():
    plot = stories.PLOT["rescue"]
    known = {"A": "Mia", "Z": "owl", "P": "forest"}
    roles = {role: stories.entry_for(role, word) for role, word in known.items()}
    text = stories.tell("rescue", "", roles, Random(0))
    assert plot.mood == "happy"
    assert stories.is_story(text)
    assert stories.is_story(text, ("owl",), hero="Mia", mood="happy")
    assert not stories.is_story(text, ("volcano",))
    assert not stories.is_story(text, ("fox",))
    assert not stories.is_story(text, ("owl",), hero="Otto")
    assert not stories.is_story(text, ("owl",), mood="sad")
    assert not stories.is_story(text, ("owl",), headed=True)
    assert not stories.is_story(
        stories.tell("rescue", "", roles, Random(0), "short"), length="long"
    )


def test_every_topic_has_several_plots():
    few = [topic for topic in stories.topics() if len(stories.suited((topic,), "")) < 2]
    assert not few


def test_each_line_of_verse_rhymes_within_its_block():
    topic = verse.topics()["fox"]
    for number, (named, free) in enumerate(verse.blocks()):
        ends = {
            verse.last_word(verse.grammar().write(f"{sort}_{number}_{i}", {"X": topic}, Random(0)))
            for sort, lines in (("n", named), ("f", free))
            for i in range(len(lines))
        }
        assert len(named) >= 2 and len(free) >= 2
        for end in ends:
            assert rhymes_of(end) & ends, (end, ends)


def test_verse_must_rhyme_and_name_its_topic():
    good = "The fox waits in a far-off land,\nCome here, my dear, and take my hand."
    assert verse.is_verse(good, "fox", 1, size=2)
    assert not verse.is_verse(good, "owl", 1, size=2)
    assert not verse.is_verse(good.replace("hand", "arm"), "fox", 1, size=2)
    assert not verse.is_verse("\n".join(reversed(good.split("\n"))), "fox", 1, size=2)


def test_a_poem_says_no_line_twice():
    """Whatever marks end it: a line rhymes with itself, and a model that learns from what is accepted finds out."""
    poem = next(
        text
        for seed in range(50)
        if verse.is_verse(text := verse.poem("fox", 1, Random(seed), "aabb"), "fox", 1)
    )
    lines = poem.split("\n")
    for mark in (",", "."):
        again = "\n".join((*lines[:2], lines[2][:-1] + mark, lines[2][:-1] + "."))
        assert not verse.is_verse(again, "fox", 1)
