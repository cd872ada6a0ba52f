"""What the oracle did, step by step: its `generate`, with each denoising step written down."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """The sampler's settings of one run, by the names both sides use."""

    steps: int
    entropy_bound: float
    t_min: float
    t_max: float
    stability: int
    confidence: float
    eos: tuple[int, ...]
    pad: int = 0

    def temperature(self, step: int) -> float:
        """T of step i = 0 … N−1, which counts n = N − i down."""
        return self.t_min + (self.t_max - self.t_min) * ((self.steps - step) / self.steps)

    def for_transformers(self, max_new_tokens: int) -> DiffusionGemmaGenerationConfig:
        return DiffusionGemmaGenerationConfig(
            max_new_tokens=max_new_tokens,
            max_denoising_steps=self.steps,
            sampler_config=EntropyBoundSamplerConfig(entropy_bound=self.entropy_bound),
            t_min=self.t_min,
            t_max=self.t_max,
            stability_threshold=self.stability,
            confidence_threshold=self.confidence,
            eos_token_id=list(self.eos),
            pad_token_id=self.pad,
        )


@dataclass(frozen=True)
class OracleStep:
    """One denoising step of all rows. Rows `latched` before it only keep drawing."""

    canvas: int
    step: int
    tokens_in: torch.Tensor  # (B, C)
    tokens_out: torch.Tensor  # (B, C)
    argmax: torch.Tensor  # (B, C)
    accepted: torch.Tensor  # (B, C) bool
    logits: torch.Tensor  # (B, C, V) tempered; of the latching step for latched rows
    latched: torch.Tensor  # (B,) bool
    finished: torch.Tensor  # (B,) bool
    random_state: torch.Tensor  # the global generator's, before the step


@dataclass
class OracleRun:
    """A whole run: (B, P + canvases · C) token ids, PAD-filled, and the steps by canvas."""

    sequences: torch.Tensor
    tokens_per_forward: torch.Tensor
    canvases: list[list[OracleStep]] = field(default_factory=list)


def generate(
    model: DiffusionGemmaForBlockDiffusion,
    prompts: torch.Tensor,
    knobs: Knobs,
    *,
    seed: int,
    max_new_tokens: int,
) -> OracleRun:
    """Run the oracle's `generate` under `torch.manual_seed(seed)` on prompts (B, P)."""
    steps: list[OracleStep] = []
    denoising_step = model._denoising_step

    def recorded(**kwargs: Any) -> tuple[torch.Tensor, ...]:
        latched = kwargs["finished_denoising"].clone()  # the step changes it in place
        tokens_in, state = kwargs["current_canvas"].clone(), torch.get_rng_state()
        tokens_out, argmax, logits, finished = denoising_step(**kwargs)
        step = knobs.steps - kwargs["cur_step"]
        canvas = steps[-1].canvas + (step == 0) if steps else 0
        accepted = kwargs["sampler"].accepted_token_mask
        steps.append(
            OracleStep(
                canvas, step, tokens_in, tokens_out.clone(), argmax.clone(), accepted.clone(),
                logits.clone(), latched, finished.clone(), state,
            )
        )  # fmt: skip
        return tokens_out, argmax, logits, finished

    model._denoising_step = recorded
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = model.generate(
                prompts, generation_config=knobs.for_transformers(max_new_tokens)
            )
    finally:
        del model._denoising_step
    run = OracleRun(output.sequences, output.tokens_per_forward)
    for step in steps:
        if step.step == 0:
            run.canvases.append([])
        run.canvases[-1].append(step)
    return run


def occurrences(run: OracleRun, knobs: Knobs, prompt_length: int) -> Counter[str]:
    """How often the run shows what a parity test must have seen, per row and canvas."""
    counts: Counter[str] = Counter()
    for index, steps in enumerate(run.canvases):
        length = steps[0].argmax.shape[1]
        start = prompt_length + index * length
        ended_before = torch.isin(run.sequences[:, prompt_length:start], torch.tensor(knobs.eos))
        for row, finished in enumerate(steps[-1].finished.tolist()):
            counts["canvases"] += 1
            took = sum(not step.latched[row] for step in steps)
            counts["steps"] += took
            counts["unconverged canvases" if not finished else "converged canvases"] += 1
            counts["early stops"] += finished and took < knobs.steps
            counts["rows that wait for others"] += took < len(steps)
            if ended_before[row].any():
                counts["canvases after a row's end"] += 1
                continue
            is_eos = torch.isin(steps[-1].argmax[row], torch.tensor(knobs.eos))
            counts["EOS in mid-canvas"] += bool(is_eos[:-1].any())
            counts["later canvases"] += index > 0
            live = [step for step in steps if not step.latched[row]]
            for before, now in itertools.pairwise(live):
                counts["re-melts"] += int((before.accepted[row] & ~now.accepted[row]).sum())
    return counts
