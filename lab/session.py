"""Live runs: the model writes in a thread of its own while its canvas fills, and the notebook stays free.

    session = Session(dg.load("nano"))
    run = session.run("Spell backward:\\nSTEP")     # returns at once; as a cell's last line it shows the canvas
    run.trace                                      # waits for the end; raises here what went wrong there
    run.stop()                                     # takes effect within one pass, as the Stop button does

Nothing here decodes: a run drains the event stream of `dgemma_core` into a trace, a canvas and a store of states.
`record` does the same without a screen.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.events import Event, PromptEvent, StepEvent
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.files.trace import Trace, TraceRecorder
from dgemma_core.generation import Generation, Mode, Prompt, Settings, drain, prompt_ids
from dgemma_core.observe import Observe
from dgemma_core.request import DecodeState, Request
from dgemma_core.samplers import Sampler, StopRule, describe
from dgemma_core.store import MEBIBYTE, StateStore
from dgemma_lab.canvas import Canvas
from dgemma_lab.form import Form, Stack, button
from dgemma_lab.theme import static_wanted

SECONDS_BETWEEN_STATUS = 0.2


def plan(
    loaded: Loaded,
    prompt: Prompt,
    *,
    mode: Mode = "diffusion",
    sampler: Sampler | None = None,
    steps: int | None = None,
    stop_rule: StopRule | Literal["checkpoint"] | None = "checkpoint",
    temperature: float | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    soft_top_k: int | None = None,
    system: str | None = None,
    thinking: bool = False,
    raw: bool = False,
    stop: Sequence[str] = (),
    pins: Mapping[int, int | str] | None = None,
) -> tuple[Settings, Request]:
    """Settings and request of one run; options as in `dgemma_core.generation`.

    pins: answer position → token id, or text, whose tokens then hold the positions from there on. Raises RequestError.
    """
    settings = Settings(
        mode, sampler, steps, stop_rule, temperature, max_new_tokens, soft_top_k
    ).resolved(loaded)
    if pins and mode == "autoregressive":
        raise RequestError(
            "pins have no meaning in mode 'autoregressive': it writes from left to right"
        )
    held: dict[int, int] = {}
    for position, what in (pins or {}).items():
        tokens = [what] if isinstance(what, int) else token_ids(loaded, what)
        held.update({position + i: token for i, token in enumerate(tokens)})
    assert settings.max_new_tokens is not None
    ids = prompt_ids(loaded, prompt, system=system, thinking=thinking, raw=raw)
    return settings, Request(
        ids=ids, seed=seed, max_new_tokens=settings.max_new_tokens, stop=tuple(stop), pins=held
    )


def token_ids(loaded: Loaded, text: str) -> list[int]:
    """The tokens of a piece of an answer; RequestError where it has none or the checkpoint no tokenizer."""
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: name tokens by their ids")
    ids = loaded.tokenizer.encode(text)
    if not ids:
        raise RequestError("an empty text has no tokens: give at least one character")
    return ids


def describe_run(
    loaded: Loaded, settings: Settings, prompt: Prompt, observe: Observe | None
) -> dict[str, Any]:
    """The metadata of a trace: what was asked of which model, as json values."""
    text = loaded.model.config.text
    rule = settings.stop_rule
    return {
        "model": loaded.name,
        "prompt": prompt if isinstance(prompt, str) else "",
        "sampler": describe(settings.sampler) if settings.sampler else None,
        "stop_rule": asdict(rule) if isinstance(rule, StopRule) else None,
        "temperature": settings.temperature or 0.0,
        "max_new_tokens": settings.max_new_tokens,
        "soft_top_k": settings.soft_top_k,
        "eos_token_ids": list(loaded.generation.eos_token_ids),
        "num_experts": text.num_experts,
        "attention_positions": list(observe.attention_positions) if observe else [],
    }


def record(
    loaded: Loaded, prompt: Prompt, *, observe: Observe | None = None, **options: Any
) -> Trace:
    """Runs to the end, without a screen, and returns the trace. `options` are those of `plan`."""
    settings, request = plan(loaded, prompt, **options)
    return Trace.record(
        settings.events(loaded, [request], observe=observe),
        metadata=describe_run(loaded, settings, prompt, observe),
        decode=_decode(loaded),
    )


def _decode(loaded: Loaded) -> Callable[[int], str]:
    return "<{}>".format if loaded.tokenizer is None else loaded.tokenizer.token_string


class Run:
    """One run in a thread. It shows its canvas with a Stop button and a status line; results wait for the end.

    A branch has a parent, the run that it leaves, and an opening, the events that it inherits from there: they come
    first in its trace.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        request: Request,
        *,
        prompt: Prompt = "",
        observe: Observe | None = None,
        canvas: Canvas | None = None,
        states: StateStore | None = None,
        parent: Run | None = None,
        opening: Sequence[Event] = (),
    ) -> None:
        self.loaded, self.settings, self.request = loaded, settings, request
        self.prompt, self.observe, self.parent = prompt, observe, parent
        self.canvas = canvas or Canvas()
        self.states = states or StateStore()
        self.opening = tuple(opening)
        self.opening_passes = sum(isinstance(event, StepEvent) for event in opening)
        self.status = Form()
        self.view = Stack(children=(self.canvas, self.status))
        metadata = describe_run(loaded, settings, prompt, observe)
        if parent is not None:
            metadata["branch"] = {"passes": self.opening_passes, "seed": request.seed}
        self._recorder = TraceRecorder(metadata=metadata, decode=_decode(loaded))
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
                self.status.say("waiting for the run before it")
                after._over.wait()
            if self._halt.is_set():
                raise DgemmaError("the run was stopped before its turn came: it made no pass")
            self._write()
        except Exception as error:
            self._error = error
        self._report(self._trace or self._recorder.trace())
        with self._lock:
            self._over.set()
        for callback in self._finished:
            callback(self)

    def _write(self) -> None:
        """The run itself, from an empty canvas to the whole trace on it."""
        self.canvas.on_stop(self.stop)
        self.canvas.begin(
            prompt=self.prompt if isinstance(self.prompt, str) else "",
            steps=self.settings.steps or 0,
            decode=_decode(self.loaded),
            eos_token_ids=self.loaded.generation.eos_token_ids,
        )
        try:
            for generation in drain(self._events(), self.loaded):
                self._generation = generation
        finally:
            self.canvas.on_stop(self.stop, remove=True)
            self._trace = self._recorder.trace()
            self.canvas.finish(self._trace)

    def _events(self) -> Iterator[Event]:
        """The stream, as the trace, the canvas and the store see it, up to a Stop."""
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
                    self.status.say(f"writing: {len(self._recorder)} passes, {event.seconds:.1f} s")
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
            self.status.say(f"{type(self._error).__name__}: {self._error}", alert=True)
        elif self._generation is None:
            self.status.say(f"stopped after {len(trace)} passes, {trace.total_seconds:.2f} s")
        else:
            self.status.say(
                f"done: {len(trace.ids)} tokens in {trace.passes} passes, {trace.total_seconds:.2f} s"
            )

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

    def on_finish(self, callback: Callable[[Run], Any]) -> None:
        """Calls `callback(run)` when it is over, stopped or failed: from the run's thread, or here if it is already."""
        with self._lock:
            if not self._over.is_set():
                self._finished.append(callback)
                return
        callback(self)

    def wait(self, timeout: float | None = None) -> Run:
        """Waits until the run is over; an interrupt stops it. DgemmaError after `timeout` seconds."""
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
        if passes < self.opening_passes and self.parent is not None:
            return self.parent.pins_at(passes)
        state = self.request.state
        return dict(self.request.pins if state is None else getattr(state, "pins", {}))

    def text_of(self, token: int) -> str:
        """The text of one token."""
        return _decode(self.loaded)(token)

    def state_at(self, passes: int) -> DecodeState | None:
        """The state after `passes` passes, exactly; None at the prompt's end, before the first.

        It comes from the store, or from replaying the run from the nearest state before; what a branch inherited comes
        from its parent. RequestError where this run has no such state.
        """
        first, last = self.opening_passes, len(self._recorder)
        if self.settings.mode == "autoregressive":
            raise RequestError(
                "an autoregressive run has no canvas to branch from: use mode='diffusion'"
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

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if static_wanted():
            self.wait()
        return self.view._repr_mimebundle_(**kwargs)


class Session:
    """A model whose live runs take turns. `keep_bytes` bounds the states kept for branching, of all its runs.

    A run that comes from where an earlier one came from (`session.run`, or one box or tree) stops and replaces it;
    runs of different boxes wait for each other, so that a notebook may be run from top to bottom.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        observe: Observe | None = Observe(top_k=5),  # noqa: B008
        keep_bytes: int = 256 * MEBIBYTE,
    ) -> None:
        self.loaded = loaded
        self.observe = observe
        self.states = StateStore(keep_bytes)
        self._last: Run | None = None
        self._current: dict[Any, Run] = {}

    @property
    def current(self) -> Run | None:
        """The last run of `session.run`."""
        return self._current.get(None)

    def run(
        self,
        prompt: Prompt,
        *,
        canvas: Canvas | None = None,
        observe: Observe | Literal["session"] | None = "session",
        box: Any = None,
        **options: Any,
    ) -> Run:
        """Starts a run and returns at once; `options` are those of `plan`, and bad ones are refused here.

        Replaces the run before it from the same `box` (a widget; None for runs from cells). canvas: where to show it,
        a new one by default.
        """
        settings, request = plan(self.loaded, prompt, **options)
        seen = self.observe if observe == "session" else observe
        if settings.mode == "autoregressive" and seen is not None:
            seen = Observe(top_k=seen.top_k)
        return self.launch(settings, request, box=box, prompt=prompt, observe=seen, canvas=canvas)

    def launch(
        self, settings: Settings, request: Request, *, box: Any = None, **options: Any
    ) -> Run:
        """Starts a run of a request that is ready; `options` are those of `Run`."""
        self.stop(box)
        run = Run(self.loaded, settings, request, states=self.states, **options)
        before, self._last = self._last, run
        self._current[box] = run
        return run.start(after=before)

    def stop(self, box: Any = None) -> None:
        """Stops the run of `box` that is writing or waiting, if there is one."""
        if box in self._current:
            self._current[box].stop()

    def ask(self, prompt: str = "", **options: Any) -> Asking:
        """A box for one's own prompt with a canvas under it; `options` hold for all its runs."""
        return Asking(self, prompt, options)


class Asking(Stack):
    """A prompt box over a canvas. Enter runs; a run that is still writing is replaced. `current` is the last run."""

    def __init__(self, session: Session, prompt: str, options: Mapping[str, Any]) -> None:
        self.session, self.options = session, dict(options)
        self.current: Run | None = None
        self.canvas = Canvas()
        self.form = Form(
            [
                {
                    "name": "prompt",
                    "kind": "area",
                    "label": "Prompt (Enter runs, Shift+Enter breaks the line)",
                },
                button("run", main=True),
                {
                    "name": "seed",
                    "kind": "int",
                    "label": "seed",
                    "help": "The same seed writes the same text.",
                },
            ],
            {"prompt": prompt, "seed": self.options.pop("seed", 0)},
        )
        self.form.on_press(lambda _: self.run())
        super().__init__(children=(self.form, self.canvas))

    def settle(self) -> None:
        if self.current is not None:
            self.current.wait()

    def run(self) -> Run | None:
        """What the button does; what is wrong with the request is said under the box."""
        try:
            self.current = self.session.run(
                self.form.values["prompt"],
                seed=self.form.values["seed"] or 0,
                canvas=self.canvas,
                box=self,
                **self.options,
            )
        except DgemmaError as error:
            self.form.say(str(error), alert=True)
            return None
        self.form.say("")
        self.current.on_finish(
            lambda run: self.form.say(run.status.message, alert=run.status.alert)
        )
        return self.current
