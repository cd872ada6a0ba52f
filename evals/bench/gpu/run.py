"""`dgemma bench gpu`: the released shape on one card, against what the card allows.

Notable:
- first the backend "cuda" proves itself against plain modules on the CPU (proof.py), or nothing is timed;
- what is timed is `generate` itself, in both modes, alone and in a batch, beside the bare replay of its recorded pass
  (loop.py); the parts of a step are timed by themselves (parts.py);
- the floor of a pass is the time to read every touched weight once at the bandwidth that a copy reaches on this card,
  or to compute its products at the rate that a large matrix product reaches, whichever is longer;
- `--device cpu` runs all of it on small shapes, for tests: such results say so and mean nothing about a GPU.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from dgemma_core.config import ModelConfig
from dgemma_core.events import Mode
from dgemma_core.facts.cost import work
from dgemma_core.model import DiffusionGemma
from dgemma_evals.bench.gpu import public as released
from dgemma_evals.bench.gpu.card import ceilings, check_memory, environment
from dgemma_evals.bench.gpu.loop import AIM, timing
from dgemma_evals.bench.gpu.model import Shape, build, check_touched, narrow
from dgemma_evals.bench.gpu.parts import parts, touched, tune
from dgemma_evals.bench.gpu.proof import apart, prove
from dgemma_evals.saving import write_json

TOKENS_PER_FORWARD = 19.7
"""Published mean of seven benchmarks (arXiv 2608.00146): tokens / (denoising steps + canvases − 1)."""
COUNTED = (
    f"tokens/s = {TOKENS_PER_FORWARD} published tokens per forward / seconds a denoising step: the published count has "
    "commits among its forwards, and each is taken to cost a step; the prompt's encoding is left out on both sides"
)


TIMED: tuple[Mode, ...] = ("diffusion", "autoregressive")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    rounds: int = 5
    repeats: int = 48
    """Steps, or tokens, a round."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes, 1 among them."""
    seed: int = 0
    tune: bool = True


def figures(milliseconds: Sequence[float]) -> dict[str, Any]:
    return {"median_ms": statistics.median(milliseconds), "rounds_ms": list(milliseconds)}


def random_prompts(shape: Shape, count: int, seed: int) -> list[list[int]]:
    """The same first prompts whatever the count."""
    draws = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, shape.vocab, (shape.prefix,), generator=draws).tolist()
        for _ in range(count)
    ]


def measure(
    model: DiffusionGemma, shape: Shape, limits: dict[str, float], plan: Plan, routing: str
) -> dict[str, Any]:
    """One row of results: step and token, parts, floors and ratios, as the routers now stand."""
    rates = limits["bytes_per_second"], limits["operations_per_second"]
    prompts = random_prompts(shape, max(plan.batches), plan.seed)
    timings = [
        timing(
            model, mode, prompts[:batch], rounds=plan.rounds, repeats=plan.repeats, seed=plan.seed
        ).record()
        for mode in TIMED
        for batch in plan.batches
    ]
    cache = model.encode(prompts[:1])
    draws = torch.Generator().manual_seed(plan.seed)
    canvas = torch.randint(0, shape.vocab, (1, shape.canvas), generator=draws).to(model.device)
    soft = model.embed(canvas.roll(1))
    seen = touched(model, cache, canvas, soft)
    split = parts(model, cache, canvas, soft, plan.rounds, max(1, plan.repeats // 4))
    mean, chosen = sum(seen) / len(seen), model.config.text.top_k_experts
    passes = {}
    for name, mode, tokens, experts in (
        ("step", "diffusion", shape.canvas, mean),
        ("token", "autoregressive", 1, chosen),
    ):
        (alone,) = (t for t in timings if t["mode"] == mode and t["batch"] == 1)
        needed = work(model.config, shape.prefix, tokens, experts, model.dtype.itemsize)
        floor = 1e3 * needed.floor(*rates)
        passes[name] = {
            "median_ms": alone["median_ms"],
            "rounds_ms": alone["rounds_ms"],
            "read_bytes": dict(needed.read),
            "operations": dict(needed.computed),
            "floor_ms": floor,
            "to_floor": alone["median_ms"] / floor,
        }
    passes["step"]["parts"] = {name: figures(times) for name, times in split.items()}
    step_ms, token_ms = passes["step"]["median_ms"], passes["token"]["median_ms"]
    return {
        "table": "gpu",
        "routing": routing,
        "touched_experts": {"mean": mean, "least": min(seen), "most": max(seen)},
        "generate": timings,
        **passes,
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
    """Everything, as one record. Errors as `check_touched`, `check_memory` and `prove` raise them."""
    config = shape.config()
    check_touched(narrowed, shape.experts, config.text.top_k_experts)
    needed = check_memory(config, shape, plan.repeats + 2, device, dtype, max(plan.batches))
    typer.echo("the backend 'cuda' against plain modules on the CPU …")
    proof = prove(device)
    typer.echo("  " + ", ".join(f"{what} {value:.1e}" for what, value in proof.items()))
    limits = ceilings(device, dtype)
    typer.echo(
        f"copy {limits['bytes_per_second'] / 1e12:.2f} TB/s, "
        f"{str(dtype).removeprefix('torch.')} product {limits['operations_per_second'] / 1e12:.0f} TFLOP/s"
    )
    model = build(config, device, dtype, seed=plan.seed, progress=True).use("cuda")
    tiles = tune(model, device, shape.canvas) if plan.tune and device.type == "cuda" else None

    (prompt,) = random_prompts(shape, 1, plan.seed)
    draws = torch.Generator().manual_seed(plan.seed + 1)
    canvas = torch.randint(0, shape.vocab, (1, shape.canvas), generator=draws)
    positions = sorted({0, shape.canvas // 3, shape.canvas // 2, shape.canvas - 1})
    hidden = model.denoise(canvas.to(device), model.encode([prompt]))
    expected = model.logits(hidden[0, positions]).cpu()

    rows = [measure(model, shape, limits, plan, f"random, {shape.experts} experts")]
    _show(rows[-1])
    if narrowed < shape.experts:
        narrow(model, narrowed, seed=plan.seed)
        routing = f"{narrowed} of {shape.experts} experts: the router's other rows are zero"
        rows.append(measure(model, shape, limits, plan, routing))
        _show(rows[-1])
    backend = model.backend.name
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    del model, hidden
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
    found = environment(device)
    if "note" in found:
        typer.echo(found["note"])
    return {
        "command": " ".join(["dgemma", *sys.argv[1:]]),
        "environment": found,
        "backend": backend,
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
    typer.echo(f"{row['routing']}: touched {row['touched_experts']['mean']:.1f} experts a layer")
    for found in row["generate"]:
        low, high = min(found["rounds_ms"]), max(found["rounds_ms"])
        typer.echo(
            f"  generate, {found['mode']}, batch {found['batch']}: {found['median_ms']:.3f} ms a pass ({low:.3f} to "
            f"{high:.3f}), bare replay {found['replay_ms']:.3f} ms: the loop's share is {found['loop_share']:.1%} "
            f"(aim: at most {AIM:.0%})"
        )
    for name, unit in (("step", "denoising step"), ("token", "autoregressive token")):
        found = row[name]
        typer.echo(f"  {unit}, batch 1: floor {found['floor_ms']:.3f} ms, {found['to_floor']:.2f}×")
    for part, found in row["step"]["parts"].items():
        typer.echo(f"  {part:24s} {found['median_ms']:8.3f} ms")
    rates = row["tokens_per_second"]
    typer.echo(
        f"  {rates['diffusion']:.0f} against {rates['autoregression']:.0f} tokens/s: {rates['ratio']:.2f}×"
    )


def save(out: Path, record: dict[str, Any]) -> None:
    """Writes OUT/gpu.json, and draws OUT/bench.html anew where plotly is installed."""
    write_json(out / "gpu.json", record)
    typer.echo(f"results: {out / 'gpu.json'}")
    if find_spec("plotly") is None:
        typer.echo(
            "page: not drawn, plotly is not installed; `dgemma bench page` draws it elsewhere"
        )
        return
    from dgemma_evals.bench.page import write

    typer.echo(f"page: {write(out)}")
