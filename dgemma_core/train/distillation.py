"""Sampler distillation: few steps learn to reach what many steps reach.

The second stage of training. A frozen copy of the model, the teacher, writes texts with its many-step sampler; what the
canvas looked like at one step on the way is then shown to the model, which learns to predict the teacher's *final*
canvas from it (and, as before, the same text autoregressively). So it grows sure of itself sooner, more positions come
under the entropy bound at a time, and a canvas takes fewer steps. Unlike in the first stage, the noise is what the
sampler leaves, not what a schedule draws.

Only texts that the family's verifier accepts are learnt from: the teacher's errors are not passed on. Of a problem that
the teacher does not solve, the canonical answer is learnt as in the first stage, so that nothing is unlearnt meanwhile.

For families that are `corrected`, the same trajectories serve the stage before: whatever the canvas looked like, right
or wrong, the problem's canonical answer is learnt from it (as in DAgger, Ross et al., arXiv 1011.0686). A schedule's
noise hides single tokens here and there; a sampler commits what is easy first and leaves what depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import torch

from dgemma_core.diffusion import RELEASED_RULE, denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.events import FinishEvent, StepEvent
from dgemma_core.facts.machine import cores
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound, StopRule
from dgemma_core.train.texts import Snapshot, Text

if TYPE_CHECKING:
    from dgemma_core.files.text import Tokenizer
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.nano.families import Example


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
    corrected: tuple[str, ...] = ()
    """Families whose canonical answers are learnt from all trajectories; the others' are noised by the schedule. None:
    the teacher's own texts are learnt, of all families, where they are solved."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.uses, self.block, self.batch_size, self.max_new_tokens) < 1:
            raise RequestError("a teacher's settings are at least 1")


@dataclass(frozen=True)
class Trajectory:
    """A text that the teacher wrote, and its canvases on the way; or one that it did not, without any."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Without the end token."""
    canvases: tuple[tuple[tuple[int, ...], ...], ...]
    """Of each canvas, the tokens (C,) that each step read."""

    def text(self, rng: Random) -> Text:
        """The text, seen at one of its steps, all equally likely; without a snapshot where it has no steps."""
        places = [(j, k) for j, steps in enumerate(self.canvases) for k in range(len(steps))]
        if not places:
            return Text(self.prompt, self.answer)
        j, k = rng.choice(places)
        steps = self.canvases[j]
        return Text(self.prompt, self.answer, Snapshot(j, steps[k], steps[k - 1] if k else None))


class TeacherTexts:
    """Training text number i: a snapshot of one of the trajectories. A function of i alone, so a run resumes.

    first: number of the first problem, so that runs draw different ones.
    """

    def __init__(
        self,
        teacher: DiffusionGemma,
        settings: Teacher,
        mix: tuple[str, ...],
        tokenizer: Tokenizer,
        first: int = 0,
    ) -> None:
        self.teacher = teacher
        self.settings = settings
        self.mix = mix
        self.tokenizer = tokenizer
        self.first = first
        self._block: tuple[int, list[Trajectory]] = (-1, [])

    def __call__(self, index: int) -> Text:
        # A block is gone through several times, so that the uses of a trajectory are far from each other.
        block, place = divmod(index, self.settings.block * self.settings.uses)
        if self._block[0] != block:
            self._block = (block, self._made(block))
        found = self._block[1]
        return found[place % len(found)].text(Random(index))

    def _made(self, block: int) -> list[Trajectory]:
        """What is learnt from one block, in the order of its problems."""
        from dgemma_core.nano.families import training_example

        first = self.first + block * self.settings.block
        problems = [training_example(first + i, self.mix) for i in range(self.settings.block)]
        make = corrected_trajectories if self.settings.corrected else trajectories
        threads = torch.get_num_threads()
        torch.set_num_threads(cores())  # the trainer waits for this
        try:
            made = make(self.teacher, self.settings, problems, self.tokenizer)
        finally:
            torch.set_num_threads(threads)
        if not any(trajectory.canvases for trajectory in made.values()):
            raise RequestError(
                f"the teacher solved none of {len(problems)} problems: train it longer before distilling"
            )
        return [made[i] for i in sorted(made)]


def trajectories(
    teacher: DiffusionGemma,
    settings: Teacher,
    problems: Sequence[Example],
    tokenizer: Tokenizer,
) -> dict[int, Trajectory]:
    """The teacher's way through each problem, by its place in `problems`; where it does not solve it, the canonical
    answer alone."""
    from dgemma_core.nano.families import family

    requests = [
        Request(
            tokenizer.chat_ids(problem.prompt),
            seed=settings.seed + i,
            max_new_tokens=settings.max_new_tokens,
            id=i,
        )
        for i, problem in enumerate(problems)
    ]
    found = {i: _canonical(problem, tokenizer) for i, problem in enumerate(problems)}
    for i, canvases, finish in walks(teacher, requests, settings.steps, settings.batch_size):
        problem = problems[i]
        text = tokenizer.decode(finish.ids)
        if finish.stop_reason == "eos" and family(problem.family).solved(problem.entry, text):
            found[i] = Trajectory(found[i].prompt, tuple(finish.ids[:-1]), canvases)
    return found


def corrected_trajectories(
    teacher: DiffusionGemma,
    settings: Teacher,
    problems: Sequence[Example],
    tokenizer: Tokenizer,
) -> dict[int, Trajectory]:
    """The teacher's way through one canvas of each problem, behind the canonical answer's canvases before it; for
    families that are not corrected, the canonical answer without any way."""
    length = teacher.config.canvas_length
    found = {i: _canonical(problem, tokenizer) for i, problem in enumerate(problems)}
    requests, place = [], {}
    for i, problem in enumerate(problems):
        if problem.family in settings.corrected:
            text = found[i]
            place[i] = Random(problem.seed).randrange(len(text.answer) // length + 1)
            prefix = text.prompt + text.answer[: place[i] * length]
            requests.append(Request(prefix, seed=settings.seed + i, max_new_tokens=length, id=i))
    for i, canvases, _ in walks(teacher, requests, settings.steps, settings.batch_size):
        found[i] = replace(found[i], canvases=((),) * place[i] + canvases)
    return found


def _canonical(problem: Example, tokenizer: Tokenizer) -> Trajectory:
    """A problem with its canonical answer, and no way to it."""
    prompt = tuple(tokenizer.chat_ids(problem.prompt))
    return Trajectory(prompt, tuple(tokenizer.encode(problem.answer)), ())


def walks(
    teacher: DiffusionGemma,
    requests: Sequence[Request],
    steps: int,
    batch_size: int,
    stop_rule: StopRule = RELEASED_RULE,
) -> Iterator[tuple[int, tuple[tuple[tuple[int, ...], ...], ...], FinishEvent]]:
    """Each request's number, what every step of its canvases read, and its end, as requests end."""
    seen: dict[int, list[list[tuple[int, ...]]]] = {}
    for event in denoise_canvases(
        teacher,
        requests,
        sampler=EntropyBound(),
        steps=steps,
        stop_rule=stop_rule,
        batch_size=batch_size,
    ):
        if isinstance(event, StepEvent):
            assert isinstance(event.request, int)
            canvases = seen.setdefault(event.request, [])
            if event.canvas == len(canvases):
                canvases.append([])
            canvases[event.canvas].append(tuple(event.tokens_in.tolist()))
        elif isinstance(event, FinishEvent):
            assert isinstance(event.request, int)
            yield event.request, tuple(map(tuple, seen.pop(event.request))), event
