"""The canvas widget: a run's tokens in a fixed grid, every step of it within reach.

    Canvas(trace)      # the whole trace goes to the browser once; scrubbing needs no kernel

Live, as whoever drains the event stream uses it (from any thread; nothing here starts one):

    canvas = Canvas()
    canvas.begin(prompt="…", steps=48, decode=tokenizer_decode, eos_token_ids=(1, 106))
    for event in denoise_canvases(…, observe=Observe(top_k=5)):
        recorder.add(event)
        canvas.push(event)           # any event; passes become rows, at most 30 a second
    canvas.finish(Trace(**recorder.fields()))  # the whole trace replaces the rows: nothing is lost

Of passes that come faster than that the newest of each canvas becomes a row, so that of a canvas that is over it is the
one that decided it; until the whole trace is there, frames between look like the row before them. In autoregression,
where a pass is a token, a row holds all tokens since the row before it.

A run that took less than a moment is replayed once from its noise, at a pace that can be followed; `replay` says so.

A second `begin` replaces the first run. `canvas.on_stop(callback)` shows a Stop button while a run
is live.

Steering: `canvas.on_steer(callback)` shows Pin, Replace, Blank and Branch, and calls the callback
with a `Steer`. The widget changes no run: what a request for change means is up to the callback.

Two canvases keep in step without the kernel: `ipywidgets.jslink((a, "step"), (b, "step"))`.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anywidget
import traitlets

from dgemma_core.errors import DgemmaError, check_kind, shown, whole_number
from dgemma_core.files.trace import Trace
from dgemma_lab.canvas import pictures, still
from dgemma_lab.canvas.frames import against, frame
from dgemma_lab.canvas.live import Live
from dgemma_lab.canvas.packing import TokenTable, pack_trace, packed_rounds
from dgemma_lab.canvas.sharing import EXPLAINED, shared
from dgemma_lab.frontend.page import write_page
from dgemma_lab.frontend.scripts import bundled, style
from dgemma_lab.frontend.still import Still
from dgemma_lab.given import check_trace, whole_numbers

REPLAYED = 2.5
"""Seconds below which a run that has ended is replayed."""
KINDS_OF_CONSTRAINTS = {
    "regex": "obeys a regular expression",
    "json_schema": "obeys a JSON Schema",
    "choices": "one of several choices",
}
SHEETS = ("frontend/base.css", "canvas/canvas.css")

Action = Literal["pin", "unpin", "replace", "blank", "branch"]


@dataclass(frozen=True)
class Steer:
    """What a reader asked for in the widget, at frame `step`.

    Positions are answer positions (canvas · C + place); `stop` is exclusive. A branch concerns the
    whole canvas: its positions are None.
    """

    action: Action
    step: int  # frame: passes made before it, over the whole run; 0 is the first canvas's noise
    pass_index: int | None  # the pass that left this frame, its index in the trace; None at frame 0
    position: int | None = None  # the selected token
    start: int | None = (
        None  # the marked span, start … stop − 1; the token alone if none was marked
    )
    stop: int | None = None
    token: int | None = None  # id shown at `position`
    text: str | None = None  # what was typed, for "replace"


class Canvas(Still, anywidget.AnyWidget):
    """Shows a `Trace`, or a run as it happens. `trace` may be None; see the module for live use.

    Traits, all linkable: `step` (the frame in view: 0 is noise, n what stands after n passes, −1 the
    last, whichever that is; only the reader moves it), `colour_by`, `show`, `speed` (times a
    comfortable pace; 0 replays the recorded times), `selected` (answer position, −1 for none),
    `title`, `heading` (whether the prompt stands there where no title does), `transport` (whether it has
    controls of its own), `status` (a line beside it in place of the run's facts; `alert` makes it an error).
    """

    _esm = bundled("canvas/canvas.js")
    _css = style(*SHEETS)

    step = traitlets.Int(-1, min=-1).tag(sync=True)
    colour_by = traitlets.Enum(("confidence", "entropy", "settled"), "confidence").tag(sync=True)
    show = traitlets.Enum(("draft", "canvas"), "draft").tag(sync=True)
    speed = traitlets.Float(1.0, min=0.0).tag(sync=True)
    selected = traitlets.Int(-1, min=-1).tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)
    heading = traitlets.Bool(True).tag(sync=True)
    transport = traitlets.Bool(True).tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    alert = traitlets.Bool(False).tag(sync=True)

    # What the front end draws. `_meta` goes last and its version tells that the others are new.
    _rows = traitlets.Bytes(b"").tag(sync=True)
    _tokens = traitlets.Dict().tag(sync=True)
    _states = traitlets.Dict().tag(sync=True)  # of a constraint's automaton → what may follow
    _meta = traitlets.Dict().tag(sync=True)
    _tail = traitlets.Dict().tag(sync=True)
    _steerable = traitlets.Bool(False).tag(sync=True)
    _stoppable = traitlets.Bool(False).tag(sync=True)
    _shareable = traitlets.Bool(True).tag(sync=True)
    _against = traitlets.Dict().tag(sync=True)
    _focus = traitlets.Int(-1, min=-1).tag(sync=True)

    def __init__(
        self,
        trace: Trace | None = None,
        *,
        alternatives: int = 5,
        colour_by: str = "confidence",
        show: str = "draft",
        title: str = "",
        heading: bool = True,
        transport: bool = True,
    ) -> None:
        super().__init__(
            colour_by=colour_by, show=show, title=title, heading=heading, transport=transport
        )
        self.alternatives = whole_number("alternatives", alternatives, low=1, high=255)
        self._trace: Trace | None = None
        self._lock = threading.RLock()
        self._steerers: list[Callable[[Steer], Any]] = []
        self._stoppers: list[Callable[[], Any]] = []
        self._table = TokenTable(str)
        self._live: Live | None = None
        self._onward: Callable[[int], Mapping[str, Any]] | None = None
        self._version = 0
        self.on_msg(self._receive)
        if trace is not None:
            self.trace = trace

    # a whole trace

    @property
    def trace(self) -> Trace | None:
        """The trace shown; setting one shows its last frame. None before, and during a live run."""
        return self._trace

    @trace.setter
    def trace(self, trace: Trace) -> None:
        with self.hold_sync():
            self.step = -1
            self.finish(trace)

    def finish(self, trace: Trace) -> None:
        """Ends the live run: the whole trace replaces its rows. Who scrubbed back stays there."""
        check_trace(trace)
        table = TokenTable(trace.text)
        rows = pack_trace(trace, table, self.alternatives)
        initial = None
        if len(trace) and trace.mode == "diffusion":
            initial = table.local(trace.tokens_in[: trace.offsets[1]]).tolist()
        rounds = packed_rounds(trace, table)
        with self._lock, self.hold_sync():
            # A run that was over before one could look is shown once more.
            live = self._live is not None and self.transport
            replay = live and trace.total_seconds < REPLAYED
            self._trace, self._table, self._live = trace, table, None
            self._against = {}
            self._rows = b"".join(rows)
            self._tokens = {"ids": list(table.ids), "texts": list(table.texts)}
            self._states = {str(state): dict(what) for state, what in trace.onward.items()}
            self._tail = {}
            self._meta = {
                **describe(trace), "version": self._next_version(), "initial": initial,
                "rounds": rounds, "replay": replay,
            }  # fmt: skip
        self.refresh_still()

    # a live run

    def begin(
        self,
        *,
        prompt: str = "",
        steps: int = 48,
        decode: Callable[[int], str] | None = None,
        eos_token_ids: Iterable[int] = (),
        onward: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        """Clears the canvas for a run whose events will be pushed; gives up one that was live.

        onward: what may follow in a state of the run's constraint (`dgemma_core.constraints.onward`).
        """
        check_kind("prompt", prompt, str, "a text")
        check_kind("decode", decode, Callable | None, "a function from a token's id to its text")
        steps = whole_number("steps", steps)
        eos = sorted(whole_numbers("eos_token_ids", eos_token_ids))
        with self._lock, self.hold_sync():
            self._trace = None
            self._table = TokenTable(decode or "<{}>".format)
            self._live, self._onward = Live(eos=frozenset(eos)), onward
            self._rows, self._tokens, self._states, self._tail = b"", {}, {}, {}
            self.step, self.selected, self.status, self.alert = -1, -1, "", False
            facts = [f"at most {steps} passes a canvas"] if steps else []
            self._meta = {
                "version": self._next_version(),
                "live": True,
                "prompt": prompt,
                "facts": facts,
                "eos": eos,
            }

    def push(self, event: Any) -> None:
        """Adds a StepEvent or TokenEvent to the live run, from any thread; ignores other events.

        A row goes out at once where the last was sent a thirtieth of a second ago or earlier. Else the pass waits, and
        the next pass on the same canvas takes its place.
        """
        if type(event).__name__ not in ("StepEvent", "TokenEvent"):
            return
        with self._lock:
            if self._live is None:
                raise DgemmaError("push shows a pass of a live run: call begin first")
            self._live.add(event, self._table, self.alternatives)
            self._send_tail()

    def _send_tail(self) -> None:
        """Sends what waits, as far as rows may go out by now."""
        live = self._live
        if live is None or not (room := live.room(time.monotonic())):
            return
        first, first_token = live.sent, live.sent_tokens
        rows = live.take(self._table, room)
        if not rows:
            return
        live.sent_tokens = len(self._table)
        live.times += [time.monotonic()] * len(rows)
        new = [state for state in sorted(live.states) if str(state) not in self._states]
        if new and self._onward is not None:
            self._states = self._states | {str(state): dict(self._onward(state)) for state in new}
        self._tail = {
            "version": self._version, "first": first, "rows": [row for _, row in rows],
            "ends": [end for end, _ in rows], "firstToken": first_token,
            "ids": self._table.ids[first_token:], "texts": self._table.texts[first_token:],
            "initial": live.initial,
        }  # fmt: skip

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def say(self, status: str, *, alert: bool = False) -> None:
        """Writes the line beside the title; "" brings the run's facts back."""
        with self.hold_sync():
            self.status, self.alert = status, alert

    # comparing

    def compare(self, other: Trace | None, name: str = "") -> None:
        """Marks the tokens that differ from what another run shows at the same step; None ends it."""
        if other is not None:
            check_trace(other, "other")
        check_kind("name", name, str, "a text")
        self._against = {} if other is None else against(other, name)

    # steering

    def take_focus(self, position: int) -> None:
        """Gives the token of an answer position the focus, once it is there, if nothing else has it."""
        self._focus = position

    def on_steer(self, callback: Callable[[Steer], Any], *, remove: bool = False) -> None:
        """Registers a callback for what the reader asks; the controls show while there is one."""
        _change(self._steerers, callback, remove)
        self._steerable = bool(self._steerers)

    def on_stop(self, callback: Callable[[], Any], *, remove: bool = False) -> None:
        """Registers a callback for the Stop button, which shows while a run is live."""
        _change(self._stoppers, callback, remove)
        self._stoppable = bool(self._stoppers)

    def _receive(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        kind = content.get("type")
        if kind == "resend":
            with self._lock:
                if self._live is not None:
                    self._live.back_to(int(content["first"]), int(content["firstToken"]))
                    self._send_tail()
        elif kind == "share":
            message, data = shared(self, content["kind"])
            self.send({"type": "shared", **message}, [data])
        elif kind == "stop":
            for stop in list(self._stoppers):
                stop()
        elif kind == "steer":
            steer = self._steer_from(content)
            for callback in list(self._steerers):
                callback(steer)

    def _steer_from(self, content: dict[str, Any]) -> Steer:
        step = int(content["step"])
        position = content.get("position")
        token = None
        if position is not None and self._trace is not None:
            token = self._token_at(self._trace, step, int(position))
        return Steer(
            content["action"], step, step - 1 if step else None, position,
            content.get("start"), content.get("stop"), token, content.get("text"),
        )  # fmt: skip

    def _token_at(self, trace: Trace, step: int, position: int) -> int | None:
        """The id that a frame shows at an answer position; None where nothing is written yet."""
        for canvas in frame(trace, step, self.show):
            for cell in canvas:
                if cell.position == position:
                    return cell.token
        return None

    # other forms

    def __repr__(self) -> str:
        if self._live is not None:
            return f"Canvas(live, {self._live.passes} passes)"
        return f"Canvas({self._trace!r})" if self._trace is not None else "Canvas(empty)"

    def still_html(self) -> str:
        """The last frame as HTML, for pages where no widget runs; empty before there is a trace."""
        if self._trace is None:
            return ""
        return still.static_html(self._trace, title=self.title, colour_by=self.colour_by)

    def still_picture(self) -> bytes | None:
        """The last frame as PNG, on no ground of its own."""
        return None if self._trace is None else self.to_png()

    def _needs_trace(self) -> Trace:
        if self._trace is None:
            raise DgemmaError("the canvas holds no trace yet: nothing to export")
        return self._trace

    def to_html(self, path: str | os.PathLike[str], *, play: bool = True) -> Path:
        """A standalone page with the same script, which needs no network and explains itself. Returns the path.

        play: it opens with a replay from the noise; else on the step in view.
        """
        trace = self._needs_trace()
        names = (
            "step",
            "colour_by",
            "show",
            "speed",
            "title",
            "heading",
            "_tokens",
            "_states",
            "_meta",
        )
        state = {name: getattr(self, name) for name in names}
        if play:
            state |= {"step": -1, "_meta": {**self._meta, "replay": True}}
        state["_rows"] = base64.b64encode(self._rows).decode()
        title = self.title or str(trace.metadata.get("prompt", "")) or "Denoising canvas"
        return write_page(
            path,
            "canvas/canvas.js",
            state,
            title=title,
            sheets=SHEETS,
            intro=EXPLAINED[trace.mode],
        )

    def to_png(
        self, path: str | os.PathLike[str] | None = None, *, step: int | None = None
    ) -> bytes:
        """One frame (the last by default) as PNG; written to `path` if given."""
        return pictures.png(
            self._needs_trace(), path, step=step, show=self.show, colour_by=self.colour_by
        )

    def to_webp(self, path: str | os.PathLike[str], *, seconds_a_step: float = 0.25) -> Path:
        """The whole run as an animated WebP. Returns the path."""
        return self._animate(path, "WEBP", seconds_a_step)

    def to_gif(self, path: str | os.PathLike[str], *, seconds_a_step: float = 0.25) -> Path:
        """The whole run as an animated GIF: fewer colours, understood everywhere. Returns the path."""
        return self._animate(path, "GIF", seconds_a_step)

    def _animate(self, path: str | os.PathLike[str], kind: str, seconds_a_step: float) -> Path:
        return pictures.animate(
            self._needs_trace(),
            path,
            kind,
            seconds_a_step=seconds_a_step,
            show=self.show,
            colour_by=self.colour_by,
        )


def describe(trace: Trace) -> dict[str, Any]:
    """What a page says about a trace besides its rows: json values."""
    sampler = trace.metadata.get("sampler")
    counts = [f"{len(trace.ids)} tokens", f"{trace.passes} passes"]
    if trace.mode == "diffusion":
        counts.insert(1, f"{trace.denoising_steps} denoising steps")
    facts = [
        _model(trace.metadata),
        str(sampler.get("name", "")) if isinstance(sampler, dict) else str(sampler or ""),
        trace.mode if trace.token_by_token else "",
        _constraint(trace.metadata),
        *counts,
        took(trace.total_seconds),
        f"seed {trace.seed}" if trace.seed is not None else "",
        f"stopped by {trace.stop_reason}" if trace.stop_reason else "unfinished",
    ]
    return {
        "live": False,
        "prompt": str(trace.metadata.get("prompt", "")),
        "facts": [fact for fact in facts if fact],
        "eos": sorted(trace.eos_ids()),
        "seconds": trace.total_seconds,
        "commits": [
            {"canvas": c.canvas, "kept": c.kept, "converged": c.converged} for c in trace.commits
        ],
    }


def took(seconds: float) -> str:
    """A time with as many digits as it deserves: "16 ms", "2.3 s"."""
    return f"{1000 * seconds:.0f} ms" if 0.001 <= seconds < 1 else f"{seconds:.2f} s"


def _model(metadata: Mapping[str, Any]) -> str:
    """The model, and the backend that ran it: "nano on cpu"."""
    model, backend = str(metadata.get("model", "")), metadata.get("backend")
    return f"{model} on {backend}" if backend else model


def _constraint(metadata: Mapping[str, Any]) -> str:
    """The kind of constraint that the text obeys, in words; "" for none."""
    found = metadata.get("constraint")
    kind = found.get("kind") if isinstance(found, Mapping) else None
    return KINDS_OF_CONSTRAINTS.get(str(kind), "")


def _change(callbacks: list[Any], callback: Any, remove: bool) -> None:
    check_kind("callback", callback, Callable, "a function")
    if not remove:
        callbacks.append(callback)
    elif callback in callbacks:
        callbacks.remove(callback)
    else:
        raise DgemmaError(f"{shown(callback)} is not registered: nothing to remove")
