"""Training texts whose replies the model's own causal mode wrote.

Of a request many replies are right, and a grammar draws one of them. A denoiser that has seen them all mixes them: each
place of its canvas is likely under one reply or another. So a frozen copy of the model, the teacher, answers each
request token by token, greedily, and what the request's verifier accepts is learnt in the place of the drawn reply: one
reply a request, which the model itself finds likely (sequence-level distillation, as for other parallel decoders: Kim
and Rush, arXiv 1606.07947; Gu et al., arXiv 1711.02281). Of what it does not accept the drawn reply is learnt, so that
the teacher's errors are not passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, ClassVar

from dgemma_core.autoregression import decode_tokens
from dgemma_core.errors import check_count
from dgemma_core.events import FinishEvent
from dgemma_core.nano.texts import StagedTexts, accepts, as_text
from dgemma_core.request import Request

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.train.texts import Text


@dataclass(frozen=True, kw_only=True)
class Replies:
    """How replies are made and used."""

    name: ClassVar[str] = "replies"
    uses: int = 2
    """Training examples of a reply; each is noised anew."""
    block: int = 1024
    """Requests that are answered together."""
    batch_size: int = 32
    max_new_tokens: int = 192
    own_steps: int = 0
    """Half of the examples are learnt from after 1 to so many denoising steps of the model itself; 0: none."""

    def __post_init__(self) -> None:
        for option in ("uses", "block", "batch_size", "max_new_tokens"):
            check_count(self, option, low=1)
        check_count(self, "own_steps", low=0)


class RepliedTexts:
    """Training text number i: a request of `requests`, with the teacher's reply where that is right.

    A function of i alone, so a run resumes.
    """

    def __init__(self, teacher: DiffusionGemma, settings: Replies, requests: StagedTexts) -> None:
        self.teacher = teacher
        self.settings = settings
        self.requests = requests
        self._block: tuple[int, list[Text]] = (-1, [])

    def __call__(self, index: int) -> Text:
        # A block is gone through several times, so that the uses of a reply are far from each other.
        settings = self.settings
        block, place = divmod(index, settings.block * settings.uses)
        if self._block[0] != block:
            first = block * settings.block * settings.uses
            self._block = (block, self.replied(range(first, first + settings.block)))
        text, rng = self._block[1][place % settings.block], Random(index)
        if settings.own_steps and text.blank is None and rng.random() < 0.5:
            return replace(text, own_steps=rng.randint(1, settings.own_steps))
        return text

    def replied(self, numbers: Sequence[int]) -> list[Text]:
        """The requests of these numbers, with what is learnt of each."""
        tokenizer = self.requests.tokenizer
        examples = [self.requests.example(number) for number in numbers]
        texts = [as_text(example, tokenizer) for example in examples]
        requests = [
            Request(text.prompt, max_new_tokens=self.settings.max_new_tokens, id=i)
            for i, text in enumerate(texts)
            if text.blank is None  # a gap's text is given but for the gap
        ]
        for event in decode_tokens(self.teacher, requests, batch_size=self.settings.batch_size):
            if not isinstance(event, FinishEvent) or event.stop_reason != "eos":
                continue
            assert isinstance(event.request, int)
            if accepts(examples[event.request], tokenizer.decode(event.ids)):
                texts[event.request] = replace(texts[event.request], answer=tuple(event.ids[:-1]))
        return texts
