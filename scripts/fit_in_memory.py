"""Does a quantised model fit? Built from synthetic weights, run, and measured: `python -m scripts.fit_in_memory`.

The released shape as int4 by default. Weights are drawn a block of rows at a time and quantised as they would be while
loading, so that the plain model, 51 GB in bfloat16, never exists. Then a prefix is encoded and two denoising steps are
made. Printed is one json object: what `dgemma plan` predicts, and the most memory that the process ever held (its peak
resident set, Python and torch included). Exit code 1 where that is more than --memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dgemma_core.command.plan import find_config, make_plan, parse_memory
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.facts.published import DIFFUSION_26B
from dgemma_core.files.quantised import SCHEMES, fill, scheme
from dgemma_core.model import DiffusionGemma

BLOCK = 2**22  # numbers


def build(config: Any, quantize: str, seed: int) -> DiffusionGemma:
    """A model of random weights: matrices N(0, 1/K), norms and scalars 1."""
    model = DiffusionGemma(config, device="meta")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=sum(shape.numel() for shape in shapes.values()), unit_scale=True) as bar:

        def blocks(shape: torch.Size) -> Iterator[Tensor]:
            rows, columns = shape[:-1].numel(), shape[-1]
            count = max(1, BLOCK // columns)
            for start in range(0, rows, count):
                size = (min(count, rows - start), columns)
                drawn = torch.randn(size, generator=generator).mul_(columns**-0.5)
                yield torch.ones(size) if len(shape) == 1 else drawn.bfloat16()
                bar.update(size[0] * columns)

        parts = ((name, blocks(shape)) for name, shape in shapes.items())
        fill(model, scheme(quantize), parts, torch.bfloat16, torch.device("cpu"))
    return model.eval()


def peak() -> int:
    """Bytes of this process's largest resident set so far."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def measure(model_name: str, quantize: str, memory: int, prefix: int, seed: int) -> dict[str, Any]:
    """Builds and runs the model; peaks in bytes after each stage, and each stage's seconds."""
    plan = make_plan(model_name, memory, prefix)
    planned = next(format for format in plan.formats if format.name == quantize)
    config = find_config(model_name)
    stages: dict[str, dict[str, float]] = {}
    begun = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        stages[stage] = {"peak": peak(), "seconds": round(now - begun, 1)}
        begun = now

    done("start")
    model = build(config, quantize, seed)
    done("weights")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.text.vocab_size, (1, prefix), generator=generator)
    cache = model.encode(ids)
    done("prefix")
    canvas = torch.randint(config.text.vocab_size, (1, config.canvas_length), generator=generator)
    soft = None
    for step in range(2):
        hidden = model.denoise(canvas, cache, soft)
        draws = CounterDraws().step([RowKey(seed, 0)], [step], config.canvas_length)
        prediction = model.head.predict(hidden, 0.8, draws)
        assert bool(prediction.entropy.isfinite().all()), "the model's numbers are not finite"
        canvas, soft = prediction.sample, prediction.soft_embedding
        done(f"step {step + 1}")
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {
        "model": model_name,
        "quantize": quantize,
        "memory": memory,
        "prefix": prefix,
        "planned": {
            "weights": sum(planned.weights.values()),
            "cache": planned.cache,
            "working": sum(line.bytes for line in planned.working),
            "total": planned.total,
        },
        "held": {"weights": held, "cache": cache.nbytes},
        "stages": stages,
        "peak": peak(),
        "fits": peak() <= memory,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=DIFFUSION_26B, help="a name or folder as for plan")
    parser.add_argument("--quantize", default="int4", choices=list(SCHEMES))
    parser.add_argument("--memory", default="18GB")
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = measure(
        given.model, given.quantize, parse_memory(given.memory), given.prefix, given.seed
    )
    print(json.dumps(found, indent=2))
    sys.exit(0 if found["fits"] else 1)


if __name__ == "__main__":
    main()
