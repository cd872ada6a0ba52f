"""Decisions read from slots: a template is pinned on the canvas, noise stands in its slots, and one to a few passes
give each choice a probability.

How the canvas is laid out:
- the whole answer is the template with its choices, then the end. Choices that take equally many tokens share a canvas:
  all of the template is pinned, with its end and what is behind it, and noise stands in the slots alone;
- each combination of lengths of the slots is a canvas of its own, with the same noise. A choice's weight is the
  probability of its tokens where they stand, given the template around them; how likely the template itself is at
  these places is left out, so that a layout has no weight of its own;
- where there would be more than `LAYOUTS` canvases, all assignments share one: pinned are the positions at which all
  texts hold the same token, and what is behind a slot moves. That is cheap, and less sure to be right;
- whole canvases of template before the first slot are encoded causally, as answers are. Texts whose slots reach over
  several canvases are scored canvas by canvas, each behind its own beginning.

The passes are the loop's (`diffusion.denoise_canvases`) with the model's own sampler, conditioned on the language. The
probabilities are the exact posterior of the last pass's distributions, at temperature 1: independent positions, given
that the canvas is a text of the form. They are no likelihood; that of the causal mode, which is exact, stands beside.

Axes: C canvas length, T tokens that stand in some text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgemma_core.constraints.form import Form, Part, Tokens, form
from dgemma_core.constraints.head import Rows
from dgemma_core.constraints.slots import Reading, automaton, held
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import StepDraws
from dgemma_core.errors import RequestError, check_kind, whole_number
from dgemma_core.events import StepEvent
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.generation.likelihood import causal_logprobs
from dgemma_core.generation.writing import Prompt, prompt_ids
from dgemma_core.prediction import Prediction
from dgemma_core.request import Request
from dgemma_core.samplers import CanvasBatch, EntropyBound, PlannedStep

LISTED = 256
"""Most assignments that are scored one by one, where a form does not fit on one canvas."""
LAYOUTS = 64
"""Most canvases of a form, one for each combination of lengths."""
CAUSAL = 64
"""Most assignments whose causal likelihood is computed, by default."""
TURN_END = "<turn|>"


@dataclass(frozen=True)
class Assignment:
    """A choice for every slot."""

    choices: Mapping[str, str]
    text: str
    probability: float
    """Joint, of the denoiser's slots."""
    causal_logprob: float | None = None
    """log p(text, end | prompt), nats, by the causal mode of the same weights; exact. None where it was not asked."""
    causal_probability: float | None = None
    """Its share of the causal likelihood of all assignments; None unless all were scored."""


@dataclass(frozen=True)
class Decision:
    """What a template's slots say."""

    slots: Mapping[str, Mapping[str, float]]
    """Of each slot, the probability of each choice."""
    top: tuple[Assignment, ...]
    """The most probable assignments, jointly."""
    causal: Mapping[str, Mapping[str, float]] | None
    """As `slots`, by the exact causal likelihood over all assignments; None where there are too many."""
    assignments: int
    """How many there are."""
    denoising_steps: int
    """Passes over canvases."""


@dataclass(frozen=True)
class Question:
    """A form to decide behind a prompt."""

    ids: tuple[int, ...]
    form: Form
    seed: int = 0


def decide(
    loaded: Loaded,
    template: str,
    slots: Mapping[str, Iterable[str]],
    *,
    prompt: Prompt = "",
    passes: int = 1,
    top: int = 1,
    seed: int = 0,
    system: str | None = None,
    raw: bool = False,
    causal: int = CAUSAL,
) -> Decision:
    r"""Decides the slots `{name}` of an answer's template, each among its choices; \{name} is that text itself.

    passes: denoising steps; from the second on, the sampler has kept some tokens, and the slots lean on them. top: how
    many joint assignments to list. causal: the causal likelihood is computed of all assignments where there are so many
    at most, else of the listed ones; 0: of none. prompt, system, raw: as in `generate`. The noise is drawn from `seed`.
    Raises RequestError for what cannot be decided, before any pass.
    """
    check_loaded(loaded)
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: a template needs one")
    ids = prompt_ids(loaded, prompt, system=system, raw=raw)
    question = Question(tuple(ids), form(template, slots, loaded.tokenizer), seed)
    (found,) = decisions(loaded, [question], passes=passes, top=top, causal=causal)
    return found


def decisions(
    loaded: Loaded,
    questions: Sequence[Question],
    *,
    passes: int = 1,
    top: int = 1,
    causal: int = 0,
    batch_size: int = 16,
) -> list[Decision]:
    """As `decide`, of several; none depends on its batch."""
    passes, top = whole_number("passes", passes, low=1), whole_number("top", top, low=1)
    causal = whole_number("causal", causal)
    batch_size = whole_number("batch_size", batch_size, low=1)
    check_kind("questions", questions, Sequence, "several, e.g. a list")
    for question in questions:
        check_kind("each question", question, Question, "a Question")
    found = _Deciding(loaded, passes, batch_size).posteriors(questions, top)
    return [
        _decision(loaded, question, *posterior, causal=causal)
        for question, posterior in zip(questions, found, strict=True)
    ]


def end_token(loaded: Loaded) -> int:
    """What ends an answer: the end of a turn, where that is an end-of-sequence token, else the first of these."""
    eos = loaded.generation.eos_token_ids
    turn = None if loaded.tokenizer is None else loaded.tokenizer.token_id(TURN_END)
    return turn if turn in eos and turn is not None else eos[0]


Joint = list[tuple[float, tuple[int, ...]]]
"""log-probability and decisions of assignments, the most probable first."""


def _decision(
    loaded: Loaded,
    question: Question,
    shares: list[list[float]],
    joint: Joint,
    steps: int,
    *,
    causal: int,
) -> Decision:
    asked, end = question.form, end_token(loaded)
    every = asked.count <= causal
    scored = list(asked.assignments()) if every else [own for _, own in joint] if causal else []
    rows = [(question.ids, (*asked.tokens(own), end)) for own in scored]
    totals = [row.total for row in causal_logprobs(loaded.model, rows)] if rows else []
    logprob = dict(zip(scored, totals, strict=True))
    share: dict[tuple[int, ...], float] = {}
    if every:
        peak = max(totals)
        mass = math.fsum(math.exp(total - peak) for total in totals)
        share = {own: math.exp(total - peak) / mass for own, total in logprob.items()}
    by_slot = [
        [math.fsum(p for own, p in share.items() if own[slot] == i) for i in range(len(choices))]
        for slot, choices in enumerate(asked.choices)
    ]
    return Decision(
        slots=_named(asked, shares),
        top=tuple(
            Assignment(
                choices={
                    name: choices[i]
                    for name, choices, i in zip(asked.names, asked.choices, own, strict=True)
                },
                text=asked.text(own),
                probability=min(1.0, math.exp(weight)),
                causal_logprob=logprob.get(own),
                causal_probability=share.get(own),
            )
            for weight, own in joint
        ),
        causal=_named(asked, by_slot) if every else None,
        assignments=asked.count,
        denoising_steps=steps,
    )


def _named(asked: Form, shares: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    return {
        name: dict(zip(choices, own, strict=True))
        for name, choices, own in zip(asked.names, asked.choices, shares, strict=True)
    }


@dataclass(frozen=True)
class _Canvas:
    """One canvas to read: what stands before it, the texts that it may hold (cut at its end), and its pins."""

    ids: tuple[int, ...]
    parts: tuple[Part, ...]
    pins: Mapping[int, int]
    seed: int


@dataclass(frozen=True)
class _Deciding:
    loaded: Loaded
    passes: int
    batch_size: int

    def __post_init__(self) -> None:
        check_loaded(self.loaded)
        if not self.loaded.model.config.can_denoise:
            raise RequestError(
                f"{self.loaded.name} has no denoiser, so it cannot fill slots: load a DiffusionGemma checkpoint"
            )

    @property
    def length(self) -> int:
        return self.loaded.model.config.canvas_length

    def posteriors(
        self, questions: Sequence[Question], top: int
    ) -> list[tuple[list[list[float]], Joint, int]]:
        """Of each question: probabilities of each slot's choices, the `top` assignments, passes over canvases."""
        ready = [self._prepared(question) for question in questions]
        fits = [asked.longest < self.length for _, asked in ready]
        near = [i for i, fit in enumerate(fits) if fit]
        canvases, layouts = [], []
        for i in near:
            ids, asked = ready[i]
            layouts.append(_layouts(asked.parts))
            for parts in layouts[-1]:
                pins = held(parts, self.length, end_token(self.loaded))
                canvases.append(_Canvas(ids, parts, pins, questions[i].seed))
        readings = iter(self._read(canvases))
        found: dict[int, tuple[list[list[float]], Joint, int]] = {}
        for i, each in zip(near, layouts, strict=True):
            own = [next(readings) for _ in each]
            found[i] = (*_of_readings(ready[i][1], own, top), len(each) * self.passes)
        far = [i for i, fit in enumerate(fits) if not fit]
        for i in far:
            if ready[i][1].count > LISTED:
                raise RequestError(
                    f"a text of the template takes {ready[i][1].longest + 1} tokens with its end, more than the canvas "
                    f"of {self.length}, and there are {ready[i][1].count} assignments, more than {LISTED}: shorten the "
                    "template, or give fewer choices"
                )
        weighed = self._weighed([(*ready[i], questions[i].seed) for i in far])
        for i, (weights, canvases_read) in zip(far, weighed, strict=True):
            found[i] = (*_of_weights(ready[i][1], weights, top), canvases_read * self.passes)
        return [found[i] for i in range(len(questions))]

    def _prepared(self, question: Question) -> tuple[tuple[int, ...], Form]:
        """Prompt and form without the whole canvases of template before the first slot."""
        first, *others = question.form.parts
        if first.slots:
            return question.ids, question.form
        (tokens,) = first.alternatives
        whole = len(tokens) // self.length * self.length
        own = [replace(first, alternatives=(tokens[whole:],))] if tokens[whole:] else []
        return (*question.ids, *tokens[:whole]), replace(question.form, parts=(*own, *others))

    def _weighed(
        self, questions: Sequence[tuple[tuple[int, ...], Form, int]]
    ) -> list[tuple[dict[tuple[int, ...], float], int]]:
        """Log-weights of all assignments, canvas by canvas, and how many canvases that took.

        A canvas's distributions are of one prefix and one length, so assignments that differ in these are read apart.
        Pinned are what is behind the text's end and, on the first canvas, the tokens that all assignments share: what
        is given has no probability.
        """
        texts = [
            {own: asked.tokens(own) for own in asked.assignments()} for _, asked, _ in questions
        ]
        weights = [dict.fromkeys(own, 0.0) for own in texts]
        counts, end = [0] * len(questions), end_token(self.loaded)
        begin, open_texts = 0, [list(own) for own in texts]
        while any(open_texts):
            canvases, members = [], []
            for q, some in enumerate(open_texts):
                ids, asked, seed = questions[q]
                groups: dict[tuple[Tokens, int], list[tuple[int, ...]]] = {}
                for own in some:
                    tokens = texts[q][own]
                    here = min(len(tokens) - begin, self.length)
                    groups.setdefault((tokens[:begin], here), []).append(own)
                shared = {} if begin else held(asked.parts, self.length, end)
                for (before, here), group in groups.items():
                    cut = {own: texts[q][own][begin : begin + here] for own in group}
                    each = tuple(dict.fromkeys(cut.values()))
                    parts = (Part((), each, ((),) * len(each)),)
                    pins = shared | dict.fromkeys(range(here, self.length), end)
                    canvases.append(_Canvas((*ids, *before), parts, pins, seed + begin))
                    members.append((q, cut, each))
                    counts[q] += 1
            for (q, cut, each), reading in zip(members, self._read(canvases), strict=True):
                logs = dict(zip(each, reading.weights(0), strict=True))
                for own, tokens in cut.items():
                    weights[q][own] += logs[tokens]
            begin += self.length
            open_texts = [
                [own for own in some if len(texts[q][own]) > begin]
                for q, some in enumerate(open_texts)
            ]
        return list(zip(weights, counts, strict=True))

    def _read(self, canvases: Sequence[_Canvas]) -> list[Reading]:
        """The readings of the last pass over each canvas."""
        loaded, generation = self.loaded, self.loaded.generation
        eos = generation.eos_token_ids
        pad = eos[0] if generation.pad_token_id is None else generation.pad_token_id
        size = loaded.model.config.text.vocab_size
        requests = [
            Request(
                ids=canvas.ids,
                seed=canvas.seed,
                max_new_tokens=self.length,
                pins=canvas.pins,
                constraint=automaton(canvas.parts, size, eos, pad),
                id=i,
            )
            for i, canvas in enumerate(canvases)
        ]
        known = ("entropy_bound", "t_min", "t_max")
        rule = EntropyBound(**{name: getattr(generation, name) for name in known})
        sampler = _Heard(rule)
        found: dict[Any, Reading] = {}
        events = denoise_canvases(
            loaded.model,
            requests,
            sampler=sampler,
            steps=self.passes,
            stop_rule=None,
            batch_size=min(self.batch_size, max(1, len(requests))),
            eos=eos,
        )
        for event in events:
            if isinstance(event, StepEvent):
                prediction, row = sampler.next_row()
                if event.step == self.passes - 1:
                    canvas = canvases[int(event.request)]  # type: ignore[call-overload]
                    found[event.request] = self._reading(canvas, prediction.hidden[row], eos, pad)
        return [found[i] for i in range(len(canvases))]

    @torch.inference_mode()
    def _reading(self, canvas: _Canvas, hidden: Tensor, eos: Sequence[int], pad: int) -> Reading:
        """hidden (C, D) → the posterior of the canvas."""
        model = self.loaded.model
        texts = (tokens for part in canvas.parts for tokens in part.alternatives)
        ids = sorted({token for tokens in texts for token in tokens} | {*eos, pad})
        place = {token: i for i, token in enumerate(ids)}
        rows = Rows(model.head.weight, torch.tensor(ids, device=hidden.device))
        seen = model.predict(hidden.unsqueeze(0), 0.0, reference="raw", soft=False)
        logits = model.head.over(rows).logits(hidden).double()  # (C, T)
        logp = (logits - seen.logsumexp[0].double().unsqueeze(1)).cpu().numpy()
        end = np.logaddexp.reduce(logp[:, [place[token] for token in eos]], axis=1)
        after = end if pad in eos else np.logaddexp(end, logp[:, place[pad]])
        return Reading(canvas.parts, place, logp, end, after, canvas.pins)


class _Heard:
    """A sampler that remembers the prediction of its last step: the step's events name the rows in its order."""

    def __init__(self, rule: EntropyBound) -> None:
        self.rule = rule
        self.name, self.reference, self.filters = rule.name, rule.reference, rule.filters
        self._prediction: Prediction | None = None
        self._rows = 0

    def plan(self, steps: int) -> tuple[PlannedStep, ...]:
        return self.rule.plan(steps)

    def step(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        self._prediction, self._rows = prediction, 0
        return self.rule.step(state, prediction, draws)

    def next_row(self) -> tuple[Prediction, int]:
        """The prediction, and the number of the row whose event comes next."""
        assert self._prediction is not None
        self._rows += 1
        return self._prediction, self._rows - 1


def _layouts(parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """The parts with alternatives of one length each, in all combinations; as they are where these are too many."""
    kinds = [sorted({len(tokens) for tokens in part.alternatives}) for part in parts]
    if math.prod(map(len, kinds)) > LAYOUTS:
        return [tuple(parts)]
    return [
        tuple(_of_length(part, length) for part, length in zip(parts, lengths, strict=True))
        for lengths in product(*kinds)
    ]


def _of_length(part: Part, length: int) -> Part:
    pairs = zip(part.alternatives, part.decisions, strict=True)
    kept = [(tokens, own) for tokens, own in pairs if len(tokens) == length]
    return Part(part.slots, tuple(tokens for tokens, _ in kept), tuple(own for _, own in kept))


def _of_readings(
    asked: Form, readings: Sequence[Reading], top: int
) -> tuple[list[list[float]], Joint]:
    """Together, each weighing as much as its texts."""
    masses = np.array([reading.log_mass for reading in readings])
    weights = masses - np.logaddexp.reduce(masses)
    shares = [[1.0] if len(choices) == 1 else [0.0] * len(choices) for choices in asked.choices]
    joint: Joint = []
    for reading, weight in zip(readings, weights.tolist(), strict=True):
        for part, marginal in zip(reading.parts, reading.marginals(), strict=True):
            for own, probability in zip(part.decisions, marginal.tolist(), strict=True):
                for slot, decision in zip(part.slots, own, strict=True):
                    shares[slot][decision] += probability * math.exp(weight)
        for likely, way in reading.best(top):
            decided = [0] * len(asked.names)
            for part, alternative in zip(reading.parts, way, strict=True):
                for slot, decision in zip(part.slots, part.decisions[alternative], strict=True):
                    decided[slot] = decision
            joint.append((likely + weight, tuple(decided)))
    return shares, sorted(joint, key=lambda pair: -pair[0])[:top]


def _of_weights(
    asked: Form, weights: Mapping[tuple[int, ...], float], top: int
) -> tuple[list[list[float]], Joint]:
    total = float(np.logaddexp.reduce(list(weights.values())))
    shares = [[0.0] * len(choices) for choices in asked.choices]
    for own, weight in weights.items():
        for slot, decision in enumerate(own):
            shares[slot][decision] += math.exp(weight - total)
    ranked = sorted(((weight - total, own) for own, weight in weights.items()), reverse=True)
    return shares, ranked[:top]
