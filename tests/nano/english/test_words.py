"""Forms of words, and that the lexicon's tables hold together."""

import pytest

from dgemma_core.nano.english import lexicon, things
from dgemma_core.nano.english.grammar import tokens_of
from dgemma_core.nano.english.words import (
    comparative_of,
    ing_form,
    noun,
    plural_of,
    regular_past,
    takes_an,
    third_person,
    with_article,
)


@pytest.mark.parametrize(
    ("function", "word", "wanted"),
    [
        (plural_of, "fox", "foxes"),
        (plural_of, "story", "stories"),
        (plural_of, "key", "keys"),
        (plural_of, "bench", "benches"),
        (third_person, "go", "goes"),
        (third_person, "carry", "carries"),
        (third_person, "have", "has"),
        (regular_past, "bake", "baked"),
        (regular_past, "carry", "carried"),
        (regular_past, "play", "played"),
        (regular_past, "drop", "dropped"),
        (regular_past, "travel", "travelled"),
        (ing_form, "lie", "lying"),
        (ing_form, "see", "seeing"),
        (ing_form, "run", "running"),
        (ing_form, "dance", "dancing"),
        (comparative_of, "big", ("bigger", "biggest")),
        (comparative_of, "happy", ("happier", "happiest")),
        (comparative_of, "wise", ("wiser", "wisest")),
        (with_article, "hour", "an hour"),
        (with_article, "unicorn", "a unicorn"),
        (with_article, "umbrella", "an umbrella"),
        (with_article, "honest girl", "an honest girl"),
        (with_article, "useful map", "a useful map"),
    ],
)
def test_forms(function, word, wanted):
    assert function(word) == wanted


def test_articles_of_numbers():
    assert takes_an("8") and takes_an("80") and takes_an("11") and takes_an("18")
    assert not takes_an("1") and not takes_an("7") and not takes_an("")


def test_noun_agrees_with_its_verb():
    assert noun("apple", "food").say("v:taste") == "taste"
    assert noun("milk", "food", mass=True).say("v:taste") == "tastes"
    assert noun("milk", "food", mass=True).say("some") == "some milk"
    with pytest.raises(KeyError):
        noun("apple", "food").say("colour")


def test_lexicon_holds_two_thousand_words():
    words = {entry.word for row in lexicon.lists().values() for entry in row}
    words |= {form for entry in lexicon.lists()["animal"] for form in entry.forms.values()}
    words |= {
        entry.say("pl")
        for name in ("thing", "food", "place", "job")
        for entry in lexicon.lists()[name]
    }
    words |= {form for verb in lexicon.VERBS.values() for form in verb.forms}
    words |= {word for pair in lexicon.OPPOSITES for word in pair}
    words |= {form for word, more in lexicon.COMPARATIVES.items() for form in (word, *more)}
    words |= {word for row in lexicon.RHYMES for word in row}
    words |= {*lexicon.MORE_NOUNS, *lexicon.CAPITALS, *lexicon.CAPITALS.values()}
    words |= {cell for row in (things.ANIMALS, things.THINGS, things.FOODS, things.SPOTS, things.JOBS)
              for item in row for value in vars(item).values() for cell in tokens_of(str(value))}  # fmt: skip
    assert len({word.lower() for word in words}) >= 2000


def test_nouns_are_distinct_across_classes():
    names = [e.word for name in ("animal", "thing", "place", "job") for e in lexicon.lists()[name]]
    assert len(set(names)) == len(names)


def test_opposites_have_two_sides():
    assert all(a != b for a, b in lexicon.OPPOSITES)


def test_rhymes_leave_out_words_of_one_sound():
    assert "see" not in lexicon.rhymes_of("sea")
    assert {"tree", "free"} <= lexicon.rhymes_of("sea")
    assert lexicon.rhymes_of("elephant") == frozenset()


def test_numbers_in_words():
    assert [lexicon.number_word(n) for n in (0, 13, 21, 40, 100, 144)] == [
        "zero", "thirteen", "twenty-one", "forty", "one hundred", "one hundred and forty-four",
    ]  # fmt: skip


def test_verbs_have_one_entry_each():
    assert lexicon.VERBS["feed"].past == "fed"
    assert lexicon.VERBS["show"].participle == "shown"
