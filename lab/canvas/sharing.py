"""Files of a run to hand on: a page that plays it and explains itself, and a picture that moves."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import DgemmaError

if TYPE_CHECKING:
    from dgemma_lab.canvas.canvas import Canvas

COLOUR = "confidence in it, from dark blue for unsure to pale yellow for sure."
EXPLAINED: Mapping[str, str] = {
    "diffusion": "A text-diffusion model writes all tokens of a text at once: it starts from noise, which is random "
    "tokens, and improves them in a few denoising steps. At each step it accepts the tokens of which it is sure, shown "
    "filled, and draws the others anew; it may take back what it accepted. The colour of a token is the model's "
    + COLOUR,
    "autoregressive": "An autoregressive model writes a text one token after another. Each pass reads all tokens so "
    "far and chooses the next one, shown in a frame; a token that is written stays. The colour of a token is the "
    "model's " + COLOUR,
    "speculative": "Speculation writes the text that the model would write token by token, in fewer passes: in each "
    "round it drafts several tokens at once by denoising, and one pass of its causal mode verifies them. The draft "
    "stays up to the first token that the causal mode would not have written; its own choice, shown with a heavy line "
    "on the left, takes that place, and the next round begins behind it. The colour of a token is the model's "
    + COLOUR,
}
"""What is seen of a run of each mode, in three sentences."""
MIMES = {"html": "text/html", "gif": "image/gif"}


def shared(canvas: Canvas, kind: str) -> tuple[dict[str, Any], bytes]:
    """Name and type of a file for the browser to save, and its bytes. kind: html, gif."""
    if kind not in MIMES:
        raise DgemmaError(f"a run is shared as {' or '.join(MIMES)}, not as {kind!r}")
    trace = canvas.trace
    prompt = str(trace.metadata.get("prompt", "")) if trace is not None else ""
    words = re.findall(r"[a-z0-9]+", (canvas.title or prompt).lower())[:5]
    name = f"{'-'.join(words) or 'canvas'}.{kind}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if kind == "html":
            canvas.to_html(path)
        else:
            canvas.to_gif(path, seconds_a_step=0.5)
        return {"name": name, "mime": MIMES[kind]}, path.read_bytes()
