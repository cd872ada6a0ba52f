"""Frames of a canvas as pictures: PNG that sits on light and dark pages, animated WebP and GIF on white."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dgemma_core.errors import DgemmaError, finite_number, whole_number
from dgemma_core.files.trace import (
    ACCEPTED,
    AFTER_EOS,
    CANDIDATE,
    NOISE,
    PINNED,
    REMELTED,
    STATES,
    Trace,
)
from dgemma_lab.canvas.frames import Cell, column_width, fit, frame, ink, line_starts, ramp
from dgemma_lab.frontend.text import visible
from dgemma_lab.given import written

Paint = tuple[int, int, int, int]


@dataclass(frozen=True)
class Inks:
    """The colours of everything but the ramp, as red, green, blue and opacity."""

    paper: Paint
    text: Paint
    soft: Paint
    line: Paint
    faint: Paint
    empty: Paint


ON_WHITE = Inks(
    (255, 255, 255, 255), (33, 33, 33, 255), (95, 95, 95, 255), (140, 140, 140, 255),
    (228, 228, 228, 255), (244, 244, 244, 255),
)  # fmt: skip
# One grey that can be read on white and on near-black (4.3 : 1), as in the charts.
ON_ANY = Inks(
    (121, 121, 122, 0), (121, 121, 122, 255), (121, 121, 122, 255), (121, 121, 122, 255),
    (121, 121, 122, 70), (121, 121, 122, 28),
)  # fmt: skip

CELL_HEIGHT, GAP, MARGIN = 24, 3, 12  # pixels of the page
WIDTH = 960
FONTS = ("DejaVuSansMono.ttf", "Menlo.ttc", "consola.ttf", "LiberationMono-Regular.ttf")


def png(
    trace: Trace,
    path: str | os.PathLike[str] | None = None,
    *,
    step: int | None = None,
    show: str = "draft",
    colour_by: str = "confidence",
) -> bytes:
    """One frame, the last by default, as PNG at twice the page's size on a transparent ground.

    Written to `path` if given. Raises DgemmaError for a step that the trace does not have.
    """
    step = len(trace) if step is None else whole_number("step", step)
    picture = draw(trace, step, show, colour_by)
    buffer = io.BytesIO()
    picture.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    if path is not None:
        written(path, lambda file: file.write_bytes(buffer.getvalue()))
    return buffer.getvalue()


def animate(
    trace: Trace,
    path: str | os.PathLike[str],
    kind: str,
    *,
    seconds_a_step: float = 0.25,
    show: str = "draft",
    colour_by: str = "confidence",
    inks: Inks = ON_WHITE,
) -> Path:
    """All frames as an animation ("WEBP" or "GIF") that rests on the last one for two seconds."""
    if not 0 < finite_number("seconds_a_step", seconds_a_step) <= 60:
        raise DgemmaError(f"seconds_a_step must be above 0 and at most 60, got {seconds_a_step}")
    frames = [
        draw(trace, step, show, colour_by, scale=1, inks=inks).convert("RGB")
        for step in range(len(trace) + 1)
    ]
    frames = _one_palette(frames)
    durations = [round(1000 * seconds_a_step)] * len(frames)
    durations[-1] = 2000
    options: dict[str, Any] = {"optimize": True, "disposal": 1}
    if kind == "WEBP":
        frames = [picture.convert("RGB") for picture in frames]
        options = {"lossless": True, "quality": 80, "method": 4}
    buffer = io.BytesIO()
    frames[0].save(
        buffer, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options
    )
    return written(path, lambda file: file.write_bytes(buffer.getvalue()))


def _one_palette(frames: list[Image.Image], colours: int = 80) -> list[Image.Image]:
    """The frames in the colours of the first, middle and last: small files, and no colour jumps."""
    wide, high = frames[0].size
    sample = Image.new("RGB", (wide, 3 * high))
    for i, picture in enumerate((frames[0], frames[len(frames) // 2], frames[-1])):
        sample.paste(picture, (0, i * high))
    palette = sample.quantize(colours, dither=Image.Dither.NONE)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in frames]


def draw(
    trace: Trace,
    step: int,
    show: str = "draft",
    colour_by: str = "confidence",
    *,
    scale: int = 2,
    inks: Inks = ON_ANY,
) -> Image.Image:
    """One frame as RGBA, WIDTH · `scale` pixels wide; all frames of a trace have one size."""
    small = _font(11 * scale)
    canvases = frame(trace, step, show, colour_by)
    letters = column_width(trace)
    column = letters * round(_font(12 * scale).getlength("m") / scale) + 10
    columns = max(1, (WIDTH - 2 * MARGIN + GAP) // (column + GAP))
    placed = [_placed(cells, columns, line_starts(trace)) for cells in canvases]
    lines = [1 + max((line for line, _ in places), default=-1) for places in placed]
    height = 2 * MARGIN + 20 + sum(18 + count * (CELL_HEIGHT + GAP) for count in lines)
    picture = Image.new("RGBA", (WIDTH * scale, height * scale), inks.paper)
    pen = _Pen(ImageDraw.Draw(picture), trace, inks, scale, letters)
    chosen = _chosen(trace)
    y = float(MARGIN)
    for g, cells in enumerate(canvases):
        pen.write(_caption(trace, g, step), MARGIN, y)
        y += 18
        for cell, (line, place) in zip(cells, placed[g], strict=True):
            left = MARGIN + place * (column + GAP)
            top = y + line * (CELL_HEIGHT + GAP)
            pen.cell(cell, left, top, column, CELL_HEIGHT)
            if cell.position in chosen and cell.token is not None:
                pen.edge(left, top, CELL_HEIGHT)
        y += lines[g] * (CELL_HEIGHT + GAP)
    x = float(MARGIN)
    for state, name in enumerate(STATES):
        if trace.token_by_token and state != ACCEPTED:  # a token is written once and stays
            continue
        pen.cell(Cell(0, None, state, 0.8), x, y + 4, 18, 14)
        pen.write(name, x + 24, y + 4)
        x += 34 + small.getlength(name) / scale
    if chosen:
        pen.edge(x, y + 4, 14)
        pen.write("the causal mode's own choice", x + 10, y + 4)
    return picture


def _caption(trace: Trace, canvas: int, step: int) -> str:
    if trace.rounds:
        done = sum(made.start + 1 < step for made in trace.rounds)
        return f"token {step} of {len(trace)} · round {done} of {len(trace.rounds)}"
    name = f"canvas {canvas + 1}" if trace.mode == "diffusion" else "one token a pass"
    return f"{name} · step {step} of {len(trace)}"


def _chosen(trace: Trace) -> set[int]:
    """Answer positions that the causal mode chose itself: all but the accepted ones."""
    rounds = trace.rounds
    accepted = {i for made in rounds for i in range(made.start + 1, made.start + made.accepted + 1)}
    return set(range(len(trace))) - accepted if rounds else set()


def _placed(cells: Sequence[Cell], columns: int, starts: set[int]) -> list[tuple[int, int]]:
    """Line and column of each cell: a line is full, or another one of the text begins."""
    places: list[tuple[int, int]] = []
    line, column = 0, 0
    for cell in cells:
        if column == columns or (column and cell.position in starts):
            line, column = line + 1, 0
        places.append((line, column))
        column += 1
    return places


class _Pen:
    """Draws cells and small text on a picture; places are in pixels of the page."""

    def __init__(
        self, pen: ImageDraw.ImageDraw, trace: Trace, inks: Inks, scale: int, letters: int
    ) -> None:
        pen.fontmode = "L"
        self.pen, self.trace, self.inks, self.scale, self.letters = pen, trace, inks, scale, letters

    def write(self, text: str, x: float, y: float) -> None:
        scale = self.scale
        self.pen.text((x * scale, y * scale), text, self.inks.soft, _font(11 * scale))

    def cell(self, cell: Cell, x: float, y: float, width: float, height: float) -> None:
        scale, pen, inks = self.scale, self.pen, self.inks
        left, top = int(x * scale), int(y * scale)
        right, bottom = int((x + width) * scale) - 1, int((y + height) * scale) - 1
        box = (left, top, right, bottom)
        full = cell.state in (ACCEPTED, PINNED) and cell.shade is not None
        fill = ramp(cell.shade) if cell.shade is not None else None
        colour: Paint = (*ink(fill), 255) if full and fill else inks.text
        if cell.token is None and fill is None:
            pen.rectangle(box, fill=inks.empty)
            return
        if cell.state == AFTER_EOS:
            self._stripes(box)
            colour = inks.soft
        elif full:
            pen.rounded_rectangle(box, 3 * scale, fill)
            if cell.state == PINNED:
                inner = (left + 2 * scale, top + 2 * scale, right - 2 * scale, bottom - 2 * scale)
                pen.rectangle(box, outline=colour, width=scale)
                pen.rectangle(inner, outline=colour, width=scale)
        else:
            if fill is not None:
                pen.rectangle((left, bottom - 4 * scale, right, bottom), fill)
            self._outline(box, cell.state)
        if cell.token is not None:
            self._token(cell, box, colour)

    def edge(self, x: float, y: float, height: float) -> None:
        """The heavy left line of a token that was not drafted."""
        left, top = int(x * self.scale), int(y * self.scale)
        box = (left, top, left + 3 * self.scale, int((y + height) * self.scale) - 1)
        self.pen.rectangle(box, self.inks.text)

    def _token(self, cell: Cell, box: tuple[int, int, int, int], colour: Paint) -> None:
        left, top, right, bottom = box
        scale = self.scale
        text = visible(self.trace.text(cell.token), 24) if cell.token is not None else ""
        font = _font(round(12 * scale * fit(len(text), self.letters)))
        room = right - left - 2 * scale
        if font.getlength(text) > room:
            while text and font.getlength(text + "…") > room:
                text = text[:-1]
            text += "…"
        x = (left + right - font.getlength(text)) / 2
        middle = (top + bottom) / 2 - scale
        self.pen.text((x, middle), text, colour, font, anchor="lm")
        if cell.state == REMELTED:
            self.pen.line([x, middle, x + font.getlength(text), middle], self.inks.text, scale)

    def _stripes(self, box: tuple[int, int, int, int]) -> None:
        """Slanted stripes, cut off at the box."""
        left, top, right, bottom = box
        high = bottom - top
        for x in range(left - high, right, 5 * self.scale):
            before, beyond = max(left - x, 0), max(x + high - right, 0)
            line = [x + before, bottom - before, x + high - beyond, top + beyond]
            self.pen.line(line, self.inks.faint, self.scale)

    def _outline(self, box: tuple[int, int, int, int], state: int) -> None:
        """Dotted for noise, dashed for a candidate, whole for what was re-melted."""
        left, top, right, bottom = box
        scale, pen, line = self.scale, self.pen, self.inks.line
        if state not in (NOISE, CANDIDATE):
            pen.rectangle(box, outline=line, width=scale)
            return
        on, off = (1, 2) if state == NOISE else (4, 3)
        for x in range(left, right, (on + off) * scale):
            for y in (top, bottom - scale + 1):
                pen.rectangle([x, y, min(x + on * scale, right), y + scale - 1], line)
        for y in range(top, bottom, (on + off) * scale):
            for x in (left, right - scale + 1):
                pen.rectangle([x, y, x + scale - 1, min(y + on * scale, bottom)], line)


@cache
def _font(size: int) -> Any:
    """A monospaced font of the system; Pillow's own where there is none."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
