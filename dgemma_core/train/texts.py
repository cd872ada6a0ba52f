"""What is trained on: texts as token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """What a sampler saw of one canvas at one of its steps (distillation.py)."""

    canvas: int
    """Which of the text's canvases."""
    tokens: tuple[int, ...]
    before: tuple[int, ...] | None
    """The canvas one step earlier, whose prediction conditions this one; None at the first step."""


@dataclass(frozen=True)
class Text:
    """One training text: the prompt with its turn tokens, and the answer without its end."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    snapshot: Snapshot | None = None
    """The canvas of the first noising; None: the canvas is drawn and noised."""
    own_steps: int = 0
    """Denoising steps that the model makes on the first noising's canvas before it learns from it."""
    blank: tuple[int, int] | None = None
    """The answer's tokens from first to last + 1 that fill a gap; the others may be given. None: no gap."""
    whole: bool = True
    """Whether the answer ends where its tokens end. One that was cut, after whole canvases, learns no end."""


def canvas_count(text: Text, canvas_length: int) -> int:
    """Canvases that a text fills, its end token included."""
    return len(text.answer) // canvas_length + text.whole
