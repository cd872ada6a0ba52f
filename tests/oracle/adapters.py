"""Adapters by `peft` over transformers' DiffusionGemma: random ones, and one that was written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import DiffusionGemmaForBlockDiffusion

CAUSAL, DENOISER = "model.encoder.language_model.", "model.decoder."
STACKS = ("experts.gate_up_proj", "experts.down_proj")


def targets(oracle: nn.Module, begin: str = "") -> tuple[list[str], list[str]]:
    """The projections, and the stacked matrices of experts, whose names begin so."""
    modules = [
        name
        for name, module in oracle.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(begin)
        and not any(part in name for part in ("vision", "router", "lm_head"))
    ]
    parameters = [
        name
        for name, _ in oracle.named_parameters(remove_duplicate=False)
        if name.startswith(begin) and name.endswith(STACKS)
    ]
    return modules, parameters


@torch.no_grad()
def write(
    oracle: DiffusionGemmaForBlockDiffusion, folder: Path, begin: str = "", **options: Any
) -> DiffusionGemmaForBlockDiffusion:
    """Gives the oracle a random adapter of all that `targets` names (or `options` do) and saves it as `peft` does.
    Returns the oracle, which runs with it from now on."""
    modules, parameters = targets(oracle, begin)
    wanted = {"target_modules": modules, "target_parameters": parameters, **options}
    adapted = get_peft_model(oracle, LoraConfig(**{"r": 3, "lora_alpha": 5, **wanted}))
    generator = torch.Generator().manual_seed(11)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.normal_(0, 0.2, generator=generator)
    adapted.save_pretrained(folder)
    return _inner(adapted)


def load(
    oracle: DiffusionGemmaForBlockDiffusion, folder: Path, *, trainable: bool = False
) -> DiffusionGemmaForBlockDiffusion:
    """The oracle with the adapter in the folder, as `peft` reads it."""
    return _inner(PeftModel.from_pretrained(oracle, folder, is_trainable=trainable))


def _inner(adapted: Any) -> DiffusionGemmaForBlockDiffusion:
    inner: DiffusionGemmaForBlockDiffusion = adapted.eval().base_model.model
    return inner
