"""The loop that writes text canvas by canvas (spec §1, §4).

Notable:
- the loop takes requests and a batch size; a row that finishes a canvas goes on at once, a row that ends makes room for
  the next request, and nobody waits for the slowest;
- a row is a `DecodeState`, a value: every step makes a new one;
- random numbers are addressed by (seed, canvas, step, position), so a text does not depend on its batch.

Axes: B rows of the batch, C canvas length, D hidden size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.constraints.checks import check_decided
from dgemma_core.constraints.conditions import conditions
from dgemma_core.draws import Draws, RowKey
from dgemma_core.errors import RequestError, check_kind, whole_number
from dgemma_core.events import CanvasEvent, Event, FinishEvent, PromptEvent, StepEvent
from dgemma_core.head import Prediction, not_finite
from dgemma_core.loop import (
    Decode,
    Row,
    cut,
    encode_prompts,
    join,
    memory_advice,
    queue,
    shared_arguments,
)
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe, Watcher
from dgemma_core.request import DecodeState, Request
from dgemma_core.samplers import CanvasBatch, EntropyBound, Sampler, StopRule

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
    size, ends, draws = shared_arguments(model, batch_size, eos, decode, draws, observe)
    check_kind("sampler", sampler, Sampler | None, "a rule, e.g. EntropyBound()")
    check_kind("stop_rule", stop_rule, StopRule | None, "a StopRule or None")
    if soft_top_k is not None:
        vocabulary = model.config.text.vocab_size
        soft_top_k = whole_number("soft_top_k", soft_top_k, low=1, high=vocabulary)
    rule = sampler or EntropyBound()
    loop = _CanvasLoop(model, rule, steps, stop_rule, ends, decode, draws, observe, soft_top_k)
    return loop.run(requests, size)


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

    def __post_init__(self) -> None:
        self.plan = self.sampler.plan(self.steps)
        self.length = self.model.config.canvas_length
        self.vocabulary = self.model.config.text.vocab_size

    def run(self, requests: Iterable[Request], batch_size: int) -> Iterator[Event]:
        self.model.backend.refresh()
        waiting = queue(requests)
        rows: list[Row] = []
        while True:
            joining = join(
                self.model, waiting, batch_size - len(rows), self.decode, DecodeState, self.eos
            )
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
                self._check_resumed(state)
                row.state = state.with_pins(row.request.pins, self.model.embed)
                if self._decided(row):
                    check_decided(row.request, row.state.argmax.tolist(), state.committed)
                yield PromptEvent(row.request.id, state.ids, state.seed, row.seconds)
        if not fresh:
            return
        caches = encode_prompts(self.model, fresh)
        noise = self._noise([RowKey(row.request.seed, 0) for row in fresh])
        for row, cache, tokens in zip(fresh, caches, noise, strict=True):
            row.state = state = DecodeState.first(row.request, cache, tokens, self._history())
            yield PromptEvent(row.request.id, state.ids, state.seed, row.seconds)

    def _check_resumed(self, state: DecodeState) -> None:
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

    def _noise(self, keys: Sequence[RowKey]) -> Tensor:
        """(B, C): the noise that the named canvases start from."""
        return self.draws.first_canvas(keys, self.length, self.vocabulary, self.model.device)

    def _history(self) -> Tensor | None:
        """(stability, C) of the stop rule at the start of a canvas; None without a rule."""
        rule = self.stop_rule
        return None if rule is None else rule.initial(self.length, device=self.model.device)[0]

    def _pass(self, rows: Sequence[Row]) -> Iterator[Event]:
        """One pass of every row that still has one to make; rows that predict and rows that correct separately."""
        kinds: dict[str, list[Row]] = {}
        for row in rows:
            if not self._decided(row):
                kinds.setdefault(self.plan[self._state(row).step].kind, []).append(row)
        for group in kinds.values():
            with memory_advice():
                events = self._denoise(group)
            yield from events

    @torch.inference_mode()
    def _denoise(self, rows: Sequence[Row]) -> list[StepEvent]:
        states = [self._state(row) for row in rows]
        plan = tuple(self.plan[state.step] for state in states)
        correct = plan[0].kind == "correct"
        canvas = _stacked([state.canvas for state in states])  # (B, C)
        pinned = _stacked([state.pinned for state in states])
        accepted = _stacked([state.accepted for state in states])
        batch = CanvasBatch(canvas, accepted, pinned, plan, len(self.plan), self.vocabulary)
        cache = PrefixCache.join([state.cache for state in states])
        seen = self.observe
        watcher = None if seen is None else Watcher(seen, cache.lengths, self.length)
        hidden = self.model.denoise(canvas, cache, self._soft(states), watch=watcher)
        keys = [RowKey(state.seed, state.canvas_index) for state in states]
        steps = [state.step for state in states]
        draws = self.draws.step(keys, steps, self.length, self.model.device)
        asked = 0 if seen is None else seen.top_k
        temperatures = [step.temperature for step in plan]
        prediction = self.model.predict(
            hidden,
            temperatures[0] if len(set(temperatures)) == 1 else torch.tensor(temperatures),
            draws,
            reference=self.sampler.reference,
            filters=self.sampler.filters,
            soft=not correct and any(step < len(self.plan) - 1 for step in steps),
            soft_top_k=self.soft_top_k,
            top_k=max(asked, 2) if correct else asked,
            **conditions([row.request for row in rows], states),
        )
        if any(state.pins for state in states):
            tokens = torch.stack([state.pin_ids for state in states])
            prediction = self._pin(prediction, pinned, tokens)
        after, accepted = self.sampler.step(batch, prediction, draws)
        history, finished = self._stop(states, prediction, pinned, correct)
        soft, events = prediction.soft_embedding, []
        for i, (row, state) in enumerate(zip(rows, states, strict=True)):
            said: dict[str, Any] = {}
            if not correct:
                said = {
                    "soft_embedding": None if soft is None else soft[i],
                    "history": None if history is None else history[i],
                    "argmax": prediction.argmax[i],
                    "probability": prediction.argmax_probability[i],
                    "entropy": prediction.entropy[i],
                    "finished": finished[i],
                }
            stepped = replace(
                state,
                step=state.step + 1,
                canvas=after.canvas[i],
                accepted=after.accepted[i],
                denoising_steps=state.denoising_steps + 1,
                passes=state.passes + 1,
                **said,
            )
            row.state = stepped
            events.append(
                StepEvent(
                    request=row.request.id, canvas=state.canvas_index, step=state.step, steps=len(self.plan),
                    kind=plan[i].kind, temperature=plan[i].temperature, tokens_in=canvas[i], pinned=pinned[i],
                    tokens_out=after.canvas[i], accepted=accepted[i], sample=prediction.sample[i],
                    argmax=prediction.argmax[i], entropy=prediction.entropy[i], finished=stepped.finished,
                    sample_probability=prediction.sample_probability[i],
                    argmax_probability=prediction.argmax_probability[i], seconds=row.seconds, state=stepped,
                    observed=None if watcher is None else watcher.observed(i, prediction),
                )
            )  # fmt: skip
        return events

    def _soft(self, states: Sequence[DecodeState]) -> Tensor | None:
        """The soft embeddings of the rows, zeros where a row has none yet."""
        softs = [state.soft_embedding for state in states]
        known = next((soft for soft in softs if soft is not None), None)
        if known is None:
            return None
        return _stacked([torch.zeros_like(known) if soft is None else soft for soft in softs])

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
        """The stop rule's next histories, and which rows have converged.

        Raises RequestError where the numbers are not finite. This is where the host waits for the device: once a step.
        """
        history, converged = None, torch.zeros(len(states), dtype=torch.bool, device=pinned.device)
        if self.stop_rule is not None and not correct:
            history = _stacked([state.history for state in states if state.history is not None])
            history, converged = self.stop_rule.update(history, *prediction.settling, pinned)
        if pinned.device.type == "cpu":  # where the head has looked
            return history, converged.tolist()
        finite = prediction.logsumexp.isfinite().all(dim=1)
        all_finite, finished = torch.stack((finite, converged)).tolist()
        if not all(all_finite):
            raise not_finite()
        return history, finished

    def _decide(self, row: Row) -> Generator[Event, None, bool]:
        """Commits a row's argmax canvas. Returns whether the text has ended."""
        state, request = self._state(row), row.request
        canvas = state.argmax.tolist()
        remaining = request.max_new_tokens - len(state.committed)
        end = cut(state.committed, canvas, remaining, self.eos, request.stop, self.decode)
        yield CanvasEvent(
            request=request.id, canvas=state.canvas_index, ids=tuple(canvas), converged=state.finished,
            kept=max(0, len(end.ids) - len(state.committed)), probability=state.probability, entropy=state.entropy,
            seconds=row.seconds,
        )  # fmt: skip
        if end.reason is None:
            return False
        row.ended = True
        yield FinishEvent(
            request=request.id, ids=end.ids, text=end.text, stop_reason=end.reason, passes=state.passes,
            denoising_steps=state.denoising_steps, canvases=state.canvas_index + 1, seconds=row.seconds,
            cache=state.cache,
        )  # fmt: skip
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
            row.state = state.next_canvas(tokens, cache[i], noise[i], self._history())


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """(B, …); a single row is not copied."""
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(tuple(rows))
