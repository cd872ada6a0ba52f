"""The roofline of this machine, and where diffusion pays on it.

    machine = measure(loaded)          # a few seconds on a small model: rates and step times, at several batch sizes
    roofline(machine)                  # work done against work done a byte, under what the machine can do
    break_even(machine, tokens_per_forward=5.2)

A denoising step computes a whole canvas, an autoregressive step one token a row. Where the time goes into reading
weights the canvas comes nearly free; where it goes into arithmetic it costs what it weighs. So diffusion pays while a
denoising step keeps more tokens than it takes autoregressive steps of time: that number is the break-even.
Step times are end to end: model, vocabulary head, sampler and loop, at one prompt length.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError, check_kind, finite_number, whole_number
from dgemma_core.events import Event, StepEvent, TokenEvent
from dgemma_core.facts.cost import experts_touched, work
from dgemma_core.facts.machine import BUSY, Watch
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.generation import Prompt, prompt_ids
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import StopRule
from dgemma_lab import theme
from dgemma_lab.given import whole_numbers
from dgemma_lab.theme import Figure


@dataclass(frozen=True)
class Published:
    """A claim of others, for comparison (spec §7: seen through summaries of arXiv 2608.00146)."""

    where: str = "H100, FP8, 26B"
    steps_ratio: float = 3.2  # one denoising step in autoregressive steps, at batch 1
    tokens_per_forward: float = 19.7  # mean of 7 benchmarks
    overtaken_at: int = 32  # requests at a time from which autoregression has more throughput


PUBLISHED = Published()


def check_published(published: Any) -> None:
    """Raises RequestError for what is neither a claim of others nor None."""
    check_kind("published", published, Published | None, "a Published, or None to leave it out")


@dataclass(frozen=True)
class StepCost:
    """One step of a batch. bytes are read at least: weights that are needed, keys and values of the prefix."""

    batch: int
    tokens: int  # computed: rows in autoregression, rows · canvas length in diffusion
    seconds: float
    flops: float
    bytes: float
    times: tuple[
        float, ...
    ] = ()  # of each round in which the two kinds took turns; `seconds` is their median

    @property
    def rate(self) -> float:
        """FLOP/s attained."""
        return self.flops / self.seconds

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Machine:
    """What was measured here: rates of the machine, and the two kinds of step at rising batch sizes."""

    name: str
    model: str
    dtype: str
    bandwidth: float  # bytes/s, copying
    matrix_rate: float  # FLOP/s, large matrix products
    prefix: int  # tokens of the prompt
    token_steps: tuple[StepCost, ...]
    canvas_steps: tuple[StepCost, ...]
    others: float = 0.0  # share of the cores that other programs used meanwhile

    def break_even(self) -> tuple[float, ...]:
        """A denoising step in autoregressive steps, batch size by batch size: the tokens it must keep to pay."""
        return tuple(
            canvas.seconds / token.seconds
            for canvas, token in zip(self.canvas_steps, self.token_steps, strict=True)
        )

    def break_even_range(self) -> tuple[tuple[float, float], ...]:
        """Least and greatest break-even of the rounds, batch size by batch size."""
        found = []
        for canvas, token, middle in zip(
            self.canvas_steps, self.token_steps, self.break_even(), strict=True
        ):
            ratios = [c / t for c, t in zip(canvas.times, token.times, strict=True)] or [middle]
            found.append((min(*ratios, middle), max(*ratios, middle)))
        return tuple(found)

    def warning(self) -> str:
        """What to say where other programs were in the way; "" where none was."""
        if self.others <= BUSY:
            return ""
        return f"other programs used {self.others:.0%} of the machine: measure again when it is at rest"


def measure(
    loaded: Loaded,
    prompt: Prompt = "Sort ascending:\n3,1,2",
    *,
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    passes: int = 4,
    rounds: int = 5,
    raw: bool = False,
) -> Machine:
    """Times this machine and this model: at each batch size the two kinds of step take turns, `rounds` times.

    A round times `passes` of each kind after two to warm up, and takes their median. All takes about
    rounds · (passes + 2) · sum(batches) denoising steps of one row.
    """
    check_loaded(loaded)
    batches = whole_numbers("batches", batches, low=1)
    if not batches:
        raise RequestError("measure needs at least one batch size")
    passes, rounds = whole_number("passes", passes, low=2), whole_number("rounds", rounds, low=1)
    model, config = loaded.model, loaded.model.config
    ids = prompt_ids(loaded, prompt, raw=raw)
    touched = _experts_touched(loaded, ids)
    token_steps, canvas_steps = [], []
    watch = Watch()
    for batch in batches:
        times = [_round(model, ids, batch, passes) for _ in range(rounds)]
        tokens, canvases = zip(*times, strict=True)
        spread = experts_touched(config.text, batch)
        token_steps.append(_cost(model, batch, 1, len(ids), tokens, spread))
        experts = max(touched, spread)
        canvas_steps.append(_cost(model, batch, config.canvas_length, len(ids), canvases, experts))
    others = watch.others()
    return Machine(
        name=_machine_name(model.device),
        model=loaded.name,
        dtype=_form(model),
        bandwidth=_bandwidth(model.device),
        matrix_rate=_matrix_rate(model.device, model.dtype),
        prefix=len(ids),
        token_steps=tuple(token_steps),
        canvas_steps=tuple(canvas_steps),
        others=others,
    )


def _round(
    model: DiffusionGemma, ids: Sequence[int], batch: int, passes: int
) -> tuple[float, float]:
    """Seconds of an autoregressive and of a denoising step of a batch, one measured right after the other."""
    requests = [
        Request(ids, seed=seed, max_new_tokens=passes + 3, id=seed) for seed in range(batch)
    ]
    tokens = decode_tokens(model, requests, batch_size=batch, eos=(), temperature=1.0)
    # Every pass is made, the test of the stop rule included.
    never = StopRule(stability=1, confidence=1e-300)
    canvases = denoise_canvases(
        model, requests, batch_size=batch, steps=passes + 3, stop_rule=never, eos=()
    )
    return (
        _pass_seconds(tokens, TokenEvent, batch, passes),
        _pass_seconds(canvases, StepEvent, batch, passes),
    )


def _pass_seconds(events: Iterator[Event], kind: type, batch: int, passes: int) -> float:
    """The median time of a pass over `batch` rows, the first two left out."""
    times: list[float] = []
    rows = 0
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if not isinstance(event, kind):
                continue
            if rows % batch == 0:
                times.append(_now(event))
                if len(times) == passes + 3:
                    break
            rows += 1
    return statistics.median(np.diff(times[2:]).tolist())


def _now(event: Event) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _experts_touched(loaded: Loaded, ids: Sequence[int]) -> float:
    """Experts a layer that one denoising step goes to, measured over a few steps of one row."""
    counts = []
    events = denoise_canvases(
        loaded.model, [Request(list(ids))], steps=4, stop_rule=None, observe=Observe(router=True)
    )
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, StepEvent) and event.observed is not None:
                assert event.observed.router_ids is not None
                counts += [len(layer.unique()) for layer in event.observed.router_ids]
            if len(counts) >= 4 * len(loaded.model.config.text.layers):
                break
    return statistics.fmean(counts)


def _cost(
    model: DiffusionGemma,
    batch: int,
    length: int,
    prefix: int,
    times: Sequence[float],
    experts: float,
) -> StepCost:
    """One step over `batch` rows of `length` new tokens each, with what it took."""
    needed = work(model, prefix=prefix, tokens=length, batch=batch, touched=experts)
    seconds = statistics.median(times)
    flops, read = needed.operations, needed.bytes
    return StepCost(batch, batch * length, seconds, flops, read, tuple(times))


def _bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying a buffer much larger than any cache."""
    count = (1 << 30 if device.type == "cuda" else 1 << 27) // 4
    source, target = (torch.zeros(count, device=device) for _ in range(2))
    return 2 * source.nbytes / _best(device, lambda: target.copy_(source))


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product in the model's dtype."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(device, lambda: a @ b)


def _best(device: torch.device, work: Callable[[], Any], repeats: int = 5) -> float:
    """The least of several times: what the machine can do when nothing disturbs it."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _form(model: DiffusionGemma) -> str:
    """The dtype of a model, and how its weights lie in memory if otherwise."""
    dtype = str(model.dtype).removeprefix("torch.")
    return dtype if model.quantized is None else f"{dtype}, weights {model.quantized}"


def _machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}"


def _check_machine(machine: Any) -> None:
    check_kind("machine", machine, Machine, "a Machine, as measure(loaded) returns it")


def roofline(machine: Machine) -> Figure:
    """Attained against possible: FLOP/s over FLOP a byte, under the machine's two roofs, at every batch size."""
    _check_machine(machine)
    steps = (*machine.token_steps, *machine.canvas_steps)
    low = min(step.intensity for step in steps) / 3
    ridge = machine.matrix_rate / machine.bandwidth
    high = max(*(step.intensity for step in steps), ridge) * 3
    figure = Figure()
    figure.add_scatter(
        x=[low, ridge, high], y=[low * machine.bandwidth, machine.matrix_rate, machine.matrix_rate], mode="lines",
        name="what the machine can do", line={"color": theme.INK, "width": 2}, hoverinfo="skip",
    )  # fmt: skip
    for name, costs, colour, symbol in (
        ("autoregressive step", machine.token_steps, theme.VERMILION, "diamond"),
        ("denoising step", machine.canvas_steps, theme.BLUE, "circle"),
    ):
        batches = [c.batch for c in costs]
        figure.add_scatter(
            x=[c.intensity for c in costs], y=[c.rate for c in costs], mode="lines+markers",
            name=f"{name}, batch {', '.join(map(str, batches))} from left to right",
            line={"color": colour, "width": 1, "dash": "dot"}, marker={"size": 9, "symbol": symbol},
            customdata=[[c.batch, c.tokens, 1000 * c.seconds] for c in costs],
            hovertemplate="batch %{customdata[0]}: %{customdata[1]} tokens in %{customdata[2]:.2f} ms<br>"
            "%{y:.3s}FLOP/s at %{x:.1f} FLOP a byte<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_layout(
        title=theme.titled(
            f"Roofline of {machine.name}",
            f"{machine.model}, {machine.dtype}: {theme.si(machine.bandwidth)}B/s, "
            f"{theme.si(machine.matrix_rate)}FLOP/s, "
            f"prompt of {machine.prefix} tokens"
            + (f"<br>{machine.warning()}" if machine.warning() else ""),
        ),
        xaxis={"type": "log", "title": "arithmetic intensity, FLOP a byte", "dtick": 1},
        yaxis={"type": "log", "title": "FLOP/s", "exponentformat": "SI", "dtick": 1},
    )
    return explained(figure, entries=3)


def explained(figure: Figure, *, entries: int) -> Figure:
    """The legend as a list between title and chart, with room of its own.

    No words stand among the points, which lie wherever the machine puts them.
    """
    line, chart = 19, 310  # pixels
    head = 27 + line * figure.layout.title.text.count("<br>")
    top = head + line * entries + 14
    height = top + chart + 48
    figure.update_layout(
        height=height,
        margin={"t": top},
        legend={
            "orientation": "v", "font": {"size": 12}, "x": 0, "xanchor": "left",
            "yref": "container", "y": 1 - head / height, "yanchor": "top",
        },
    )  # fmt: skip
    return figure


def _paying(batches: Sequence[int], ranges: Sequence[tuple[float, float]], kept: float) -> str:
    """At which batch sizes diffusion pays in every round, and at which some rounds say so and others not."""
    paying = [str(at) for at, (_, high) in zip(batches, ranges, strict=True) if kept > high]
    unclear = [
        str(at) for at, (low, high) in zip(batches, ranges, strict=True) if low < kept <= high
    ]
    words = f"diffusion pays at batch {', '.join(paying)}" if paying else "diffusion does not pay"
    return words + (f", unclear at batch {', '.join(unclear)}" if unclear else "")


def break_even(
    machine: Machine,
    *,
    tokens_per_forward: float | None = None,
    published: Published | None = PUBLISHED,
) -> Figure:
    """The tokens that a denoising step must keep to match autoregression, at every batch size.

    tokens_per_forward: what this model keeps on your prompts (kept tokens / denoising steps), drawn as a level:
    diffusion pays where it lies above the break-even curve. published: others' figures beside it, or None.
    """
    _check_machine(machine)
    check_published(published)
    if tokens_per_forward is not None:
        tokens_per_forward = finite_number("tokens_per_forward", tokens_per_forward)
    batches = [step.batch for step in machine.canvas_steps]
    needed, ranges = machine.break_even(), machine.break_even_range()
    lows, highs = zip(*ranges, strict=True)
    figure = Figure()
    pairs = zip(machine.canvas_steps, machine.token_steps, strict=True)
    figure.add_scatter(
        x=batches, y=needed, mode="lines+markers", name="break-even, measured here: median and range of the rounds",
        line={"color": theme.BLUE, "width": 3}, marker={"size": 8},
        error_y={
            "symmetric": False, "thickness": 2, "width": 5, "color": theme.BLUE,
            "array": [high - middle for high, middle in zip(highs, needed, strict=True)],
            "arrayminus": [middle - low for low, middle in zip(lows, needed, strict=True)],
        },
        customdata=[[1000 * canvas.seconds, 1000 * token.seconds] for canvas, token in pairs],
        hovertemplate="batch %{x}: %{y:.1f} tokens a forward<br>%{customdata[0]:.2f} ms a denoising step, "
        "%{customdata[1]:.2f} ms an autoregressive step<extra></extra>",
    )  # fmt: skip
    ceiling, shown = [*highs], batches
    title = "Break-even: what a denoising step must keep to pay"
    verdict = f"{machine.name}, {machine.model}"
    if tokens_per_forward is not None:
        title = "Diffusion pays where the kept level lies above the break-even curve"
        figure.add_hline(
            y=tokens_per_forward, line={"color": theme.VERMILION, "dash": "dash", "width": 2},
            name=f"kept level: {tokens_per_forward:.1f} tokens a forward", showlegend=True,
        )  # fmt: skip
        ceiling.append(tokens_per_forward)
        verdict += f": {_paying(batches, ranges, tokens_per_forward)}"
    if machine.warning():
        verdict += f"<br>{machine.warning()}"
    if published is not None:
        figure.add_scatter(
            x=[1], y=[published.steps_ratio], mode="markers",
            name=f"published, not measured here ({published.where}): "
            f"a step takes {published.steps_ratio:g} autoregressive ones",
            marker={"symbol": "star", "size": 13, "color": theme.GREEN},
            hovertemplate="published, not measured here:<br>one denoising step takes %{y} autoregressive ones"
            "<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[published.overtaken_at], y=[published.tokens_per_forward], mode="markers",
            name=f"published, not measured here: at {published.tokens_per_forward:g} tokens a forward "
            f"overtaken at about {published.overtaken_at} requests",
            marker={"symbol": "hexagram", "size": 13, "color": theme.GREEN},
            hovertemplate="published, not measured here:<br>at %{y} tokens a forward autoregression overtakes at "
            "about %{x} requests<extra></extra>",
        )  # fmt: skip
        ceiling += [published.steps_ratio, published.tokens_per_forward]
        shown = sorted({*batches, published.overtaken_at})
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    figure.update_layout(
        title=theme.titled(title, verdict),
        xaxis={
            "type": "log", "title": "batch: requests at a time",
            "tickvals": shown, "ticktext": [str(batch) for batch in shown],
        },
        yaxis={
            "type": "log", "title": "tokens kept a forward",
            "tickvals": ticks, "ticktext": [str(tick) for tick in ticks],
            "range": np.log10([min(0.8, min(lows) * 0.8), max(ceiling) * 1.6]).tolist(),
        },
    )  # fmt: skip
    return explained(
        figure, entries=1 + (tokens_per_forward is not None) + 2 * (published is not None)
    )
