"""The registry of kinds, and examples by kind and seed, beside the families of families.py.

`example("story", 7)` is the same in every process. The range of the seed decides the split, as in
families.py: training, validation, or test; even test seeds ask about what was never asked about in
training, odd ones in wordings that were never trained. `draw` names the split itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from random import Random

from dgemma_core.errors import RequestError
from dgemma_core.nano.english import (
    chatting,
    coding,
    counting,
    describing,
    knowledge,
    language,
    playing,
    records,
    talking,
    unknown,
    writing,
)
from dgemma_core.nano.english.kind import SPLITS, Example, Kind, Split

TRAIN_SEEDS = range(0, 1_000_000_000)
VALIDATION_SEEDS = range(1_000_000_000, 1_000_010_000)
TEST_SEEDS = range(2_000_000_000, 2_000_001_000)
"""500 even seeds (slots never seen) and 500 odd ones (wordings never trained)."""

KINDS: tuple[Kind, ...] = (
    *talking.KINDS,
    *chatting.KINDS,
    *writing.KINDS,
    *describing.KINDS,
    *knowledge.KINDS,
    *counting.KINDS,
    *language.KINDS,
    *records.KINDS,
    *coding.KINDS,
    *playing.KINDS,
    *unknown.KINDS,
)
BY_NAME: Mapping[str, Kind] = {row.name: row for row in KINDS}
NAMES: tuple[str, ...] = tuple(BY_NAME)

SHARES: Mapping[str, int] = {
    "story": 14,
    "poem": 8,
    "continue_story": 5,
    "infill": 6,
    "ending_first": 4,
    "couplet": 3,
    "story_about_me": 2,
    "describe": 5,
    "compare": 3,
    "riddle": 3,
    "guess": 3,
    "dialogue": 4,
    "acrostic": 3,
    "greeting": 2,
    "identity": 4,
    "small_talk": 4,
    "chat": 4,
    "introduce": 1,
    "follow_up": 5,
    "animal_facts": 3,
    "thing_facts": 3,
    "colours": 1,
    "calendar": 2,
    "capitals": 2,
    "yes_no": 2,
    "list": 4,
    "arithmetic": 5,
    "word_problem": 3,
    "opposite": 2,
    "plural": 1,
    "rhyme": 2,
    "degrees": 1,
    "verb_forms": 1,
    "spell": 2,
    "past_tense": 2,
    "future_tense": 1,
    "as_question": 2,
    "negation": 1,
    "polite": 1,
    "typos": 3,
    "word_order": 2,
    "use_word": 2,
    "json": 4,
    "table": 3,
    "reading": 4,
    "python": 2,
    "unknown": 9,
}
"""How often each kind is drawn for training: long texts and honest replies more often than single words."""


def kind(name: str) -> Kind:
    """The kind called `name`; RequestError names the kinds if there is none."""
    if name not in BY_NAME:
        raise RequestError(f"no kind of request '{name}': choose one of {', '.join(NAMES)}")
    return BY_NAME[name]


def split_of(seed: int) -> Split:
    """The split that a seed belongs to; RequestError where it is in none of the ranges."""
    if seed in TRAIN_SEEDS:
        return "train"
    if seed in VALIDATION_SEEDS:
        return "validation"
    if seed in TEST_SEEDS:
        return "test_wordings" if seed % 2 else "test_slots"
    raise RequestError(f"seed {seed} is in none of the ranges of training, validation and test")


def draw(name: str, seed: int, split: Split) -> Example:
    """The example of a kind that `seed` draws for `split`; the same in every process."""
    if split not in SPLITS:
        raise RequestError(f"no split '{split}': choose one of {', '.join(SPLITS)}")
    return kind(name).example(seed, split)


def example(name: str, seed: int) -> Example:
    """The example of a kind that `seed` draws, for the split that the seed belongs to."""
    return draw(name, seed, split_of(seed))


def examples(name: str, split: Split = "test_slots", count: int = 500) -> list[Example]:
    """The first `count` examples of a kind in a split."""
    seeds = {
        "train": TRAIN_SEEDS,
        "validation": VALIDATION_SEEDS,
        "test_slots": TEST_SEEDS[::2],
        "test_wordings": TEST_SEEDS[1::2],
    }[split]
    return [draw(name, seed, split) for seed in seeds[:count]]


def accepts(found: Example, reply: str) -> bool:
    """The verifier's verdict on any reply to the example's request."""
    return kind(found.kind).accepts(found.slots, reply)


def canonical(found: Example, seeds: Mapping[str, int]) -> Example:
    """The example with its kind's canonical reply where `seeds` has one for the kind; else as it is."""
    if found.kind not in seeds:
        return found
    return kind(found.kind).canonical(found, seeds[found.kind])


def training_example(index: int, shares: Mapping[str, int] = SHARES) -> Example:
    """Number `index` of the training stream: kind and seed come from the index alone."""
    rng = Random(index)
    names = tuple(shares)
    steps = tuple(accumulate(shares.values()))
    name = rng.choices(names, cum_weights=steps)[0]
    return BY_NAME[name].example(rng.randrange(TRAIN_SEEDS.stop), "train")


def training_examples(start: int = 0, shares: Mapping[str, int] = SHARES) -> Iterator[Example]:
    """The training stream from number `start` on, without end."""
    index = start
    while True:
        yield training_example(index, shares)
        index += 1


def batch(start: int, size: int, shares: Mapping[str, int] = SHARES) -> list[Example]:
    """Numbers `start` to `start + size` of the training stream."""
    return [training_example(index, shares) for index in range(start, start + size)]
