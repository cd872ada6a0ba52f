"""Every kind: its replies pass its verifier, wrong ones do not, splits share nothing, seeds decide everything."""

import re
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_core.errors import RequestError
from dgemma_core.nano.english import describing, kinds, playing, stories, talking, unknown, verse
from dgemma_core.nano.english.describing import facts_of
from dgemma_core.nano.english.grammar import tokens_of
from dgemma_core.nano.english.kind import SPLITS, bucket, expanded, plain_form, words_of
from dgemma_core.nano.english.lexicon import number_word
from dgemma_core.nano.english.words import takes_an

each_kind = pytest.mark.parametrize("name", kinds.NAMES)
SEEDS = 11
SLOW = ("story_about_me", "follow_up")


@cache
def drawn(name, seed, split):
    return kinds.draw(name, seed, split)


def draws(name, split, count=SEEDS):
    return [drawn(name, seed, split) for seed in range(count)]


@each_kind
def test_replies_pass_their_verifier(name):
    for split in SPLITS:
        for found in draws(name, split):
            assert kinds.accepts(found, found.reply), (found.prompt, found.reply)
            assert kinds.accepts(found, f" {found.reply}\n")


def mutations(text, rng):
    """Replies that are wrong in most cases."""
    words = text.split(" ")
    if len(words) > 2:
        at = rng.randrange(len(words) - 1)
        yield " ".join(words[:at] + words[at + 1 :])
        yield " ".join(words[: at + 1] + words[at:])
        yield " ".join([*words[:at], words[at + 1], words[at], *words[at + 2 :]])
    for pair in ("a an", "an a", "is are", "was were", "he she", "has have"):
        old, new = pair.split()
        if f" {old} " in text:
            yield text.replace(f" {old} ", f" {new} ", 1)
    yield text[: len(text) * 2 // 3]
    yield ""


@pytest.fixture(scope="module")
def others():
    return [kinds.training_example(10**7 + i) for i in range(120)]


@each_kind
def test_wrong_replies_are_turned_down(name, others):
    rng = Random(name)
    wrong = []
    for found in draws(name, "validation", 2 if name in SLOW else 5):
        replies = [m for m in mutations(found.reply, rng) if m.strip() != found.reply]
        replies += [other.reply for other in rng.sample(others, 4) if other.kind != name]
        wrong += [kinds.accepts(found, reply) for reply in replies if reply != found.reply]
    assert sum(wrong) <= 0.2 * len(wrong)


def test_wrong_replies_pass_almost_never(others):
    """Other kinds' replies, over all kinds."""
    rng = Random(1)
    passed = tried = 0
    for found in others:
        for other in rng.sample(others, 4):
            if other.kind != found.kind:
                tried += 1
                passed += kinds.accepts(found, other.reply)
    assert passed <= 0.005 * tried


@pytest.mark.slow
@each_kind
@settings(max_examples=5, deadline=None)
@given(
    text=st.text(max_size=120) | st.text(alphabet='abc .,"?\n|{}[]()1', max_size=60),
    seed=st.integers(0, 10),
)
def test_verifiers_take_any_text(name, text, seed):
    assert kinds.accepts(drawn(name, seed, "train"), text) in (True, False)


@each_kind
def test_same_seed_same_example(name):
    assert draws(name, "train", 5) == [kinds.draw(name, seed, "train") for seed in range(5)]


@each_kind
def test_splits_share_no_request(name):
    seen = {}
    for split in SPLITS:
        for found in draws(name, split, 16):
            asked = tuple((m["role"], m["content"].lower()) for m in found.messages)
            # a request about nothing is asked in held-out wordings by both tests
            side = split.split("_")[0]
            assert seen.setdefault(asked, side) == side, asked


@pytest.mark.parametrize("name", ["greeting", "small_talk", "identity"])
def test_what_is_about_nothing_is_tested_in_held_out_wordings(name):
    row = kinds.kind(name)
    held = {
        number
        for (_, unseen), texts in row.chosen.items()
        for number, text in texts
        if unseen and "{" not in text
    }
    tested = [each for each in draws(name, "test_slots", 60) if "{" not in wording_of(row, each)]
    assert len(tested) > 40
    assert {each.wording for each in tested} <= held


def wording_of(row, example):
    return next(
        text for number, text, _ in row.texts[example.slots["ask"]] if number == example.wording
    )


@each_kind
def test_held_out_wordings_stay_out(name):
    row = kinds.kind(name)
    held = {number for texts in row.chosen.items() if texts[0][1] for number, _ in texts[1]}
    assert held
    assert {found.wording for found in draws(name, "test_wordings")} <= held
    for split in ("train", "validation"):
        assert not {found.wording for found in draws(name, split)} & held


@each_kind
def test_thirty_wordings_and_a_tenth_held_out(name):
    row = kinds.kind(name)
    assert row.wording_count >= 30
    held = sum(len(texts) for (_, side), texts in row.chosen.items() if side)
    assert held <= 0.3 * row.wording_count
    sides = {side: {plain_form(text) for (_, s), texts in row.chosen.items() if s == side for _, text in texts}
             for side in (False, True)}  # fmt: skip
    assert not sides[True] & sides[False]
    assert len(sides[True] | sides[False]) >= 30


@pytest.mark.parametrize("name", ["greeting", "small_talk", "identity", "introduce"])
def test_what_everybody_types_is_learnt(name):
    """ "Hi", "hello" and "thank you" were held out, as nothing is left of them without courtesies."""
    row = kinds.kind(name)
    known = [text for (_, held), texts in row.chosen.items() if not held for _, text in texts]
    trained = {words_of(text).removesuffix(" nano") for text in known}
    mine = {
        words_of(text).removesuffix(" nano") for texts in row.texts.values() for _, text, _ in texts
    }
    assert row.everyday & mine and row.everyday & mine <= trained
    if name in ("greeting", "small_talk"):
        held = (
            *draws(name, "validation", 200),
            *draws(name, "test_slots", 200),
            *draws(name, "test_wordings", 200),
        )
        asked = {words_of(found.prompt) for found in held if not found.noise}
        assert asked and not asked & row.everyday


def test_the_first_thing_that_people_type():
    for name, least in (
        ("greeting", {"hi", "hello", "hey", "bye"}),
        ("small_talk", {"thanks", "thank you", "yes", "no"}),
    ):
        found = {
            words_of(one.prompt) for one in draws(name, "train", 2000) if "typo" not in one.noise
        }
        assert least <= found, name


def test_held_out_slots_are_not_asked_about_in_training():
    for name in ("story", "poem", "couplet", "acrostic", "use_word"):
        key = kinds.kind(name).key
        sides = {
            split: {tuple(found.slots[k] for k in key) for found in draws(name, split, 30)}
            for split in SPLITS
        }
        assert not {k for k in sides["test_slots"] if any(k)} & sides["train"]
        assert not {k for k in sides["test_slots"] if any(k)} & sides["test_wordings"]


AGREEMENT = re.compile(
    r"\b(they|we|you) (was|is|has|does)\b|(?<!if )\b(he|she|it) (were|are|have|do)\b|\bI (is|are|has)\b",
    re.IGNORECASE,
)
SCARS = re.compile(r"[{}\[\]<>]|  | [.,!?;:]|\b(\w+) \1\b|[.!?]\" (he|she|it) ")
EXACT = {"json", "python", "table", "spell", "plural", "unknown", "follow_up", "arithmetic"}


@pytest.mark.parametrize("name", sorted(set(kinds.NAMES) - EXACT))
def test_english_is_clean(name):
    for found in draws(name, "train", 30):
        text = found.reply
        for article, word in re.findall(r"\b([Aa]n?) ([A-Za-z]+)", text):
            assert takes_an(word) == (article.lower() == "an"), text
        statements = re.sub(r"[^.!?]*\?", "", text)
        assert not AGREEMENT.search(statements), text
        assert not SCARS.search(text), text
        assert "{" not in found.prompt and "[" not in found.prompt


GRAMMARS = {
    "story": stories.grammar,
    "ending_first": stories.grammar,
    "poem": verse.grammar,
    "couplet": verse.grammar,
    "describe": describing.grammar,
    "compare": describing.grammar,
    "riddle": describing.grammar,
    "dialogue": playing.dialogues,
    "acrostic": playing.acrostics,
    "unknown": unknown.grammar,
    "small_talk": talking.grammar,
    "greeting": talking.grammar,
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_every_word_is_of_the_grammar_or_the_lexicon(name):
    grammar = GRAMMARS[name]()
    rows = [*grammar.words.values(), *stories.words().values()]
    forms = {str(form) for row in rows for e in row for form in (e.word, *e.forms.values())}
    forms |= {cell for word in describing.DESCRIBED for e in facts_of(word)[1].values()
              for cell in (e.word, *e.forms.values())}  # fmt: skip
    forms |= {number_word(number) for number in range(13)}
    known = {token for form in forms for token in tokens_of(form.lower())} | grammar.vocabulary
    for split in SPLITS:
        for found in draws(name, split):
            used = {word for word in tokens_of(found.reply.lower()) if word.isalpha()}
            assert used - known <= {"an"}, found.reply


def test_gap_and_pins():
    for found in draws("infill", "train", 40):
        first, last = found.blank
        assert found.reply[first:last] == found.slots["gap"]
        if found.slots["ask"] == "whole":
            assert found.reply[:first] == found.slots["before"]


def test_chats_end_with_the_request():
    turned = set()
    for found in (
        draws("chat", "train", 40) + draws("follow_up", "train", 40) + draws("json", "train", 40)
    ):
        roles = [message["role"] for message in found.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        turned.add(len(roles))
    assert max(turned) >= 5


def test_kinds_by_seed():
    assert kinds.example("story", 5).split == "train"
    assert kinds.example("story", kinds.VALIDATION_SEEDS[0]).split == "validation"
    assert kinds.example("story", kinds.TEST_SEEDS[0]).split == "test_slots"
    assert kinds.example("story", kinds.TEST_SEEDS[1]).split == "test_wordings"
    assert [e.seed for e in kinds.examples("story", "test_slots", 3)] == list(
        kinds.TEST_SEEDS[:6:2]
    )
    with pytest.raises(RequestError, match="none of the ranges"):
        kinds.example("story", 1_500_000_000)
    with pytest.raises(RequestError, match="no kind of request"):
        kinds.example("stories", 1)
    with pytest.raises(RequestError, match="no split"):
        kinds.draw("story", 1, "test")


def test_the_stream_goes_on_anywhere():
    stream = kinds.training_examples(40)
    assert [next(stream) for _ in range(5)] == kinds.batch(40, 5)
    assert set(kinds.SHARES) == set(kinds.NAMES)
    assert {kinds.training_example(i, {"poem": 1}).kind for i in range(5)} == {"poem"}
    assert kinds.training_example(7).family == kinds.training_example(7).kind
    assert kinds.training_example(7).answer == kinds.training_example(7).reply


def test_at_least_forty_kinds():
    assert len(kinds.NAMES) >= 40


def test_expanded_and_bucket():
    assert expanded("[a|b] c [d|]") == ["a c d", "a c", "b c d", "b c"]
    assert 0 <= bucket("x") < 100 and bucket("x") == bucket("x")
    assert plain_form("Please, tell me a story about {topic}!") == plain_form(
        "tell me a story about {topic}."
    )


def test_kinds_that_share_topics_hold_out_the_same_ones():
    for first, second in (("story", "ending_first"), ("poem", "couplet")):
        kept = {found.slots["about"] for found in draws(first, "test_slots", 30)} - {()}
        if first == "story":
            kept = {about for about in kept if len(about) == 1}
        trained = {
            found.slots["about"]
            for found in draws(second, "train", 120)
            if not found.slots.get("hero") and not found.slots.get("place")
        }
        plain = {found.slots["about"] for found in draws(first, "test_slots", 30) if not found.slots.get("hero")
                 and not found.slots.get("place")}  # fmt: skip
        assert kept and not trained & plain


def test_what_is_asked_next_was_not_held_out():
    for found in draws("follow_up", "train", 80):
        row = kinds.kind(found.slots["kind"])
        if found.slots["ask"] == "next" and not row.closed:
            assert row.split_of(found.slots["inner"], 0, "") == "train"


@pytest.mark.parametrize("category", sorted(unknown.CANNOT))
def test_a_brief_reply_is_honest_for_its_own_reason(category: str) -> None:
    reply = unknown.brief_reply(category)
    assert unknown.is_honest(reply) and unknown.is_honest(reply, category)
    others = {each for each in unknown.CANNOT if unknown.BRIEF[each] != unknown.BRIEF[category]}
    own = unknown.BRIEF[category].rstrip(".")
    for other in others:
        said = own in unknown.CANNOT[other]  # among the reasons that the grammar gives there, too
        assert unknown.is_honest(reply, other) == said
    assert not unknown.is_honest(reply.replace("four colours", "four friends"))
    assert not unknown.is_honest(reply.replace("I am sorry. ", "I am happy. "))


def test_brief_replies_are_canonical_whatever_the_seed() -> None:
    asked = kinds.examples("unknown", "train", 300)
    brief = {kinds.kind("unknown").canonical(each, seed).reply for each in asked for seed in (0, 7)}
    assert brief == {unknown.brief_reply(name) for name in unknown.CANNOT}
    assert len(brief) == len(set(unknown.BRIEF.values())) == 7
