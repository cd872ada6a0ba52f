"""The recorded structure of a step: its arithmetic is that of `facts.cost`, and the committed record is still true."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

import dgemma_core as dg
from dgemma_core.config import ModelConfig
from dgemma_core.facts.cost import work
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.files.finding import find_folder, read_config
from scripts.record_structure import OUT, structure

PARTS = {
    "attention projections": "attention",
    "attention over prefix and canvas": "prefix",
    "dense MLP": "dense MLP",
    "experts": "experts",
    "self-conditioning": "self-conditioning",
    "head": "embedding",
}


def check_arithmetic(config: ModelConfig, found: dict) -> None:
    """Products and attention add up to what the cost of a step says."""
    flop: Counter[str] = Counter()
    for place in found["places"].values():
        for one in place["operations"]:
            flop[one["part"]] += place["times"] * one["count"] * one["flop"]
    settings = found["settings"]
    model = dg.DiffusionGemma(config, device="meta", dtype=torch.bfloat16)
    wanted = work(model, prefix=settings["prefix"], tokens=settings["canvas"])
    for part, counted in PARTS.items():
        assert flop[part] == pytest.approx(wanted.computed[counted], rel=0.05), part


def test_a_step_of_nano_has_the_arithmetic_that_its_cost_says() -> None:
    config, _ = read_config(find_folder("nano"))
    found = structure(config, prefix=100, touched=config.text.num_experts)
    check_arithmetic(config, found)
    layers = [found["places"][f"{kind} layer"]["times"] for kind in ("sliding", "full")]
    assert sum(layers) == len(config.text.layers)


@pytest.mark.slow
def test_the_committed_record_is_what_the_script_makes() -> None:
    config = CONFIGS[DIFFUSION_26B]
    known = json.loads(OUT.read_text(encoding="utf-8"))
    settings = known["settings"]
    found = structure(config, settings["prefix"], settings["touched experts"])
    assert json.loads(json.dumps(found)) == known
    check_arithmetic(config, known)
