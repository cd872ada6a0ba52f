"""Continue a text: public-domain prose as a family of tasks.

The text is *In the Year 2889* by Jules and Michel Verne (1889), opened where reasoning-gym's package carries it.
Unlike the other families there is no right answer, so the verifier measures words and not sense:
the share of the continuation's words that the story knows.
"""

import re
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

SPLITS = {"train": (0, 84), "validation": (84, 88), "test": (88, 100)}
"""The part of the words, in percent: what comes after 84 is never trained on."""


@cache
def words() -> tuple[str, ...]:
    """The story's words in order, without what its publisher wrote before and after it and marks of emphasis."""
    from reasoning_gym.data import read_data_file

    text = read_data_file("in_the_year_2889.txt")
    _, _, after_note = text.partition("[Redactor's note")[2].partition("]")
    return tuple(after_note.partition("End of Project Gutenberg")[0].replace("_", "").split())


@cache
def passage(split: str) -> tuple[str, ...]:
    """The stretch that belongs to `split`, one of SPLITS."""
    first, last = SPLITS[split]
    return words()[len(words()) * first // 100 : len(words()) * last // 100]


@cache
def known_words() -> frozenset[str]:
    """Every word, in lower case and without its punctuation."""
    return frozenset(_bare(word) for word in words()) - {""}


def _bare(word: str) -> str:
    return re.sub(r"[\W_]+", "", word).lower()


def _ends_sentence(word: str) -> bool:
    return re.search(r"[.!?]['\")]*$", word) is not None and word not in ("Mr.", "Mrs.", "Dr.")


class Prose:
    """A stretch of prose and how it goes on, in the manner of reasoning-gym's datasets.

    `prose[seed]` starts at a random word of the split that `split_of(seed)` names; the
    continuation ends with the first sentence that ends after `min_words`, or after `max_words`.
    """

    def __init__(
        self,
        split_of: Callable[[int], str],
        min_prompt: int,
        max_prompt: int,
        min_words: int,
        max_words: int,
    ) -> None:
        self.split_of = split_of
        self.prompt_range = (min_prompt, max_prompt)
        self.min_words, self.max_words = min_words, max_words

    def __getitem__(self, seed: int) -> dict[str, Any]:
        rng = Random(seed)
        split = self.split_of(seed)
        text = passage(split)
        asked = rng.randint(*self.prompt_range)
        start = rng.randrange(len(text) - asked - self.max_words)
        stop = start + asked + self.min_words
        while stop < start + asked + self.max_words and not _ends_sentence(text[stop - 1]):
            stop += 1
        return {
            "question": " ".join(text[start : start + asked]),
            "answer": " ".join(text[start + asked : stop]),
            "metadata": {"source_dataset": "prose", "source_index": seed, "split": split},
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """The share of `answer`'s words that occur in the story; 0 without words."""
        words = [bare for bare in map(_bare, (answer or "").split()) if bare]
        return sum(word in known_words() for word in words) / len(words) if words else 0.0
