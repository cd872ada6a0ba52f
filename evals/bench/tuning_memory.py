"""The memory of tuning: predicted by `dgemma_core.facts.tuning`, measured in a fresh process.

Notable:
- what is measured is the peak of resident memory during an update, less what the process held before the model was
  loaded: weights, adapter, moments, gradients and activations together;
- the same update is made twice, and the second time measured: what kernels keep for themselves from the first (oneDNN,
  in bfloat16, code and buffers for every shape that it met) is reported beside;
- an update of nano comes before, so that libraries and compiled code are in memory already;
- as in memory.py, the process gives large blocks back to the system one by one.

Every text has the length that is predicted for, and every canvas counts.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dgemma_core import RequestError
from dgemma_evals.bench import random_model
from dgemma_evals.bench.memory import _BLOCK, WITHIN
from dgemma_evals.resident import peak_bytes, resident_bytes, restart_peak

if TYPE_CHECKING:
    from dgemma_core.train.loss import Modes

PROMPT, VOCABULARY = 20, 256
"""Tokens of a text's prompt, and tokens that texts are drawn from, which nano knows, too."""
STILL = 1e-12
"""A learning rate at which the second update meets the first one's weights, and so sends tokens to the same experts."""
SHAPES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "adapter of a bfloat16 base": (
        {"vocab": 4096, "width": 384, "layers": 4, "experts": 4, "chosen": 2, "expert_width": 192, "heads": 4,
         "canvas": 128},
        {"base": "bf16", "texts": 2, "length": 500, "rank": 16},
    ),
    "adapter of an int4 base, layers run again": (
        {"vocab": 4096, "width": 512, "layers": 4, "experts": 4, "chosen": 2, "expert_width": 256, "heads": 8,
         "canvas": 128},
        {"base": "int4", "texts": 2, "length": 450, "rank": 8, "recomputes": True},
    ),
    "all weights": (
        {"vocab": 8192, "width": 512, "layers": 6, "experts": 8, "chosen": 2, "expert_width": 256, "heads": 4,
         "canvas": 128},
        {"base": "float32", "texts": 6, "length": 380, "full": True},
    ),
}  # fmt: skip
"""The models and runs that are measured."""


def measure(folder: Path, shape: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """One row: predicted and measured bytes. run: fields of `Tuning`. The model is made if need be."""
    from dgemma_core.facts.tuning import Tuning, tuning_memory
    from dgemma_core.files.finding import read_config

    random_model.random_checkpoint(folder, autoregressive=False, **shape)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(_BLOCK),
        "MALLOC_TRIM_THRESHOLD_": str(_BLOCK),
    }
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [sys.executable, "-m", "dgemma_evals.bench.tuning_memory", str(folder)],
        input=json.dumps(dict(run)), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise RequestError(f"tuning {folder} failed: {words[-1] if words else 'no word'}")
    found = json.loads(done.stdout)
    tuning = Tuning(**{**run, "copied": run.get("base") == "float32" and found["copied"]})
    predicted = tuning_memory(read_config(folder)[0], tuning)
    error = predicted.total / found["peak"] - 1
    return {
        "shape": dict(shape),
        "run": dataclasses.asdict(tuning),
        "predicted": predicted.total,
        "measured": found["peak"],
        "kept_by_kernels": found["kernels"],
        "error": error,
        "within": abs(error) <= WITHIN,
        "lines": {
            line.label: [line.bytes, line.arithmetic]
            for line in (*predicted.held, *predicted.passing, *predicted.updating)
        },
    }


def main() -> None:
    """The fresh process: a folder as argument, a run as JSON on standard input."""
    from dgemma_core.facts.tuning import Tuning
    from dgemma_core.files.checkpoint import load_model
    from dgemma_core.files.finding import NANO
    from dgemma_core.train.batches import batches
    from dgemma_core.train.texts import Text
    from dgemma_core.train.tuning import Tuner, TuneRecipe

    def tuner(folder: str | Path, tuning: Tuning) -> tuple[Tuner, Any]:
        quantize = tuning.base if tuning.base.startswith("int") else None
        dtype = "float32" if tuning.base == "float32" else "bfloat16"
        recipe = TuneRecipe(
            steps=1, batch_size=tuning.texts * tuning.parts, micro_batches=tuning.parts, pool=1,
            rank=tuning.rank, modes=cast("Modes", tuning.modes), full=tuning.full,
            recomputes=tuning.recomputes, dtype=dtype, quantize=quantize, learning_rate=STILL,
        )  # fmt: skip

        def text(number: int) -> Text:
            ids = random_model.random_ids(VOCABULARY, tuning.length, number)
            return Text(tuple(ids[:PROMPT]), tuple(ids[PROMPT:]))

        model = load_model(folder, dtype=dtype, device="cpu", quantize=quantize, backend="torch")
        run = Tuner(model, text, recipe, Path(folder), end=1)
        return run, next(batches(text, recipe, model.config.canvas_length, 1))

    def resident() -> int:
        gc.collect()
        found = resident_bytes()
        if found is None or not restart_peak():
            raise SystemExit("this system does not count the peak of a process anew: Linux does")
        return found

    folder, tuning = sys.argv[1], Tuning(**json.loads(sys.stdin.read()))
    run, micro = tuner(NANO, dataclasses.replace(tuning, texts=1, length=2 * PROMPT, parts=1))
    run.step(micro)
    del run, micro
    start = resident()
    run, micro = tuner(folder, tuning)
    for parameter in run.model.parameters():
        parameter.detach().sum()  # a mapped weight takes memory once it is read
    loaded = resident()
    run.step(micro)
    state = [t for of_one in run.optimiser.state.values() for t in of_one.values()]
    state += [p.grad for p in run.model.parameters() if p.grad is not None]
    kernels = resident() - loaded - sum(tensor.nbytes for tensor in state)
    del state
    run.step(micro)
    peak = peak_bytes() - start
    sys.stdout.write(json.dumps({"peak": peak - kernels, "kernels": kernels, "copied": run.half}))


if __name__ == "__main__":
    main()
