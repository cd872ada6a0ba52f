"""The backend "cuda" proves itself against plain modules on the CPU, before anything is timed.

Experts and logits of small models may differ by rounding; ids in float32, in both modes, greedy and sampled, alone and
in a batch, may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig
from dgemma_core.errors import RequestError
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import generate
from dgemma_core.model import DiffusionGemma
from dgemma_core.samplers import sampler_from
from dgemma_evals.bench.gpu.model import Shape, build

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative difference, ‖found − expected‖ / ‖expected‖, from plain modules on the CPU in float32."""


def apart(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN is infinitely far."""
    difference = found.detach().cpu().double() - expected.detach().cpu().double()
    ratio = float(difference.norm() / expected.detach().cpu().double().norm())
    return ratio if ratio == ratio else float("inf")


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


WAYS: dict[str, dict[str, Any]] = {
    "diffusion, sampled": {"sampler": sampler_from("entropy_bound")},
    "diffusion, greedy": {"sampler": sampler_from("block_refinement", temperature=0.0)},
    "autoregression, sampled": {"mode": "autoregressive", "temperature": 1.0},
    "autoregression, greedy": {"mode": "autoregressive", "temperature": 0.0},
}
"""Arguments of `generate` whose ids are compared."""


def without_ends(model: DiffusionGemma) -> Loaded:
    """The model as `generate` takes it; no token ends a text."""
    return Loaded(model, None, GenerationDefaults(eos_token_ids=()), "random weights")


@torch.inference_mode()
def prove(device: torch.device, *, prompts: int = 8) -> dict[str, float]:
    """Experts, logits and ids of small models on the device against plain modules on the CPU.

    Returns the differences: relative ones, and shares of ids. RequestError where one is too large.
    """
    config, found = small_config(), {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        there = build(config, device, dtype).use("cuda")
        here = DiffusionGemma(config, dtype=torch.float32).requires_grad_(False)
        here.load_state_dict(
            {name: value.to("cpu", torch.float32) for name, value in there.state_dict().items()}
        )
        found[f"experts, {kind}"] = max(_experts(here, there))
        found[f"logits, {kind}"] = max(_logits(here, there))
        if dtype == torch.float32:
            found |= _ids(here, there, prompts)
    for what, difference in found.items():
        allowed = 0.0 if what.startswith("ids") else TOLERANCE[what.rpartition(" ")[2]]
        if not difference <= allowed:
            raise RequestError(
                f"backend 'cuda' on {device.type} differs from plain modules on the CPU in {what} ({difference:.2g}, "
                f"allowed {allowed:.2g}): nothing is timed"
            )
    return found


def _experts(here: DiffusionGemma, there: DiffusionGemma) -> Iterator[float]:
    """Relative differences of one layer's experts, over 1, 5 and 200 tokens."""
    text = here.config.text
    own, theirs = here.typed_layers()[0].experts, there.typed_layers()[0].experts
    generator = torch.Generator().manual_seed(1)
    for tokens in (1, 5, 200):
        x = torch.randn(tokens, text.hidden_size, generator=generator).to(there.dtype)
        scores = torch.rand(tokens, text.num_experts, generator=generator)
        chosen = scores.topk(text.top_k_experts).indices
        weights = torch.rand(tokens, text.top_k_experts, generator=generator)
        on_device = (value.to(there.device) for value in (x, weights, chosen))
        found = grouped.outputs(theirs, *on_device).float().sum(1)
        yield apart(found, own(x.float(), weights, chosen))


def _logits(here: DiffusionGemma, there: DiffusionGemma) -> Iterator[float]:
    """Relative differences of a canvas's logits, behind prefixes inside and outside the window."""
    vocab, length = here.config.text.vocab_size, here.config.canvas_length
    generator = torch.Generator().manual_seed(1)
    for prefix in (3, 50):
        ids = torch.randint(0, vocab, (1, prefix), generator=generator)
        canvas = torch.randint(0, vocab, (1, length), generator=generator)
        hidden = there.denoise(canvas.to(there.device), there.encode(ids))
        yield apart(there.logits(hidden), here.logits(here.denoise(canvas, here.encode(ids))))


def _ids(here: DiffusionGemma, there: DiffusionGemma, prompts: int) -> dict[str, float]:
    """Share of ids that differ, each way, alone and all prompts as one batch. Two canvases: one is committed."""
    generator = torch.Generator().manual_seed(2)
    vocab, limit = here.config.text.vocab_size, 2 * here.config.canvas_length
    asked = [
        torch.randint(0, vocab, (5 + 6 * i % 26,), generator=generator).tolist()
        for i in range(prompts)
    ]
    found = {}
    for way, options in WAYS.items():
        fixed = {} if "mode" in options else {"steps": 6, "stop_rule": None}
        settings = {**options, **fixed, "max_new_tokens": limit}
        expected = [text.ids for text in generate(without_ends(here), asked, **settings)]
        for batch in (1, prompts):
            texts = generate(without_ends(there), asked, batch_size=batch, **settings)
            pairs = [
                (a, b)
                for text, right in zip(texts, expected, strict=True)
                for a, b in zip(text.ids, right, strict=True)
            ]
            found[f"ids, {way}, batch {batch}"] = sum(a != b for a, b in pairs) / len(pairs)
    return found
