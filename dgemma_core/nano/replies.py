"""Training texts whose replies the model itself wrote.

Of a request many replies are right, and a grammar draws one of them. A denoiser that has seen them all mixes them: each
place of its canvas is likely under one reply or another. So a frozen copy of the model, the teacher, answers each
request token by token, greedily, and what the request's verifier accepts is learnt in the place of the drawn reply: one
reply a request, which the model itself finds likely (sequence-level distillation, as for other parallel decoders: Kim
and Rush, arXiv 1606.07947; Gu et al., arXiv 1711.02281). Of what it does not accept the drawn reply is learnt, so that
the teacher's errors are not passed on. Problems of the families, which have one answer each, are not asked so.

With `denoising_steps` the teacher answers by diffusion first, and its causal mode what is not accepted of that. An
accepted text is learnt from the way that led there, too: from a canvas as one of the steps read it, the canvas that it
became. So the model grows sure of what it was about to write, and canvases come to rest (distillation.py says more).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, ClassVar

from dgemma_core.autoregression import decode_tokens
from dgemma_core.errors import check_count
from dgemma_core.events import FinishEvent
from dgemma_core.facts.machine import cores
from dgemma_core.nano import families
from dgemma_core.nano.texts import StagedTexts, accepts, as_text
from dgemma_core.request import Request
from dgemma_core.samplers import StopRule
from dgemma_core.train.distillation import Trajectory, walks
from dgemma_core.train.texts import Text

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.nano.english.kind import Example


PART = 512
"""Requests that one core answers together."""
LENIENT = StopRule(confidence=0.1)
"""For a denoiser that has yet to learn when it is done."""


@dataclass(frozen=True, kw_only=True)
class Replies:
    """How replies are made and used."""

    name: ClassVar[str] = "replies"
    uses: int = 2
    """Training examples of a reply; each is noised anew."""
    drawn: int = 0
    """Further examples a reply, each of another request with its drawn reply, which cost no writing. A model of two
    million parameters learns a block by heart: of four uses each, the causal loss fell from 0.24 to 0.08 within a
    block and was 0.24 at the next one's begin. What it learns of a request that it meets once, it learns for others."""
    block: int = 1024
    """Requests that are answered together."""
    batch_size: int = 32
    max_new_tokens: int = 192
    own_steps: int = 0
    """Half of the examples are learnt from after 1 to so many denoising steps of the model itself; 0: none. Texts that
    were written by diffusion have a way instead."""
    denoising_steps: int = 0
    """The most steps that the teacher takes on a canvas; 0: it writes token by token alone."""
    stop_rule: StopRule = LENIENT
    """When its canvas is finished."""

    def __post_init__(self) -> None:
        for option in ("uses", "block", "batch_size", "max_new_tokens"):
            check_count(self, option, low=1)
        for option in ("drawn", "own_steps", "denoising_steps"):
            check_count(self, option, low=0)


class RepliedTexts:
    """Training text number i: a request of `requests`, with the teacher's reply where that is right.

    A function of i alone, so a run resumes.
    """

    def __init__(self, teacher: DiffusionGemma, settings: Replies, requests: StagedTexts) -> None:
        self.teacher = teacher
        self.settings = settings
        self.requests = requests
        self._block: tuple[int, list[Text | Trajectory]] = (-1, [])

    def __call__(self, index: int) -> Text:
        # A block is gone through several times, so that the uses of a reply are far from each other.
        settings = self.settings
        period = settings.uses + settings.drawn
        block, place = divmod(index, settings.block * period)
        first = block * settings.block * period
        if self._block[0] != block:
            self._block = (block, self.replied(range(first, first + settings.block)))
        turn, among = divmod(place, period)
        if among < settings.drawn:
            other = first + settings.block + turn * settings.drawn + among
            return self.requests(other)
        use = turn * settings.uses + among - settings.drawn
        reply, rng = self._block[1][use % settings.block], Random(index)
        half = rng.random() < 0.5
        if isinstance(reply, Trajectory):
            if not half:
                return Text(reply.prompt, reply.answer)
            seen = reply.text(rng)
            assert seen.snapshot is not None
            # The model takes the next step itself, so that its own prediction conditions what it learns.
            return replace(seen, snapshot=replace(seen.snapshot, before=None), own_steps=1)
        if half and settings.own_steps and reply.blank is None:
            return replace(reply, own_steps=rng.randint(1, settings.own_steps))
        return reply

    def replied(self, numbers: Sequence[int]) -> list[Text | Trajectory]:
        """The requests of these numbers, with what is learnt of each. Cores answer parts of them side by side; the
        parts are the same on every machine."""
        parts = [numbers[i : i + PART] for i in range(0, len(numbers), PART)]
        with ThreadPoolExecutor(cores()) as pool:
            return [each for part in pool.map(self._answered, parts) for each in part]

    def _answered(self, numbers: Sequence[int]) -> list[Text | Trajectory]:
        settings, tokenizer = self.settings, self.requests.tokenizer
        examples = [self.requests.example(number) for number in numbers]
        texts = [as_text(example, tokenizer) for example in examples]
        found: list[Text | Trajectory] = [*texts]
        left = {
            i: Request(text.prompt, seed=number, max_new_tokens=settings.max_new_tokens, id=i)
            for i, (number, text) in enumerate(zip(numbers, texts, strict=True))
            if text.blank is None  # a gap's text is given but for the gap
        }
        steps, size = settings.denoising_steps, settings.batch_size
        if steps:
            asked = list(left.values())
            for i, canvases, end in walks(self.teacher, asked, steps, size, settings.stop_rule):
                if self._right(examples[i], end):
                    found[i] = Trajectory(texts[i].prompt, tuple(end.ids[:-1]), canvases)
                    del left[i]
        # What has one answer, whoever writes it, is worth the writing for the way there alone.
        open_ended = [
            asked for i, asked in left.items() if self.requests.is_open(numbers[i], examples[i])
        ]
        for event in decode_tokens(self.teacher, open_ended, batch_size=size):
            if isinstance(event, FinishEvent):
                assert isinstance(event.request, int)
                if self._right(examples[event.request], event):
                    answer = tuple(event.ids[:-1])
                    found[event.request] = replace(texts[event.request], answer=answer)
        return found

    def _right(self, example: Example | families.Example, event: FinishEvent) -> bool:
        """Whether a whole text is accepted."""
        tokenizer = self.requests.tokenizer
        return event.stop_reason == "eos" and accepts(example, tokenizer.decode(event.ids))
