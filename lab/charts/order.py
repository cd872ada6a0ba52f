"""The order of thought: when each position settled, how often the sampler changed its mind, how far it still had to go.

    settling(trace)                     # settling step against position, with Kendall's τ
    remelts(trace)                      # where and how often tokens were taken back
    convergence(trace)                  # distance to the final distribution and fraction settled, step by step
    order_by_kind({"json": [trace, …]}) # τ of many runs

A position has *settled* at the pass from which its best guess no longer changes. What lies behind the end of the text
and what was pinned is left out. In autoregression a position settles when it is written, so τ is 1.

τ is Kendall's τ-b of position and settling pass (1: left to right, −1: right to left, 0: no order), which allows for
ties; many positions settle in the same pass, so how many do is said beside it (cf. arXiv 2606.14620).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError, check_kind
from dgemma_core.files.trace import Trace
from dgemma_lab import theme
from dgemma_lab.frontend.text import visible
from dgemma_lab.given import check_trace, listed
from dgemma_lab.theme import Figure


@dataclass(frozen=True)
class Order:
    """The settling of one canvas: positions that belong to the text and were free, in order."""

    canvas: int
    positions: NDArray[np.int64]  # in the answer
    settled: NDArray[np.int64]  # pass of the canvas, from 1
    passes: int
    tau: float  # nan where there is no order to speak of

    @property
    def tied(self) -> NDArray[np.bool_]:
        """Positions that settled in the same pass as another."""
        _, inverse, counts = np.unique(self.settled, return_inverse=True, return_counts=True)
        return counts[inverse] > 1


def orders(trace: Trace) -> list[Order]:
    """The order of each canvas; in autoregression of the answer as a whole."""
    check_trace(trace)
    found = []
    for canvas, settled in trace.settled_step().items():
        kept = _kept(trace, canvas)
        passes = trace.passes_of(canvas)
        if trace.token_by_token:
            positions, when = np.arange(len(trace)), settled.astype(np.int64) + 1
            kept = kept & (positions < len(trace.ids))
        else:
            positions = canvas * trace.canvas_length + np.arange(len(settled))
            when = settled.astype(np.int64) - trace.step[passes.start] + 1
        when, positions = when[kept], positions[kept]
        found.append(Order(canvas, positions, when, len(passes), kendall(positions, when)))
    return found


def kendall(positions: NDArray[np.int64], settled: NDArray[np.int64]) -> float:
    """Kendall's τ-b; nan for fewer than two positions, or if all settled at once."""
    from scipy.stats import kendalltau

    if len(positions) < 2 or len(np.unique(settled)) < 2:
        return float("nan")
    return float(kendalltau(positions, settled).statistic)


def _kept(trace: Trace, canvas: int) -> NDArray[np.bool_]:
    """(C,) the positions of a canvas that were free and belong to the text; (R,) all in autoregression."""
    if trace.token_by_token:
        return np.ones(len(trace), np.bool_)
    last = trace.passes_of(canvas).stop - 1
    cut = slice(int(trace.offsets[last]), int(trace.offsets[last + 1]))
    return ~trace.after_eos()[cut] & ~trace.pinned[cut]


def settling(trace: Trace) -> Figure:
    """Settling pass against position, a canvas after the other; rings are ties, and a line joins them."""
    found = orders(trace)
    if not found:
        raise DgemmaError("the trace has no pass: nothing has settled")
    figure = Figure()
    shown = {False, True}
    for order in found:
        final = _final_tokens(trace, order)
        for tied in (False, True):
            of = order.tied == tied
            if not of.any():
                continue
            figure.add_scatter(
                x=order.positions[of], y=order.settled[of], mode="markers", legendgroup=str(tied),
                name="tied with others" if tied else "alone in its pass", showlegend=tied in shown,
                marker={"color": theme.BLUE, "size": 9, "symbol": "circle-open" if tied else "circle",
                        "line": {"width": 2, "color": theme.BLUE}},
                customdata=np.array(final, dtype=object)[of],
                hovertemplate="“%{customdata}” at position %{x}<br>settled in pass %{y}<extra></extra>",
            )  # fmt: skip
            shown.discard(tied)
        for when in np.unique(order.settled[order.tied]):
            same = order.positions[order.settled == when]
            figure.add_shape(
                type="line", x0=same.min(), x1=same.max(), y0=when, y1=when, layer="below",
                line={"color": theme.BLUE, "width": 1, "dash": "dot"}, opacity=0.5,
            )  # fmt: skip
        if order is not found[0] and len(order.positions):
            edge = float(order.positions.min()) - 0.5
            figure.add_vline(x=edge, line={"color": theme.GREY, "dash": "dash", "width": 1})
    names = [f"canvas {order.canvas + 1}: " if len(found) > 1 else "" for order in found]
    taus = [
        f"{name}τ = {order.tau:.2f}" if order.tau == order.tau else f"{name}τ undefined"
        for name, order in zip(names, found, strict=True)
    ]
    ties = sum(int(order.tied.sum()) for order in found)
    count = sum(len(order.positions) for order in found)
    figure.update_layout(
        title=theme.titled(
            "When each position settled",
            f"{', '.join(taus)}; {ties} of {count} positions are tied with another",
        ),
        xaxis={"title": "position in the answer"},
        yaxis={
            "title": "pass in which it settled",
            "rangemode": "tozero",
            **theme.whole(max((order.settled.max(initial=0) for order in found), default=0)),
        },
    )
    return figure


def _final_tokens(trace: Trace, order: Order) -> list[str]:
    if trace.token_by_token:
        return [visible(trace.text(token), 16) for token in trace.tokens_out[order.positions]]
    final = trace.rows("argmax", order.canvas)[-1]
    return [visible(trace.text(final[at % trace.canvas_length]), 16) for at in order.positions]


def remelt_counts(trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R,) positions re-melted at each pass, and how often each answer position was, from position 0 on."""
    check_trace(trace)
    melted = trace.remelted()
    sums = np.concatenate([[0], np.cumsum(melted)])
    positions = trace.positions()[melted]
    reach = int(trace.positions().max(initial=-1)) + 1
    return np.diff(sums[trace.offsets]), np.bincount(positions, minlength=reach)


def remelts(trace: Trace) -> Figure:
    """How often tokens that had been accepted were taken back: pass by pass, and position by position."""
    by_pass, by_position = remelt_counts(trace)
    figure = theme.panels(1, 2, ["in each pass", "at each position"], horizontal_spacing=0.1)
    figure.add_bar(
        x=np.arange(1, len(by_pass) + 1), y=by_pass, marker_color=theme.VERMILION, row=1, col=1,
        hovertemplate="pass %{x}: %{y} re-melted<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=np.arange(len(by_position)), y=by_position, marker_color=theme.VERMILION, row=1, col=2,
        hovertemplate="position %{x}: %{y} times<extra></extra>",
    )  # fmt: skip
    most = max(by_pass.max(initial=0), by_position.max(initial=0))
    figure.update_yaxes(rangemode="tozero", **theme.whole(most))
    figure.update_xaxes(title="pass", row=1, col=1)
    figure.update_xaxes(title="position in the answer", row=1, col=2)
    times = int(by_pass.sum())
    figure.update_layout(
        title=f"Re-melted: a token was taken back {times} time{'s' * (times != 1)}",
        showlegend=False,
        height=320,
    )
    return figure


def divergence(trace: Trace, canvas: int = 0) -> NDArray[np.float64]:
    """(S, C) KL(final ‖ pass) of each position in nats, over the recorded top-k plus one rest; at least that much.

    Final is the distribution of the canvas's last pass. A token of the final top-k that a pass does not list is given
    the most that it can have had there, the pass's smallest listed probability or its whole rest, if less: so each
    value is a lower bound, and exact where both list the same tokens. Needs `Observe(top_k=…)`.
    """
    ids = trace.rows("top_ids", canvas)  # (S, C, k)
    p = trace.rows("top_probabilities", canvas).astype(np.float64)
    if np.any(ids < 0):
        raise DgemmaError(
            "some passes of this canvas were not observed: record the run with Observe(top_k=…) throughout"
        )
    final_ids, final = ids[-1], p[-1]  # (C, k)
    rest = np.clip(1 - p.sum(-1), 0.0, None)  # (S, C)
    same = final_ids[None, :, :, None] == ids[:, :, None, :]  # (S, C, k of final, k of pass)
    listed = same.any(-1)
    least = np.minimum(p.min(-1), rest)[..., None]
    q = np.where(listed, (same * p[:, :, None, :]).sum(-1), least)
    terms = _information(final[None], q).sum(-1) + _information(rest[-1][None], rest)
    return np.clip(terms, 0.0, None)


def _information(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """p · log(p / q), 0 where p is 0; float32's least stands for a q of 0, as it was rounded to there."""
    p, q = np.broadcast_arrays(p, q)
    q = np.maximum(q, np.finfo(np.float32).smallest_subnormal)
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / q), 0.0)


def settled_fraction(trace: Trace, canvas: int = 0) -> NDArray[np.float64]:
    """(S,) the share of a canvas's free text positions that have settled by each pass."""
    kept = _kept(trace, canvas)
    passes = trace.passes_of(canvas)
    when = (trace.settled_step()[canvas] - trace.step[passes.start])[kept]
    return np.array([(when <= s).mean() if len(when) else 1.0 for s in range(len(passes))])


def convergence(trace: Trace, canvas: int = 0) -> Figure:
    """Pass by pass: how far the predictions are from the final ones, and how much of the canvas has settled."""
    check_trace(trace)
    if trace.token_by_token:
        raise DgemmaError("a run that writes tokens predicts each position once: nothing converges")
    kept = _kept(trace, canvas)
    if not kept.any():
        raise DgemmaError(
            f"canvas {canvas} has no free position that belongs to the text: nothing converges"
        )
    distance = divergence(trace, canvas)[:, kept]
    steps = np.arange(1, len(distance) + 1)
    figure = theme.panels(
        1, 2, ["KL(final ‖ pass), nats", "share of positions"], horizontal_spacing=0.1
    )
    low, high = np.quantile(distance, [0.1, 0.9], axis=1)
    panel = {"row": 1, "col": 1}
    theme.band(figure, steps, low, high, "10–90 % of positions", colour=theme.FAINT_BLUE, **panel)
    figure.add_scatter(
        x=steps, y=distance.mean(axis=1), mode="lines+markers", name="mean", line={"color": theme.BLUE},
        marker={"size": 5}, hovertemplate="pass %{x}: %{y:.3g} nats<extra></extra>", **panel,
    )  # fmt: skip
    accepted = trace.rows("accepted", canvas)[:, kept].mean(axis=1)
    figure.add_scatter(
        x=steps, y=settled_fraction(trace, canvas), mode="lines", name="settled", row=1, col=2,
        line={"color": theme.GREEN, "shape": "hv", "width": 3},
        hovertemplate="pass %{x}: %{y:.0%} settled<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=steps, y=accepted, mode="lines", name="accepted", row=1, col=2,
        line={"color": theme.VERMILION, "dash": "dot", "shape": "hv"},
        hovertemplate="pass %{x}: %{y:.0%} accepted<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1.04], tickformat=".0%", row=1, col=2)
    figure.update_xaxes(title="pass", **theme.whole(len(steps)))
    figure.update_layout(title=f"Convergence of canvas {canvas + 1}", height=340)
    return figure


def order_by_kind(traces: Mapping[str, Sequence[Trace]]) -> Figure:
    """τ of many runs, a row a kind of prompt: every canvas a point, a bar at the mean. Undefined ones are left out."""
    check_kind("traces", traces, Mapping, "kinds of prompt with the traces of each")
    traces = {kind: listed(f"traces of {kind}", runs, "traces") for kind, runs in traces.items()}
    figure = Figure()
    rows = list(traces)
    rng = np.random.default_rng(0)
    for row, kind in enumerate(rows):
        taus = np.array([order.tau for trace in traces[kind] for order in orders(trace)])
        known = taus[~np.isnan(taus)]
        if not len(known):
            continue
        figure.add_scatter(
            x=known, y=row + rng.uniform(-0.18, 0.18, len(known)), mode="markers", showlegend=False,
            marker={"color": theme.BLUE, "size": 7, "opacity": 0.65},
            hovertemplate=f"{kind}: τ = %{{x:.2f}}<extra></extra>",
        )  # fmt: skip
        mean = float(known.mean())
        figure.add_shape(
            type="line",
            x0=mean,
            x1=mean,
            y0=row - 0.33,
            y1=row + 0.33,
            line={"color": theme.VERMILION, "width": 3},
        )
        figure.add_annotation(
            x=1.08, y=row, text=f"mean {mean:.2f} of {len(known)}", showarrow=False, xanchor="left",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": theme.GREY, "width": 1})
    figure.update_layout(
        title="Order of settling, Kendall's τ with position",
        xaxis={
            "title": "τ   (−1 right to left · 0 no order · 1 left to right)",
            "range": [-1.08, 1.5],
            "tickvals": [-1, -0.5, 0, 0.5, 1],
        },
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": rows,
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        height=150 + 56 * len(rows),
    )
    return figure
