"""Frames of a canvas as pictures: PNG, animated WebP and GIF."""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dgemma_core.errors import DgemmaError
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
from dgemma_lab.canvas.frames import Cell, Colour, column_width, frame, ink, ramp
from dgemma_lab.frontend.text import visible

PAPER: Colour = (255, 255, 255)
TEXT: Colour = (33, 33, 33)
SOFT: Colour = (95, 95, 95)
LINE: Colour = (140, 140, 140)
FAINT: Colour = (228, 228, 228)
CELL_HEIGHT, GAP, MARGIN, SCALE = 24, 3, 12, 2
FONTS = ("DejaVuSansMono.ttf", "Menlo.ttc", "consola.ttf", "LiberationMono-Regular.ttf")


def png(
    trace: Trace,
    path: str | os.PathLike[str] | None = None,
    *,
    step: int | None = None,
    show: str = "draft",
    colour_by: str = "confidence",
) -> bytes:
    """One frame, the last by default, as PNG at twice the page's size; written to `path` if given."""
    picture = draw(trace, len(trace) if step is None else step, show, colour_by)
    buffer = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    if path is not None:
        Path(path).write_bytes(buffer.getvalue())
    return buffer.getvalue()


def animate(
    trace: Trace,
    path: str | os.PathLike[str],
    kind: str,
    *,
    seconds_a_step: float = 0.25,
    show: str = "draft",
    colour_by: str = "confidence",
) -> Path:
    """All frames as an animation ("WEBP" or "GIF") that rests on the last one for two seconds."""
    if seconds_a_step <= 0:
        raise DgemmaError(f"seconds_a_step must be above 0, got {seconds_a_step}")
    frames = [draw(trace, step, show, colour_by, scale=1) for step in range(len(trace) + 1)]
    frames = _one_palette(frames)
    durations = [round(1000 * seconds_a_step)] * len(frames)
    durations[-1] = 2000
    options: dict[str, Any] = {"optimize": True, "disposal": 1}
    if kind == "WEBP":
        frames = [picture.convert("RGB") for picture in frames]
        options = {"lossless": True, "quality": 80, "method": 4}
    frames[0].save(
        path, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options
    )
    return Path(path)


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
    scale: int = SCALE,
    width: int = 960,
) -> Image.Image:
    """One frame on white, `width` · `scale` pixels wide; all frames of a trace have one size."""
    font = _font(12 * scale)
    small = _font(11 * scale)
    canvases = frame(trace, step, show, colour_by)
    column = column_width(trace) * round(font.getlength("m") / scale) + 10
    columns = max(1, (width - 2 * MARGIN + GAP) // (column + GAP))
    lines = [-(-len(cells) // columns) for cells in canvases]
    height = 2 * MARGIN + 20 + sum(18 + count * (CELL_HEIGHT + GAP) for count in lines)
    picture = Image.new("RGB", (width * scale, height * scale), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.fontmode = "L"

    def place(text: str, x: float, y: float, colour: Colour = SOFT) -> None:
        pen.text((x * scale, y * scale), text, colour, small)

    y = float(MARGIN)
    for g, cells in enumerate(canvases):
        name = f"canvas {g + 1}" if trace.mode == "diffusion" else "one token a pass"
        place(f"{name} · step {step} of {len(trace)}", MARGIN, y)
        y += 18
        for i, cell in enumerate(cells):
            left = MARGIN + (i % columns) * (column + GAP)
            top = y + (i // columns) * (CELL_HEIGHT + GAP)
            box = [
                left * scale,
                top * scale,
                (left + column) * scale - 1,
                (top + CELL_HEIGHT) * scale - 1,
            ]
            _draw_cell(pen, trace, cell, [int(edge) for edge in box], font, scale)
        y += lines[g] * (CELL_HEIGHT + GAP)
    x = float(MARGIN)
    for state, name in enumerate(STATES):
        box = [int(edge * scale) for edge in (x, y + 4, x + 18, y + 18)]
        _draw_cell(pen, trace, Cell(0, None, state, 0.8), box, font, scale)
        place(name, x + 24, y + 4)
        x += 34 + small.getlength(name) / scale
    return picture


def _draw_cell(
    pen: ImageDraw.ImageDraw, trace: Trace, cell: Cell, box: list[int], font: Any, scale: int
) -> None:
    left, top, right, bottom = box
    full = cell.state in (ACCEPTED, PINNED) and cell.shade is not None
    fill = ramp(cell.shade) if cell.shade is not None else PAPER
    colour = ink(fill) if full else TEXT
    empty = cell.token is None and cell.shade is None
    if empty:
        pen.rectangle(box, fill=(244, 244, 244))
        return
    if cell.state == AFTER_EOS:
        for x in range(left - (bottom - top), right, 5 * scale):  # stripes, cut at the box
            cut_left, cut_right = max(left - x, 0), max(x + bottom - top - right, 0)
            pen.line(
                [x + cut_left, bottom - cut_left, x + bottom - top - cut_right, top + cut_right],
                FAINT,
                scale,
            )
        colour = SOFT
    elif full:
        pen.rounded_rectangle(box, 3 * scale, fill)
        if cell.state == PINNED:
            inner = [left + 2 * scale, top + 2 * scale, right - 2 * scale, bottom - 2 * scale]
            pen.rectangle(box, outline=colour, width=scale)
            pen.rectangle(inner, outline=colour, width=scale)
    else:
        if cell.shade is not None:
            pen.rectangle([left, bottom - 4 * scale, right, bottom], fill)
        _outline(pen, box, cell.state, scale)
    if cell.token is None:
        return
    text = visible(trace.text(cell.token), 24)
    room = right - left - 6 * scale
    if font.getlength(text) > room:
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text += "…"
    wide = font.getlength(text)
    middle = (top + bottom) / 2 - scale
    pen.text(((left + right - wide) / 2, middle), text, colour, font, anchor="lm")
    if cell.state == REMELTED:
        x = (left + right - wide) / 2
        pen.line([x, middle, x + wide, middle], TEXT, scale)


def _outline(pen: ImageDraw.ImageDraw, box: list[int], state: int, scale: int) -> None:
    """Dotted for noise, dashed for a candidate, whole for what was re-melted."""
    left, top, right, bottom = box
    if state not in (NOISE, CANDIDATE):
        pen.rectangle(box, outline=LINE, width=scale)
        return
    on, off = (1, 2) if state == NOISE else (4, 3)
    for x in range(left, right, (on + off) * scale):
        for y in (top, bottom - scale + 1):
            pen.rectangle([x, y, min(x + on * scale, right), y + scale - 1], LINE)
    for y in range(top, bottom, (on + off) * scale):
        for x in (left, right - scale + 1):
            pen.rectangle([x, y, x + scale - 1, min(y + on * scale, bottom)], LINE)


@cache
def _font(size: int) -> Any:
    """A monospaced font of the system; Pillow's own where there is none."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
