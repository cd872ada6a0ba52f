"""The loop that drafts tokens with the denoiser and verifies them with the causal mode of the same weights.

Notable:
- the text is autoregression's, exactly, at any temperature: the causal mode's choice for answer position n is made with
  the number that is addressed by (seed, n), and a drafted token is kept only where it is that very choice. The first
  one that is not is replaced by the choice, and the next draft begins there;
- one pass does both: causally it goes over what was drafted, and over a canvas of noise behind that, which drafts what
  comes next. If all of the draft is accepted, the next one is there already. The prompt's pass drafts, too;
- the canvas takes the same addressed numbers, so that it tends to draw what verification draws. Its first token stands
  where the same pass makes the causal mode's choice: where the two differ, the draft is given up at once;
- verifying encodes the drafted tokens, so what is accepted is in the prefix cache already; the rest is cut off.

Related: speculative decoding (arXiv 2211.17192), self-speculation with a diffusion draft (arXiv 2603.25702).

Axes: B rows of the batch, C positions of a canvas, T tokens of a verification, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dgemma_core.cache import PrefixCache
from dgemma_core.checks import check_denoiser
from dgemma_core.constraints.conditions import conditions, conditions_each
from dgemma_core.draws import Draws, Filters, RowKey, upload
from dgemma_core.errors import check_kind
from dgemma_core.events import DraftEvent, Event
from dgemma_core.head import Prediction
from dgemma_core.loop import (
    Choice,
    Decode,
    Row,
    causal_temperature,
    join,
    keep_token,
    memory_advice,
    queue,
    read_choices,
    shared_arguments,
    start_tokens,
)
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe
from dgemma_core.request import Request, TokenState


@dataclass(frozen=True)
class DraftPlan:
    """One round's draft: how many positions, and how many denoising steps, of which the first one costs no pass."""

    positions: int
    steps: int
    least_probability: float = 0.0
    """The draft ends before the first position whose token is less probable than this."""
    ahead: float = 0.0
    """Behind tokens that are yet to be verified it is drafted only where they are as probable as this, together."""


@runtime_checkable
class DraftRule(Protocol):
    """How much to draft. A value; `plan` is pure."""

    @property
    def name(self) -> str: ...

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        """The next round's draft. accepted: tokens that earlier rounds of this text accepted, oldest first."""


@dataclass(frozen=True)
class _AddressedUniforms:
    """The numbers that the causal mode uses at given answer positions (`head.SampleDraws`)."""

    uniform: Tensor  # (B, C) float64


@dataclass(frozen=True)
class _Canvas:
    """What a pass lays behind a row: a canvas of noise, to be drafted on as the plan says."""

    plan: DraftPlan
    noise: Sequence[int]


@dataclass(frozen=True)
class _Draft:
    """The tokens that a row's next pass may go over, the chosen one first, and how many of them it does."""

    tokens: tuple[int, ...]
    probability: tuple[float, ...]
    steps: int
    verified: int
    ends: bool
    """Whether the text ends within or right behind the tokens that are verified."""

    @property
    def likely(self) -> float:
        """How probable the denoiser holds all that is verified."""
        return math.prod(self.probability[: self.verified])


@dataclass
class _Row:
    """A request in the batch: the causal mode has chosen `choice` after `state`; `draft` begins with it."""

    row: Row
    state: TokenState
    choice: Choice
    draft: _Draft
    accepted: list[int] = field(default_factory=list)
    """Drafted tokens accepted in each round so far."""
    denoising_steps: int = 0


def _only(choice: Choice) -> _Draft:
    """Nothing but the chosen token."""
    return _Draft((choice.token,), (1.0,), 0, 1, False)


def decode_speculative(
    model: DiffusionGemma,
    requests: Iterable[Request],
    *,
    draft: DraftRule | None = None,
    temperature: float = 0.0,
    filters: Filters | None = None,
    batch_size: int = 1,
    eos: Sequence[int] | None = None,
    decode: Decode | None = None,
    draws: Draws | None = None,
    observe: Observe | None = None,
) -> Iterator[Event]:
    """Writes what `decode_tokens` writes for the same arguments, in fewer passes; yields events as they happen.

    draft: how much to draft a round, a whole canvas if None. Raises RequestError where `decode_tokens` does, and for a
    checkpoint that cannot denoise.
    """
    size, ends, draws = shared_arguments(model, batch_size, eos, decode, draws, observe)
    check_kind("draft", draft, DraftRule | None, "a rule, e.g. AdaptiveDraft()")
    check_denoiser(model.config)
    temperature = causal_temperature(temperature, filters, observe)
    loop = _SpeculativeLoop(model, draft, temperature, filters, ends, decode, draws, observe)
    return loop.run(requests, size)


@dataclass
class _SpeculativeLoop:
    model: DiffusionGemma
    draft: DraftRule | None
    temperature: float
    filters: Filters | None
    eos: frozenset[int]
    decode: Decode | None
    draws: Draws
    observe: Observe | None

    def run(self, requests: Iterable[Request], batch_size: int) -> Iterator[Event]:
        self.model.backend.refresh()
        waiting = queue(requests)
        rows: list[_Row] = []
        while True:
            joining = join(
                self.model, waiting, batch_size - len(rows), self.decode, TokenState, self.eos
            )
            rows += (yield from self._start(joining)) if joining else []
            if not rows:
                return
            going_on = []
            for row in rows:
                if not (yield from self._keep(row, row.state, row.choice)):
                    going_on.append(row)
            rows = (yield from self._round(going_on)) if going_on else []

    def _start(self, joining: Sequence[Row]) -> Generator[Event, None, list[_Row]]:
        """Encodes the prompts of new rows, together, and drafts behind them; chooses each one's first token."""
        fresh = [row.request for row in joining if row.request.state is None]
        laid = [self._lay(request, request.seed, 0) for request in fresh]
        noise = [canvas.noise if canvas else () for canvas in laid]
        yield from start_tokens(self.model, joining, noise)
        states = [row.state for row in joining if isinstance(row.state, TokenState)]
        hidden = torch.stack([state.hidden for state in states]).unsqueeze(1)  # (B, 1, D)
        choices = self._choose(hidden, [row.request for row in joining], states, [()] * len(states))
        rows = [
            _Row(row, state, choice, _only(choice))
            for row, state, (choice,) in zip(joining, states, choices, strict=True)
        ]
        begun = [row for row in rows if row.row.request.state is None]
        for row, canvas in zip(begun, laid, strict=True):
            row.denoising_steps += canvas is not None
        self._draft(begun, laid, [row.state.cache.canvas[0] for row in begun])
        return rows

    def _keep(self, row: _Row, state: TokenState, choice: Choice) -> Generator[Event, None, bool]:
        """Tells the token that was chosen after `state`. Returns whether it ends the text."""
        counts = row.denoising_steps, len(row.accepted)
        return keep_token(row.row, state, choice, self.eos, self.decode, *counts)

    def _round(self, rows: Sequence[_Row]) -> Generator[Event, None, list[_Row]]:
        """Verifies each row's draft and lays the next canvas behind it, in one pass.

        Returns the rows that go on, each with its next choice and draft.
        """
        requests = [row.row.request for row in rows]
        verified = [row.draft.tokens[: row.draft.verified] for row in rows]
        laid = [
            self._lay(row.row.request, row.state.seed, end, row.accepted, row.draft)
            for row in rows
            for end in [len(row.state.committed) + row.draft.verified]
        ]
        noise = [canvas.noise if canvas else () for canvas in laid]
        with memory_advice():
            caches = PrefixCache.join([row.state.cache for row in rows])
            cache = self.model.encode(verified, caches, canvas=noise)
        assert cache.hidden is not None
        choices = self._choose(cache.hidden, requests, [row.state for row in rows], verified)
        going_on, continued, denoised = [], [], []
        for i, (row, canvas) in enumerate(zip(rows, laid, strict=True)):
            chosen, before, draft = choices[i], row.state, row.draft
            pairs = zip(draft.tokens[1 : draft.verified], chosen, strict=False)
            accepted = len(list(takewhile(lambda pair: pair[0] == pair[1].token, pairs)))
            if draft.steps:
                row.accepted.append(accepted)
                yield DraftEvent(
                    request=row.row.request.id, round=len(row.accepted) - 1, start=len(before.committed),
                    tokens=draft.tokens, probability=draft.probability, steps=draft.steps, verified=draft.verified,
                    accepted=accepted, replacement=chosen[accepted].token, seconds=row.row.seconds,
                )  # fmt: skip
            known = cache.rows[i]
            length = known.length - draft.verified
            states = [
                TokenState(
                    before.ids,
                    (*before.committed, *draft.tokens[: j + 1]),
                    PrefixCache([known.first_tokens(length + j + 1)]),
                    cache.hidden[i, j],
                    before.seed,
                    before.passes + 1,
                )
                for j in range(accepted + 1)
            ]
            known.truncate(length + accepted + 1)
            row.choice, row.draft = chosen[accepted], _only(chosen[accepted])
            row.state = replace(states[-1], cache=PrefixCache([known]))
            row.denoising_steps += canvas is not None
            for state, choice in zip(states[:-1], chosen, strict=False):
                if (yield from self._keep(row, state, choice)):
                    break
            else:
                going_on.append(row)
                continued.append(canvas if accepted + 1 == draft.verified else None)
                denoised.append(cache.canvas[i])
        self._draft(going_on, continued, denoised)
        return going_on

    # --- drafting

    def _lay(
        self,
        request: Request,
        seed: int,
        index: int,
        accepted: Sequence[int] = (),
        draft: _Draft | None = None,
    ) -> _Canvas | None:
        """What to draft from answer position `index` on; None for nothing.

        draft: what stands before it and is verified in the same pass.
        """
        config = self.model.config
        length = config.canvas_length
        plan = DraftPlan(length, 1) if self.draft is None else self.draft.plan(accepted, length)
        room = config.text.max_position_embeddings - len(request.ids) - index
        hopeless = draft is not None and (draft.ends or draft.likely < plan.ahead)
        if hopeless or min(room, request.max_new_tokens - index) < 2:
            return None
        keys, positions = [RowKey(seed, 1 + index)], min(plan.positions, room)
        noise = self.draws.first_canvas(keys, positions, config.text.vocab_size)[0]
        return _Canvas(plan, noise.tolist())

    @memory_advice()
    @torch.inference_mode()
    def _draft(
        self, rows: Sequence[_Row], laid: Sequence[_Canvas | None], denoised: Sequence[Tensor]
    ) -> None:
        """Reads the canvases behind rows, denoised once (C, D), and denoises them further as their plans say."""
        every = zip(rows, laid, denoised, strict=True)
        planned = [(row, canvas.plan, hidden) for row, canvas, hidden in every if canvas]
        if not planned:
            return
        model, states = self.model, [row.state for row, _, _ in planned]
        limit = model.config.text.max_position_embeddings
        room = min(limit - state.cache.lengths[0] for state in states)
        hidden = pad_sequence([each for _, _, each in planned], batch_first=True)[:, :room]
        steps = max(plan.steps for _, plan, _ in planned)
        chosen = upload(torch.tensor([[row.choice.token] for row, _, _ in planned]), model.device)
        pins = [{len(row.state.committed): row.choice.token} for row, _, _ in planned]
        given = conditions([row.row.request for row, _, _ in planned], states, pins, joint=True)
        prediction = self._predict(hidden, states, after=0, soft=steps > 1, **given)
        cache = PrefixCache.join([state.cache for state in states])
        for step in range(1, steps):
            canvas = torch.cat((chosen, prediction.sample[:, 1:]), dim=1)
            hidden = model.denoise(canvas, cache, prediction.soft_embedding)
            prediction = self._predict(hidden, states, after=0, soft=step + 1 < steps, **given)
        tokens, probabilities = prediction.sample.tolist(), prediction.sample_probability.tolist()
        for i, (row, plan, _) in enumerate(planned):
            row.state = replace(row.state, passes=row.state.passes + steps - 1)
            row.denoising_steps += steps - 1
            drafted = (row.choice.token, *tokens[i][1 : plan.positions])
            probability = (1.0, *probabilities[i][1 : plan.positions])
            fits = steps > 1 or tokens[i][0] == row.choice.token
            remaining = row.row.request.max_new_tokens - len(row.state.committed) - 1
            worth = self._worth(drafted, probability, plan, remaining) if fits else 1
            ends = worth >= remaining or (worth < len(drafted) and drafted[worth] in self.eos)
            row.draft = _Draft(drafted, probability, steps, worth, fits and ends)

    def _worth(
        self, tokens: Sequence[int], probability: Sequence[float], plan: DraftPlan, remaining: int
    ) -> int:
        """How many drafted tokens are worth verifying: up to the limit, an end, or the first doubtful one.

        The causal mode chooses one token more than are verified, so the last one of a text need not be.
        """
        for n, token in enumerate(tokens):
            if n and (
                n >= remaining or token in self.eos or probability[n] < plan.least_probability
            ):
                return n
        return len(tokens)

    # --- the causal mode's choices

    def _choose(
        self,
        hidden: Tensor,
        requests: Sequence[Request],
        states: Sequence[TokenState],
        drafted: Sequence[Sequence[int]],
    ) -> list[list[Choice]]:
        """hidden (B, T, D) of the drafted tokens, or of the last committed one → each row's choices behind them."""
        after = 1 if any(drafted) else 0
        before = [[row[: j + after] for j in range(hidden.shape[1])] for row in drafted]
        given = conditions_each(requests, states, before)
        prediction = self._predict(hidden, states, after=after, soft=False, **given)
        return read_choices(prediction)

    def _predict(
        self, hidden: Tensor, states: Sequence[TokenState], *, after: int, soft: bool, **given: Any
    ) -> Prediction:
        """hidden (B, T, D) → `Prediction`, with the numbers of answer positions `after` and on behind the committed."""
        draws = None
        if self.temperature > 0:
            uniforms = []
            for state in states:
                first = len(state.committed) + after
                span = range(first, first + hidden.shape[1])
                keys = [RowKey(state.seed, 0)] * len(span)
                numbers = self.draws.step(keys, list(span), 1, self.model.device).uniform
                uniforms.append(numbers.squeeze(1))
            draws = _AddressedUniforms(torch.stack(uniforms))
        return self.model.predict(
            hidden,
            self.temperature,
            draws,
            reference="raw",
            filters=self.filters,
            soft=soft,
            top_k=0 if self.observe is None else self.observe.top_k,
            **given,
        )
