"""The canvas where no widget runs: a standalone page, a still in HTML or PNG, an animation.

Everything is drawn from a trace. `frame` says what a place shows at a step, as `Run.cell` in
run.js does; a test holds the two together.
"""

from __future__ import annotations

import html
import io
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
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
from dgemma_lab.scripts import bundled, style

# The colours of run.js, unsure to sure.
RAMP = np.array(
    [
        (24, 52, 97), (52, 84, 125), (88, 116, 148), (128, 148, 163), (168, 178, 170),
        (203, 203, 168), (230, 221, 160), (250, 236, 152),
    ]
)  # fmt: skip

Colour = tuple[int, int, int]
PAPER: Colour = (255, 255, 255)
TEXT: Colour = (33, 33, 33)
SOFT: Colour = (95, 95, 95)
LINE: Colour = (140, 140, 140)
FAINT: Colour = (228, 228, 228)


@dataclass(frozen=True)
class Cell:
    """What one place shows at one frame."""

    position: int  # in the answer
    token: int | None  # None: not written yet
    state: int  # index into STATES
    shade: float | None  # place on the ramp, 0 … 1; None where there is no value yet


def frame(
    trace: Trace, step: int, show: str = "draft", colour_by: str = "confidence"
) -> list[list[Cell]]:
    """Each canvas's cells after `step` passes; 0 is the first canvas's noise.

    `show` is "draft" (accepted tokens, best guesses elsewhere) or "canvas" (what the model sees
    next, noise included).
    In autoregression the answer is one canvas that grows by a cell a pass.
    """
    if not 0 <= step <= len(trace):
        raise DgemmaError(f"the trace has steps 0 to {len(trace)}, not {step}")
    if len(trace) == 0:
        return []
    shades, states, positions = _shades(trace, colour_by), trace.states(), trace.positions()
    if trace.mode == "autoregressive":
        return [
            [
                Cell(int(positions[r]), int(trace.tokens_out[r]), int(states[r]), shades[r])
                if r < step
                else Cell(int(positions[r]), None, NOISE, None)
                for r in range(len(trace))
            ]
        ]
    canvases = []
    for canvas in dict.fromkeys(trace.canvas.tolist()):
        passes = trace.passes_of(canvas)
        start = int(trace.offsets[passes.start])
        first = positions[start : trace.offsets[passes.start + 1]].tolist()
        done = min(step - passes.start, len(passes))
        if done <= 0:
            begins = step == 0 and passes.start == 0
            noise = trace.tokens_in[: len(first)].tolist() if begins else [None] * len(first)
            pins = trace.pinned[: len(first)]
            canvases.append(
                [
                    Cell(position, noise[i], PINNED if begins and pins[i] else NOISE, None)
                    for i, position in enumerate(first)
                ]
            )
            continue
        r = passes.start + done - 1
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        tokens = np.where(
            (trace.accepted[cut] | trace.pinned[cut]) | (show == "canvas"),
            trace.tokens_out[cut],
            trace.argmax[cut],
        )
        if step > passes.stop or (trace.decided()[r] and show == "draft"):
            tokens = trace.argmax[cut]  # committed, or about to be
        row = shades[cut]
        if colour_by == "settled":
            settled = trace.settled_step()[canvas] - trace.step[passes.start]
            row = [shade if done > when else None for shade, when in zip(row, settled, strict=True)]
        canvases.append(
            [
                Cell(position, int(tokens[i]), int(states[cut][i]), row[i])
                for i, position in enumerate(first)
            ]
        )
    return canvases


def _shades(trace: Trace, colour_by: str) -> list[float | None]:
    """(n,) place on the ramp of every recorded position: bright is sure, or settled early."""
    if colour_by == "confidence":
        return list(trace.probability.astype(float))
    if colour_by == "entropy":
        highest = max(float(trace.entropy.max()), 1.0 / 255**2)
        return list(1 - np.sqrt(np.clip(trace.entropy / highest, 0, 1)))
    if colour_by != "settled":
        raise DgemmaError(f"colour_by is confidence, entropy or settled, not {colour_by!r}")
    shades: list[float | None] = []
    settled = trace.settled_step()
    if trace.mode == "autoregressive":
        return [1 - r / max(1, len(trace) - 1) for r in range(len(trace))]
    for r in range(len(trace)):
        passes = trace.passes_of(int(trace.canvas[r]))
        when = settled[int(trace.canvas[r])] - trace.step[passes.start]
        shades += list(1 - when / max(1, len(passes) - 1))
    return shades


def ramp(shade: float) -> Colour:
    """A colour of the ramp, 0 … 1."""
    place = min(max(shade, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    r, g, b = np.rint(RAMP[low] + (RAMP[low + 1] - RAMP[low]) * (place - low)).astype(int).tolist()
    return r, g, b


def ink(rgb: Colour) -> Colour:
    """Black or white, whichever stands out more on it: at least 4.58 : 1 (WCAG 2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def visible(text: str, limit: int = 24) -> str:
    """A token's text with all of it visible, on one line; as in run.js."""
    if text == "":
        return "∅"
    shown = "".join(
        character
        if character in "\u200c\u200d" and 0 < i < len(text) - 1  # joiners, as in emoji, Persian
        else _visible_character(character)
        for i, character in enumerate(text[:limit])
    )
    shown += "…" if len(text) > limit else ""
    return "◌" + shown if unicodedata.category(shown[0]).startswith("M") else shown


def _visible_character(character: str) -> str:
    named = {" ": "·", "\n": "⏎", "\t": "⇥", "\x7f": "␡"}
    if character in named:
        return named[character]
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    if unicodedata.category(character)[0] in "CZ":
        return f"⟨{ord(character):04X}⟩"
    return character


# pages


def write_page(
    path: str | os.PathLike[str],
    name: str,
    state: Mapping[str, Any],
    *,
    title: str,
    sheets: Sequence[str],
) -> Path:
    """A page of its own of the widget `name`.js over `state` (json values), which asks for nothing from elsewhere.

    The widget shows its title itself; the page has it as its name, and as a heading for those who listen. The page's
    script can reach the widget's model by its name.
    """
    data = json.dumps(state, ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(title)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ margin: 16px auto; max-width: 1180px; padding: 0 12px; background: Canvas; color: CanvasText; }}
h1 {{ position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }}
{style(*sheets)}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div id="{name}"></div>
</main>
<script type="application/json" id="state">{data}</script>
<script type="module">
{bundled(f"{name}.js")}
const state = JSON.parse(document.getElementById("state").textContent);
globalThis["{name}"] = mount(state, document.getElementById("{name}"));
</script>
</body>
</html>
"""
    path = Path(path)
    path.write_text(page, "utf-8")
    return path


def static_html(trace: Trace, *, title: str = "", colour_by: str = "confidence") -> str:
    """The last frame as HTML with inline styles only, for pages that remove scripts and sheets."""
    parts = []
    if head := title or str(trace.metadata.get("prompt", "")):
        parts.append(f'<div style="font:600 13px sans-serif">{html.escape(head)}</div>')
    for canvas in frame(trace, len(trace), colour_by=colour_by):
        cells = "".join(_static_cell(trace, cell) for cell in canvas)
        parts.append(f'<div style="max-width:960px;line-height:26px;margin:4px 0">{cells}</div>')
    text = "".join(trace.text(token) for token in trace.ids if token not in trace.eos_ids())
    parts.append(f"<pre>{html.escape(text)}</pre>")
    return f"<div>{''.join(parts)}</div>"


def _static_cell(trace: Trace, cell: Cell) -> str:
    base = "display:inline-block;min-width:44px;margin:1px;padding:0 3px;text-align:center;"
    base += "font:12px/22px monospace;"
    if cell.state == AFTER_EOS or cell.token is None:
        return f'<span style="{base}border:1px solid transparent">·</span>'
    style = base
    if cell.state in (ACCEPTED, PINNED) and cell.shade is not None:
        fill = ramp(cell.shade)
        style += f"background:rgb{fill};color:rgb{ink(fill)};"
    borders = {NOISE: "1px dotted", CANDIDATE: "1px dashed", PINNED: "3px double"}
    style += f"border:{borders.get(cell.state, '1px solid')};"
    if cell.state == ACCEPTED:
        style += "border-color:transparent;"
    if cell.state == REMELTED:
        style += "text-decoration:line-through;"
    text = html.escape(visible(trace.text(cell.token), 12))
    return f'<span style="{style}"><bdi>{text}</bdi></span>'


# pictures

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
    column = _column_width(trace) * round(font.getlength("m") / scale) + 10
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


def _column_width(trace: Trace) -> int:
    """Characters a cell is wide: enough for most tokens of the last frame, as in run.js."""
    lengths = sorted(
        len(visible(trace.text(cell.token), 12))
        for cells in frame(trace, len(trace))
        for cell in cells
        if cell.token is not None and cell.state != AFTER_EOS
    )
    return min(max(lengths[int(0.9 * (len(lengths) - 1))], 2), 9) if lengths else 6
