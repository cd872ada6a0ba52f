"""The loop that drafts tokens with the denoiser and verifies them with the causal mode of the same weights.

Notable:
- the text is autoregression's, exactly, at any temperature: the causal mode's choice for answer position n is made with
  the number that is addressed by (seed, n), and a drafted token is kept only where it is that very choice. The first
  one that is not is replaced by the choice, and the next draft begins there;
- a draft is a canvas behind the prefix: its first position holds the token that the causal mode has chosen already, the
  others start as noise. The draft takes the same addressed numbers, so that it tends to draw what verification draws;
- verifying encodes the drafted tokens, so what is accepted is in the prefix cache already; the rest is cut off.

Related: speculative decoding (arXiv 2211.17192), self-speculation with a diffusion draft (arXiv 2603.25702).

Axes: B rows of the batch, C positions of a draft, T tokens of a verification, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.constraint import conditions, conditions_each
from dgemma_core.draws import CounterDraws, Draws, Filters, RowKey, upload
from dgemma_core.errors import RequestError, whole_number
from dgemma_core.events import DraftEvent, Event, FinishEvent, TokenEvent
from dgemma_core.head import Prediction, not_finite
from dgemma_core.loop import (
    Decode,
    Row,
    causal_temperature,
    checked_batch_size,
    checked_eos,
    cut,
    join,
    memory_advice,
    queue,
    start_tokens,
)
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe, Observed
from dgemma_core.request import Request, TokenState


@dataclass(frozen=True)
class DraftPlan:
    """One round's draft: how many positions, the chosen first token included, and how many denoising steps."""

    positions: int
    steps: int
    least_probability: float = 0.0
    """The draft ends before the first position whose token is less probable than this."""


class DraftRule(Protocol):
    """How much to draft. A value; `plan` is pure."""

    @property
    def name(self) -> str: ...

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        """The next round's draft. accepted: tokens that earlier rounds of this text accepted, oldest first."""


@dataclass(frozen=True, kw_only=True)
class FixedDraft:
    """The same draft every round. positions: None for a whole canvas."""

    positions: int | None = None
    steps: int = 1
    least_probability: float = 0.0

    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        check_draft(self.steps, self.least_probability)
        if self.positions is not None:
            whole_number("positions", self.positions, low=2)

    def plan(self, accepted: Sequence[int], canvas_length: int) -> DraftPlan:
        positions = canvas_length if self.positions is None else min(self.positions, canvas_length)
        return DraftPlan(positions, self.steps, self.least_probability)


def check_draft(steps: int, least_probability: float) -> None:
    """Raises RequestError unless a rule's values are in range."""
    whole_number("steps", steps, low=1)
    if not 0 <= least_probability < 1:
        raise RequestError(
            f"least_probability must lie in 0 … 1, below 1, got {least_probability!r}"
        )


@dataclass(frozen=True)
class _AddressedUniforms:
    """The numbers that the causal mode uses at given answer positions (`head.SampleDraws`)."""

    uniform: Tensor  # (B, C) float64


@dataclass(frozen=True)
class _Choice:
    """A token that the causal mode has chosen for the next answer position."""

    token: int
    probability: float
    entropy: float
    observed: Observed | None


@dataclass(frozen=True)
class _Draft:
    """What was drafted for a row, the chosen token first, and how many of its tokens are verified."""

    tokens: tuple[int, ...]
    probability: tuple[float, ...]
    steps: int
    verified: int


@dataclass
class _Row:
    """A request in the batch: the causal mode has chosen `choice` after `state`."""

    row: Row
    state: TokenState
    choice: _Choice
    accepted: list[int] = field(default_factory=list)
    """Drafted tokens accepted in each round so far."""
    denoising_steps: int = 0


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

    draft: how much to draft a round, `FixedDraft()` if None. Raises RequestError where `decode_tokens` does, and for a
    checkpoint that cannot denoise.
    """
    if not model.config.can_denoise:
        raise RequestError(
            f"this checkpoint ({model.config.model_type}) has no denoiser to draft with: use mode='autoregressive'"
        )
    temperature = causal_temperature(temperature, filters, observe)
    loop = _SpeculativeLoop(
        model,
        draft or FixedDraft(),
        temperature,
        filters,
        checked_eos(model, eos),
        decode,
        draws or CounterDraws(),
        observe,
    )
    return loop.run(requests, checked_batch_size(batch_size))


@dataclass
class _SpeculativeLoop:
    model: DiffusionGemma
    draft: DraftRule
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
            rows += yield from self._start(joining)
            if not rows:
                return
            going_on = []
            for row in rows:
                ended = yield from self._keep(row, row.state, row.choice)
                if not ended:
                    going_on.append(row)
            rows = (yield from self._round(going_on)) if going_on else []

    def _start(self, joining: Sequence[Row]) -> Generator[Event, None, list[_Row]]:
        """Encodes the prompts of new rows, together; the causal mode chooses each one's first token."""
        if not joining:
            return []
        yield from start_tokens(self.model, joining)
        states = [row.state for row in joining if isinstance(row.state, TokenState)]
        hidden = torch.stack([state.hidden for state in states]).unsqueeze(1)  # (B, 1, D)
        choices = self._choose(hidden, [row.request for row in joining], states, [()] * len(states))
        return [
            _Row(row, state, chosen[0])
            for row, state, chosen in zip(joining, states, choices, strict=True)
        ]

    def _keep(self, row: _Row, state: TokenState, choice: _Choice) -> Generator[Event, None, bool]:
        """Tells the token that was chosen after `state`. Returns whether it ends the text."""
        request = row.row.request
        remaining = request.max_new_tokens - len(state.committed)
        end = cut(state.committed, [choice.token], remaining, self.eos, request.stop, self.decode)
        yield TokenEvent(
            request=request.id,
            index=len(state.committed),
            token=choice.token,
            probability=choice.probability,
            entropy=choice.entropy,
            seconds=row.row.seconds,
            observed=choice.observed,
            state=state,
        )
        if end.reason is None:
            return False
        yield FinishEvent(
            request=request.id,
            ids=end.ids,
            text=end.text,
            stop_reason=end.reason,
            denoising_steps=row.denoising_steps,
            passes=state.passes,
            canvases=len(row.accepted),
            seconds=row.row.seconds,
            cache=state.cache,
        )
        return True

    def _round(self, rows: Sequence[_Row]) -> Generator[Event, None, list[_Row]]:
        """Drafts and verifies once for all rows. Returns those that go on, each with its next choice."""
        length = self.model.config.canvas_length
        plans = [self.draft.plan(row.accepted, length) for row in rows]
        requests = [row.row.request for row in rows]
        with memory_advice():
            drafts = self._drafts(rows, plans)
            verified = [draft.tokens[: draft.verified] for draft in drafts]
            caches = PrefixCache.join([row.state.cache for row in rows])
            cache = self.model.encode(verified, caches)
        assert cache.hidden is not None
        choices = self._choose(cache.hidden, requests, [row.state for row in rows], verified)
        going_on = []
        for i, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            chosen, before = choices[i], row.state
            accepted = 0
            while (
                accepted + 1 < draft.verified
                and draft.tokens[accepted + 1] == chosen[accepted].token
            ):
                accepted += 1
            row.accepted.append(accepted)
            row.denoising_steps += draft.steps
            yield DraftEvent(
                request=row.row.request.id,
                round=len(row.accepted) - 1,
                start=len(before.committed),
                tokens=draft.tokens,
                probability=draft.probability,
                steps=draft.steps,
                verified=draft.verified,
                accepted=accepted,
                replacement=chosen[accepted].token,
                seconds=row.row.seconds,
            )
            known = cache.rows[i]
            states = [
                replace(
                    before,
                    committed=(*before.committed, *draft.tokens[: j + 1]),
                    cache=PrefixCache([known.first_tokens(known.length - draft.verified + j + 1)]),
                    hidden=cache.hidden[i, j],
                    passes=before.passes + draft.steps + 1,
                )
                for j in range(accepted + 1)
            ]
            known.truncate(known.length - draft.verified + accepted + 1)
            row.state = replace(states[-1], cache=PrefixCache([known]))
            ended = False
            for state, choice in zip(states[:-1], chosen, strict=False):
                ended = yield from self._keep(row, state, choice)
                if ended:
                    break
            if not ended:
                row.choice = chosen[accepted]
                going_on.append(row)
        return going_on

    @torch.inference_mode()
    def _drafts(self, rows: Sequence[_Row], plans: Sequence[DraftPlan]) -> list[_Draft]:
        """What the denoiser says behind each row's chosen token, by one canvas a row."""
        model, states = self.model, [row.state for row in rows]
        limit = model.config.text.max_position_embeddings
        room = min(limit - state.cache.lengths[0] for state in states)
        positions = min(room, max(plan.positions for plan in plans))
        steps = max(plan.steps for plan in plans)
        keys = [RowKey(state.seed, 1 + len(state.committed)) for state in states]
        vocabulary = model.config.text.vocab_size
        canvas = self.draws.first_canvas(keys, positions, vocabulary, model.device)
        chosen = upload(torch.tensor([row.choice.token for row in rows]), model.device)
        cache, soft, probability = PrefixCache.join([state.cache for state in states]), None, canvas
        pins = [{len(row.state.committed): row.choice.token} for row in rows]
        given = conditions([row.row.request for row in rows], states, pins)
        for step in range(steps):
            canvas = torch.cat((chosen.unsqueeze(1), canvas[:, 1:]), dim=1)
            prediction = self._predict(
                model.denoise(canvas, cache, soft), states, after=0, soft=step + 1 < steps, **given
            )
            canvas, soft = prediction.sample, prediction.soft_embedding
            probability = prediction.sample_probability
        tokens, probabilities = canvas.tolist(), probability.tolist()
        found = []
        for i, (row, plan) in enumerate(zip(rows, plans, strict=True)):
            remaining = row.row.request.max_new_tokens - len(row.state.committed) - 1
            drafted = [row.choice.token, *tokens[i][1 : plan.positions]]
            found.append(
                _Draft(
                    tuple(drafted),
                    (1.0, *probabilities[i][1 : plan.positions]),
                    steps,
                    self._worth(drafted, probabilities[i], plan, remaining),
                )
            )
        return found

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
    ) -> list[list[_Choice]]:
        """hidden (B, T, D) of the drafted tokens, or of the last committed one → each row's choices behind them."""
        after = 1 if any(drafted) else 0
        before = [[row[: j + after] for j in range(hidden.shape[1])] for row in drafted]
        given = conditions_each(requests, states, before)
        prediction = self._predict(hidden, states, after=after, soft=False, **given)
        numbers = prediction.sample, prediction.sample_logprob.exp(), prediction.entropy
        tokens, probabilities, entropies = torch.stack([n.double() for n in numbers]).tolist()
        found = []
        for i, row in enumerate(tokens):
            if not all(map(math.isfinite, probabilities[i])):
                raise not_finite()
            found.append(
                [
                    _Choice(
                        int(token),
                        probabilities[i][j],
                        entropies[i][j],
                        self._seen(prediction, i, j),
                    )
                    for j, token in enumerate(row)
                ]
            )
        return found

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

    def _seen(self, prediction: Prediction, row: int, position: int) -> Observed | None:
        ids, chances = prediction.top_ids, prediction.top_probabilities
        if self.observe is None or ids is None or chances is None:
            return None
        place, number = slice(position, position + 1), row * ids.shape[1] + position
        given = (
            {} if prediction.posterior is None else prediction.posterior.seen(number, ids.shape[2])
        )
        return Observed(ids[row, place], chances[row, place], **given)
