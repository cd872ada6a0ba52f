"""From an edit to the run that carries it out: states with the edit applied, and the events that it inherits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgemma_core.errors import RequestError
from dgemma_core.events import CanvasEvent, Event, PromptEvent, StepEvent
from dgemma_core.files.trace import KINDS, Trace
from dgemma_core.files.trace_schema import OBSERVED
from dgemma_core.observe import Observed
from dgemma_core.request import DecodeState, Request
from dgemma_lab.canvas.canvas import Steer
from dgemma_lab.session.plan import token_ids
from dgemma_lab.session.run import Run
from dgemma_lab.steering.edits import Edit, another, blank, described, hold, release


def edited(state: DecodeState, edit: Edit, embed: Callable[[Tensor], Tensor]) -> DecodeState:
    """A state between two passes with an edit applied; the given one stays as it is.

    Pins are laid on the canvas as the model's own pins are, `embed` giving their soft embedding, and the canvas has to
    prove itself stable anew. A state that ended the canvas before the edit's hands the pins on to the next.
    """
    length = len(state.canvas)
    start = state.canvas_index * length
    state = replace(
        state, seed=state.seed if edit.seed is None else edit.seed, pins=dict(edit.pins),
        accepted=state.accepted if edit.sampler is None else torch.zeros_like(state.accepted),
    )  # fmt: skip
    here = {at - start: token for at, token in edit.pins.items() if start <= at < start + length}
    if edit.canvas > state.canvas_index or not here:
        return state
    where = torch.tensor(list(here), dtype=torch.long, device=state.canvas.device)
    tokens = torch.tensor(list(here.values()), dtype=torch.long, device=state.canvas.device)
    soft, history = state.soft_embedding, state.history
    return replace(
        state,
        canvas=state.canvas.index_copy(0, where, tokens),
        soft_embedding=None
        if soft is None
        else soft.index_copy(0, where, embed(tokens).to(soft.dtype)),
        accepted=state.accepted.index_fill(0, where, False),
        history=None if history is None else torch.full_like(history, -1),
    )


def branch(run: Run, edit: Edit) -> tuple[Request, tuple[Event, ...]]:
    """The request that continues `run` from an edit's frame, and the events up to there that it inherits."""
    trace, before = run.trace, run.request
    pins = {at: token for at, token in edit.pins.items() if at < before.max_new_tokens}
    edit = replace(edit, pins=pins)
    seed = before.seed if edit.seed is None else edit.seed
    request = Request(
        ids=before.ids, seed=seed, max_new_tokens=before.max_new_tokens, stop=before.stop, prefix=before.prefix,
        constraint=before.constraint,
    )  # fmt: skip
    state = run.state_at(edit.frame)
    if state is None:
        return replace(request, pins=pins), ()
    if pins != dict(state.pins) or edit.seed is not None or edit.sampler is not None:
        state = edited(state, edit, run.loaded.model.embed)
    return replace(request, state=state), tuple(events_of(trace, edit.frame, request.id))


def events_of(trace: Trace, frame: int, request: Any) -> Iterator[Event]:
    """The first `frame` passes of a diffusion trace as the events that they were recorded from, without states."""
    yield PromptEvent(
        request, tuple(trace.prompt_ids.tolist()), trace.seed or 0, trace.prompt_seconds
    )
    commits = {commit.canvas: commit for commit in trace.commits}
    for r in range(frame):
        canvas = int(trace.canvas[r])
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        yield StepEvent(
            request=request,
            canvas=canvas,
            step=int(trace.step[r]),
            steps=trace.steps,
            kind=KINDS[trace.kind[r]],  # type: ignore[arg-type]
            temperature=float(trace.temperature[r]),
            tokens_in=torch.from_numpy(trace.tokens_in[cut]),
            tokens_out=torch.from_numpy(trace.tokens_out[cut]),
            sample=torch.from_numpy(trace.sample[cut]),
            argmax=torch.from_numpy(trace.argmax[cut]),
            accepted=torch.from_numpy(trace.accepted[cut]),
            pinned=torch.from_numpy(trace.pinned[cut]),
            sample_probability=torch.from_numpy(trace.sample_probability[cut]),
            argmax_probability=torch.from_numpy(trace.probability[cut]),
            entropy=torch.from_numpy(trace.entropy[cut]),
            finished=bool(trace.finished[r]),
            seconds=float(trace.seconds[r]),
            observed=_observed(trace, r, cut),
            state=None,  # type: ignore[arg-type]
        )
        last = r + 1 == len(trace) or int(trace.canvas[r + 1]) != canvas
        if last and r + 1 < frame and canvas in commits:
            commit = commits[canvas]
            yield CanvasEvent(
                request, canvas, tuple(commit.ids.tolist()), commit.kept, commit.converged,
                torch.from_numpy(commit.probability), torch.from_numpy(commit.entropy), commit.seconds,
            )  # fmt: skip


def _observed(trace: Trace, r: int, cut: slice) -> Observed:
    def tensor(name: str) -> torch.Tensor | None:
        values = getattr(trace, name)
        if values is None:
            return None
        part = values[cut]
        return torch.from_numpy(part.swapaxes(0, 1).copy() if name.startswith("router") else part)

    attention = None if trace.attention is None else torch.from_numpy(trace.attention[r])
    return Observed(**{name: tensor(name) for name in OBSERVED}, attention=attention)


def steered(run: Run, steer: Steer, *, seed: int) -> Edit:
    """What a reader asked for in the widget, as an edit of `run`; `seed` is a branch's."""
    trace = run.trace
    frame = min(steer.step, len(trace))
    pins = run.pins_at(frame)
    edit = _asked(run, steer, frame, pins, seed)
    in_view = replace(edit, frame=frame)  # a canvas that is over is written anew, from its start
    return replace(edit, words=described(in_view, pins, run.text_of))


def _asked(run: Run, steer: Steer, frame: int, pins: Mapping[int, int], seed: int) -> Edit:
    trace, position = run.trace, steer.position
    if steer.action == "branch":
        return another(trace, frame, pins, seed=seed)
    if position is None:
        raise RequestError("choose a token first")
    if steer.action == "blank":
        start = position if steer.start is None else steer.start
        stop = position + 1 if steer.stop is None else steer.stop
        return blank(trace, frame, start, stop)
    if steer.action == "unpin":
        return release(trace, frame, position, pins)
    if steer.action == "replace":
        return hold(trace, frame, position, token_ids(run.loaded, steer.text or ""), pins)
    if steer.token is None:
        raise RequestError(f"nothing stands at position {position} yet: step on, then pin")
    return hold(trace, frame, position, [steer.token], pins)
