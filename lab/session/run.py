"""A run in a thread: it writes on a canvas, and its results wait for the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dgemma_core.errors import DgemmaError, RequestError, check_kind, whole_number
from dgemma_core.events import Event, PromptEvent, StepEvent
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.files.recording import TraceRecorder
from dgemma_core.files.trace import Trace
from dgemma_core.generation import Generation, Prompt, drain
from dgemma_core.generation.settings import ModeSettings, check_observe
from dgemma_core.observe import Observe
from dgemma_core.request import DecodeState, Request
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.frontend.still import static_wanted
from dgemma_lab.given import waiting_time
from dgemma_lab.session.plan import decoder, describe_run, follower, prompt_text
from dgemma_lab.session.states import StateCache

SECONDS_BETWEEN_STATUS = 0.2


class Run:
    """One run in a thread. As a cell's last line it shows its canvas, with a Stop button; results wait for the end.

    A branch has a parent, the run that it leaves, and an opening, the events that it inherits from there: they come
    first in its trace.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: ModeSettings,
        request: Request,
        *,
        prompt: Prompt = "",
        observe: Observe | None = None,
        canvas: Canvas | None = None,
        states: StateCache | None = None,
        parent: Run | None = None,
        opening: Sequence[Event] = (),
    ) -> None:
        check_loaded(loaded)
        check_kind("settings", settings, ModeSettings, "those of a mode, e.g. Settings()")
        check_kind("request", request, Request, "a Request")
        check_kind("canvas", canvas, Canvas | None, "a Canvas, or None for a new one")
        check_observe(observe)
        self.loaded, self.settings, self.request = loaded, settings, request
        self.prompt, self.observe, self.parent = prompt, observe, parent
        self.canvas = Canvas() if canvas is None else canvas
        self.states = StateCache() if states is None else states
        self.opening = tuple(opening)
        self.opening_passes = sum(isinstance(event, StepEvent) for event in opening)
        metadata = describe_run(loaded, settings, prompt, observe)
        if parent is not None:
            metadata["branch"] = {"passes": self.opening_passes, "seed": request.seed}
        self._recorder = TraceRecorder(
            mode=settings.mode,
            metadata=metadata,
            decode=decoder(loaded),
            onward=follower(loaded, request),
        )
        self._halt = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._trace: Trace | None = None
        self._generation: Generation | None = None
        self._error: BaseException | None = None
        self._finished: list[Callable[[Run], Any]] = []

    # the thread

    def start(self, after: Run | None = None) -> Run:
        """Starts the thread; it first waits until the run `after` is over."""
        threading.Thread(target=self._work, args=(after,), daemon=True, name="dgemma-run").start()
        return self

    def _work(self, after: Run | None) -> None:
        try:
            if after is not None and after.running:
                self.canvas.say("waiting for the run before it")
                after._over.wait()
            if self._halt.is_set():
                raise DgemmaError("the run was stopped before its turn came: it made no pass")
            self._write()
        except Exception as error:
            self._error = error
        try:
            self._report(self._trace or Trace(**self._recorder.fields()))
        finally:
            with self._lock:
                self._over.set()
        for callback in self._finished:
            callback(self)

    def _write(self) -> None:
        """The run itself, from an empty canvas to the whole trace on it."""
        self.canvas.on_stop(self.stop)
        self.canvas.begin(
            prompt=prompt_text(self.prompt),
            steps=getattr(self.settings, "steps", None) or 0,
            decode=decoder(self.loaded),
            eos_token_ids=self.loaded.generation.eos_token_ids,
            onward=follower(self.loaded, self.request),
        )
        try:
            for generation in drain(self._events(), self.loaded):
                self._generation = generation
        finally:
            self.canvas.on_stop(self.stop, remove=True)
            self._trace = Trace(**self._recorder.fields())
            self.canvas.finish(self._trace)

    def _events(self) -> Iterator[Event]:
        """The stream, as the trace, the canvas and the state cache see it, up to a Stop."""
        shown = 0.0
        stream = self.settings.events(self.loaded, [self.request], observe=self.observe)
        with contextlib.closing(stream):  # type: ignore[type-var]
            for event in self._joined(stream):
                self._recorder.add(event)
                self.canvas.push(event)
                if isinstance(event, StepEvent) and len(self._recorder) > self.opening_passes:
                    self.states.add(self, len(self._recorder), event.state)
                if time.monotonic() - shown >= SECONDS_BETWEEN_STATUS:
                    shown = time.monotonic()
                    self.canvas.say(f"writing: {len(self._recorder)} passes, {event.seconds:.1f} s")
                yield event
                if self._halt.is_set():
                    return

    def _joined(self, stream: Iterator[Event]) -> Iterator[Event]:
        """What the opening has, then what is new: one run with one clock."""
        if not self.opening:
            yield from stream
            return
        yield from self.opening
        passed = self.opening[-1].seconds
        for event in stream:
            if not isinstance(event, PromptEvent):
                yield replace(event, seconds=event.seconds + passed)

    def _report(self, trace: Trace) -> None:
        if self._error is not None:
            self.canvas.say(f"{type(self._error).__name__}: {self._error}", alert=True)
        elif self._generation is None:
            passes = "1 pass" if len(trace) == 1 else f"{len(trace)} passes"
            self.canvas.say(f"stopped after {passes}, {trace.total_seconds:.2f} s")
        else:
            self.canvas.say("")

    # for the reader

    def stop(self) -> None:
        """Asks the run to end; it does after the pass that it is making."""
        self._halt.set()

    @property
    def running(self) -> bool:
        return not self._over.is_set()

    @property
    def failed(self) -> bool:
        """It is over, and an error ended it: reading its trace raises that."""
        return self._over.is_set() and self._error is not None

    @property
    def written(self) -> bool:
        """It is over, and its text has ended: it was neither stopped nor failed."""
        return self._over.is_set() and self._error is None and self._generation is not None

    def on_finish(self, callback: Callable[[Run], Any]) -> None:
        """Calls `callback(run)` when it is over, stopped or failed: from the run's thread, or here if it is already."""
        check_kind("callback", callback, Callable, "a function of the run")
        with self._lock:
            if not self._over.is_set():
                self._finished.append(callback)
                return
        callback(self)

    def wait(self, timeout: float | None = None) -> Run:
        """Waits until the run is over; an interrupt stops it. DgemmaError after `timeout` seconds."""
        timeout = waiting_time(timeout)
        try:
            if not self._over.wait(timeout):
                raise DgemmaError(f"the run is not over after {timeout} s: wait longer, or stop it")
        except KeyboardInterrupt:
            self.stop()
            raise
        return self

    @property
    def trace(self) -> Trace:
        """What happened, once the run is over; a stopped run's trace holds what there is. Raises the run's error."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._trace is not None
        return self._trace

    def result(self) -> Generation:
        """The text and its cost, once the run is over. Raises its error, or DgemmaError if it was stopped."""
        self.wait()
        if self._error is not None:
            raise self._error
        if self._generation is None:
            raise DgemmaError(
                "the run was stopped before its text ended: its trace holds what there is"
            )
        return self._generation

    def pins_at(self, passes: int) -> dict[int, int]:
        """The pins (answer position → token) that held after `passes` passes: this run's, or those of its parent."""
        passes = whole_number("passes", passes)
        if passes < self.opening_passes and self.parent is not None:
            return self.parent.pins_at(passes)
        state = self.request.state
        return dict(self.request.pins if state is None else getattr(state, "pins", {}))

    def text_of(self, token: int) -> str:
        """The text of one token."""
        return decoder(self.loaded)(token)

    def state_at(self, passes: int) -> DecodeState | None:
        """The state after `passes` passes, exactly; None at the prompt's end, before the first.

        It comes from the state cache, or from replaying the run from the nearest state before; what a branch inherited
        comes from its parent. RequestError where this run has no such state.
        """
        passes = whole_number("passes", passes)
        first, last = self.opening_passes, len(self._recorder)
        if self.settings.mode != "diffusion":
            raise RequestError(
                f"a run in mode {self.settings.mode!r} has no canvas to branch from: use mode='diffusion'"
            )
        if passes < first and self.parent is not None:
            return self.parent.state_at(passes)
        if not first <= passes <= last:
            raise RequestError(f"this run has states after 0 to {last} passes, not after {passes}")
        found: tuple[int, Any] = self.states.nearest(self, passes) or (first, self.request.state)
        done, state = found
        if done == passes:
            return state
        request = self.request if done == first else replace(self.request, state=state, pins={})
        events = self.settings.events(self.loaded, [request])
        with contextlib.closing(events):  # type: ignore[type-var]
            for event in events:
                if isinstance(event, StepEvent):
                    done += 1
                    if done == passes:
                        return event.state
        raise DgemmaError("the replay of this run ended before the step that was asked for")

    def __repr__(self) -> str:
        if self.running:
            return f"Run(live, {len(self._recorder)} passes)"
        return f"Run({self._error!r})" if self._error is not None else f"Run({self._trace!r})"

    def _ipython_display_(self) -> None:
        if static_wanted():
            self.wait()
        self.canvas._ipython_display_()
