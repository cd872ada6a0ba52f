"""Training texts by number: problems of the families, and English."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random
from typing import TYPE_CHECKING

from dgemma_core.errors import RequestError
from dgemma_core.nano import families
from dgemma_core.nano.english import kinds
from dgemma_core.nano.named import Stage
from dgemma_core.nano.wordings import reworded
from dgemma_core.train.texts import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dgemma_core.files.text import Tokenizer
    from dgemma_core.nano.english.kind import Example


REWORDED = 1 / 3
"""Share of the problems that English runs ask for in other words than the families' own (wordings.py)."""


class FamilyTexts:
    """Training text number i: a problem of the families, asked as a chat, with its canonical answer.

    Runs of different seeds draw different problems.
    """

    def __init__(
        self, mix: tuple[str, ...], tokenizer: Tokenizer, seed: int = 0, own_steps: int = 0
    ) -> None:
        """own_steps: a quarter of the texts are learnt from as they are noised, the others after 1 to so many steps of
        the model's own; all prose as it is noised, which can be continued in more than one way. 0: none is walked."""
        self.mix = mix
        self.tokenizer = tokenizer
        self.first = seed * 10**9
        self.own_steps = own_steps

    def __call__(self, index: int) -> Text:
        example = families.training_example(self.first + index, self.mix)
        rng = Random(f"steps of {self.first + index}")
        walked = self.own_steps and example.family != "prose" and rng.random() < 0.75
        return Text(
            tuple(self.tokenizer.chat_ids(example.prompt)),
            tuple(self.tokenizer.encode(example.answer)),
            own_steps=rng.randint(1, self.own_steps) if walked else 0,
        )


class StagedTexts:
    """Training text number i of a run: English or a problem, in the shares of the stage that i falls in.

    A function of the number alone, so a run resumes. Runs of different seeds draw different texts.
    """

    def __init__(
        self, stages: Sequence[Stage], total: int, tokenizer: Tokenizer, seed: int = 0
    ) -> None:
        """total: the run's examples. Raises RequestError for unknown names, and unless the last stage ends at 1."""
        if (
            not stages
            or stages[-1].until != 1
            or any(a.until >= b.until for a, b in pairwise(stages))
        ):
            raise RequestError("stages end one after the other, and the last one at 1")
        for stage in stages:
            for name in (*stage.kinds, *stage.canonical):
                kinds.kind(name)
            for name in stage.families:
                families.family(name)
        self.stages = tuple(stages)
        self.ends = [stage.until * total for stage in stages]
        self.total = total
        self.tokenizer = tokenizer
        self.first = seed * 10**9

    def stage(self, index: int) -> Stage:
        """The stage that example `index` belongs to; beyond the run's end the last one."""
        return self.stages[min(bisect_right(self.ends, index), len(self.stages) - 1)]

    def example(self, index: int) -> Example | families.Example:
        """Example `index`, before it is turned into tokens."""
        stage, rng = self.stage(index), Random(self.first + index)
        if rng.random() < stage.english:
            name = _drawn(stage.kinds, rng)
            found = kinds.draw(name, rng.randrange(kinds.TRAIN_SEEDS.stop), "train")
            return kinds.canonical(found, stage.canonical)
        name = _drawn(stage.families, rng)
        problem = families.training_example(rng.randrange(10**15), (name,))
        if rng.random() < REWORDED:
            problem = replace(problem, prompt=reworded(problem, rng))
        return problem

    def is_open(self, index: int, example: Example | families.Example) -> bool:
        """Whether other right replies to example `index` may be learnt than its own."""
        if isinstance(example, families.Example):
            return False
        return example.kind not in self.stage(index).canonical

    def __call__(self, index: int) -> Text:
        return as_text(self.example(index), self.tokenizer)


def as_text(example: Example | families.Example, tokenizer: Tokenizer) -> Text:
    """An example as token ids; of an infilled text the blank becomes the tokens that touch it."""
    if isinstance(example, families.Example):
        return Text(
            tuple(tokenizer.chat_ids(example.prompt)), tuple(tokenizer.encode(example.answer))
        )
    prompt = tuple(tokenizer.chat_ids(example.messages))
    answer = tuple(tokenizer.encode(example.reply))
    if example.blank is None:
        return Text(prompt, answer)
    first, last = example.blank
    spans = tokenizer.backend.encode(example.reply, add_special_tokens=False).offsets
    touching = [i for i, (start, end) in enumerate(spans) if end > first and start < last]
    return Text(prompt, answer, blank=(touching[0], touching[-1] + 1))


def accepts(example: Example | families.Example, text: str) -> bool:
    """The verifier's verdict on any text that answers the example's request."""
    if isinstance(example, families.Example):
        return families.family(example.family).solved(example.entry, text)
    return kinds.accepts(example, text)


def _drawn(shares: Mapping[str, float], rng: Random) -> str:
    """A name, as often as its share says."""
    return rng.choices(tuple(shares), cum_weights=tuple(accumulate(shares.values())))[0]
