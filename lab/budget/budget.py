"""The entropy budget: what the entropy-bound sampler accepts at a step, and why (spec §4, arXiv 2505.24857).

    entropy_budget(trace, step=3)      # a chart of one step
    Budget(canvas)                     # the chart for the step under a canvas's scrubber, drawn in the browser

Positions stand in order of entropy. A position is accepted while the entropies *before* it sum to at most the bound:
the surest is always accepted, and the last accepted one may itself reach over the bound.
"""

from __future__ import annotations

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
from dgemma_lab import theme
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.frontend.scripts import bundled, style
from dgemma_lab.frontend.text import visible
from dgemma_lab.theme import Figure


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
    if not 1 <= step <= len(trace):
        raise DgemmaError(f"the trace has steps 1 to {len(trace)}, not {step}")
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


def entropy_budget(trace: Trace, step: int) -> Figure:
    """Sorted entropies of one step (1 … passes), their running sum, the bound, and what was accepted."""
    found, bound, words = ranking(trace, step), bound_of(trace), reasons(trace, step)
    place = np.arange(1, len(found.positions) + 1)
    texts = [visible(trace.text(token), 16) for token in found.tokens]
    floor = _floor(found.entropy)
    figure = Figure()
    for accepted, name, symbol in ((True, "accepted", "circle"), (False, "redrawn", "circle-open")):
        of = found.accepted == accepted
        colour = theme.BLUE if accepted else theme.INK
        figure.add_scatter(
            x=place[of], y=np.maximum(found.entropy[of], floor), name=f"{name} ({of.sum()})", mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}},
            customdata=[[texts[i], found.positions[i], found.entropy[i], words[i]] for i in np.flatnonzero(of)],
            hovertemplate="“%{customdata[0]}” at position %{customdata[1]}<br>%{customdata[2]:.3g} nats"
            "<br>%{customdata[3]}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=place, y=np.maximum(found.before, floor), name="sum of those before", mode="lines", hoverinfo="skip",
        line={"color": theme.VERMILION, "shape": "hvh", "width": 2},
    )  # fmt: skip
    figure.add_hline(y=max(bound, floor), line={"color": theme.GREEN, "width": 2, "dash": "dash"})
    figure.add_annotation(
        text=f"bound {bound:g} nats", font={"color": theme.GREEN}, showarrow=False, x=0, xref="paper",
        xanchor="left", y=float(np.log10(max(bound, floor))), yanchor="bottom",
    )  # fmt: skip
    top = max(float(found.before.max(initial=bound)), bound) * 3
    row = step - 1
    figure.update_layout(
        title=f"Step {step}: {int(found.accepted.sum())} of {len(place)} positions fit the budget"
        f" <span style='font-size:12px'>canvas {trace.canvas[row] + 1}, T = {trace.temperature[row]:.2f}</span>",
        xaxis={
            "title": "positions, surest first",
            "showgrid": False,
            "range": [0, len(place) + 1],
            **_texts(place, texts),
        },
        yaxis={
            "title": "nats, log scale",
            "type": "log",
            "range": np.log10([floor / 1.6, top]).tolist(),
            "dtick": 1,
            "tickformat": "~g",
        },
    )
    return figure


def _floor(entropy: NDArray[np.float32]) -> float:
    """Where the log scale begins: a power of ten near the least entropy; what is below it is drawn on it."""
    least = float(entropy.min(initial=1.0))
    return float(10 ** np.clip(np.floor(np.log10(max(least, 1e-9))), -5, -2))


def _texts(place: NDArray[np.int64], texts: list[str]) -> dict[str, Any]:
    """The tokens as labels of the axis where there is room for them."""
    if len(place) > 48:
        return {}
    return {
        "tickvals": place.tolist(),
        "ticktext": texts,
        "tickangle": -60,
        "tickfont": {"size": 11, "family": "monospace"},
    }


class Budget(anywidget.AnyWidget):
    """The budget of the step under a canvas's scrubber, without the kernel's help.

    of: a `Canvas` whose trace is complete (its `step` is linked), or a trace (then set or link `step` yourself).
    """

    _esm = bundled("budget/budget.js")
    _css = style("form/form.css", "budget/budget.css")

    step = traitlets.Int(0, min=0).tag(sync=True)
    data = traitlets.Dict().tag(sync=True)

    def __init__(self, of: Canvas | Trace) -> None:
        trace = of.trace if isinstance(of, Canvas) else of
        if trace is None:
            raise DgemmaError(
                "the canvas holds no complete trace yet: wait for the run, then ask for its budget"
            )
        self.trace = trace
        super().__init__(data=packed(trace), step=len(trace))
        if isinstance(of, Canvas):
            self.step = of.step
            self._link = ipywidgets.jslink((of, "step"), (self, "step"))

    def __repr__(self) -> str:
        return f"Budget({self.trace!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and len(self.trace):
            still = entropy_budget(self.trace, max(self.step, 1))._repr_mimebundle_()
            if "image/png" in still:
                bundle[0]["image/png"] = still["image/png"]
        return bundle


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
