"""The two ways to write text, each one loop that yields events: canvases (diffusion) and tokens (autoregression).

Notable:
- a loop takes requests and a batch size; a row that finishes a canvas goes on at once, a row that ends makes room for
  the next request, and nobody waits for the slowest;
- a row is a `DecodeState`, a value: every step makes a new one, and keeping one is enough to continue from it, exactly;
- random numbers are addressed by (seed, canvas, step, position), so a text does not depend on its batch;
- with `OracleDraws` the batch runs in lockstep and in the public implementation's order, for parity (spec §4).

Axes: B rows of the batch, C canvas length, D hidden size.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.draws import CounterDraws, Draws, OracleDraws, RowKey
from dgemma_core.errors import DeviceError, RequestError
from dgemma_core.head import Filters, Prediction
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe, Observed, Watcher
from dgemma_core.samplers import CanvasBatch, EntropyBound, PlannedStep, Sampler, StopRule

StopReason = Literal["eos", "stop", "length"]
Decode = Callable[[Sequence[int]], str]
"""Token ids → text."""

RELEASED_RULE = StopRule()

_names = itertools.count()


@dataclass(frozen=True)
class Request:
    """One text to write.

    ids: the prompt. prefix: the cache of its first tokens, where they have been encoded before (an earlier turn).
    max_new_tokens: the limit of kept tokens. stop: strings that end the text and are not kept. pins: answer position →
    token id that it must hold. state: where to continue from, instead of the prompt's end; `ids` is then its prompt,
    the seed is the state's own, and pins are laid over the state's. id: the name that its events carry.
    """

    ids: Sequence[int]
    seed: int = 0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    pins: Mapping[int, int] = field(default_factory=dict)
    prefix: PrefixCache | None = None
    state: DecodeState | TokenState | None = None
    id: Hashable = field(default_factory=lambda: next(_names))


@dataclass(frozen=True)
class DecodeState:
    """Everything that the next denoising step of one row needs. A value: copying it is branching."""

    ids: tuple[int, ...]
    """The prompt."""
    committed: tuple[int, ...]
    """Answer tokens of the canvases before this one."""
    cache: PrefixCache = field(repr=False)
    """Prompt and committed tokens, one row."""
    seed: int
    pins: Mapping[int, int]
    pinned: Tensor = field(repr=False)
    """(C,) bool, the pins on this canvas."""
    pin_ids: Tensor = field(repr=False)
    """(C,) their tokens."""
    canvas_index: int
    step: int
    """The next pass within the canvas."""
    canvas: Tensor = field(repr=False)
    """(C,) the tokens that the next pass reads."""
    soft_embedding: Tensor | None = field(repr=False)
    """(C, D) of the last predict pass; None before the first."""
    history: Tensor | None = field(repr=False)
    """(stability, C) of the stop rule; None where no rule is set."""
    accepted: Tensor = field(repr=False)
    """(C,) bool, accepted so far."""
    argmax: Tensor = field(repr=False)
    """(C,) of the last predict pass: what would be committed now."""
    probability: Tensor = field(repr=False)
    """(C,) float32 of that argmax."""
    entropy: Tensor = field(repr=False)
    """(C,) float32, nats."""
    finished: bool = False
    """The canvas has converged."""
    denoising_steps: int = 0
    passes: int = 0
    """Prefill, denoising steps and commits so far."""


@dataclass(frozen=True)
class TokenState:
    """Everything that the next autoregressive step of one row needs. A value."""

    ids: tuple[int, ...]
    committed: tuple[int, ...]
    cache: PrefixCache = field(repr=False)
    """Prompt and all committed tokens, one row."""
    hidden: Tensor = field(repr=False)
    """(D,) of the last token of the cache, from which the next one is predicted."""
    seed: int
    passes: int


@dataclass(frozen=True)
class PromptEvent:
    """A prompt has been encoded. `seconds`, here and below: since the request joined the batch."""

    request: Hashable
    ids: tuple[int, ...]
    seed: int
    seconds: float


@dataclass(frozen=True)
class StepEvent:
    """One denoising pass of one row; tensors are (C,), on the model's device."""

    request: Hashable
    canvas: int
    step: int
    steps: int
    kind: Literal["predict", "correct"]
    temperature: float
    tokens_in: Tensor
    tokens_out: Tensor
    sample: Tensor
    argmax: Tensor
    accepted: Tensor
    pinned: Tensor
    sample_probability: Tensor
    argmax_probability: Tensor
    entropy: Tensor
    finished: bool
    seconds: float
    observed: Observed | None
    state: DecodeState


@dataclass(frozen=True)
class CanvasEvent:
    """A canvas is decided: its argmax is committed. Of `ids` (C,) the first `kept` belong to the text."""

    request: Hashable
    canvas: int
    ids: tuple[int, ...]
    kept: int
    converged: bool
    probability: Tensor
    entropy: Tensor
    seconds: float


@dataclass(frozen=True)
class TokenEvent:
    """One autoregressive step of one row. `probability` and `entropy` are of the model's raw distribution."""

    request: Hashable
    index: int
    token: int
    probability: float
    entropy: float
    seconds: float
    observed: Observed | None
    state: TokenState


@dataclass(frozen=True)
class FinishEvent:
    """A text has ended. `ids` are the kept tokens: an end-of-sequence token is kept, a stop string is not.

    text: cut at the stop string; None where the loop got no tokenizer. cache: what has been encoded so far, for a next
    turn: prompt and committed tokens, of which a stop string may have cut the last.
    """

    request: Hashable
    ids: tuple[int, ...]
    text: str | None
    stop_reason: StopReason
    denoising_steps: int
    passes: int
    canvases: int
    seconds: float
    cache: PrefixCache = field(repr=False)


Event = PromptEvent | StepEvent | CanvasEvent | TokenEvent | FinishEvent


@dataclass
class _Row:
    """A request in the batch."""

    request: Request
    started: float
    state: DecodeState | TokenState | None = None
    ended: bool = False

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def denoise_canvases(
    model: DiffusionGemma,
    requests: Iterable[Request],
    *,
    sampler: Sampler | None = None,
    steps: int = 48,
    stop_rule: StopRule | None = RELEASED_RULE,
    batch_size: int = 1,
    eos: Sequence[int] | None = None,
    decode: Decode | None = None,
    draws: Draws | None = None,
    observe: Observe | None = None,
    soft_top_k: int | None = None,
) -> Iterator[Event]:
    """Writes texts canvas by canvas (spec §1, §4); yields events as they happen. Closing the generator cancels.

    sampler: the rule, `EntropyBound()` if None. steps: the most passes a canvas may take. stop_rule: ends a canvas
    early; None runs all steps. eos: end-of-sequence ids, the checkpoint's if None. decode: turns ids into text, needed
    for stop strings. draws: `CounterDraws()` if None. observe: what to record beyond the usual, None for nothing.
    soft_top_k: self-condition on so many of the most probable tokens alone (`VocabularyHead.predict`); None: on all.
    Raises RequestError for a request that cannot be met, before any work on it.
    """
    if soft_top_k is not None and not 1 <= soft_top_k <= model.config.text.vocab_size:
        raise RequestError(
            f"soft_top_k must lie in 1 … {model.config.text.vocab_size} (the vocabulary), got {soft_top_k}"
        )
    return _CanvasLoop(
        model=model,
        sampler=sampler or EntropyBound(),
        steps=steps,
        stop_rule=stop_rule,
        eos=frozenset(model.config.eos_token_ids if eos is None else eos),
        decode=decode,
        draws=draws or CounterDraws(),
        observe=observe,
        soft_top_k=soft_top_k,
    ).run(requests, _checked(batch_size))


@dataclass
class _CanvasLoop:
    model: DiffusionGemma
    sampler: Sampler
    steps: int
    stop_rule: StopRule | None
    eos: frozenset[int]
    decode: Decode | None
    draws: Draws
    observe: Observe | None
    soft_top_k: int | None
    plan: tuple[PlannedStep, ...] = ()

    def __post_init__(self) -> None:
        self.plan = self.sampler.plan(self.steps)
        self.length = self.model.config.canvas_length
        self.lockstep = isinstance(self.draws, OracleDraws)

    def run(self, requests: Iterable[Request], batch_size: int) -> Iterator[Event]:
        waiting = iter(requests)
        rows: list[_Row] = []
        while True:
            joining = _join(self.model, waiting, batch_size - len(rows), self.decode, DecodeState)
            if self.lockstep and joining and next(waiting, None) is not None:
                raise RequestError(
                    "OracleDraws needs one fixed batch: set batch_size to the number of requests"
                )
            yield from self._start(joining)
            rows += joining
            if not rows:
                return
            yield from self._pass(rows)
            deciding = [
                row
                for row in rows
                if self._state(row).finished or self._state(row).step == len(self.plan)
            ]
            if self.lockstep and len(deciding) < len(rows):
                continue
            going_on = []
            for row in deciding:
                kept = yield from self._decide(row)
                if kept is not None:
                    going_on.append((row, kept))
            if self.lockstep and all(row.ended for row in rows):
                return
            self._commit(going_on)
            if not self.lockstep:
                rows = [row for row in rows if not row.ended]

    def _state(self, row: _Row) -> DecodeState:
        assert isinstance(row.state, DecodeState)
        return row.state

    def _start(self, rows: Sequence[_Row]) -> Iterator[Event]:
        """Encodes the prompts of new rows, together, and lays out their first canvas."""
        fresh = [row for row in rows if row.request.state is None]
        for row in rows:
            state = row.request.state
            if isinstance(state, DecodeState):
                row.state = self._resumed(state, row.request.pins)
                yield PromptEvent(row.request.id, state.ids, state.seed, row.seconds)
        if not fresh:
            return
        caches = _encode_prompts(self.model, fresh)
        noise = self._noise([RowKey(row.request.seed, 0) for row in fresh])
        for row, cache, tokens in zip(fresh, caches, noise, strict=True):
            ids = tuple(row.request.ids)
            row.state = self._canvas(
                row.request.seed, dict(row.request.pins), ids, (), cache, 0, 0, 1, tokens
            )
            yield PromptEvent(row.request.id, ids, row.request.seed, row.seconds)

    def _resumed(self, state: DecodeState, new_pins: Mapping[int, int]) -> DecodeState:
        """The state in memory of its own (another thread may be writing behind the same row), new pins laid in."""
        if state.step > len(self.plan):
            raise RequestError(
                f"the state has made {state.step} steps of its canvas: continue it with at least as many, "
                f"not {len(self.plan)}"
            )
        if self.stop_rule is not None:
            if state.history is None:
                raise RequestError(
                    "this state was made without a stop rule: continue it without one (stop_rule=None)"
                )
            if len(state.history) != self.stop_rule.stability:
                raise RequestError(
                    f"this state was made with a stop rule of stability {len(state.history)}: continue it with the same"
                )
        for position, token in new_pins.items():
            if position < len(state.committed) and state.committed[position] != token:
                raise RequestError(
                    f"pin at answer position {position}: its canvas has been committed"
                )
        pins = {**state.pins, **new_pins}
        pinned, tokens = self._pins(pins, state.canvas_index)
        soft = state.soft_embedding
        if soft is not None:
            soft = torch.where(pinned.unsqueeze(1), self.model.embed(tokens).to(soft.dtype), soft)
        return replace(
            state,
            cache=state.cache.copy(),
            pins=pins,
            pinned=pinned,
            pin_ids=tokens,
            canvas=torch.where(pinned, tokens, state.canvas),
            argmax=torch.where(pinned, tokens, state.argmax),
            accepted=state.accepted & ~pinned,
            soft_embedding=soft,
        )

    def _noise(self, keys: Sequence[RowKey]) -> Tensor:
        """(B, C): the noise that the named canvases start from."""
        return self.draws.first_canvas(
            keys, self.length, self.model.config.text.vocab_size, self.model.device
        )

    def _canvas(
        self,
        seed: int,
        pins: Mapping[int, int],
        ids: tuple[int, ...],
        committed: tuple[int, ...],
        cache: PrefixCache,
        index: int,
        denoising_steps: int,
        passes: int,
        noise: Tensor,
    ) -> DecodeState:
        """A fresh canvas of `noise` (C,), with its pins laid in."""
        device = self.model.device
        pinned, tokens = self._pins(pins, index)
        canvas = torch.where(pinned, tokens, noise)
        zeros = torch.zeros(self.length, device=device)
        return DecodeState(
            ids=ids,
            committed=committed,
            cache=cache,
            seed=seed,
            pins=pins,
            pinned=pinned,
            pin_ids=tokens,
            canvas_index=index,
            step=0,
            canvas=canvas,
            soft_embedding=None,
            history=None
            if self.stop_rule is None
            else self.stop_rule.initial(self.length, device=device)[0],
            accepted=torch.zeros(self.length, dtype=torch.bool, device=device),
            argmax=canvas,
            probability=zeros,
            entropy=zeros,
            denoising_steps=denoising_steps,
            passes=passes,
        )

    def _pins(self, pins: Mapping[int, int], canvas_index: int) -> tuple[Tensor, Tensor]:
        """(C,) bool and (C,) ids of the pins that fall on this canvas."""
        pinned = torch.zeros(self.length, dtype=torch.bool)
        tokens = torch.zeros(self.length, dtype=torch.long)
        start = canvas_index * self.length
        for position, token in pins.items():
            if start <= position < start + self.length:
                pinned[position - start] = True
                tokens[position - start] = token
        return pinned.to(self.model.device), tokens.to(self.model.device)

    def _pass(self, rows: Sequence[_Row]) -> Iterator[Event]:
        """One pass of every row that still has one to make; predict and correct passes apart."""
        kinds: dict[str, list[_Row]] = {}
        for row in rows:
            state = self._state(row)
            if self.lockstep or not (state.finished or state.step == len(self.plan)):
                kinds.setdefault(self.plan[state.step].kind, []).append(row)
        for group in kinds.values():
            with _memory_advice():
                events = self._denoise(group)
            yield from events

    @torch.inference_mode()
    def _denoise(self, rows: Sequence[_Row]) -> list[StepEvent]:
        states = [self._state(row) for row in rows]
        planned = tuple(self.plan[state.step] for state in states)
        correct = planned[0].kind == "correct"
        canvas = torch.stack([state.canvas for state in states])  # (B, C)
        pinned = torch.stack([state.pinned for state in states])
        cache = PrefixCache.join([state.cache for state in states])
        watcher = (
            None if self.observe is None else Watcher(self.observe, cache.lengths, self.length)
        )
        hidden = self.model.denoise(canvas, cache, self._soft(states), watch=watcher)
        keys = [RowKey(state.seed, state.canvas_index) for state in states]
        draws = self.draws.step(
            keys, [state.step for state in states], self.length, self.model.device
        )
        last = all(state.step == len(self.plan) - 1 for state in states)
        asked = 0 if self.observe is None else self.observe.top_k
        prediction = self.model.head.predict(
            hidden,
            torch.tensor([step.temperature for step in planned]),
            draws,
            reference=self.sampler.reference,
            filters=self.sampler.filters,
            soft=not last and not correct,
            soft_top_k=self.soft_top_k,
            top_k=max(asked, 2) if correct else asked,
        )
        if any(state.pins for state in states):
            tokens = torch.stack([state.pin_ids for state in states])
            prediction = self._pin(prediction, pinned, tokens)
        batch = CanvasBatch(
            canvas=canvas,
            accepted=torch.stack([state.accepted for state in states]),
            pinned=pinned,
            plan=planned,
            total=len(self.plan),
            vocab_size=self.model.config.text.vocab_size,
        )
        after, accepted = self.sampler.step(batch, prediction, draws)
        history, finished = self._stop(states, prediction, pinned, correct)
        events = []
        for i, (row, state) in enumerate(zip(rows, states, strict=True)):
            if self.lockstep and state.finished:
                continue  # frozen: it went through the pass, but keeps what it had
            stepped = replace(
                state,
                step=state.step + 1,
                canvas=after.canvas[i],
                accepted=after.accepted[i],
                denoising_steps=state.denoising_steps + 1,
                passes=state.passes + 1,
            )
            if not correct:
                stepped = replace(
                    stepped,
                    soft_embedding=None
                    if prediction.soft_embedding is None
                    else prediction.soft_embedding[i],
                    history=None if history is None else history[i],
                    argmax=prediction.argmax[i],
                    probability=prediction.argmax_probability[i],
                    entropy=prediction.entropy[i],
                    finished=finished[i],
                )
            row.state = stepped
            if row.ended:
                continue
            events.append(
                StepEvent(
                    request=row.request.id,
                    canvas=state.canvas_index,
                    step=state.step,
                    steps=len(self.plan),
                    kind=planned[i].kind,
                    temperature=planned[i].temperature,
                    tokens_in=canvas[i],
                    tokens_out=after.canvas[i],
                    sample=prediction.sample[i],
                    argmax=prediction.argmax[i],
                    accepted=accepted[i],
                    pinned=pinned[i],
                    sample_probability=prediction.sample_probability[i],
                    argmax_probability=prediction.argmax_probability[i],
                    entropy=prediction.entropy[i],
                    finished=stepped.finished,
                    seconds=row.seconds,
                    observed=None if watcher is None else watcher.observed(i, prediction),
                    state=stepped,
                )
            )
        return events

    def _soft(self, states: Sequence[DecodeState]) -> Tensor | None:
        """The soft embeddings of the rows, zeros where a row has none yet."""
        softs = [state.soft_embedding for state in states]
        known = next((soft for soft in softs if soft is not None), None)
        if known is None:
            return None
        return torch.stack([torch.zeros_like(known) if soft is None else soft for soft in softs])

    def _pin(self, prediction: Prediction, pinned: Tensor, tokens: Tensor) -> Prediction:
        """Clamps sample, argmax (with probability 1: a pin is given) and soft embedding to the pins."""
        soft = prediction.soft_embedding
        if soft is not None:
            soft = torch.where(pinned.unsqueeze(-1), self.model.embed(tokens).to(soft.dtype), soft)
        return replace(
            prediction,
            sample=torch.where(pinned, tokens, prediction.sample),
            sample_probability=prediction.sample_probability.masked_fill(pinned, 1.0),
            argmax=torch.where(pinned, tokens, prediction.argmax),
            argmax_probability=prediction.argmax_probability.masked_fill(pinned, 1.0),
            soft_embedding=soft,
        )

    def _stop(
        self, states: Sequence[DecodeState], prediction: Prediction, pinned: Tensor, correct: bool
    ) -> tuple[Tensor | None, list[bool]]:
        """The stop rule's next histories, and which rows have converged."""
        if self.stop_rule is None or correct:
            return None, [False] * len(states)
        history = torch.stack([state.history for state in states if state.history is not None])
        history, finished = self.stop_rule.update(
            history, prediction.argmax, prediction.entropy, pinned
        )
        return history, finished.tolist()

    def _decide(self, row: _Row) -> Generator[Event, None, tuple[int, ...] | None]:
        """Commits a row's argmax canvas. Returns the tokens to encode, or None if the row leaves."""
        state, request = self._state(row), row.request
        canvas = state.argmax.tolist()
        remaining = request.max_new_tokens - len(state.committed)
        if row.ended:
            return self._padded((), canvas)
        cut = _cut(state.committed, canvas, remaining, self.eos, request.stop, self.decode)
        yield CanvasEvent(
            request=request.id,
            canvas=state.canvas_index,
            ids=tuple(canvas),
            kept=max(0, len(cut.ids) - len(state.committed)),
            converged=state.finished,
            probability=state.probability,
            entropy=state.entropy,
            seconds=row.seconds,
        )
        if cut.reason is not None:
            row.ended = True
            yield FinishEvent(
                request=request.id,
                ids=cut.ids,
                text=cut.text,
                stop_reason=cut.reason,
                denoising_steps=state.denoising_steps,
                passes=state.passes,
                canvases=state.canvas_index + 1,
                seconds=row.seconds,
                cache=state.cache,
            )
            if not self.lockstep or cut.reason == "length":
                return None
        return self._padded(cut.ids[len(state.committed) :], canvas)

    def _padded(self, kept: Sequence[int], canvas: Sequence[int]) -> tuple[int, ...]:
        """What the oracle encodes of a row that has ended: the canvas up to its end, then PAD (lockstep only)."""
        return (*kept, *[self.model.config.pad_token_id] * (len(canvas) - len(kept)))

    def _commit(self, rows: Sequence[tuple[_Row, tuple[int, ...]]]) -> None:
        """Encodes the decided canvases, together, and lays out the next ones."""
        if not rows:
            return
        states = [self._state(row) for row, _ in rows]
        cache = PrefixCache.join([state.cache for state in states])
        with _memory_advice():
            cache = self.model.encode([list(tokens) for _, tokens in rows], cache)
        noise = self._noise([RowKey(state.seed, state.canvas_index + 1) for state in states])
        for i, ((row, tokens), state) in enumerate(zip(rows, states, strict=True)):
            row.state = self._canvas(
                state.seed,
                state.pins,
                state.ids,
                state.committed + tokens,
                cache[i],
                state.canvas_index + 1,
                state.denoising_steps,
                state.passes + 1,
                noise[i],
            )


def decode_tokens(
    model: DiffusionGemma,
    requests: Iterable[Request],
    *,
    temperature: float = 0.0,
    filters: Filters | None = None,
    batch_size: int = 1,
    eos: Sequence[int] | None = None,
    decode: Decode | None = None,
    draws: Draws | None = None,
    observe: Observe | None = None,
) -> Iterator[Event]:
    """Writes texts token by token with the causal mode of the same weights; yields events as they happen.

    temperature 0 is greedy. filters: top-k and top-p, for a temperature above 0. The rest as in `denoise_canvases`;
    pins have no meaning here and are refused.
    """
    if temperature < 0:
        raise RequestError(f"temperature must be 0 (greedy) or above, got {temperature}")
    if temperature == 0 and filters is not None:
        raise RequestError(
            "top_k and top_p have no effect at temperature 0: set a temperature, or leave them out"
        )
    if observe is not None and (observe.router or observe.attention_positions):
        raise RequestError(
            "autoregressive runs observe top_k only; router and attention are of denoising passes"
        )
    stops = frozenset(model.config.eos_token_ids if eos is None else eos)
    return _decode_tokens(
        model,
        requests,
        temperature,
        filters,
        _checked(batch_size),
        stops,
        decode,
        draws or CounterDraws(),
        observe,
    )


def _decode_tokens(
    model: DiffusionGemma,
    requests: Iterable[Request],
    temperature: float,
    filters: Filters | None,
    batch_size: int,
    eos: frozenset[int],
    decode: Decode | None,
    draws: Draws,
    observe: Observe | None,
) -> Iterator[Event]:
    waiting = iter(requests)
    rows: list[_Row] = []
    while True:
        joining = _join(model, waiting, batch_size - len(rows), decode, TokenState)
        yield from _start_tokens(model, joining)
        rows += joining
        if not rows:
            return
        states = [row.state for row in rows if isinstance(row.state, TokenState)]
        prediction = _predict_tokens(model, states, temperature, filters, draws, observe)
        tokens = prediction.sample.squeeze(1).tolist()
        # of the raw distribution, whatever the sampling one is
        if temperature == 0:
            probability = prediction.argmax_probability
        else:
            probability = (prediction.token_logit(prediction.sample) - prediction.logsumexp).exp()
        probabilities = probability.squeeze(1).tolist()
        entropies = prediction.entropy.squeeze(1).tolist()
        going_on: list[tuple[_Row, TokenState, int]] = []
        for i, (row, state) in enumerate(zip(rows, states, strict=True)):
            request = row.request
            remaining = request.max_new_tokens - len(state.committed)
            cut = _cut(state.committed, [tokens[i]], remaining, eos, request.stop, decode)
            yield TokenEvent(
                request=request.id,
                index=len(state.committed),
                token=tokens[i],
                probability=probabilities[i],
                entropy=entropies[i],
                seconds=row.seconds,
                observed=None
                if observe is None
                else Watcher(observe, [0], 1).observed(i, prediction),
                state=state,
            )
            if cut.reason is None:
                going_on.append((row, state, tokens[i]))
                continue
            yield FinishEvent(
                request=request.id,
                ids=cut.ids,
                text=cut.text,
                stop_reason=cut.reason,
                denoising_steps=0,
                passes=state.passes,
                canvases=0,
                seconds=row.seconds,
                cache=state.cache,
            )
        rows = [row for row, _, _ in going_on]
        if going_on:
            with _memory_advice():
                cache = model.encode(
                    [[token] for _, _, token in going_on],
                    PrefixCache.join([s.cache for _, s, _ in going_on]),
                )
            assert cache.hidden is not None
            for i, (row, state, token) in enumerate(going_on):
                row.state = replace(
                    state,
                    committed=(*state.committed, token),
                    cache=cache[i],
                    hidden=cache.hidden[i, 0],
                    passes=state.passes + 1,
                )


def _start_tokens(model: DiffusionGemma, rows: Sequence[_Row]) -> Iterator[Event]:
    fresh = [row for row in rows if row.request.state is None]
    for row in rows:
        state = row.request.state
        if isinstance(state, TokenState):
            row.state = replace(state, cache=state.cache.copy())
            yield PromptEvent(row.request.id, state.ids, state.seed, row.seconds)
    if not fresh:
        return
    for row, cache in zip(fresh, _encode_prompts(model, fresh), strict=True):
        ids = tuple(row.request.ids)
        assert cache.hidden is not None
        row.state = TokenState(ids, (), cache, cache.hidden[0], row.request.seed, 1)
        yield PromptEvent(row.request.id, ids, row.request.seed, row.seconds)


def _predict_tokens(
    model: DiffusionGemma,
    states: Sequence[TokenState],
    temperature: float,
    filters: Filters | None,
    draws: Draws,
    observe: Observe | None,
) -> Prediction:
    keys = [RowKey(state.seed, 0) for state in states]
    step = draws.step(keys, [len(state.committed) for state in states], 1, model.device)
    return model.head.predict(
        torch.stack([state.hidden for state in states]).unsqueeze(1),  # (B, 1, D)
        temperature,
        step,
        reference="raw",
        filters=filters,
        soft=False,
        top_k=0 if observe is None else observe.top_k,
    )


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise RequestError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _join(
    model: DiffusionGemma,
    waiting: Iterator[Request],
    places: int,
    decode: Decode | None,
    kind: type[DecodeState | TokenState],
) -> list[_Row]:
    """Takes up to `places` requests, each checked; `kind`: the states of this loop."""
    rows = []
    for request in itertools.islice(waiting, max(0, places)):
        _check(model, request, decode)
        if kind is TokenState and request.pins:
            raise RequestError(
                "pins have no meaning in autoregression, which writes from left to right"
            )
        if not isinstance(request.state, kind | None):
            raise RequestError(
                "the state to continue from is of the other mode: denoise_canvases takes a DecodeState, "
                "decode_tokens a TokenState"
            )
        rows.append(_Row(request, time.perf_counter()))
    return rows


def _check(model: DiffusionGemma, request: Request, decode: Decode | None) -> None:
    config = model.config
    if not len(request.ids):
        raise RequestError("the prompt is empty: give at least one token")
    if request.max_new_tokens < 1:
        raise RequestError(f"max_new_tokens must be at least 1, got {request.max_new_tokens}")
    room = config.text.max_position_embeddings - len(request.ids)
    if request.max_new_tokens > room:
        raise RequestError(
            f"a prompt of {len(request.ids)} tokens and {request.max_new_tokens} new ones are more than the model's "
            f"{config.text.max_position_embeddings}: shorten the prompt, or lower max_new_tokens"
        )
    if request.stop and decode is None:
        raise RequestError("stop strings need a tokenizer (decode=…): this run has none")
    if any(not text for text in request.stop):
        raise RequestError("an empty stop string would end every text at once: leave it out")
    media = set(config.media_token_ids).intersection(request.ids)
    if media:
        raise RequestError(
            f"the prompt holds an image, video or audio placeholder (token {min(media)}): text only"
        )
    for position, token in request.pins.items():
        if not 0 <= position < request.max_new_tokens:
            raise RequestError(
                f"pin at answer position {position}: the answer has 0 … {request.max_new_tokens - 1}"
            )
        if not 0 <= token < config.text.vocab_size:
            raise RequestError(
                f"pin of token {token}: the vocabulary has 0 … {config.text.vocab_size - 1}"
            )
    if request.prefix is not None and not request.prefix.lengths[0] < len(request.ids):
        raise RequestError(
            "the cached prefix must be shorter than the prompt, by at least one token"
        )
    if request.state is not None and tuple(request.ids) != request.state.ids:
        raise RequestError(
            "the state to continue from belongs to another prompt: pass the state's own ids"
        )
    if request.state is not None and len(request.state.committed) >= request.max_new_tokens:
        raise RequestError(
            f"the state to continue from has {len(request.state.committed)} tokens already: raise max_new_tokens"
        )


def _encode_prompts(model: DiffusionGemma, rows: Sequence[_Row]) -> list[PrefixCache]:
    """One-row caches of the rows' prompts, encoded together; each `.hidden` holds the last token's (1, D)."""
    prefixes = [row.request.prefix or PrefixCache.empty(model.config.text, 1) for row in rows]
    tokens = [
        list(row.request.ids)[prefix.lengths[0] :]
        for row, prefix in zip(rows, prefixes, strict=True)
    ]
    with _memory_advice():
        cache = model.encode(tokens, PrefixCache.join(prefixes))
    assert cache.hidden is not None
    return [
        PrefixCache([row], cache.hidden[i, len(new) - 1].unsqueeze(0))
        for i, (row, new) in enumerate(zip(cache.rows, tokens, strict=True))
    ]


@dataclass(frozen=True)
class _Cut:
    """Where a text ends, if it does: all kept answer ids so far, the text, and why."""

    ids: tuple[int, ...]
    text: str | None
    reason: StopReason | None


def _cut(
    committed: Sequence[int],
    new: Sequence[int],
    remaining: int,
    eos: frozenset[int],
    stop: Sequence[str],
    decode: Decode | None,
) -> _Cut:
    """Ends the text at its first end-of-sequence token (kept), stop string (not kept) or the limit."""
    kept = list(new[:remaining])
    reason: StopReason | None = "length" if len(new) >= remaining else None
    for i, token in enumerate(kept):
        if token in eos:
            kept, reason = kept[: i + 1], "eos"
            break
    ids = (*committed, *kept)
    if decode is None or (reason is None and not stop):
        return _Cut(ids, None, reason)
    text = decode(ids)
    found = [place for place in (text.find(string) for string in stop) if place >= 0]
    if found:
        place, count = min(found), len(ids)
        while count and len(decode(ids[:count])) > place:
            count -= 1
        return _Cut(ids[:count], text[:place], "stop")
    return _Cut(ids, text, reason)


@contextmanager
def _memory_advice() -> Iterator[None]:
    """Turns an allocator's failure into one clear line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "out of GPU memory: lower batch_size or the prompt's length, or load the model quantised"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise DeviceError(
                "out of memory: lower batch_size or the prompt's length, or load a smaller dtype"
            ) from error
        raise
