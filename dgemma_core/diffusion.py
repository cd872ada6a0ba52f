"""The loop that writes text canvas by canvas (spec §1, §4).

Notable:
- the loop takes requests and a batch size; a row that finishes a canvas goes on at once, a row that ends makes room for
  the next request, and nobody waits for the slowest;
- a row is a `DecodeState`, a value: every step makes a new one;
- random numbers are addressed by (seed, canvas, step, position), so a text does not depend on its batch.

Axes: B rows of the batch, C canvas length, D hidden size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.draws import CounterDraws, Draws, RowKey
from dgemma_core.errors import RequestError
from dgemma_core.events import CanvasEvent, Event, FinishEvent, PromptEvent, StepEvent
from dgemma_core.head import Prediction
from dgemma_core.loop import (
    Decode,
    Row,
    checked_batch_size,
    cut,
    encode_prompts,
    join,
    memory_advice,
)
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe, Watcher
from dgemma_core.request import DecodeState, Request
from dgemma_core.samplers import CanvasBatch, EntropyBound, PlannedStep, Sampler, StopRule

RELEASED_RULE = StopRule()


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
    ).run(requests, checked_batch_size(batch_size))


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

    def run(self, requests: Iterable[Request], batch_size: int) -> Iterator[Event]:
        waiting = iter(requests)
        rows: list[Row] = []
        while True:
            joining = join(self.model, waiting, batch_size - len(rows), self.decode, DecodeState)
            yield from self._start(joining)
            rows += joining
            if not rows:
                return
            yield from self._pass(rows)
            committed = []
            for row in rows:
                if self._decided(row):
                    ended = yield from self._decide(row)
                    if not ended:
                        committed.append(row)
            self._commit(committed)
            rows = [row for row in rows if not row.ended]

    def _decided(self, row: Row) -> bool:
        """Whether the row's canvas has no more passes to make."""
        state = self._state(row)
        return state.finished or state.step == len(self.plan)

    def _state(self, row: Row) -> DecodeState:
        assert isinstance(row.state, DecodeState)
        return row.state

    def _start(self, rows: Sequence[Row]) -> Iterator[Event]:
        """Encodes the prompts of new rows, together, and lays out their first canvas."""
        fresh = [row for row in rows if row.request.state is None]
        for row in rows:
            state = row.request.state
            if isinstance(state, DecodeState):
                row.state = self._resumed(state, row.request.pins)
                yield PromptEvent(row.request.id, state.ids, state.seed, row.seconds)
        if not fresh:
            return
        caches = encode_prompts(self.model, fresh)
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

    def _pass(self, rows: Sequence[Row]) -> Iterator[Event]:
        """One pass of every row that still has one to make; predict and correct passes apart."""
        kinds: dict[str, list[Row]] = {}
        for row in rows:
            state = self._state(row)
            if not self._decided(row):
                kinds.setdefault(self.plan[state.step].kind, []).append(row)
        for group in kinds.values():
            with memory_advice():
                events = self._denoise(group)
            yield from events

    @torch.inference_mode()
    def _denoise(self, rows: Sequence[Row]) -> list[StepEvent]:
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
        prediction = self.model.predict(
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

    def _decide(self, row: Row) -> Generator[Event, None, bool]:
        """Commits a row's argmax canvas. Returns whether the text has ended."""
        state, request = self._state(row), row.request
        canvas = state.argmax.tolist()
        remaining = request.max_new_tokens - len(state.committed)
        end = cut(state.committed, canvas, remaining, self.eos, request.stop, self.decode)
        yield CanvasEvent(
            request=request.id,
            canvas=state.canvas_index,
            ids=tuple(canvas),
            kept=max(0, len(end.ids) - len(state.committed)),
            converged=state.finished,
            probability=state.probability,
            entropy=state.entropy,
            seconds=row.seconds,
        )
        if end.reason is None:
            return False
        row.ended = True
        yield FinishEvent(
            request=request.id,
            ids=end.ids,
            text=end.text,
            stop_reason=end.reason,
            denoising_steps=state.denoising_steps,
            passes=state.passes,
            canvases=state.canvas_index + 1,
            seconds=row.seconds,
            cache=state.cache,
        )
        return True

    def _commit(self, rows: Sequence[Row]) -> None:
        """Encodes the decided canvases, together, and lays out the next ones."""
        if not rows:
            return
        states = [self._state(row) for row in rows]
        canvases = [tuple(state.argmax.tolist()) for state in states]
        cache = PrefixCache.join([state.cache for state in states])
        with memory_advice():
            cache = self.model.encode(canvases, cache)
        noise = self._noise([RowKey(state.seed, state.canvas_index + 1) for state in states])
        for i, (row, tokens, state) in enumerate(zip(rows, canvases, states, strict=True)):
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
