"""Steering a run: pin, replace or blank tokens, branch from any step, and compare what comes of it.

An edit never changes a run: it makes another one, that starts from a state of the first. What the edits mean:

- *pin*, *replace*: the position holds this token (replace: these tokens) from here on, and all others make up their
  minds around it. On a canvas that has passes left the run continues from the step in view; on one that is over, and
  for a position of an earlier canvas, that canvas is written anew with the pin in place.
- *unpin*: the same with the position set free.
- *blank*: infill. The canvas is written anew; everything outside the span stays as it is in view.
- *branch*: continues from the step in view with another seed, or with another sampler.

`edit` and its kin are pure; `Steering` is the widget: a canvas, the tree of runs, and a second canvas to compare.
Positions are answer positions: canvas · C + place. A frame is a number of passes, 0 being the first canvas's noise.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ipywidgets
import numpy as np
import torch
from torch import Tensor

from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.events import CanvasEvent, Event, PromptEvent, StepEvent
from dgemma_core.files.trace import KINDS, Trace
from dgemma_core.generation import Prompt
from dgemma_core.observe import Observed
from dgemma_core.request import DecodeState, Request
from dgemma_core.samplers import Sampler, describe
from dgemma_lab.canvas import Canvas, Steer
from dgemma_lab.export import visible
from dgemma_lab.form import Columns, Form, Stack
from dgemma_lab.session import Run, Session, token_ids


@dataclass(frozen=True)
class Edit:
    """What to do differently, from a frame on.

    canvas: the first canvas that is written under the edit. pins: all that hold there and after it (answer position →
    token). seed and sampler: None keeps the run's own.
    """

    frame: int
    canvas: int
    pins: Mapping[int, int] = field(default_factory=dict)
    seed: int | None = None
    sampler: Sampler | None = None
    words: str = ""  # for the tree; where empty, `described` finds them


def hold(
    trace: Trace, frame: int, position: int, tokens: Sequence[int], pins: Mapping[int, int]
) -> Edit:
    """Pins `tokens` from `position` on; `pins` are those that the run has already."""
    held = {**pins, **{position + i: token for i, token in enumerate(tokens)}}
    return Edit(*_open(trace, frame, position), held)


def release(trace: Trace, frame: int, position: int, pins: Mapping[int, int]) -> Edit:
    """Sets a pinned position free."""
    if position not in pins:
        raise RequestError(f"position {position} is not pinned: nothing to set free")
    held = {at: token for at, token in pins.items() if at != position}
    return Edit(*_open(trace, frame, position), held)


def blank(trace: Trace, frame: int, start: int, stop: int) -> Edit:
    """Infill: positions start … stop − 1 are written anew, all others stay as frame `frame` shows them."""
    shown = tokens_at(trace, frame)
    if not start < stop or start not in shown or stop - 1 not in shown:
        raise RequestError(
            f"positions {start} to {stop - 1} are not all on the canvas at step {frame}: mark some"
        )
    canvas = start // trace.canvas_length
    first = canvas * trace.canvas_length
    held = {at: token for at, token in shown.items() if first <= at and not start <= at < stop}
    words = f"step {frame}: blank {_span(start, stop)}"
    return Edit(trace.passes_of(canvas).start, canvas, held, words=words)


def another(trace: Trace, frame: int, pins: Mapping[int, int], **changes: Any) -> Edit:
    """Continues from a frame with another seed, or another sampler (`seed=`, `sampler=`)."""
    if frame >= len(trace) and _over(trace, frame, int(trace.canvas[-1])):
        raise RequestError("the run is over at this step: go back to an earlier one to branch from")
    canvas = int(trace.canvas[min(frame, len(trace) - 1)])
    return Edit(frame, canvas, pins, **changes)


def described(edit: Edit, before: Mapping[int, int], text: Callable[[int], str]) -> str:
    """An edit in words, for the tree: its own, or what sets it apart from a run that held the pins `before`.

    text: of a token; the one that is pinned need not occur in the run.
    """
    if edit.words:
        return edit.words
    new = {at: token for at, token in edit.pins.items() if before.get(at) != token}
    parts = []
    for start, stop in _stretches(new):
        tokens = "".join(text(new[at]) for at in range(start, stop))
        parts.append(f"pin {_span(start, stop)} = “{visible(tokens)}”")
    parts += [f"unpin {_span(*span)}" for span in _stretches(before.keys() - edit.pins.keys())]
    if edit.sampler is not None:
        parts.append(f"sampler {describe(edit.sampler)['name']}")
    if edit.seed is not None:
        parts.append(f"seed {edit.seed}")
    return f"step {edit.frame}: {', '.join(parts) or 'the same again'}"


def _stretches(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Positions as stretches without a gap: [(start, stop)], stop exclusive."""
    found: list[tuple[int, int]] = []
    for at in sorted(positions):
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return found


def _span(start: int, stop: int) -> str:
    return f"{start}" if stop - start == 1 else f"{start}–{stop - 1}"


def _open(trace: Trace, frame: int, position: int) -> tuple[int, int]:
    """Frame and canvas to go on from so that `position` is undecided: this frame, or its canvas's start."""
    canvas = position // trace.canvas_length
    passes = trace.passes_of(canvas)
    started = passes.start <= frame and not _over(trace, frame, canvas)
    return (frame if started else passes.start), canvas


def _over(trace: Trace, frame: int, canvas: int) -> bool:
    """Whether no pass over this canvas is left at a frame: it converged, or its schedule ended."""
    last = trace.passes_of(canvas).stop - 1
    return frame > last and bool(trace.finished[last] or trace.step[last] + 1 == trace.steps)


def tokens_at(trace: Trace, frame: int) -> dict[int, int]:
    """The draft at a frame: answer position → token, of all canvases that have been begun."""
    tokens: dict[int, int] = {}
    positions = trace.positions()
    for canvas in dict.fromkeys(trace.canvas.tolist()):
        passes = trace.passes_of(canvas)
        last = min(frame, passes.stop) - 1
        if last < passes.start:
            break
        cut = slice(int(trace.offsets[last]), int(trace.offsets[last + 1]))
        kept = trace.accepted[cut] | trace.pinned[cut]
        draft = trace.argmax[cut]
        if not _over(trace, frame, canvas):
            draft = np.where(kept, trace.tokens_out[cut], draft)
        tokens.update(zip(positions[cut].tolist(), draft.tolist(), strict=True))
    return tokens


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
        ids=before.ids, seed=seed, max_new_tokens=before.max_new_tokens, stop=before.stop, prefix=before.prefix
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

    names = ("top_ids", "top_probabilities", "router_ids", "router_weights")
    attention = None if trace.attention is None else torch.from_numpy(trace.attention[r])
    return Observed(**{name: tensor(name) for name in names}, attention=attention)


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


def difference(a: Trace, b: Trace) -> str:
    """Two runs in one line: since when they differ, in how much of the answer."""
    texts = [tokens_at(trace, len(trace)) for trace in (a, b)]
    kept = [len(trace.ids) for trace in (a, b)]
    longest = max(kept)
    same = sum(
        texts[0].get(at) == texts[1].get(at)
        for at in range(longest)
        if at < kept[0] and at < kept[1]
    )
    first = next(
        (r for r in range(min(len(a), len(b))) if not _same_pass(a, b, r)), min(len(a), len(b))
    )
    if first == len(a) == len(b):
        return "the same run, pass by pass"
    since = f"alike for {first} passes" if first else "different from the first pass on"
    return f"{since}; {same} of {longest} tokens of the answer are equal; {a.passes} against {b.passes} passes"


def _same_pass(a: Trace, b: Trace, r: int) -> bool:
    def row(trace: Trace) -> tuple[Any, ...]:
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        return trace.canvas[r], trace.tokens_in[cut].tobytes(), trace.tokens_out[cut].tobytes()

    return row(a) == row(b)


def linked(*canvases: Canvas) -> list[Any]:
    """Ties the scrubbers of several canvases together, in the browser; call `.unlink()` on each to let go."""
    return [
        ipywidgets.jslink((one, "step"), (two, "step")) for one, two in itertools.pairwise(canvases)
    ]


@dataclass
class Node:
    """A run in the tree, and in words what sets it apart from its parent."""

    run: Run
    words: str

    @property
    def depth(self) -> int:
        depth, run = 0, self.run
        while run.parent is not None:
            depth, run = depth + 1, run.parent
        return depth


class Steering(Stack):
    """A run to steer: its canvas, the tree of what was branched from it, and a second canvas to compare with.

        Steering(session, "Sort ascending:\\n3,1,2")      # options as for Session.run
        steering.apply(edit)                              # what the buttons do; returns the new run

    `nodes` are the runs in the order in which they were made; the first is the root.
    """

    def __init__(self, session: Session, prompt: Prompt, **options: Any) -> None:
        self.session = session
        self.nodes: list[Node] = []
        self._links: list[Any] = []
        self._lock = threading.RLock()
        self.form = Form()
        self.form.observe(lambda _: self._arrange(), "values")
        self.columns = Columns()
        super().__init__(children=(self.form, self.columns))
        self._grow(session.run(prompt, box=self, **options), "as it came")

    # growing

    @property
    def run(self) -> Run:
        """The run in view."""
        return self._chosen("node").run

    def apply(self, edit: Edit) -> Run:
        """Branches from the run in view; the new run comes into view and starts at once."""
        parent = self.run
        request, opening = branch(parent, edit)
        settings = parent.settings
        if edit.sampler is not None:
            settings = replace(settings, sampler=edit.sampler)
        run = self.session.launch(
            settings,
            request,
            box=self,
            prompt=parent.prompt,
            observe=parent.observe,
            parent=parent,
            opening=opening,
        )
        before = parent.pins_at(edit.frame)
        self._grow(run, described(edit, before, parent.text_of))
        return run

    def _grow(self, run: Run, words: str) -> None:
        run.canvas.on_steer(lambda steer: self._steer(run, steer))
        with self._lock:
            self.nodes.append(Node(run, words))
            self._draw(chosen=len(self.nodes) - 1)
        run.on_finish(lambda _: self._draw())

    def _steer(self, run: Run, steer: Steer) -> None:
        """What a canvas's buttons ask for. The comparison's canvas steers too: its run then comes into view."""
        try:
            self.form.values = {
                **self.form.values,
                "node": str([node.run for node in self.nodes].index(run)),
            }
            self.apply(steered(run, steer, seed=self._next_seed()))
        except DgemmaError as error:
            self.form.say(str(error), alert=True)

    def _next_seed(self) -> int:
        return 1 + max(node.run.request.seed for node in self.nodes)

    # showing

    def _chosen(self, name: str) -> Node:
        return self.nodes[int(self.form.values[name])]

    def _draw(self, chosen: int | None = None) -> None:
        with self._lock:
            values = dict(self.form.values)
            if chosen is not None:
                values["node"] = str(chosen)
            order = [
                node for root in self.nodes if root.run.parent is None for node in self._under(root)
            ]
            options = [
                {
                    "value": str(self.nodes.index(node)),
                    "label": node.words,
                    "note": _outcome(node.run),
                    "indent": node.depth,
                }
                for node in order
            ]
            others = [{"value": "", "label": "nothing"}] + [
                {"value": option["value"], "label": option["label"]} for option in options
            ]
            values.setdefault("other", "")
            with self.form.hold_sync():
                self.form.fields = [
                    {"name": "node", "kind": "list", "label": "Runs", "options": options},
                    {"name": "other", "kind": "choice", "label": "compare with", "options": others},
                ]
                self.form.values = values
            self._arrange()

    def _under(self, node: Node) -> Iterator[Node]:
        yield node
        for child in self.nodes:
            if child.run.parent is node.run:
                yield from self._under(child)

    def _arrange(self) -> None:
        """The chosen canvas below the tree; one to compare with beside it, scrubbed together."""
        if not self.nodes or "node" not in self.form.values:
            return
        with self._lock:
            one = self._chosen("node").run
            two = self._chosen("other").run if self.form.values.get("other") else None
            runs = [one] if two in (None, one) else [one, two]
            below = tuple(run.view for run in runs)
            if self.columns.children != below:
                for link in self._links:
                    link.unlink()
                self.columns.children = below
                self._links = linked(*(run.canvas for run in runs))
            ended = len(runs) == 2 and not any(run.running or run.failed for run in runs)
            self.form.say(difference(*(run.trace for run in runs)) if ended else "")

    def settle(self) -> None:
        for node in self.nodes:
            node.run.wait()

    def __repr__(self) -> str:
        return f"Steering({len(self.nodes)} runs)"


def _outcome(run: Run) -> str:
    if run.running:
        return "writing …"
    if run.failed:
        return "failed"
    trace = run.trace
    text = "".join(
        trace.text(token) for token in trace.ids.tolist() if token not in trace.eos_ids()
    )
    return f"{visible(text, 48)} · {trace.passes} passes"
