"""The live screen of a terminal: a run as it happens, and where it was over in a moment once more, slowly."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from dgemma_core.command.lines import count
from dgemma_core.command.terminal import (
    NOISE,
    Decode,
    draw_noise,
    draw_round,
    draw_step,
    draw_tokens,
    legend,
    round_status,
    status,
)

if TYPE_CHECKING:
    from dgemma_core.events import Event

REDRAWS_A_SECOND = 30
REPLAYED = 1.5
"""Seconds below which a run is replayed: in less nobody has followed it."""

Frame = tuple[Text, Callable[[], Text], Callable[[], Text]]
"""Committed text, and what draws the canvas and the status line behind it."""


class Screen(AbstractContextManager["Screen"]):
    """Shows one request's events as they come: committed text, the canvas, a status line.

    A run that took less than `REPLAYED` seconds is replayed from its noise at a pace that a person can follow, unless
    `replay` is false; Ctrl-C cuts that short. Everything it draws disappears when it closes, so that the caller's final
    text is what stays.
    """

    def __init__(
        self,
        console: Console,
        decode: Decode,
        eos: Collection[int] = (),
        *,
        replay: bool = True,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._decode, self._eos, self._sleep = decode, eos, sleep
        self._committed = Text()
        self._shown = 0.0
        self._drafts = False
        self._frames: list[Frame] | None = [] if replay else None
        self._seconds = 0.0
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._frames:
                self._replay(self._frames)
        except KeyboardInterrupt:  # enough seen: the text follows
            pass
        finally:
            self._live.stop()

    def add(self, event: Event) -> None:
        """Draws one event. Steps and rounds that come faster than 30 a second are skipped, save the last step.

        A round stays on the screen until the next one: the tokens that it wrote are part of it.
        """
        from dgemma_core.events import CanvasEvent, DraftEvent, FinishEvent, StepEvent, TokenEvent

        self._seconds = event.seconds
        self._keep(event)
        if isinstance(event, StepEvent):
            if event.finished or self._due():
                self._draw(draw_step(event, self._decode, self._eos), status(event))
        elif isinstance(event, DraftEvent):
            self._drafts = True
            if self._due():
                self._draw(draw_round(event, self._decode, self._eos), round_status(event))
        elif isinstance(event, CanvasEvent):
            kept = event.ids[: event.kept]
            chances = event.probability[: event.kept].tolist()
            self._committed += draw_tokens(kept, chances, self._decode, self._eos)
            self._draw()
        elif isinstance(event, TokenEvent):
            drawn = draw_tokens([event.token], [event.probability], self._decode, self._eos)
            self._committed += drawn
            if not self._drafts:
                self._draw(Text(), Text(count(event.index + 1, "token"), NOISE))
        elif isinstance(event, FinishEvent) and self._drafts:
            self._draw()

    def _keep(self, event: Event) -> None:
        """Keeps what a replay needs, as long as the run is short; the model's memory is not part of it."""
        from dgemma_core.events import DraftEvent, StepEvent, TokenEvent

        if self._frames is None:
            return
        if event.seconds >= REPLAYED:
            self._frames = None
            return
        committed = self._committed.copy()
        if isinstance(event, StepEvent):
            step = replace(event, state=None)  # type: ignore[arg-type]
            if step.step == 0:
                began = Text(f"canvas {step.canvas + 1} · noise: random tokens", NOISE)
                self._frames.append(
                    (committed, lambda: draw_noise(step, self._decode), lambda: began)
                )
            self._frames.append(
                (committed, lambda: draw_step(step, self._decode, self._eos), lambda: status(step))
            )
        elif isinstance(event, DraftEvent):
            drafted = event
            self._frames.append(
                (
                    committed,
                    lambda: draw_round(drafted, self._decode, self._eos),
                    lambda: round_status(drafted),
                )
            )
        elif isinstance(event, TokenEvent) and not self._drafts:
            written = Text(count(event.index, "token"), NOISE)
            self._frames.append((committed, Text, lambda: written))

    def _replay(self, frames: list[Frame]) -> None:
        """Shows the frames once more, in two to six seconds."""
        pause = min(max(len(frames) / 4, 2.0), 6.0) / len(frames)
        slower = pause * len(frames) / max(self._seconds, 1e-6)
        note = f" · replayed {slower:.0f} times slower: it took {1000 * self._seconds:.0f} ms"
        for committed, canvas, line in frames:
            self._draw(canvas(), Text.assemble(line(), Text(note, NOISE)), committed)
            self._sleep(pause)

    def _due(self) -> bool:
        """Whether the last drawing is old enough for another; if so, this one counts as drawn now."""
        now = time.perf_counter()
        if now - self._shown < 1 / REDRAWS_A_SECOND:
            return False
        self._shown = now
        return True

    def _draw(
        self, canvas: Text | None = None, line: Text | None = None, committed: Text | None = None
    ) -> None:
        before = self._committed if committed is None else committed
        text = before + canvas if canvas else before
        self._live.update(_Tail(text, Text.assemble(line or "", "\n", legend())), refresh=True)


class _Tail:
    """A text and its footer; of the text only the last lines where the terminal is too low."""

    def __init__(self, text: Text, footer: Text) -> None:
        self._text, self._footer = text, footer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._text.wrap(console, options.max_width)
        room = max(console.height - 4, 1)
        yield from lines[-room:]
        yield self._footer
