"""Writes canvases as the public implementation does, with this project's model, sampler and stop rule (spec §4).

What differs from `denoise_canvases`, and only here:
- all rows start together and wait for each other at every canvas; whole canvases are made and never trimmed;
- a row whose canvas has converged keeps drawing, and a row that has ended goes on over canvases of PAD;
- the run ends after the canvas in which the last row ends;
- a sample comes from a whole row of probabilities, rounded in the oracle's order.

Axes: B rows, P prompt length, C canvas length, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.draws import CounterDraws, CounterStep, RowKey, inverse_cdf
from dgemma_core.events import StopReason
from dgemma_core.head import Prediction
from dgemma_core.loop import cut
from dgemma_core.model import DiffusionGemma
from dgemma_core.samplers import CanvasBatch, EntropyBound, PlannedStep, StopRule
from tests.oracle.draws import OracleDraws, OraclePass
from tests.oracle.record import Knobs
from tests.oracle.ties import RowStep


@dataclass(frozen=True)
class Step:
    """One denoising step of one row that had not converged before it."""

    canvas: int
    step: int
    row: int
    tokens_in: Tensor  # (C,)
    did: RowStep
    logits: Tensor  # (C, V), divided by the temperature


@dataclass
class Text:
    """One row's answer: the kept ids, and its tokens as committed, PAD after its end."""

    ids: tuple[int, ...] = ()
    reason: StopReason | None = None
    canvases: int = 0
    denoising_steps: int = 0
    committed: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    steps: list[Step]
    texts: list[Text]

    @property
    def sequences(self) -> Tensor:
        """(B, canvases · C) ids, PAD-filled."""
        return torch.tensor([text.committed for text in self.texts])


@torch.inference_mode()
def write(
    model: DiffusionGemma,
    prompts: Tensor,
    knobs: Knobs,
    draws: OracleDraws | CounterDraws,
    *,
    max_new_tokens: int,
    seeds: Sequence[int] | None = None,
    sampler: EntropyBound | None = None,
) -> Run:
    """Writes ⌈max_new_tokens / C⌉ canvases behind `prompts` (B, P), fewer if all rows end before.

    seeds: of the rows, for `CounterDraws`. sampler: in place of the one that `knobs` describe.
    """
    rule = sampler or EntropyBound(
        entropy_bound=knobs.entropy_bound, t_min=knobs.t_min, t_max=knobs.t_max
    )
    length, rows = model.config.canvas_length, range(len(prompts))
    texts, steps = [Text() for _ in rows], []
    cache = model.encode(prompts)
    for index in range(-(-max_new_tokens // length)):
        keys = [RowKey(seed, index) for seed in seeds or [0] * len(prompts)]
        canvas = _Canvas(model, cache, knobs, rule, draws, keys)
        steps += canvas.denoise()
        for row in rows:
            _commit(texts[row], canvas, row, max_new_tokens, knobs)
        if all(text.reason is not None for text in texts):
            break
        cache = model.encode([text.committed[-length:] for text in texts], cache)
    return Run(steps, texts)


def _commit(text: Text, canvas: _Canvas, row: int, max_new_tokens: int, knobs: Knobs) -> None:
    """Ends the text at its first end-of-sequence token or at the limit; lays PAD behind its end."""
    argmax: list[int] = canvas.argmax[row].tolist()
    kept: tuple[int, ...] = ()
    if text.reason is None:
        before = len(text.ids)
        end = cut(text.ids, argmax, max_new_tokens - before, frozenset(knobs.eos), (), None)
        kept = end.ids[before:]
        text.ids, text.reason = end.ids, end.reason
        text.canvases += 1
        text.denoising_steps += canvas.taken[row]
    text.committed += [*kept, *[knobs.pad] * (len(argmax) - len(kept))]


@dataclass
class _Canvas:
    """One canvas of all rows, from noise to its argmax."""

    model: DiffusionGemma
    cache: PrefixCache
    knobs: Knobs
    sampler: EntropyBound
    draws: OracleDraws | CounterDraws
    keys: Sequence[RowKey]
    soft: Tensor | None = None  # (B, C, D)

    def __post_init__(self) -> None:
        batch, length = len(self.keys), self.model.config.canvas_length
        self.plan = self.sampler.plan(self.knobs.steps)
        self.rule = StopRule(stability=self.knobs.stability, confidence=self.knobs.confidence)
        self.tokens = self.draws.first_canvas(self.keys, length, self.model.config.text.vocab_size)
        self.argmax = self.tokens
        self.history = self.rule.initial(length, rows=batch)
        self.accepted = torch.zeros(batch, length, dtype=torch.bool)
        self.finished = torch.zeros(batch, dtype=torch.bool)
        self.taken = [0] * batch

    def denoise(self) -> list[Step]:
        """Steps until all rows have converged or the plan is spent."""
        steps = []
        for planned in self.plan:
            steps += self._step(planned)
            if bool(self.finished.all()):
                break
        return steps

    def _step(self, planned: PlannedStep) -> list[Step]:
        before, frozen = self.tokens, self.finished
        numbers = self.draws.step(self.keys, [planned.index] * len(before), before.shape[1])
        hidden = self.model.denoise(before, self.cache, self.soft)
        logits = self.model.logits(hidden) / planned.temperature  # (B, C, V) float32
        prediction = self._predict(hidden, logits, planned.temperature, numbers)
        batch = CanvasBatch(
            canvas=before,
            accepted=self.accepted,
            pinned=torch.zeros_like(self.accepted),
            plan=(planned,) * len(before),
            total=len(self.plan),
            vocab_size=self.model.config.text.vocab_size,
        )
        after, accepted = self.sampler.step(batch, prediction, numbers)
        history, met = self.rule.update(
            self.history, prediction.argmax, prediction.entropy, batch.pinned
        )

        def latched(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(frozen.view(-1, *[1] * (new.dim() - 1)), old, new)

        assert prediction.soft_embedding is not None
        self.tokens = latched(before, after.canvas)
        self.accepted = latched(self.accepted, after.accepted)
        self.argmax = latched(self.argmax, prediction.argmax)
        self.history = latched(self.history, history)
        self.finished = frozen | met
        soft = torch.zeros_like(prediction.soft_embedding) if self.soft is None else self.soft
        self.soft = latched(soft, prediction.soft_embedding)
        steps = []
        for row in (~frozen).nonzero().flatten().tolist():
            self.taken[row] += 1
            did = RowStep(
                after.canvas[row],
                prediction.sample[row],
                prediction.argmax[row],
                accepted[row],
                bool(met[row]),
            )
            canvas = self.keys[row].canvas
            steps.append(Step(canvas, planned.index, row, before[row], did, logits[row]))
        return steps

    def _predict(
        self,
        hidden: Tensor,
        logits: Tensor,
        temperature: float,
        numbers: OraclePass | CounterStep,
    ) -> Prediction:
        """The product's prediction with a sample from whole rows of probabilities."""
        prediction = _predict(self.model, hidden, temperature)
        probabilities = logits.softmax(dim=-1)
        if isinstance(numbers, OraclePass):
            sample = numbers.multinomial(probabilities)
        else:
            sample = inverse_cdf(probabilities, numbers.uniform)
        return replace(prediction, sample=sample)


def _predict(model: DiffusionGemma, hidden: Tensor, temperature: float) -> Prediction:
    """The model's prediction; its sample, drawn from numbers of no meaning, is not used."""
    keys = [RowKey(0, 0)] * len(hidden)
    unused = CounterDraws().step(keys, [0] * len(hidden), hidden.shape[1])
    return model.predict(hidden, torch.full((len(hidden),), temperature), unused)
