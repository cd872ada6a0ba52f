"""The entropy budget: what the entropy-bound sampler accepts at a step, and why (spec §4, arXiv 2505.24857).

    Budget(trace, step=3)      # one step
    Budget(canvas)             # the step under a canvas's scrubber

Positions stand in order of entropy. A position is accepted while the entropies *before* it sum to at most the bound:
the surest is always accepted, and the last accepted one may itself reach over the bound.
"""

from __future__ import annotations

import html
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError
from dgemma_core.files.trace import Trace
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.frontend.scripts import bundled, style
from dgemma_lab.frontend.still import Still
from dgemma_lab.frontend.text import visible
from dgemma_lab.given import check_trace, step_of

ROWS_NEAR_BOUND = 4  # rows of a still on either side of the bound


@dataclass(frozen=True)
class Ranking:
    """The free positions of one pass in order of entropy, n of them."""

    positions: NDArray[np.int32]
    tokens: NDArray[np.int32]  # the sample
    entropy: NDArray[np.float32]  # nats
    before: NDArray[np.float32]  # sum of the entropies before, nats
    accepted: NDArray[np.bool_]


def bound_of(trace: Trace) -> float:
    """The entropy bound of the run, in nats; DgemmaError where another rule decided."""
    sampler = trace.metadata.get("sampler") or {}
    if sampler.get("name") != "entropy_bound":
        rule = sampler.get("name") or trace.mode
        raise DgemmaError(
            f"an entropy budget is what the entropy_bound sampler keeps; this run was {rule}"
        )
    return float(sampler["entropy_bound"])


def ranking(trace: Trace, step: int) -> Ranking:
    """The positions of pass number `step` (1 … passes, as the scrubber counts), surest first; pins are left out."""
    step = step_of(trace, step)
    cut = slice(int(trace.offsets[step - 1]), int(trace.offsets[step]))
    free = np.flatnonzero(~trace.pinned[cut])
    entropy = trace.entropy[cut][free]
    order = np.argsort(entropy, kind="stable")
    sums = np.cumsum(entropy[order], dtype=np.float32)
    return Ranking(
        positions=trace.positions()[cut][free][order],
        tokens=trace.sample[cut][free][order],
        entropy=entropy[order],
        before=sums - entropy[order],
        accepted=trace.accepted[cut][free][order],
    )


def reasons(trace: Trace, step: int) -> list[str]:
    """Why each position of `ranking` was accepted or not, in words."""
    found, bound = ranking(trace, step), bound_of(trace)
    words = []
    for place, (before, accepted) in enumerate(zip(found.before, found.accepted, strict=True)):
        if place == 0:
            words.append("accepted: the surest one always is")
        elif accepted:
            words.append(f"accepted: those before it use {before:.3g} of {bound:g} nats")
        else:
            words.append(f"redrawn: those before it use {before:.3g} nats, the bound is {bound:g}")
    return words


class Budget(Still, anywidget.AnyWidget):
    """The budget of one step, drawn in the browser; of a `Canvas`, of the step under its scrubber.

    of: a trace, or a `Canvas` whose trace is complete (then its `step` is linked, without the kernel's help).
    step: 1 … passes; −1 is the last, None the canvas's own. Raises DgemmaError where another rule decided.
    """

    _esm = bundled("budget/budget.js")
    _css = style("frontend/base.css", "form/form.css", "budget/budget.css")

    step = traitlets.Int(-1, min=-1).tag(sync=True)
    data = traitlets.Dict().tag(sync=True)

    def __init__(self, of: Canvas | Trace, step: int | None = None) -> None:
        canvas = of if isinstance(of, Canvas) else None
        trace = canvas.trace if canvas is not None else of
        if canvas is not None and trace is None:
            raise DgemmaError(
                "the canvas holds no complete trace yet: wait for the run, then ask for its budget"
            )
        check_trace(trace, "of")
        assert isinstance(trace, Trace)
        if step is not None and not (isinstance(step, int) and step == -1):
            step = step_of(trace, step)
        self.trace = trace
        if step is None:
            step = -1 if canvas is None else canvas.step
        super().__init__(data=packed(trace), step=step)
        if canvas is not None:
            self._link = ipywidgets.jslink((self, "step"), (canvas, "step"))

    def __repr__(self) -> str:
        return f"Budget({self.trace!r})"

    def still_html(self) -> str:
        """The step in view as a table: the surest positions, and those on both sides of the bound."""
        step = len(self.trace) if self.step < 0 else min(self.step, len(self.trace))
        if step == 0:
            return ""
        found, words = ranking(self.trace, step), reasons(self.trace, step)
        count, accepted = len(words), int(found.accepted.sum())
        head = f"Step {step}: {accepted} of {count} positions fit the budget of {bound_of(self.trace):g} nats"
        near = range(max(accepted - ROWS_NEAR_BOUND, 0), min(accepted + ROWS_NEAR_BOUND, count))
        rows, before = [], -1
        for i in sorted({*range(min(2, count)), *near}):
            skipped = i - before - 1
            if skipped:
                rows.append(f'<tr><td colspan="4">… {skipped} more</td></tr>')
            token = html.escape(visible(self.trace.text(found.tokens[i]), 16))
            rows.append(
                f"<tr><td>{found.positions[i]}</td><td><code>{token}</code></td>"
                f"<td>{found.entropy[i]:.3g}</td><td>{html.escape(words[i])}</td></tr>"
            )
            before = i
        if before + 1 < count:
            rows.append(f'<tr><td colspan="4">… {count - before - 1} more</td></tr>')
        return (
            f'<div style="font:13px sans-serif"><b>{head}</b><table><tr><th>position</th><th>token</th>'
            f"<th>entropy, nats</th><th>verdict</th></tr>{''.join(rows)}</table></div>"
        )


def packed(trace: Trace) -> dict[str, Any]:
    """The rankings of all passes for budget.js: json values and base64 of little-endian numbers."""
    bound = bound_of(trace)
    all_passes = [ranking(trace, step) for step in range(1, len(trace) + 1)]
    tokens = (
        np.concatenate([found.tokens for found in all_passes])
        if all_passes
        else np.zeros(0, np.int32)
    )
    occurring, local = np.unique(tokens, return_inverse=True)

    def joined(name: str, kind: str) -> str:
        parts = [getattr(found, name) for found in all_passes]
        return b64encode(np.concatenate(parts).astype(kind).tobytes()).decode() if parts else ""

    return {
        "bound": bound,
        "counts": [len(found.positions) for found in all_passes],
        "canvas": trace.canvas.tolist(),
        "temperature": [round(float(t), 4) for t in trace.temperature],
        "positions": joined("positions", "<u4"),
        "entropy": joined("entropy", "<f4"),
        "accepted": joined("accepted", "u1"),
        "tokens": b64encode(local.astype("<u4").tobytes()).decode(),
        "texts": [visible(trace.text(token), 16) for token in occurring.tolist()],
    }
