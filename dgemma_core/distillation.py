"""Sampler distillation: few steps learn to reach what many steps reach.

The second stage of training. A frozen copy of the model, the teacher, writes texts with its many-step sampler; what the
canvas looked like at one step on the way is then shown to the model, which learns to predict the teacher's *final*
canvas from it (and, as before, the same text autoregressively). So it grows sure of itself sooner, more positions come
under the entropy bound at a time, and a canvas takes fewer steps. Unlike in the first stage, the noise is what the
sampler leaves, not what a schedule draws.

Only texts that the family's verifier accepts are learnt from: the teacher's errors are not passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from dgemma_core.decoding import FinishEvent, Request, StepEvent, denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.samplers import EntropyBound
from dgemma_core.training import Look, Text

if TYPE_CHECKING:
    from dgemma_core.families import Example
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """How trajectories are made. The sampler is the released one."""

    steps: int = 48
    uses: int = 4
    """Training examples drawn from a trajectory."""
    block: int = 256
    """Trajectories that are made together."""
    batch_size: int = 16
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.uses, self.block, self.batch_size, self.max_new_tokens) < 1:
            raise RequestError("a teacher's settings are at least 1")


@dataclass(frozen=True)
class Trajectory:
    """A text that the teacher wrote, and its canvases on the way."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Without the end token."""
    canvases: tuple[tuple[tuple[int, ...], ...], ...]
    """Of each canvas, the tokens (C,) that each step read."""

    def look(self, rng: Random) -> Text:
        """The text, seen at one of its steps; all steps are equally likely."""
        places = [(j, k) for j, steps in enumerate(self.canvases) for k in range(len(steps))]
        j, k = rng.choice(places)
        steps = self.canvases[j]
        return Text(self.prompt, self.answer, Look(j, steps[k], steps[k - 1] if k else None))


class TeacherTexts:
    """Training text number i: a look at one of the teacher's trajectories. A function of i alone, so a run resumes."""

    def __init__(
        self, teacher: DiffusionGemma, settings: Teacher, mix: tuple[str, ...], tokenizer: Tokenizer
    ) -> None:
        self.teacher = teacher
        self.settings = settings
        self.mix = mix
        self.tokenizer = tokenizer
        self._block: tuple[int, list[Trajectory]] = (-1, [])

    def __call__(self, index: int) -> Text:
        number = index // self.settings.uses
        block, place = divmod(number, self.settings.block)
        if self._block[0] != block:
            self._block = (block, self._made(block))
        found = self._block[1]
        return found[place % len(found)].look(Random(index))

    def _made(self, block: int) -> list[Trajectory]:
        """The solved trajectories of one block, in the order of their problems."""
        from dgemma_core.families import training_example

        first = block * self.settings.block
        problems = [training_example(first + i, self.mix) for i in range(self.settings.block)]
        made = trajectories(self.teacher, self.settings, problems, self.tokenizer)
        found = [made[i] for i in sorted(made)]
        if not found:
            raise RequestError(
                f"the teacher solved none of {len(problems)} problems: train it longer before distilling"
            )
        return found


def trajectories(
    teacher: DiffusionGemma,
    settings: Teacher,
    problems: Sequence[Example],
    tokenizer: Tokenizer,
) -> dict[int, Trajectory]:
    """The teacher's way through each problem that it solves, by the problem's place in `problems`."""
    from dgemma_core.families import family

    requests = [
        Request(
            tokenizer.chat_ids(problem.prompt),
            seed=settings.seed + i,
            max_new_tokens=settings.max_new_tokens,
            id=i,
        )
        for i, problem in enumerate(problems)
    ]
    seen: dict[int, list[list[tuple[int, ...]]]] = {i: [] for i in range(len(problems))}
    found = {}
    for event in denoise_canvases(
        teacher,
        requests,
        sampler=EntropyBound(),
        steps=settings.steps,
        batch_size=settings.batch_size,
    ):
        if isinstance(event, StepEvent):
            assert isinstance(event.request, int)
            canvases = seen[event.request]
            if event.canvas == len(canvases):
                canvases.append([])
            canvases[event.canvas].append(tuple(event.tokens_in.tolist()))
        elif isinstance(event, FinishEvent):
            assert isinstance(event.request, int)
            problem = problems[event.request]
            text = tokenizer.decode(event.ids)
            if event.stop_reason == "eos" and family(problem.family).solved(problem.entry, text):
                found[event.request] = Trajectory(
                    tuple(requests[event.request].ids),
                    tuple(event.ids[:-1]),
                    tuple(tuple(steps) for steps in seen[event.request]),
                )
    return found
