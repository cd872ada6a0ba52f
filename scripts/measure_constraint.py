"""Measures what a constraint costs: building its index, and a constrained denoising step against a free one.

    python scripts/measure_constraint.py --dtype bfloat16

Weights are random, of the benchmark's shape A; `--layers` and `--width` make it smaller. The vocabulary is made up:
byte strings of lengths and letters like those of a multilingual tokenizer. Steps are taken in turn (free, constrained,
free, …), each from the same canvas; the ratio is of medians, of wall time and of this process's own time. Everything is
printed, and written to `--out` as JSON.

With the defaults (float32, six layers, V 262,144, C 256), one thread of a busy Intel Xeon with two cores, three rounds:
781 states, 500 classes, 26,125 edges; the index took 5.4 s of the process's time, 7.0 s in all; a constrained step took
3.23 s of the process's time, a free one 2.63 s, 1.23 times as much. One thread of an AMD EPYC (AVX-512), five rounds:
the index 2.9 s, a constrained step 2.27 s against 2.01 s (1.13 times) in float32, 1.32 s against 1.10 s (1.20 times)
in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgemma_core import Constraint, CounterDraws, DiffusionGemma
from dgemma_core.config import LayerConfig, ModelConfig, TextConfig
from dgemma_core.constraints.building import pattern_of
from dgemma_core.constraints.index import indexed
from dgemma_core.constraints.patterns import compiled
from dgemma_core.constraints.predicting import Condition, Conditions
from dgemma_core.draws import RowKey
from dgemma_evals.machine import environment
from dgemma_evals.saving import write_json

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "email": {"type": "string", "pattern": "[a-z0-9.]+@[a-z0-9]+[.][a-z]{2,3}"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "note": {"type": "string"},
        "tags": {
            "type": "array", "maxItems": 5,
            "items": {"enum": ["new", "known", "urgent", "waiting", "closed"]},
        },
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string", "maxLength": 30}},
            "required": ["street", "city"],
        },
    },
    "required": ["name", "age", "tags", "address"],
}  # fmt: skip
EOS, PAD = 1, 0


def vocabulary(size: int, seed: int = 0) -> list[bytes]:
    """Tokens: four without text, all bytes, all pairs of lower-case letters, then drawn pieces of words and of JSON."""
    rng = np.random.default_rng(seed)
    found = {bytes([byte]): None for byte in range(256)}
    scripts = ["abcdefghijklmnopqrstuvwxyz"] * 12 + [
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", ' "{}[]:,._-/\\n()=', "абвгдежзиклмнопрст", "漢字仮名交文書語",
        "éèüößñçâ",
    ]  # fmt: skip
    lengths = np.clip(rng.gamma(3.0, 2.0, 4 * size).round(), 1, 24).astype(int)
    kinds, spaces = rng.integers(0, len(scripts), 4 * size), rng.random(4 * size) < 0.45
    for length, kind, space in zip(lengths, kinds, spaces, strict=True):
        letters = scripts[kind]
        word = "".join(letters[i] for i in rng.integers(0, len(letters), length))
        found[((" " if space else "") + word).encode()] = None
        if len(found) == size - 4:
            break
    return [b"", b"", b"", b"", *found]


def model(vocab: int, width: int, layers: int, canvas: int, dtype: torch.dtype) -> DiffusionGemma:
    """Random weights; by default the benchmark's shape A (`bench.random_model`)."""
    near = LayerConfig(False, 2, 64, rope_theta=1e4, rotary_fraction=1.0)
    far = LayerConfig(True, 1, 128, rope_theta=1e6, rotary_fraction=0.25)
    config = ModelConfig(
        text=TextConfig(
            vocab_size=vocab, hidden_size=width, intermediate_size=width, num_attention_heads=8, num_experts=32,
            top_k_experts=4, moe_intermediate_size=256, sliding_window=1024, rms_norm_eps=1e-6,
            final_logit_softcapping=30.0, max_position_embeddings=65_536,
            layers=tuple(far if i % 6 == 5 or i == layers - 1 else near for i in range(layers)),
        ),
        canvas_length=canvas, bos_token_id=2, eos_token_ids=(EOS,), pad_token_id=PAD,
    )  # fmt: skip
    built = DiffusionGemma(config, dtype=dtype).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0)
    return built.use("auto")


def in_turn(steps: Sequence[Callable[[], object]], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each step, taken in turn after one to warm up; wall and process time."""
    times: list[dict[str, list[float]]] = [{"wall": [], "process": []} for _ in steps]
    for turn in range(rounds + 1):
        for step, found in zip(steps, times, strict=True):
            wall, process = time.perf_counter(), time.process_time()
            step()
            if turn:
                found["wall"].append(time.perf_counter() - wall)
                found["process"].append(time.process_time() - process)
    return [
        {**found, **{f"median_{k}": statistics.median(v) for k, v in found.items()}}
        for found in times
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The index, then both steps."""
    spelled = vocabulary(options.vocab)
    begun, process = time.perf_counter(), time.process_time()
    language = compiled(pattern_of(Constraint.json_schema(SCHEMA)))
    automaton = indexed(language, spelled, eos=[EOS], pad=PAD)
    index = {
        "seconds": time.perf_counter() - begun,
        "process_seconds": time.process_time() - process,
        "states": automaton.states,
        "classes": automaton.class_count,
        "edges": len(automaton.edges[0]),
    }
    print(f"index: {index}")
    dtype = getattr(torch, options.dtype)
    net = model(options.vocab, options.width, options.layers, options.canvas, dtype)
    cache = net.encode([list(range(16, 144))])
    draws = CounterDraws().step([RowKey(0, 0)], [0], options.canvas)
    canvas = draws.tokens(options.vocab)
    condition = Condition(automaton, automaton.start, options.canvas + 64)
    soft = net.predict(net.denoise(canvas, cache), 0.7, draws).soft_embedding

    def step(conditions: Conditions | None) -> object:
        return net.predict(net.denoise(canvas, cache, soft), 0.7, draws, conditions=conditions)

    free, bound = in_turn(
        [lambda: step(None), lambda: step(Conditions([condition]))], options.rounds
    )
    ratios = {
        kind: bound[f"median_{kind}"] / free[f"median_{kind}"] for kind in ("wall", "process")
    }
    print(f"free: {free}\nconstrained: {bound}\nratios: {ratios}")
    return {
        "index": index,
        "free": free,
        "constrained": bound,
        "ratios": ratios,
        "backend": net.backend.name,
    }


def main() -> None:
    """Reads the options, measures, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("vocab", 262_144),
        ("width", 640),
        ("layers", 6),
        ("canvas", 256),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = measure(options)
    if options.out is not None:
        given = {name: value for name, value in vars(options).items() if name != "out"}
        write_json(options.out, {"options": given, "environment": environment(), **found})


if __name__ == "__main__":
    main()
