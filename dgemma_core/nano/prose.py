"""Continue a text: public-domain prose as a family of tasks (prose.md names the books).

Unlike the other families there is no right answer, so the verifier measures words and not sense:
the share of the continuation's words that the books know.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

BOOKS = Path(__file__).parent / "prose.txt"
SPLITS = {"train": (0, 84), "validation": (84, 88), "test": (88, 100)}
"""The part of each book's words, in percent: what comes after 84 is never trained on."""


def read_books() -> list[list[str]]:
    """The words of each book, in order."""
    text = BOOKS.read_text(encoding="utf-8")
    bodies = [book.split("\n", 1)[1] for book in re.split(r"^# ", text, flags=re.MULTILINE)[1:]]
    return [body.split() for body in bodies]


@cache
def passages(split: str) -> tuple[tuple[str, ...], ...]:
    """The stretch of each book that belongs to `split`, one of SPLITS."""
    first, last = SPLITS[split]
    return tuple(
        tuple(words[len(words) * first // 100 : len(words) * last // 100]) for words in read_books()
    )


@cache
def known_words() -> frozenset[str]:
    """Every word of the books, in lower case and without its punctuation."""
    return frozenset(_bare(word) for words in read_books() for word in words) - {""}


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
        books = passages(split)
        words = rng.choices(books, weights=[len(book) for book in books])[0]
        asked = rng.randint(*self.prompt_range)
        start = rng.randrange(len(words) - asked - self.max_words)
        stop = start + asked + self.min_words
        while stop < start + asked + self.max_words and not _ends_sentence(words[stop - 1]):
            stop += 1
        return {
            "question": " ".join(words[start : start + asked]),
            "answer": " ".join(words[start + asked : stop]),
            "metadata": {"source_dataset": "prose", "source_index": seed, "split": split},
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """The share of `answer`'s words that occur in the books; 0 without words."""
        words = [bare for bare in map(_bare, (answer or "").split()) if bare]
        return sum(word in known_words() for word in words) / len(words) if words else 0.0
