"""`dgemma bench gpu`: a denoising step of the released shape on one card, against what the card allows.

Notable:
- first the card proves itself: experts, logits, sampled ids and autoregressive ids of small models equal those of the
  CPU, or nothing is timed;
- the step and the autoregressive token are recorded CUDA graphs (`backends.cuda.graphs`); a part of the step (attention
  or experts, say) is timed as a graph of that part of all layers, so that no kernel is timed from a warm cache;
- the floor of a pass is the time to read every touched weight once at the bandwidth that a copy reaches on this card,
  or to compute its products at the rate that a large matrix product reaches, whichever is longer;
- `--device cpu` runs all of it on small shapes, for tests: such results say so and mean nothing about a GPU.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import typer
from torch import Tensor

from dgemma_core.autoregression import decode_tokens
from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.backends.cuda import fused
from dgemma_core.backends.cuda.graphs import CanvasGraph, Replay, TokenGraph
from dgemma_core.cache import PrefixCache
from dgemma_core.config import LayerConfig, ModelConfig
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import DeviceError, RequestError
from dgemma_core.events import CanvasEvent, FinishEvent
from dgemma_core.experts import ExpertMixture, Experts
from dgemma_core.layers import Layer
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from dgemma_evals.bench.gpu import public as released
from dgemma_evals.bench.gpu import shape as shapes
from dgemma_evals.bench.gpu.shape import Shape

TOKENS_PER_FORWARD = 19.7
"""Published mean of seven benchmarks (arXiv 2608.00146): tokens / (denoising steps + canvases − 1)."""
COUNTED = (
    f"tokens/s = {TOKENS_PER_FORWARD} published tokens per forward / seconds a denoising step: the published count has "
    "commits among its forwards, and each is taken to cost a step; the prompt's encoding is left out on both sides"
)
STEPS = 48


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    rounds: int = 5
    repeats: int = STEPS
    """Steps, or tokens, a round."""
    seed: int = 0
    tune: bool = True


# --- the card


def find_device(name: str) -> torch.device:
    """DeviceError where it is not there."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "no CUDA device is there: run this on a machine with an NVIDIA GPU and a CUDA build of torch, or try small "
            "shapes with --device cpu"
        )
    if device.type == "cuda" and not grouped.has_triton():
        raise DeviceError("triton is not installed: pip install triton")
    return device


def check_memory(
    config: ModelConfig, shape: Shape, tokens: int, device: torch.device, dtype: torch.dtype
) -> int:
    """Bytes that the run needs. DeviceError where the card has less."""
    needed = shapes.needed_bytes(config, shape.prefix, tokens, dtype.itemsize)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free:
            layers = max(1, int(shape.layers * (free - 4e9) / needed))
            raise DeviceError(
                f"this shape needs about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB of the card are free: "
                f"pass --layers {layers} or fewer (of {shape.layers}), or fewer --experts"
            )
    return needed


def environment(device: torch.device) -> dict[str, Any]:
    """The card, its driver, and the libraries."""
    found: dict[str, Any] = {
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": None,
    }
    if grouped.has_triton():
        from importlib.metadata import version

        found["triton"] = version("triton")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = properties.name
        found["memory_bytes"] = properties.total_memory
        found["multiprocessors"] = properties.multi_processor_count
        if tool := shutil.which("nvidia-smi"):
            asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
            found["driver"] = (
                answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None
            )
    else:
        found["note"] = "no GPU result: small shapes on a CPU, to try the command"
    return found


@contextmanager
def _clocked(device: torch.device, into: list[float], count: int) -> Iterator[None]:
    """Milliseconds of one of `count` repetitions of the block, by the device's own clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        end.synchronize()
        into.append(start.elapsed_time(end) / count)
    else:
        begun = time.perf_counter()
        yield
        into.append(1e3 * (time.perf_counter() - begun) / count)


def timed(
    device: torch.device,
    rounds: int,
    count: int,
    action: Callable[[], Any],
    begin: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Milliseconds of `action`, the mean of `count` in a row, in each of `rounds` rounds after one to warm up."""
    found: list[float] = []
    for _ in range(rounds + 1):
        begin()
        with _clocked(device, found, count):
            for _ in range(count):
                action()
    return found[1:]


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second of a copy (read and written), operations a second of a matrix product, both of random data."""
    large = device.type == "cuda"
    size = 2**30 if large else 2**24  # numbers; far above the cache on a GPU
    side = 8192 if large else 256

    def copies() -> list[float]:
        source = torch.empty(size, dtype=torch.bfloat16, device=device).normal_()
        target = torch.empty_like(source)
        return timed(device, 5, 10, lambda: target.copy_(source))

    def products() -> list[float]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return timed(device, 5, 10, lambda: torch.mm(a, b, out=out))

    return {
        "bytes_per_second": 2 * size * 2 / (statistics.median(copies()) / 1e3),
        "operations_per_second": 2 * side**3 / (statistics.median(products()) / 1e3),
    }


# --- the card proves itself


def small_config() -> ModelConfig:
    """Every part of the architecture, in sizes that a CPU runs at once and a kernel can tile."""
    config = Shape(
        layers=2, vocab=1000, width=96, dense_width=80, expert_width=48, canvas=24
    ).config()
    sliding = LayerConfig(False, num_key_value_heads=2, head_dim=32, rope_theta=1e4)
    full = LayerConfig(
        True, num_key_value_heads=1, head_dim=64, rope_theta=1e6, rotary_fraction=0.25
    )
    text = replace(
        config.text,
        num_attention_heads=4,
        num_experts=9,
        top_k_experts=3,
        sliding_window=21,
        layers=(sliding, full),
    )
    return replace(config, text=text)


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative difference, ‖found − expected‖ / ‖expected‖, from the float32 CPU path on the same weights."""


def apart(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN is infinitely far."""
    difference = found.detach().cpu().double() - expected.detach().cpu().double()
    ratio = float(difference.norm() / expected.detach().cpu().double().norm())
    return ratio if ratio == ratio else float("inf")


def _plain_experts(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    return ExpertMixture.forward(experts, x, weights, chosen)


@torch.inference_mode()
def prove(device: torch.device, *, texts: int = 4) -> dict[str, float]:
    """Experts, logits and ids of small models on the device against the CPU path.

    Returns the differences. RequestError where one is too large: then nothing may be timed.
    """
    config, found = small_config(), {}
    host = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        there = shapes.build(config, device, dtype)
        here = DiffusionGemma(config, dtype=torch.float32).requires_grad_(False)
        here.load_state_dict(
            {name: value.to(host, torch.float32) for name, value in there.state_dict().items()}
        )
        generator = torch.Generator().manual_seed(1)
        own, theirs = cast(Layer, here.layers[0]).experts, cast(Layer, there.layers[0]).experts
        worst = 0.0
        for tokens in (1, 5, 200):
            x = torch.randn(tokens, 96, generator=generator).to(dtype)
            chosen = torch.rand(tokens, 9, generator=generator).topk(3).indices
            weights = torch.rand(tokens, 3, generator=generator)
            expected = _plain_experts(own, x.float(), weights, chosen)
            mixed = (
                grouped.outputs(theirs, x.to(device), weights.to(device), chosen.to(device))
                .float()
                .sum(1)
            )
            worst = max(worst, apart(mixed, expected))
        found[f"experts, {kind}"] = worst
        worst = 0.0
        for prefix in (3, 50):  # inside and outside the window
            ids = torch.randint(0, 1000, (1, prefix), generator=generator)
            graph = CanvasGraph(there, prefix + 24, steps=2)
            graph.begin(there.encode(ids), seed=prefix)
            expected = here.logits(here.denoise(graph.canvas.to(host), here.encode(ids)))[0]
            worst = max(worst, apart(there.logits(graph.hidden()), expected))
        found[f"logits, {kind}"] = worst
        if dtype == torch.float32:
            found |= _same_ids(here, there, texts)
    for what, difference in found.items():
        allowed = (
            0.0
            if what.startswith("ids")
            else TOLERANCE[torch.bfloat16 if "bfloat16" in what else torch.float32]
        )
        if not difference <= allowed:
            raise RequestError(
                f"{device.type} differs from the CPU path in {what} ({difference:.2g}, allowed {allowed:.2g}): "
                "nothing is timed"
            )
    return found


def _same_ids(here: DiffusionGemma, there: DiffusionGemma, texts: int) -> dict[str, float]:
    """Share of ids that differ between the loops on the CPU and the graphs on the device; float32."""
    generator = torch.Generator().manual_seed(2)
    length, most = here.config.canvas_length, 12
    denoiser = CanvasGraph(there, 30 + length, steps=6)
    writer = TokenGraph(there, 30 + most, most=most)
    different = {"ids, diffusion": 0, "ids, autoregression": 0}
    for seed in range(texts):
        ids = torch.randint(0, 1000, (5 + 6 * seed % 26,), generator=generator).tolist()
        request = Request(ids, seed=seed, max_new_tokens=length)
        canvases = [
            e
            for e in denoise_canvases(here, [request], steps=6, eos=())
            if isinstance(e, CanvasEvent)
        ]
        denoiser.begin(there.encode([ids]), seed=seed)
        different["ids, diffusion"] += denoiser.run().argmax.tolist() != list(canvases[0].ids)
        request = replace(request, max_new_tokens=most)
        ends = [e for e in decode_tokens(here, [request], eos=()) if isinstance(e, FinishEvent)]
        writer.begin(there.encode([ids]))
        different["ids, autoregression"] += writer.run() != list(ends[0].ids)
    return {what: count / texts for what, count in different.items()}


# --- what is measured


def tune(model: DiffusionGemma, device: torch.device, tokens: int) -> dict[str, Any]:
    """Tries the tiles of the experts' products for this card and keeps the quickest, over the weights of all layers."""
    layers = cast("list[Layer]", list(model.layers))
    width, k = model.config.text.hidden_size, model.config.text.top_k_experts
    kept: dict[str, Any] = {}
    for size, count in (("few", 1), ("many", tokens)):
        if size == "many" and count * k <= grouped.FEW:
            continue
        x = torch.randn(count, width, device=device).to(model.dtype)
        scores = torch.rand(len(layers), count, model.config.text.num_experts, device=device)
        chosen = scores.topk(k).indices.int()
        weights = torch.full((count, k), 1 / k, device=device)

        def run(x: Tensor = x, weights: Tensor = weights, chosen: Tensor = chosen) -> None:
            for layer, which in zip(layers, chosen, strict=True):
                grouped.outputs(layer.experts, x, weights, which)

        for part in ("in", "out"):
            usual = grouped.TILES[part, size]
            times: dict[grouped.Tile, float] = {}
            for tile in dict.fromkeys([usual, *grouped.CANDIDATES[size]]):
                grouped.TILES[part, size] = tile
                try:
                    times[tile] = statistics.median(timed(device, 3, 3, Replay(run, device)))
                except Exception as error:  # a tile that this card has no room for
                    if "OutOfResources" not in type(error).__name__:
                        raise
            best = min(times, key=lambda tile: times[tile])
            grouped.TILES[part, size] = best
            kept[f"{part}, {size}"] = {
                "tile": asdict(best),
                "ms": times[best],
                "usual_ms": times.get(usual),
            }
    return kept


@torch.inference_mode()
def touched(graph: CanvasGraph) -> list[int]:
    """Experts that one step touches, in each layer."""
    found: list[int] = []
    graph.layers.watch = lambda chosen: found.append(int(chosen.unique().numel()))
    try:
        graph.hidden()
    finally:
        graph.layers.watch = None
    return found


def parts(graph: CanvasGraph, device: torch.device, plan: Plan) -> dict[str, list[float]]:
    """Milliseconds of each part of a step: graphs of that part of all layers."""
    model, layers = graph.model, graph.layers
    count, width = graph.length, model.config.text.hidden_size
    x = torch.randn(count, width, device=device).to(model.dtype)
    small = (x.float() * width**-0.5).to(model.dtype)  # as the router's input is scaled
    indices = range(len(layers.layers))
    k = model.config.text.top_k_experts
    outputs = torch.randn(count, k, width, device=device).to(model.dtype)
    with torch.inference_mode():
        found = graph.predict(x)

    def attention() -> None:
        rotations = layers.rotations(count)
        for i in indices:
            layers.attention(i, x, rotations)

    def experts() -> None:
        for i in indices:
            layers.experts(i, x, *layers.routing(i, small))

    def dense() -> None:
        for i in indices:
            layers.dense(i, x)

    def norms() -> None:
        weight = model.norm.weight
        for i, layer in enumerate(layers.layers):
            fused.after_attention(layer, x, x)
            fused.after_experts(layer, x, x, outputs, layers.scalars[i], weight)

    def conditioning() -> None:
        assert model.self_conditioning is not None
        model.self_conditioning(model.embed(graph.canvas[0]), graph.soft)

    bodies: dict[str, Callable[[], Any]] = {
        "attention": attention,
        "experts": experts,
        "dense MLP": dense,
        "norms and sums": norms,
        "self-conditioning": conditioning,
        "head and sampling": lambda: graph.predict(x),
        "sampler and stop rule": lambda: graph.decide(found),
    }
    times = {}
    for name, body in bodies.items():
        times[name] = timed(device, plan.rounds, max(1, plan.repeats // 4), Replay(body, device))
    return times


def figures(milliseconds: Sequence[float]) -> dict[str, Any]:
    return {"median_ms": statistics.median(milliseconds), "rounds_ms": list(milliseconds)}


def measure(
    model: DiffusionGemma,
    prefix: PrefixCache,
    shape: Shape,
    limits: dict[str, float],
    plan: Plan,
    routing: str,
) -> dict[str, Any]:
    """One row of results: the step, its parts, the token, their floors and ratios, as the routers now stand."""
    device, itemsize = model.device, model.dtype.itemsize
    rates = limits["bytes_per_second"], limits["operations_per_second"]
    k = model.config.text.top_k_experts

    def steps() -> tuple[list[float], list[int], dict[str, list[float]]]:
        graph = CanvasGraph(model, shape.prefix + shape.canvas, steps=STEPS)

        def begin() -> None:
            graph.begin(prefix, seed=plan.seed)

        times = timed(device, plan.rounds, plan.repeats, graph.step, begin)
        begin()
        return times, touched(graph), parts(graph, device, plan)

    def tokens() -> list[float]:
        graph = TokenGraph(model, shape.prefix + plan.repeats + 2, most=plan.repeats + 1)
        return timed(device, plan.rounds, plan.repeats, graph.replay, lambda: graph.begin(prefix))

    step, seen, split = steps()
    token = tokens()
    mean = sum(seen) / len(seen)
    step_work = shapes.work(model.config, shape.prefix, shape.canvas, mean, itemsize)
    token_work = shapes.work(model.config, shape.prefix, 1, k, itemsize)
    step_ms, token_ms = statistics.median(step), statistics.median(token)
    step_floor, token_floor = (1e3 * work.floor(*rates) for work in (step_work, token_work))
    return {
        "table": "gpu",
        "routing": routing,
        "touched_experts": {"mean": mean, "least": min(seen), "most": max(seen)},
        "step": {
            **figures(step),
            "parts": {name: figures(times) for name, times in split.items()},
            "read_bytes": dict(step_work.read),
            "operations": dict(step_work.computed),
            "floor_ms": step_floor,
            "to_floor": step_ms / step_floor,
        },
        "token": {
            **figures(token),
            "read_bytes": dict(token_work.read),
            "operations": dict(token_work.computed),
            "floor_ms": token_floor,
            "to_floor": token_ms / token_floor,
        },
        "step_to_token": step_ms / token_ms,
        "tokens_per_second": {
            "diffusion": TOKENS_PER_FORWARD / (step_ms / 1e3),
            "autoregression": 1e3 / token_ms,
            "ratio": TOKENS_PER_FORWARD * token_ms / step_ms,
            "counted": COUNTED,
        },
    }


def measure_public(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, prompt: list[int], expected: Tensor,
    canvas: list[int], positions: list[int], plan: Plan,
) -> dict[str, Any]:  # fmt: skip
    """The public implementation's steps on the same weights, prompt and canvas; the faster of its experts counts."""
    if reason := released.missing():
        return {"measured": False, "reason": reason}
    model = released.build(config, device, dtype, plan.seed)
    found = released.logits(model, prompt, canvas, positions)
    ways = {}
    for way in released.EXPERTS:
        model.set_experts_implementation(way)
        count = max(3, plan.repeats // 4)
        rounds = [released.steps(model, prompt, count, i) for i in range(plan.rounds + 1)]
        ways[way] = figures([statistics.median(times) for times in rounds[1:]])
    released.free(model)
    best = min(ways, key=lambda way: ways[way]["median_ms"])
    return {
        "measured": True,
        "experts": ways,
        "best": best,
        "median_ms": ways[best]["median_ms"],
        "logits_difference": {
            "largest": float((found - expected).abs().max()),
            "relative": apart(found, expected),
        },
    }


def run(
    shape: Shape, device: torch.device, dtype: torch.dtype, narrowed: int, plan: Plan
) -> dict[str, Any]:
    """Everything, as one record. Errors as `find_device`, `check_memory` and `prove` raise them."""
    config = shape.config()
    shapes.check_touched(narrowed, shape.experts, config.text.top_k_experts)
    needed = check_memory(config, shape, plan.repeats + 2, device, dtype)
    typer.echo("the device against the CPU path …")
    proof = prove(device)
    typer.echo("  " + ", ".join(f"{what} {value:.1e}" for what, value in proof.items()))
    limits = ceilings(device, dtype)
    typer.echo(
        f"copy {limits['bytes_per_second'] / 1e12:.2f} TB/s, "
        f"{str(dtype).removeprefix('torch.')} product {limits['operations_per_second'] / 1e12:.0f} TFLOP/s"
    )
    model = shapes.build(config, device, dtype, seed=plan.seed, progress=True)
    tiles = tune(model, device, shape.canvas) if plan.tune and device.type == "cuda" else None

    draws = torch.Generator().manual_seed(plan.seed)
    prompt = torch.randint(0, shape.vocab, (shape.prefix,), generator=draws).tolist()
    canvas = CounterDraws().first_canvas([RowKey(plan.seed, 0)], shape.canvas, shape.vocab)
    positions = sorted({0, shape.canvas // 3, shape.canvas // 2, shape.canvas - 1})
    prefix = model.encode([prompt])
    expected = model.logits(model.denoise(canvas.to(device), prefix)[0, positions]).cpu()

    rows = [measure(model, prefix, shape, limits, plan, f"random, {shape.experts} experts")]
    _show(rows[-1])
    if narrowed < shape.experts:
        shapes.narrow(model, narrowed, seed=plan.seed)
        prefix = model.encode([prompt])
        rows.append(
            measure(
                model, prefix, shape, limits, plan,
                f"{narrowed} of {shape.experts} experts: the router's other rows are zero",
            )
        )  # fmt: skip
        _show(rows[-1])
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    del model, prefix
    released.free(None)
    public = measure_public(
        config, device, dtype, prompt, expected, canvas[0].tolist(), positions, plan
    )
    if public["measured"]:
        rows[0]["to_public"] = public["median_ms"] / rows[0]["step"]["median_ms"]
        typer.echo(
            f"transformers ({public['best']}) {public['median_ms']:.2f} ms a step: {rows[0]['to_public']:.2f}× of ours"
        )
    else:
        typer.echo(f"public implementation: not measured ({public['reason']})")
    return {
        "command": " ".join(["dgemma", *sys.argv[1:]]),
        "environment": environment(device),
        "shape": asdict(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "needed_bytes": needed,
        "peak_bytes": peak,
        "proof": proof,
        "ceilings": limits,
        "tiles": tiles,
        "public": public,
        "rows": rows,
    }


def _show(row: dict[str, Any]) -> None:
    for name, unit in (("step", "denoising step"), ("token", "autoregressive token")):
        found = row[name]
        low, high = min(found["rounds_ms"]), max(found["rounds_ms"])
        typer.echo(
            f"{row['routing']}: {unit} {found['median_ms']:.3f} ms ({low:.3f} to {high:.3f}), floor "
            f"{found['floor_ms']:.3f} ms, {found['to_floor']:.2f}×"
        )
    for part, found in row["step"]["parts"].items():
        typer.echo(f"  {part:24s} {found['median_ms']:8.3f} ms")
    rates = row["tokens_per_second"]
    typer.echo(
        f"  touched {row['touched_experts']['mean']:.1f} experts a layer; {rates['diffusion']:.0f} against "
        f"{rates['autoregression']:.0f} tokens/s: {rates['ratio']:.2f}×"
    )


def save(out: Path, record: dict[str, Any]) -> None:
    """Writes OUT/gpu.json, and draws OUT/bench.html anew where plotly is installed."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / "gpu.json.part"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out / "gpu.json")
    typer.echo(f"results: {out / 'gpu.json'}")
    if find_spec("plotly") is None:
        typer.echo(
            "page: not drawn, plotly is not installed; `dgemma bench page` draws it elsewhere"
        )
        return
    from dgemma_evals.bench.page import write

    typer.echo(f"page: {write(out)}")
