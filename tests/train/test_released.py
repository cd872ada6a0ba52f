"""Tuning the released 26B model, as far as it goes without its weights: names, shapes, one step of one layer."""

from __future__ import annotations

import gc
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from typer.testing import CliRunner

from dgemma_core.command.cli import app
from dgemma_core.command.tune import RECIPES, arguments, read_recipe, tune
from dgemma_core.config import ModelConfig
from dgemma_core.facts.tuning import Tuning, tuning_memory
from dgemma_core.files.adapters import _peft_names
from dgemma_core.files.config_json import read_model_config
from dgemma_core.files.finding import NANO
from dgemma_core.files.lora import Adapter, LowRank, attach
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.batches import Place, collate
from dgemma_core.train.run import TOKENIZER_FILES
from dgemma_core.train.texts import Text
from dgemma_core.train.tuning import Tuner, TuneRecipe, target_names
from tests.oracle.released import released_config


def released() -> ModelConfig:
    return read_model_config(released_config(), source="config.json")


def recipe() -> TuneRecipe:
    """The shipped recipe, as `tune` would make it."""
    known = {
        name: p.default for name, p in inspect.signature(tune).parameters.items() if name != "ctx"
    }
    found = arguments({**known, **read_recipe(Path("sudoku_26b"))})
    assert found["model"] == "google/diffusiongemma-26B-A4B-it" and found["learning_rate"] == 2e-4
    own = {"rank", "alpha", "targets", "modes", "self_conditioning", "noise", "clip", "recomputes"}
    return TuneRecipe(steps=found["max_steps"], **{name: found[name] for name in own})


def test_names_and_shapes_of_the_whole_model() -> None:
    """On the meta device: an adapter of 30 layers and the self-conditioning, and PEFT's names for it."""
    model = DiffusionGemma(released(), device="meta")
    names = target_names(model, recipe().targets)
    assert len(names) == 30 * (4 + 3 + 2) - 5 + 3, "five full layers have no v_proj"
    shapes = {name: model.get_parameter(name).shape for name in names}
    with torch.device("meta"):
        loras = {
            name: LowRank(
                torch.empty(16 * (shape[0] if len(shape) == 3 else 1), shape[-1]),
                torch.empty(shape[-2], 16 * (shape[0] if len(shape) == 3 else 1)),
                2.0,
                count=shape[0] if len(shape) == 3 else 1,
            )
            for name, shape in shapes.items()
        }
    parameters = sum(p.numel() for lora in loras.values() for p in lora.parameters())
    assert parameters == sum(
        16 * (shape[0] if len(shape) == 3 else 1) * (shape[-1] + shape[-2])
        for shape in shapes.values()
    )
    named = {path: lora for _, path, lora in _peft_names(loras)}
    assert "layers.29.experts.base_layer" in named and "layers.29.experts" in named
    of_gate = named["layers.0.experts.base_layer"]
    assert of_gate.lora_A.shape == (128 * 16, 2816) and of_gate.lora_B.shape == (1408, 2048)
    attach(model, Adapter({n: v for n, v in loras.items() if n.startswith("layers.")}, loras))
    assert model.causal_layers is None


@pytest.mark.slow
def test_one_step_of_a_layer_of_the_released_widths(tmp_path: Path) -> None:
    """128 experts, bfloat16 and LoRA on the CPU: the experts' gradient is peft's, and a step of the optimiser moves the
    adapter and nothing else. One stack of experts is tried in peft: it adds up whole matrices, 1 GB at a time."""
    full = released()
    text = replace(full.text, vocab_size=512, layers=full.text.layers[:1])
    config = replace(full, text=text, canvas_length=8, media_token_ids=(), bos_token_id=2,
                     eos_token_ids=(1,), pad_token_id=0)  # fmt: skip
    model = DiffusionGemma(config, dtype=torch.bfloat16).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0)
    small = replace(recipe(), steps=1, batch_size=2, rank=2, alpha=4, warmup=0, learning_rate=1e-3)
    run = Tuner(model, lambda i: Text((2, 3, 4 + i), (5, 6, 7)), small, tmp_path, end=1)
    assert run.adapter is not None and not run.half
    frozen = {name: p.sum() for name, p in model.named_parameters() if not p.requires_grad}
    loras = run.adapter.modules()
    before = {name: lora.lora_B.clone() for name, lora in loras.items()}
    assert run.run()
    moved = [name for name, lora in loras.items() if not torch.equal(lora.lora_B, before[name])]
    assert len(moved) == len(loras)
    assert all(torch.equal(p.sum(), frozen[n]) for n, p in model.named_parameters() if n in frozen)

    layer: Any = model.layers[0]
    x = torch.randn(128, 2, 2816, generator=generator).bfloat16()
    upstream = torch.randn(128, 2, 1408, generator=generator).bfloat16()
    lora = layer.experts.lora("gate_up_proj")
    products = [layer.experts.product("gate_up_proj", e, rows) for e, rows in enumerate(x)]
    ours = torch.autograd.grad(torch.stack(products), [lora.lora_A, lora.lora_B], upstream)
    theirs = of_peft(layer.experts.base, lora, x, upstream)
    for a, b in zip(ours, theirs, strict=True):
        error = float((a - b.float()).norm() / b.float().norm())
        assert error < 0.02, error


def of_peft(experts: torch.nn.Module, lora: LowRank, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The gradient of the same factors by `peft` around the same matrices."""
    from peft import LoraConfig, get_peft_model

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Products(experts.gate_up_proj)

        def forward(self, x: Tensor) -> Tensor:
            return self.experts(x)

    class Products(torch.nn.Module):
        def __init__(self, gate_up_proj: torch.nn.Parameter) -> None:
            super().__init__()
            self.gate_up_proj = gate_up_proj

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([F.linear(x[e], w) for e, w in enumerate(self.gate_up_proj)])

    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=[], target_parameters=["experts.gate_up_proj"]
    )
    adapted = get_peft_model(Model(), config)
    found = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    (a,), (b,) = ([p for n, p in found.items() if f"lora_{f}" in n] for f in "AB")
    with torch.no_grad():
        a.copy_(lora.lora_A)
        b.copy_(lora.lora_B)
    (adapted(x) * upstream).sum().backward()
    assert a.grad is not None and b.grad is not None
    gc.collect()
    return [a.grad, b.grad]


@pytest.mark.slow
def test_the_recipe_names_the_memory_that_is_planned() -> None:
    found = yaml.safe_load((RECIPES / "sudoku_26b.yaml").read_text())
    assert found["dtype"] == "bfloat16" and found["recompute"] and found["modes"] == "both"
    settings: dict[str, Any] = {
        "texts": found["batch_size"] // found["accumulate"], "parts": found["accumulate"],
        "length": found["max_length"] - 1, "rank": found["rank"], "recomputes": True,
    }  # fmt: skip
    for base in ("bf16", "int4"):
        memory = tuning_memory(released(), Tuning(base=base, **settings))
        assert f"{memory.total / 1e9:.1f} GB" in found["about"], base
        assert f"{sum(line.bytes for line in memory.held[1:]) / 1e9:.1f} GB" in found["about"]


def test_the_recipe_runs_up_to_the_weights(tmp_path: Path) -> None:
    """Data are checked and counted, and the plan of the run is shown; then the weights are missing."""
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(released_config()))
    for name in TOKENIZER_FILES:
        (model / name).write_bytes((NANO / name).read_bytes())
    row = {"prompt": "Sudoku: " + "_ " * 81, "completion": "1 2 3 4 5 6 7 8 9 " * 9}
    data.write_text(json.dumps(row) + "\n")
    asked = ["--recipe", "sudoku_26b", "--model", model, "--data", data, "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, ["tune", *map(str, asked)])
    assert done.exit_code == 2 and "found no weights" in done.output.splitlines()[-1], done.output
    assert "1,000 steps of 32 answers" in done.output and "padding: " in done.output
    assert re.search(r"1 answers, .* 1 canvases, longest \d+ tokens, 0 truncated", done.output)


def test_the_batches_of_a_puzzle() -> None:
    """A Sudoku's solution, 81 digits with spaces or not, fills one canvas of 256."""
    text = Text(tuple(range(2, 200)), tuple([9] * 161))
    batch = collate([text], 1, [[Place(0, released().canvas_length)]])
    assert batch.canvases[0].tokens.shape == (1, 256)
    assert batch.canvases[0].ends.tolist() == [161]
