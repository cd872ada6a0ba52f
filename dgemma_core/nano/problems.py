"""Problems that a small model can be tried on: which kinds it was trained for, unseen examples, and their verifiers.

A checkpoint says in its folder what it knows: `problems.json` names kinds of English requests (english/) and puzzle
families (families.py), in the order in which they are to be shown, and the words of its English. `dgemma train` writes
it from the recipe. A checkpoint without that file, such as the 26B one, has no such list: it is asked what one likes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dgemma_core.errors import CheckpointError
from dgemma_core.nano import families
from dgemma_core.nano.english import kinds
from dgemma_core.nano.english.kind import Message
from dgemma_core.nano.english.unknown import is_honest

if TYPE_CHECKING:
    from dgemma_core.files.checkpoint import Loaded
    from dgemma_core.nano.named import NamedRecipe

FILE = "problems.json"

LABELS: Mapping[str, str] = {
    "mini_sudoku": "a sudoku", "futoshiki": "a futoshiki", "chain_sum": "a chain of sums",
    "word_sum": "a sum in words", "number_sorting": "numbers to sort", "word_sorting": "words to sort",
    "spell_backward": "a word backward", "word_sequence_reversal": "a list backward",
    "letter_counting": "letters to count", "number_filtering": "numbers to filter",
    "rotate_matrix": "a matrix to rotate", "json": "JSON", "prose": "a text to continue",
    "story": "a story", "poem": "a poem", "describe": "a description", "riddle": "a riddle", "chat": "a chat",
    "arithmetic": "a sum", "dialogue": "a dialogue", "acrostic": "an acrostic", "python": "Python",
    "couplet": "a couplet", "table": "a table", "list": "a list", "unknown": "beyond it",
}  # fmt: skip

HEADS: Mapping[str, str] = {
    "mini_sudoku": r"Sudoku:\n", "futoshiki": r"Futoshiki:\n", "chain_sum": r"Compute -?\d+( [-+] -?\d+)+$",
    "word_sum": r".+ has .+\. \w+ .+\. How many \w+\?$", "number_sorting": r"Sort (as|des)cending:\n",
    "word_sorting": r"Sort words (as|des)cending:\n", "spell_backward": r"Spell backward:\n[A-Z]+$",
    "word_sequence_reversal": r"Reverse the list:\n", "letter_counting": r"Count the letter \w:\n",
    "number_filtering": r"(Remove|Keep) (larger|smaller) than -?[\d.]+:\n",
    "rotate_matrix": r"Rotate \d+ degrees:\n", "json": r"json [\w, ]+: ", "prose": r"Continue: ",
}  # fmt: skip
"""How the prompts of each family begin, or look as a whole."""

SAMPLED = 6000
"""Training examples of English whose words count as those that a model knows."""


@dataclass(frozen=True)
class Problem:
    """A request that was never trained on. `accepts` is its verifier; None where nobody can decide, as of free text."""

    name: str
    messages: tuple[Message, ...]
    accepts: Callable[[str], bool] | None

    @property
    def prompt(self) -> str:
        """The request: the last message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Known:
    """What a model was trained for: kinds of English requests, and families of puzzles."""

    kinds: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    words: frozenset[str] = field(default=frozenset(), repr=False)
    """Words of the English that it was trained on, in small letters; empty where it learnt none."""

    def __bool__(self) -> bool:
        return bool(self.kinds or self.families)

    def labels(self) -> dict[str, str]:
        """Name of a kind or family → what to call it. A family called like a kind is "puzzle:NAME"."""
        found = {name: LABELS.get(name, name.replace("_", " ")) for name in self.kinds}
        for name in self.families:
            label = LABELS.get(name, name.replace("_", " "))
            taken = name in self.kinds
            found[f"puzzle:{name}" if taken else name] = f"{label} (puzzle)" if taken else label
        return found

    def problem(self, name: str, number: int) -> Problem:
        """Unseen problem `number` (from 0, over and over) of a name in `labels`."""
        if name in self.kinds:
            seeds = kinds.TEST_SEEDS[::2]
            asked = kinds.draw(name, seeds[number % len(seeds)], "test_slots")
            return Problem(name, asked.messages, lambda reply: kinds.accepts(asked, reply))
        row = families.family(name.removeprefix("puzzle:"))
        puzzle = families.example(row.name, row.test_seeds[number % len(row.test_seeds)])
        decided = row.name in families.TASKS
        return Problem(
            name,
            ({"role": "user", "content": puzzle.prompt},),
            (lambda reply: row.solved(puzzle.entry, reply)) if decided else None,
        )

    def strange(self, prompt: str) -> str:
        """What of a prompt lies outside what the model was trained on, in words; "" where nothing does.

        A prompt is known that looks like one of the families', and in English one whose words, slips of the fingers
        aside, all occurred. That a known word is in it does not say that the model can answer.
        """
        if not self or any(re.match(HEADS[name], prompt) for name in self.families):
            return ""
        if not self.words:
            return (
                "it is worded like none of the tasks that this model was trained on; nano-talk was taught plain "
                "English"
            )
        every = (
            word
            for word in dict.fromkeys(_words(prompt))
            if word not in self.words and not get_close_matches(word, self.words, n=1, cutoff=0.8)
        )
        # Four say enough: each search takes milliseconds, and a prompt may be a book.
        unseen = list(islice(every, 4))
        if not unseen:
            return ""
        named = ", ".join(f"“{word}”" for word in unseen[:3])
        return f"this model was not trained on {named}" + (" and others" if unseen[3:] else "")

    def warning(self, name: str, prompt: str, reply: str) -> str:
        """What to tell somebody who asked the model `name` for what it was not trained on; "" where there is nothing to
        tell, or the reply says so itself."""
        strange = self.strange(prompt)
        if not strange or is_honest(reply.strip()):
            return ""
        return f"Outside what {name} knows: {strange}. Expect nonsense."


def _words(text: str) -> Iterator[str]:
    return (found[0] for found in re.finditer(r"[a-z']+", text.lower()))


def of_recipe(recipe: NamedRecipe) -> Known:
    """What a recipe trains a model for, what it draws most often first; with the words of its English."""

    def by_share(tables: list[Mapping[str, float]]) -> tuple[str, ...]:
        total = {name: sum(t.get(name, 0) for t in tables) for table in tables for name in table}
        return tuple(sorted(total, key=lambda name: -total[name]))

    asked = by_share([stage.kinds for stage in recipe.stages])
    puzzles = by_share([stage.families for stage in recipe.stages] or [recipe.shares])
    words: set[str] = set()
    for index in range(SAMPLED if asked else 0):
        example = kinds.training_example(index, {name: kinds.SHARES.get(name, 1) for name in asked})
        for text in (*(message["content"] for message in example.messages), example.reply):
            words.update(_words(text))
    return Known(asked, puzzles, frozenset(words))


def known_to(loaded: Loaded) -> Known:
    """What a model was trained for; nothing where nobody can say, as of one that carries an adapter."""
    return Known() if loaded.folder is None or loaded.adapter else known(loaded.folder)


def known(folder: Path) -> Known:
    """What the checkpoint in `folder` was trained for; nothing where it does not say. CheckpointError: a bad file."""
    path = folder / FILE
    if not path.is_file():
        return Known()
    try:
        found = json.loads(path.read_text("utf-8"))
        given = Known(
            tuple(found.get("kinds", ())),
            tuple(found.get("families", ())),
            frozenset(found.get("words", ())),
        )
        strange = [n for n in given.kinds if n not in kinds.BY_NAME]
        strange += [n for n in given.families if n not in families.NAMES]
        strange += [word for word in given.words if not isinstance(word, str)]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a list of kinds and families ({error})") from error
    if strange:
        raise CheckpointError(f"{path}: no kind, family or word is called {strange[0]!r}")
    return given


def write(folder: Path, given: Known) -> None:
    """Writes what a checkpoint was trained for beside it; nothing to say writes no file."""
    if given:
        table = {"kinds": given.kinds, "families": given.families, "words": sorted(given.words)}
        (folder / FILE).write_text(json.dumps(table) + "\n", "utf-8")
