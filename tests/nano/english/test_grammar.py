"""The grammar reads what it writes, and nothing that is out of joint."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_core.nano.english.grammar import Grammar, joined, tidy, tokens_of
from dgemma_core.nano.english.lexicon import lists

SMALL = Grammar(
    {
        "tale": '[Once|Long ago], there was a {+nature} {A.kid} called {A}. <act>[? {A.he} was {+mood}.]',
        "act": ('{A} found a {T}.', '"I have a {T}," said {A}. "Look at the {T}."', 'One apple, a {+colour2} hat.'),
    },
    {**lists(), "colour2": lists()["colour"]},
    {"A": "name", "T": "thing"},
)  # fmt: skip


def roles(rng: Random):
    return {"A": rng.choice(lists()["name"]), "T": rng.choice(lists()["thing"])}


@pytest.mark.parametrize("seed", range(60))
def test_reads_what_it_writes(seed):
    rng = Random(seed)
    given_roles = roles(rng)
    text = SMALL.write("tale", given_roles, rng, 0.5)
    found = SMALL.reads("tale", text)
    assert found is not None and found["A"] is given_roles["A"]
    assert joined(tokens_of(text)) == text


GOOD = "Once, there was a kind girl called Mia. Mia found an umbrella. She was happy."


def test_reads_a_good_text():
    assert SMALL.reads("tale", GOOD) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("an umbrella", "a umbrella"),
        ("a kind", "an kind"),
        ("girl", "boy"),
        ("She", "He"),
        ("Mia found", "Tom found"),
        ("She was", "she was"),
        ("Once", "once"),
        ("found an", "found  an"),
        ("happy.", "happy"),
        ("happy.", "happy ."),
        ("umbrella", "sunshade"),
        ("was a", "were a"),
        ("was happy", "happy was"),
    ],
)
def test_turns_down_what_is_wrong(old, new):
    assert old in GOOD
    assert SMALL.reads("tale", GOOD.replace(old, new)) is None


def test_given_roles_are_kept():
    tom = next(entry for entry in lists()["name"] if entry.word == "Tom")
    assert SMALL.reads("tale", GOOD, {"A": tom}) is None


def test_two_roles_are_two_words():
    grammar = Grammar({"x": "{A} and {B}."}, lists(), {"A": "name", "B": "name"})
    assert grammar.reads("x", "Mia and Tom.") is not None
    assert grammar.reads("x", "Mia and Mia.") is None


def test_tidy_sets_articles_and_capitals():
    assert tidy('a apple fell . "oh," said  mia') == 'An apple fell. "Oh," said mia'
    assert tidy('"go." the end') == '"Go." The end'
    assert tidy('"it is," he said, "but late"') == '"It is," he said, "but late"'


def test_open_brackets_are_an_error():
    with pytest.raises(ValueError, match="bracket"):
        SMALL.compiled("[a|b")
    with pytest.raises(ValueError, match="bracket"):
        SMALL.compiled("a]b")


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=120))
def test_any_text_can_be_read(text):
    assert SMALL.reads("tale", text) is None
    tokens_of(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(tokens_of(GOOD)), max_size=20))
def test_mixed_words_are_no_text(words):
    text = joined(words)
    assert SMALL.reads("tale", text) is None or text.startswith("Once, there was")
