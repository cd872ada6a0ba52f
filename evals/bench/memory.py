"""The memory of a long prompt: predicted by `dgemma_core.facts.memory`, measured in a fresh process.

Notable:
- what is measured is the rise of resident memory while one prompt is encoded: at its peak, and of what
  is left when only the prefix cache and its hidden states are held. Weights are read before, so that
  they are in memory already;
- the process allocates large blocks from the system one by one and gives each back, so that memory that
  was freed is not taken for memory in use;
- the prompt is encoded twice, and the second time measured: what kernels keep for themselves from the
  first (oneDNN, in bfloat16, code and buffers for every shape that it met) is reported beside.

The random model has the released model's pattern of layers and sizes of heads, and little else.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma_core import RequestError
from dgemma_evals.bench import random_model
from dgemma_evals.resident import peak_bytes, resident_bytes, restart_peak

SHAPE: Mapping[str, Any] = {
    "vocab": 4096, "width": 512, "layers": 12, "experts": 4, "chosen": 2, "expert_width": 256,
    "heads": 4, "sliding": (4, 256), "full": (2, 512),
}  # fmt: skip
WITHIN = 0.1
"""How far prediction and measurement may be apart, as a share of the measurement."""
_BLOCK = 65_536
"""Bytes from which on an allocation is a mapping of its own."""


def measure(
    folder: Path,
    *,
    prefix: int,
    dtype: str,
    threads: int,
    backend: str = "auto",
    shape: Mapping[str, Any] = SHAPE,
) -> dict[str, Any]:
    """One row: predicted and measured bytes, held and at the peak. The model is made if need be."""
    import torch

    from dgemma_core.facts.memory import encoding
    from dgemma_core.files.finding import read_config

    random_model.random_checkpoint(folder, autoregressive=False, **shape)
    config, _ = read_config(folder)
    most = config.text.max_position_embeddings
    if prefix > most:
        raise RequestError(f"--prefix {prefix}: the model takes {most} tokens at most")
    ids = random_model.random_ids(config.text.vocab_size, prefix, 1)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": str(_BLOCK),
        "MALLOC_TRIM_THRESHOLD_": str(_BLOCK),
    }
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [sys.executable, "-m", "dgemma_evals.bench.memory", str(folder), dtype, backend],
        input=json.dumps(ids), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise RequestError(f"encoding {prefix} tokens failed: {words[-1] if words else 'no word'}")
    found = json.loads(done.stdout)
    predicted = encoding(config, prefix, getattr(torch, dtype), reserved=False)
    return {
        "table": "memory",
        "prefix": prefix,
        "dtype": dtype,
        "threads": threads,
        "backend": found["backend"],
        "shape": dict(shape),
        "parts": [
            _part("held", predicted.held, found["held"]),
            _part("peak", predicted.peak, found["peak"]),
        ],
        "kept_by_kernels": found["kernels"],
        "seconds": found["seconds"],
    }


def _part(name: str, lines: Any, measured: int) -> dict[str, Any]:
    predicted = sum(line.bytes for line in lines)
    error = predicted / measured - 1
    return {
        "name": name,
        "predicted": predicted,
        "measured": measured,
        "error": error,
        "within": abs(error) <= WITHIN,
        "lines": {line.label: [line.bytes, line.arithmetic] for line in lines},
    }


def sentence(row: Mapping[str, Any]) -> str:
    """The answer in words."""
    parts = [
        f"{part['name']} {part['measured'] / 1e6:,.1f} MB measured, {part['predicted'] / 1e6:,.1f} MB predicted "
        f"({100 * part['error']:+.1f} %)"
        for part in row["parts"]
    ]
    verdict = "within" if all(part["within"] for part in row["parts"]) else "NOT within"
    return (
        f"a prefix of {row['prefix']:,} tokens in {row['dtype']}: {'; '.join(parts)}: {verdict} "
        f"{100 * WITHIN:.0f} %"
    )


def main() -> None:
    """The fresh process: a folder, a dtype and a backend as arguments, token ids as JSON on standard input."""
    import time

    from dgemma_core.files.checkpoint import load_model

    folder, dtype, backend = sys.argv[1:]
    ids: list[int] = json.loads(sys.stdin.read())
    model = load_model(folder, dtype=dtype, device="cpu").use(backend)
    for parameter in model.parameters():
        parameter.sum()
    loaded = resident_bytes()
    if loaded is None or not restart_peak():
        raise SystemExit("this system does not count the peak of a process anew: Linux does")
    model.encode([ids])
    gc.collect()
    before = resident_bytes()
    assert before is not None
    restart_peak()
    start = time.perf_counter()
    cache = model.encode([ids])
    seconds = time.perf_counter() - start
    peak, after = peak_bytes(), resident_bytes()
    assert after is not None and cache.lengths == [len(ids)]
    found = {
        "held": after - before, "peak": peak - before, "kernels": before - loaded, "seconds": seconds,
        "backend": model.backend.name,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    import torch

    torch.set_grad_enabled(False)
    main()
