"""Inside the model: which experts a canvas goes to, what self-conditioning carries over, where a token looks.

    expert_load(trace), experts_touched(trace)     # recorded with Observe(router=True)
    self_conditioning(trace, step)                 # Observe(top_k=…)
    attention(trace, step)                         # Observe(attention_positions=…)

A `step` is a pass of the run, 1 … passes, as the canvas's scrubber counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError, whole_number
from dgemma_core.files.trace import Trace
from dgemma_lab import theme
from dgemma_lab.frontend.text import visible
from dgemma_lab.given import check_trace, step_of
from dgemma_lab.theme import Figure


def expert_weights(trace: Trace) -> NDArray[np.float64]:
    """(R, layers, E): the share of a pass's router weight that each expert got; sums to 1 over the experts."""
    check_trace(trace)
    if trace.router_ids is None or trace.router_weights is None:
        raise DgemmaError(
            "the routers were not observed in this run: record it with Observe(router=True)"
        )
    experts = trace.metadata.get("num_experts")
    if experts is None:
        raise DgemmaError(
            "the trace does not say how many experts there are: set metadata['num_experts']"
        )
    _, layers, _ = trace.router_ids.shape
    shares = np.zeros((len(trace), layers, int(experts)))
    for r, (start, stop) in enumerate(zip(trace.offsets, trace.offsets[1:], strict=False)):
        ids, weights = trace.router_ids[start:stop], trace.router_weights[start:stop]
        if ids.size and ids.min() < 0:
            raise DgemmaError(
                f"pass {r + 1} was not observed: record the whole run with Observe(router=True)"
            )
        for layer in range(layers):
            shares[r, layer] = np.bincount(
                ids[:, layer].ravel(), weights[:, layer].ravel(), minlength=int(experts)
            )
    return shares / np.maximum(shares.sum(-1, keepdims=True), 1e-30)


def touched(trace: Trace) -> NDArray[np.int64]:
    """(R, layers): the number of experts that at least one position of a pass goes to."""
    return (expert_weights(trace) > 0).sum(-1)


def balance(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, E) shares → (…): experts that an even load of the same unevenness would use, exp of the entropy, 1 … E."""
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.exp(-(shares * logs).sum(-1))


def expert_load(trace: Trace, step: int | None = None) -> Figure:
    """How the router weight spreads over the experts of each layer: of one step, or of the whole run."""
    shares = expert_weights(trace)
    part = shares.mean(0) if step is None else shares[step_of(trace, step) - 1]
    layers, experts = part.shape
    figure = theme.panels(
        1, 2, ["share of the router weight, 1 = even", "even experts"], column_widths=[0.8, 0.2], shared_yaxes=True,
        horizontal_spacing=0.04,
    )  # fmt: skip
    names = [str(layer) for layer in range(layers)]
    figure.add_heatmap(
        z=part * experts, x=np.arange(experts), y=names, coloraxis="coloraxis", row=1, col=1, xgap=1, ygap=1,
        hovertemplate="layer %{y}, expert %{x}: %{z:.2f} × even<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        y=names, x=balance(part), orientation="h", marker_color=theme.BLUE, row=1, col=2, showlegend=False,
        hovertemplate="layer %{y}: as many as %{x:.1f} evenly used<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", title="layer", showgrid=False, row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    figure.update_xaxes(title="expert", showgrid=False, **theme.whole(experts), row=1, col=1)
    figure.update_xaxes(title=f"of {experts}", range=[0, experts], row=1, col=2)
    figure.update_layout(
        title="Experts of the whole run" if step is None else f"Experts at step {step}",
        height=170 + max(28 * layers, 120),
        coloraxis={
            "cmin": 0,
            "colorbar": {"x": -0.12, "xanchor": "right", "thickness": 10, "len": 0.9},
        },
    )
    return figure


def experts_touched(trace: Trace) -> Figure:
    """How many experts each pass reads, layer by layer; an autoregressive step reads only its K."""
    counts, shares = touched(trace), expert_weights(trace)
    assert trace.router_ids is not None
    experts, chosen = shares.shape[-1], trace.router_ids.shape[-1]
    steps = np.arange(1, len(trace) + 1)
    figure = theme.panels(
        1, 2, ["experts touched, a layer", "evenly used experts, a layer"], horizontal_spacing=0.1
    )
    for column, values, colour in ((1, counts, theme.BLUE), (2, balance(shares), theme.GREEN)):
        theme.band(
            figure, steps, values.min(1), values.max(1), "least to most of a layer",
            colour=theme.FAINT_GREY, showlegend=column == 1, row=1, col=column,
        )  # fmt: skip
        figure.add_scatter(
            x=steps, y=values.mean(1), mode="lines+markers", line={"color": colour}, marker={"size": 5},
            name="mean", showlegend=False, row=1, col=column,
            hovertemplate="step %{x}: %{y:.1f}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(
        y=chosen, line={"color": theme.VERMILION, "dash": "dash", "width": 2}, row=1, col=1,
        annotation={"text": f"one token: {chosen}", "font": {"color": theme.VERMILION}},
        annotation_position="bottom left",
    )  # fmt: skip
    figure.update_yaxes(range=[0, experts * 1.05])
    figure.update_xaxes(title="step", **theme.whole(len(trace)))
    figure.update_layout(
        title=f"A canvas of {trace.canvas_length} tokens and {experts} experts a layer", height=340
    )
    return figure


def self_conditioning(trace: Trace, step: int, *, most: int = 40) -> Figure:
    """What a step hands to the next as its soft embedding: each position's best tokens, and the rest of the mass.

    At most `most` positions are drawn, the least sure ones, in their order.
    """
    check_trace(trace)
    row, most = step_of(trace, step) - 1, whole_number("most", most, low=1)
    if trace.top_ids is None or trace.top_probabilities is None:
        raise DgemmaError(
            "no alternatives were observed in this run: record it with Observe(top_k=…)"
        )
    cut = slice(int(trace.offsets[row]), int(trace.offsets[row + 1]))
    ids, p = trace.top_ids[cut], trace.top_probabilities[cut].astype(np.float64)
    if ids.min(initial=0) < 0:
        raise DgemmaError(
            f"step {step} was not observed: record the whole run with Observe(top_k=…)"
        )
    positions = trace.positions()[cut]
    drawn = np.sort(np.argsort(p[:, 0], kind="stable")[:most])
    figure = Figure()
    shades = np.linspace(1.0, 0.25, ids.shape[1])
    for k in range(ids.shape[1]):
        texts = [visible(trace.text(token), 10) for token in ids[drawn, k]]
        figure.add_bar(
            y=p[drawn, k], x=np.arange(len(drawn)), name=f"{k + 1}.", showlegend=False,
            marker={"color": theme.BLUE, "opacity": float(shades[k]), "line": {"width": 1, "color": theme.GRID}},
            text=[text if share > 0.09 else "" for text, share in zip(texts, p[drawn, k], strict=True)],
            textposition="inside", insidetextanchor="middle", textangle=0,
            textfont={"color": "white" if shades[k] > 0.7 else theme.INK, "size": 11, "family": "monospace"},
            customdata=np.array(list(zip(texts, positions[drawn].tolist(), strict=True)), dtype=object),
            hovertemplate="“%{customdata[0]}” at position %{customdata[1]}: %{y:.1%}<extra></extra>",
        )  # fmt: skip
    rest = np.clip(1 - p[drawn].sum(1), 0, None)
    figure.add_bar(
        y=rest, x=np.arange(len(drawn)), name="all other tokens", marker={"color": theme.GREY, "opacity": 0.35},
        hovertemplate="all others: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    carried = p[:, : min(8, p.shape[1])].sum(1).mean()
    figure.update_layout(
        title=theme.titled(
            f"What step {step} carries over",
            f"the best {min(8, p.shape[1])} tokens hold {carried:.0%} of the mass on average"
            + f"; the {len(drawn)} least sure of {len(p)} positions" * (len(drawn) < len(p)),
        ),
        barmode="stack",
        bargap=0.08,
        xaxis={"title": "position in the answer", "showgrid": False,
               "tickvals": list(range(len(drawn))), "ticktext": [str(at) for at in positions[drawn]]},
        yaxis={"title": "probability", "range": [0, 1.0], "tickformat": ".0%"},
    )  # fmt: skip
    return figure


def observed_attention(
    trace: Trace, step: int, position: int | None
) -> tuple[int, int, NDArray[np.float32]]:
    """The row of a step, the observed place, its attention (layers, P + C), mean over heads. DgemmaError: unseen."""
    check_trace(trace)
    row = step_of(trace, step) - 1
    observed = [int(at) for at in trace.metadata.get("attention_positions", ())]
    if trace.attention is None or not observed:
        raise DgemmaError(
            "no attention was observed in this run: record it with Observe(attention_positions=…)"
        )
    place = observed[0] if position is None else whole_number("position", position)
    if place not in observed:
        raise DgemmaError(f"attention of position {place} was not observed, only of {observed}")
    if trace.attention[row].size == 0:
        raise DgemmaError(
            f"step {step} was not observed: record the whole run with Observe(attention_positions=…)"
        )
    weights: NDArray[np.float32] = trace.attention[row][:, observed.index(place)].mean(1)
    return row, place, weights


def attention(trace: Trace, step: int, position: int | None = None) -> Figure:
    """Where one canvas position looks at a step: layer by layer (mean over heads), over the prefix and the canvas.

    position: an observed place on the canvas, the first of them if None.
    """
    row, place, weights = observed_attention(trace, step, position)
    texts, prefix = seen(trace, row, weights.shape[1])
    layers, count = weights.shape
    figure = theme.panels(2, 1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.3, 0.7])
    columns = np.arange(count)
    where = ["prefix" if at < prefix else f"canvas {at - prefix}" for at in range(count)]
    named = [[texts[at], where[at]] for at in range(count)]
    figure.add_bar(
        x=columns, y=weights.mean(0), marker_color=[theme.GREY if at < prefix else theme.BLUE for at in range(count)],
        customdata=named, hovertemplate="“%{customdata[0]}” (%{customdata[1]}): %{y:.1%}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    figure.add_heatmap(
        z=weights, x=columns, y=[str(layer) for layer in range(layers)], coloraxis="coloraxis",
        customdata=[named] * layers, row=2, col=1,
        hovertemplate="layer %{y}: %{z:.1%} to “%{customdata[0]}” (%{customdata[1]})<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=prefix - 0.5, line={"color": theme.VERMILION, "width": 2})
    figure.add_annotation(
        x=prefix - 0.7,
        xref="x",
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="right",
        text="before",
        showarrow=False,
    )
    figure.add_annotation(
        x=prefix - 0.3,
        xref="x",
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left",
        text="canvas",
        showarrow=False,
    )
    figure.update_yaxes(tickformat=".0%", title="mean", row=1, col=1)
    figure.update_yaxes(title="layer", autorange="reversed", showgrid=False, row=2, col=1)
    if count <= 80:
        figure.update_xaxes(
            tickvals=columns,
            ticktext=texts,
            tickangle=-60,
            tickfont={"size": 10, "family": "monospace"},
            row=2,
            col=1,
        )
    else:
        figure.update_xaxes(title="token", row=2, col=1)
    at = prefix + place
    figure.update_layout(
        title=theme.titled(
            f"Where “{texts[at]}” looks",
            f"place {place} of canvas {trace.canvas[row] + 1} at step {step}, "
            f"{weights[:, :prefix].sum() / layers:.0%} of its attention to what is before the canvas",
        ),
        height=260 + 22 * layers + 60, showlegend=False,
        coloraxis={"cmin": 0, "colorbar": {"thickness": 10, "tickformat": ".0%", "y": 0.32, "len": 0.7}},
    )  # fmt: skip
    return figure


def seen(trace: Trace, row: int, count: int) -> tuple[list[str], int]:
    """The texts of what a pass can see, prefix then canvas, and the length of the prefix."""
    canvas = int(trace.canvas[row])
    cut = slice(int(trace.offsets[row]), int(trace.offsets[row + 1]))
    before = [
        token
        for commit in trace.commits
        if commit.canvas < canvas
        for token in commit.ids[: commit.kept].tolist()
    ]
    ids = [*trace.prompt_ids.tolist(), *before, *trace.tokens_in[cut].tolist()]
    if len(ids) != count:
        raise DgemmaError(
            f"the pass attends to {count} tokens, the trace knows {len(ids)}: was its prompt cut?"
        )
    return [visible(trace.text(token), 10) for token in ids], count - (cut.stop - cut.start)
