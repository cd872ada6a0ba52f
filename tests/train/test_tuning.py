"""Tuning: gradients are peft's, every base takes an adapter, runs are exact and resume."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import dgemma_core as dg
from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.files.adapters import ADAPTER_WEIGHTS, save_adapter
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.finding import NANO
from dgemma_core.files.quantised import Holder
from dgemma_core.model import DiffusionGemma
from dgemma_core.train import tune, tuning_run
from dgemma_core.train.batches import Batch, Place, collate
from dgemma_core.train.dense_pass import DensePass
from dgemma_core.train.loss import loss
from dgemma_core.train.noise import noisy_canvases
from dgemma_core.train.recipe import Sitting
from dgemma_core.train.texts import Text
from dgemma_core.train.tuning import USUAL, Tuner, TuneRecipe, new_adapter, target_names
from tests.core import tiny
from tests.oracle import adapters
from tests.oracle.build import capped, diffusion_oracle, draw, save
from tests.train.copying import END, close, copy_text, uneven

RECIPE = TuneRecipe(
    steps=6, batch_size=6, micro_batches=2, pool=2, learning_rate=1e-2, rank=2, alpha=4, seed=3
)
FULL = replace(RECIPE, full=True, rank=16, alpha=32)
ROOT = Path(__file__).parents[2]


def base(dtype: torch.dtype = torch.float32) -> DiffusionGemma:
    return tiny.model(1, vocab_size=12, canvas_length=4, sliding_window=16, dtype=dtype)


def tuner(folder: Path, recipe: TuneRecipe = RECIPE, model: Any = None, **options: Any) -> Tuner:
    return Tuner(model or base(), copy_text, recipe, folder, end=END, **options)


def learnt(run: Tuner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- against peft


@pytest.mark.slow
@pytest.mark.parametrize("modes", ["both", "denoiser", "causal"])
def test_the_gradient_is_that_of_peft(tmp_path: Path, modes: Any) -> None:
    """The loss over transformers' model with the adapter, row by row; where one adapter serves both modes its gradient
    is the sum of the two that `peft` sees."""
    drawn = draw(3)
    oracle = diffusion_oracle(drawn)
    model = load_model(save(oracle, tmp_path / "base"), dtype="float32", backend="torch")
    recipe = replace(RECIPE, modes=modes, self_conditioning=1.0)
    adapter = new_adapter(model, recipe)
    with torch.no_grad():
        for lora in adapter.modules().values():
            lora.lora_B.normal_(0, 0.1, generator=torch.Generator().manual_seed(4))
    save_adapter(tmp_path / "adapter", adapter, base="", digest="", rank=2, alpha=4)
    theirs = adapters.load(oracle, tmp_path / "adapter", trainable=True)
    run = tuner(tmp_path / "run", recipe, model)
    assert run.adapter is not None
    with torch.no_grad():
        for name, lora in run.adapter.modules().items():
            lora.load_state_dict(adapter.modules()[name].state_dict())
    vocabulary, length = drawn.text["vocab_size"], drawn.canvas_length
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(2, vocabulary, (3, 20), generator=generator).tolist()
    texts = [Text(tuple(row[:5]), tuple(row[5 : 8 + 3 * i])) for i, row in enumerate(ids)]
    places = [[Place(0, length)], [Place(length, length)], [Place(0, length)]]
    batch = collate(texts, END, places)
    model.train()
    parts = run.losses(model, batch, torch.Generator().manual_seed(9))
    weights = [p for lora in run.adapter.modules().values() for p in lora.parameters()]
    names = [f"{n}.{f}" for n in run.adapter.modules() for f in ("lora_A", "lora_B")]
    found = torch.autograd.grad(parts.total(recipe), weights, allow_unused=True)
    ours = dict(zip(names, found, strict=True))

    ((canvas, _),) = noisy_canvases(batch, recipe, vocabulary, torch.Generator().manual_seed(9))
    plain_loss(theirs, drawn, batch, canvas, modes).backward()
    compared = 0
    for name, gradient in ours.items():
        mode, _, parameter = name.partition(".")
        wanted = peft_gradient(theirs, parameter, both=modes == "both", mode=mode)
        assert gradient is not None and float(wanted.abs().max()) > 0, name
        scale = float(wanted.abs().max())
        torch.testing.assert_close(gradient / scale, wanted / scale, atol=2e-4, rtol=0)
        compared += 1
    assert compared == 2 * len(run.adapter.modules())


def plain_loss(theirs: Any, drawn: Any, batch: Batch, canvas: Tensor, modes: str) -> Tensor:
    """The published loss (spec §5) by transformers' model."""
    from transformers import DynamicCache

    causal, denoised = [], []
    (group,) = batch.canvases
    for row, prefix in enumerate(group.prefix.tolist()):
        clean, counted = batch.clean[row : row + 1], batch.targets[row] != -100
        output = theirs.model.encoder(clean, past_key_values=DynamicCache())
        logits = capped(theirs, output.last_hidden_state[0], drawn.text["final_logit_softcapping"])
        targets = batch.targets[row, counted]
        causal.append(F.cross_entropy(logits[counted], targets, reduction="none"))
        cache = DynamicCache(config=theirs.config.get_text_config(decoder=True))
        theirs.model.encoder(clean[:, :prefix], past_key_values=cache)
        given = {"past_key_values": cache, "decoder_input_ids": canvas[row : row + 1]}
        first = theirs(**given).logits.detach()
        found = theirs(**given, self_conditioning_logits=first).logits[0]
        denoised.append(F.cross_entropy(found, group.tokens[row], reduction="none"))
    total = torch.zeros(())
    if modes != "causal":
        total = total + torch.cat(denoised).mean()
    if modes != "denoiser":
        total = total + torch.cat(causal).mean()
    return total


def peft_gradient(theirs: Any, name: str, *, both: bool, mode: str) -> Tensor:
    """The gradient of a factor: `layers.0.mlp.up_proj.weight.lora_A`."""
    parameter, _, factor = name.rpartition(".")
    path, _, own = parameter.rpartition(".")
    inner = ".base_layer" if own == "gate_up_proj" else ""
    prefixes = (adapters.CAUSAL, adapters.DENOISER)
    if not both:
        prefixes = prefixes[:1] if mode == "causal" else prefixes[1:]
    found = dict(theirs.named_parameters(remove_duplicate=False))
    named = [f"{prefix}{path}{inner}.{factor}.default.weight" for prefix in prefixes]
    gradients = [found[key].grad for key in named if key in found]
    return torch.stack([g for g in gradients if g is not None]).sum(0)


# --- what learns


@pytest.mark.slow
@pytest.mark.parametrize("modes", ["both", "denoiser", "causal"])
def test_only_the_adapter_learns(tmp_path: Path, modes: Any) -> None:
    """And it learns; the base keeps its bits. A mode that learns nothing has no loss in the figures."""
    model = base()
    before = {name: p.clone() for name, p in model.named_parameters()}
    run = tuner(tmp_path, replace(RECIPE, modes=modes, steps=30, schedule="constant"), model)
    first = run.losses(model, batch_of_copies(), torch.Generator().manual_seed(0))
    assert run.run(curve_every=5)
    last = run.losses(model, batch_of_copies(), torch.Generator().manual_seed(0))
    for name in ("canvas", "autoregressive"):
        learns = modes == "both" or (modes == "denoiser") == (name == "canvas")
        if learns:
            assert getattr(last, name).item() < 0.8 * getattr(first, name).item()
        else:
            assert float(getattr(first, name)) == 0
    row = run.progress.curve[-1]
    assert ("canvas_loss" in row, "autoregressive_loss" in row) == (
        modes != "causal",
        modes != "denoiser",
    )
    kept = {id(p) for p in run.model.parameters() if not p.requires_grad}
    assert len(kept) == len(before)
    for name, parameter in before.items():
        path, _, own = name.rpartition(".")
        module = run.model.get_submodule(path) if path else run.model
        found = getattr(getattr(module, "base", module), own)
        assert torch.equal(found, parameter), name


def batch_of_copies() -> Batch:
    return collate([copy_text(i) for i in range(32)], END, [[Place(0, 4)]] * 32)


def test_all_weights(tmp_path: Path) -> None:
    run = tuner(tmp_path, replace(FULL, steps=8))
    before = learnt(run)
    assert run.adapter is None and before.keys() == dict(base().named_parameters()).keys()
    assert run.run()
    after = learnt(run)
    assert all(not torch.equal(after[n], before[n]) for n in before if "layer_scalar" not in n)


@pytest.mark.slow
def test_small_updates_of_all_weights_are_kept(tmp_path: Path) -> None:
    """With dtype bfloat16, too: passes run in it, and updates below 2⁻⁹ of a weight add up."""
    recipe = replace(FULL, dtype="bfloat16", learning_rate=1e-5, steps=20)
    with pytest.raises(RequestError, match="all weights learn in float32: load the model so"):
        tuner(tmp_path, recipe, base(torch.bfloat16))
    run = tuner(tmp_path, recipe)
    assert run.half and run.working is not run.model
    assert run.working.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    before = learnt(run)["norm.weight"], learnt(run)["embed_tokens.weight"]
    assert run.run()
    after = learnt(run)["norm.weight"], learnt(run)["embed_tokens.weight"]
    for a, b in zip(before, after, strict=True):
        moved = (b - a).abs()
        assert b.dtype == torch.float32 and (moved > 0).float().mean() > 0.9
        assert moved.max() <= 20 * 1.1e-5 and (moved > 5e-5).any(), "more than one update"


def test_targets() -> None:
    model = tiny.model()
    every = target_names(model, USUAL)
    assert len(every) == 4 + 3 + 2 * 3 + 2 * 2 + 3, "a full layer has no v_proj"
    assert target_names(model, ["v_proj"]) == ["layers.0.self_attn.v_proj.weight"]
    assert target_names(model, ["layers.1.experts.down_proj"]) == ["layers.1.experts.down_proj"]
    of_mlps = target_names(model, ["up_proj"])
    assert of_mlps[-1] == "self_conditioning.up_proj.weight" and len(of_mlps) == 3
    assert target_names(model, ["router"]) == target_names(model, ["router.proj"]) != []
    for wrong in ("q", "embed_tokens", "norm", "layers.9.self_attn.q_proj"):
        with pytest.raises(
            RequestError, match=f"'{wrong}' names no matrix.*choose of attention, .*, router"
        ):
            target_names(model, [wrong])
    with pytest.raises(RequestError, match="the causal mode has no self_conditioning"):
        new_adapter(model, replace(RECIPE, modes="causal", targets=("self_conditioning",)))


def test_targets_are_names() -> None:
    """A text holds names, not letters, whatever spaces stand between them."""
    given: Any = "attention, mlp"
    assert replace(RECIPE, targets=given).targets == ("attention", "mlp")
    for wrong in ((), "", "attention,", 3, [4]):
        with pytest.raises(
            RequestError, match=r"targets are names of matrices.*choose of attention"
        ):
            replace(RECIPE, targets=wrong)  # type: ignore[arg-type]


def test_the_router_learns(tmp_path: Path) -> None:
    run = tuner(tmp_path, replace(RECIPE, targets=("router",), steps=2))
    before = learnt(run)
    assert run.run() and not equal(learnt(run), before)


def test_a_new_adapter_changes_nothing(tmp_path: Path) -> None:
    plain, batch = base(), batch_of_copies()
    generator = torch.Generator
    wanted = loss(plain, batch, RECIPE, generator().manual_seed(2))
    run = tuner(tmp_path)
    found = run.losses(run.model, batch, generator().manual_seed(2))
    assert float(found.canvas) == float(wanted.canvas)
    assert float(found.autoregressive) == float(wanted.autoregressive)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"full": True, "modes": "denoiser"}, "all weights belong to both modes"),
        ({"full": True, "quantize": "int4"}, "quantised weights cannot be trained"),
        ({"full": True, "targets": "mlp"}, "rank, alpha, targets: of an adapter, and all weights"),
        ({"full": "no"}, "full must be True or False, got 'no'"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 2.5}, "rank must be a whole number, got 2.5"),
        ({"rank": None}, "rank must be a whole number, got None"),
        ({"batch_size": 4.0}, "batch_size must be a whole number, got 4.0"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"alpha": 0}, "alpha must be a number above 0"),
        ({"learning_rate": 0}, "learning_rate must be a number above 0, got 0"),
        ({"learning_rate": -1}, "learning_rate must be a finite number of at least 0, got -1"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"learning_rate": "2e-4"}, "learning_rate must be a finite number"),
        ({"final_learning_rate": -3}, "final_learning_rate must be a finite number"),
        ({"clip": 0}, "clip must be a number above 0"),
        ({"clip": -1}, "clip must be a finite number"),
        ({"autoregressive": -1}, "autoregressive must be a finite number"),
        ({"weight_decay": -1}, "weight_decay must be a finite number"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number"),
        ({"betas": (1.5, 0.9)}, "betas must be below 1"),
        ({"betas": 0.9}, "betas must be two numbers"),
        ({"noise": (0.5, 0.2)}, "noise is a range"),
        ({"noise": 0.5}, "noise must be two numbers, got 0.5"),
        ({"drafts": 1}, "drafts must be at least 2"),
        ({"drafts": (8.5,)}, "drafts must be a whole number"),
        ({"modes": "one"}, "modes: expected both"),
        ({"schedule": "linear"}, "schedule: expected cosine"),
        ({"dropout": 1.0}, "dropout below 1"),
        ({"dtype": "float3"}, "dtype: expected auto, float64"),
    ],
)
def test_settings_without_meaning(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        replace(RECIPE, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"minutes": math.nan},
        {"minutes": math.inf},
        {"checkpoint_minutes": math.nan},
        {"validate_every": -1},
        {"workers": 0},
    ],
)
def test_sittings_without_meaning(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"run: {next(iter(settings))} must be"):
        Sitting(**settings)


def test_settings_are_made_plain() -> None:
    given: dict[str, Any] = {"drafts": 8, "noise": [0, 1], "alpha": 4}
    made = replace(RECIPE, **given)
    assert made.drafts == (8,) and made.noise == (0.0, 1.0)


def test_learning_rates_and_noise() -> None:
    constant = replace(RECIPE, schedule="constant", warmup=2)
    assert [constant.rate_at(step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    cosine = replace(RECIPE, steps=10)
    assert cosine.rate_at(0) == 1.0 and cosine.rate_at(9) < 0.1
    narrow = replace(RECIPE, noise=(0.5, 1.0))
    assert narrow.noise_level(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.5, 0.75, 1.0]
    assert TuneRecipe(steps=1).betas == (0.95, 0.99), "the published ones"


# --- bases of every form


def gradients(run: Tuner, batch: Batch) -> dict[str, Tensor]:
    parts = run.losses(run.model, batch, torch.Generator().manual_seed(2))
    names = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(parts.total(run.recipe), list(names.values()))
    return dict(zip(names, found, strict=True))


def with_factors(run: Tuner) -> Tuner:
    """The same, with factors that are all random."""
    assert run.adapter is not None
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for lora in run.adapter.modules().values():
            lora.lora_B.normal_(0, 0.1, generator=generator)
    return run


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_base(tmp_path: Path, quantize: str) -> None:
    """The gradient is that over the numbers which the codes stand for, and only codes are kept for it."""
    folder = tmp_path / "base"
    dg.save_model(tiny.model(1), folder, generation=dg.GenerationDefaults())
    coded = load_model(folder, dtype="float32", quantize=quantize, backend="torch")
    plain = load_model(folder, dtype="float32", backend="torch")
    with torch.no_grad():
        for path, module in coded.named_modules():
            for name in module.columns if isinstance(module, Holder) else ():
                weight = plain.get_parameter(f"{path}.{name}")
                weight.copy_(module.matrix(name).dequantize(torch.float32))
    runs = [with_factors(tuner(tmp_path, RECIPE, model)) for model in (coded, plain)]
    batch = uneven()
    ours, theirs = (gradients(run, batch) for run in runs)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        close(gradient, theirs[name], 1e-4)
    sizes: list[int] = []

    def kept(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    experts = coded.layers[0].experts.base
    x = torch.randn(5, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        experts.product("gate_up_proj", 1, x).sum().backward()
    held = experts.matrix("gate_up_proj")[1]
    assert sorted(sizes) == sorted([held.codes.numel(), held.scales.numel()])


def test_a_base_in_bfloat16(tmp_path: Path) -> None:
    """Factors and their optimiser stay in float32."""
    run = tuner(tmp_path, replace(RECIPE, steps=3), base(torch.bfloat16))
    assert not run.half and run.working is run.model
    assert run.run()
    assert all(p.dtype == torch.float32 for p in learnt(run).values())
    assert all(p.dtype == torch.bfloat16 for p in run.model.parameters() if not p.requires_grad)


def test_layers_that_run_again(tmp_path: Path) -> None:
    """Activation checkpointing gives the same bits, and keeps less."""
    batch, sums, found = uneven(), [], []
    for recomputes in (False, True):
        recipe = replace(RECIPE, recomputes=recomputes, self_conditioning=0.5)
        run = with_factors(tuner(tmp_path, recipe, tiny.model(1)))
        total = 0

        def kept(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            found.append(gradients(run, batch))
        sums.append(total)
    assert equal(*found)
    assert sums[1] < sums[0] / 2


def test_layers_that_run_again_record_once() -> None:
    model, batch = tiny.model(1), uneven()
    model.requires_grad_(True)
    both = DensePass(model, batch, recomputes=True)
    both.encode().sum().backward()
    assert len(both.keys) == len(both.routings) == len(model.layers)


def test_a_large_vocabulary_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dgemma_core.train import loss as module

    batch = uneven()
    run = with_factors(tuner(tmp_path, replace(RECIPE, self_conditioning=0.5), tiny.model(1)))
    whole = gradients(run, batch)
    monkeypatch.setattr(module, "AT_ONCE", 48 * 7)
    for name, gradient in gradients(run, batch).items():
        close(gradient, whole[name], 1e-4)


# --- exact runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tuner:
    run = tuner(tmp_path_factory.mktemp("whole"), held_out=[copy_text(-1)], validate_every=3)
    assert run.run(curve_every=2)
    return run


def test_it_resumes_to_the_bit(whole: Tuner, tmp_path: Path) -> None:
    first = tuner(tmp_path, held_out=[copy_text(-1)], validate_every=3)

    def report(progress: Any, figures: dict[str, float]) -> None:
        first.stopping = progress.step == 2

    assert first.run(report=report, curve_every=2) is False and first.progress.step == 2
    again = tuner(tmp_path, held_out=[copy_text(-1)], validate_every=3)
    assert again.resume() and again.run(curve_every=2)
    assert equal(learnt(again), learnt(whole))
    assert again.progress.validation == whole.progress.validation
    assert [row["step"] for row in again.progress.validation] == [3, 6]
    with (tmp_path / "curve.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "4", "6"]


def test_a_short_run_has_a_curve(tmp_path: Path) -> None:
    """Of its first step and its last."""
    assert tuner(tmp_path).run()
    with (tmp_path / "curve.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "6"]


@pytest.mark.parametrize(
    "wrong", [{"step": "4"}, {"seconds": None}, {"curve": {}}, {"curve": [3]}, {"sums": {"a": "b"}}]
)
def test_damaged_progress(whole: Tuner, tmp_path: Path, wrong: dict[str, Any]) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "progress.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(CheckpointError, match="holds a damaged training checkpoint") as caught:
        tuner(tmp_path).resume()
    assert "\n" not in str(caught.value)


def test_checkpoints_hold_what_learns_alone(whole: Tuner) -> None:
    (file,) = whole.folder.glob("weights-*.safetensors")
    assert load_file(file).keys() == learnt(whole).keys()


def test_the_number_of_workers_changes_no_bit(whole: Tuner, tmp_path: Path) -> None:
    run = tuner(tmp_path, workers=2)
    assert run.run() and equal(learnt(run), learnt(whole))


def test_another_recipe_is_refused(whole: Tuner) -> None:
    for change in ({"rank": 4}, {"data": "other"}, {"base": "other"}):
        with pytest.raises(CheckpointError, match=f"{next(iter(change))} differ"):
            tuner(whole.folder, replace(RECIPE, **change)).resume()


@pytest.mark.slow
def test_dropout_is_drawn_from_the_seed(whole: Tuner, tmp_path: Path) -> None:
    """Two runs of one seed are the same; the loss on held-out texts knows no dropout."""
    recipe = replace(RECIPE, dropout=0.3)
    runs = [tuner(tmp_path / str(i), recipe, workers=2) for i in range(2)]
    for i, run in enumerate(runs):
        torch.manual_seed(i)
        assert run.workers is None and run.run()
    assert equal(learnt(runs[0]), learnt(runs[1])) and not equal(learnt(runs[0]), learnt(whole))
    measured = [tuner(tmp_path, r, held_out=[copy_text(3)]) for r in (recipe, RECIPE)]
    assert measured[0].measure(measured[0].model) == measured[1].measure(measured[1].model)
    assert measured[0].working.training, "it goes on with dropout"


# --- from data to an adapter


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Echo: {i % 7}", "completion": f"{i % 7}"} for i in range(count)]


WHOLE: dict[str, Any] = {"batch_size": 4, "workers": 1, "progress": False}
OPTIONS: dict[str, Any] = {**WHOLE, "rank": 2}


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_nano_learns(tmp_path: Path, quantize: str | None) -> None:
    said: list[str] = []
    done = tune(
        "nano", rows(24), tmp_path, max_steps=3, quantize=quantize, tell=said.append, **OPTIONS
    )
    assert said[0].startswith("training: 23 conversations, 23 answers") and done.steps == 3
    assert done.ended and done.counts.texts == 23 and len(done.validation) == 1
    loaded = dg.load("nano", adapter=done.folder, quantize=quantize)
    plain = dg.load("nano", quantize=quantize)
    ids = [[2, 6, 7, 8]]
    changed, before = (each.model.encode(ids).hidden for each in (loaded, plain))
    assert changed is not None and before is not None and not torch.equal(changed, before)


def test_all_of_nano_becomes_a_checkpoint(tmp_path: Path) -> None:
    done = tune("nano", rows(8), tmp_path / "out", max_steps=2, full=True, **WHOLE)
    loaded, nano = dg.load(done.folder), dg.load("nano")
    assert loaded.tokenizer is not None and loaded.tokenizer.template == nano.tokenizer.template  # type: ignore[union-attr]
    names = {name for name, p in loaded.model.named_parameters() if "layer_scalar" not in name}
    for name in names:
        assert not torch.equal(loaded.model.get_parameter(name), nano.model.get_parameter(name))


@pytest.mark.slow
def test_all_of_nano_in_bfloat16(tmp_path: Path) -> None:
    """It learns in float32, and the checkpoint is written as it was asked for."""
    out = tmp_path / "out"
    done = tune("nano", rows(8), out, max_steps=2, full=True, dtype="bfloat16", **WHOLE)
    (kept,) = (out / "run").glob("weights-*.safetensors")
    assert {numbers.dtype for numbers in load_file(kept).values()} == {torch.float32}
    assert load_model(done.folder).dtype == torch.bfloat16
    with pytest.raises(RequestError, match="dtype float16 is neither"):
        tune("nano", rows(4), tmp_path / "b", max_steps=1, full=True, dtype="float16", **WHOLE)
    with pytest.raises(
        RequestError, match="this is one process: leave shard out, or start several"
    ):
        tune("nano", rows(4), tmp_path / "c", max_steps=1, shard=True, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"data": [3]}, r"record 1: expected a JSON object, found 3"),
        ({"data": 3}, "data and validation are files, folders or lists of records, got 3"),
        ({"learning_rate": 0}, "learning_rate must be"),
        ({"betas": (1.5, 0.9)}, "betas must be below 1"),
        ({"rank": 2.5}, "rank must be a whole number"),
        ({"minutes": math.nan}, "minutes must be"),
        ({"validate_every": -1}, "validate_every must be"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"seed": None}, "seed must be"),
        ({"epochs": 1e30}, "epochs: 1e[+]30 are .* steps, and a run has at most"),
        ({"epochs": 0}, "epochs: expected a number above 0"),
        ({"max_steps": 1.5}, "max_steps must be a whole number"),
        ({"max_steps": 1, "targets": "nothing"}, "'nothing' names no matrix"),
        (
            {"max_steps": 1, "modes": "causal", "targets": "self_conditioning"},
            "the causal mode has no",
        ),
        ({"max_length": "9"}, "max_length must be a whole number"),
    ],
)
def test_what_tune_refuses_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], match: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(tuning_run, "load_model", load)
    with pytest.raises(RequestError, match=match):
        tune(**{"model": "nano", "data": rows(4), "out": tmp_path, **OPTIONS, **given})


def test_long_runs_begin_at_once() -> None:
    """What is told of a run's padding reads its first steps alone."""
    texts = tuning_run.Shuffled([(copy_text(i),) for i in range(5)], 0)
    recipe = replace(RECIPE, steps=2**31 - 1)
    data = tuning_run.Data((), (), END)
    counts = tuning_run.Counts(texts=5)
    *_, last = tuning_run.describe(data, counts, counts, recipe, texts)
    assert "of the first 4,096 steps" in last


def test_the_models_own_folder_stays_as_it_is(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(NANO, base)
    for full in (True, False):
        with pytest.raises(RequestError, match="is the model's own folder: name another one"):
            tune(str(base), rows(4), base, max_steps=1, full=full, **WHOLE)
    with pytest.raises(RequestError, match="holds a model: name another folder"):
        tune("nano", rows(4), base, max_steps=1, **WHOLE)
    assert sorted(p.name for p in base.iterdir()) == sorted(p.name for p in NANO.iterdir())


@pytest.mark.slow
def test_settings_from_python(tmp_path: Path) -> None:
    """A torch dtype, and held-out records."""
    out = tmp_path / "out"
    done = tune(
        "nano", rows(8), out, max_steps=1, validation=rows(2), dtype=torch.float32, **OPTIONS
    )
    assert done.held_out.conversations == 2 and done.counts.conversations == 8
    assert len(done.validation) == len(done.curve) == 1


@pytest.mark.slow
def test_what_tune_refuses(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="knows no setting rnk"):
        tune("nano", rows(4), tmp_path, rnk=4)
    with pytest.raises(RequestError, match="both say how long"):
        tune("nano", rows(4), tmp_path, max_steps=1, epochs=2)
    with pytest.raises(RequestError, match="epochs: expected a number above 0"):
        tune("nano", rows(4), tmp_path, epochs=0)
    with pytest.raises(RequestError, match="holds no run to resume"):
        tune("nano", rows(4), tmp_path, max_steps=1, resume=True, **OPTIONS)
    tune("nano", rows(4), tmp_path, max_steps=1, **OPTIONS)
    with pytest.raises(RequestError, match="holds a run: resume it"):
        tune("nano", rows(4), tmp_path, max_steps=1, **OPTIONS)
    with pytest.raises(CheckpointError, match="data differ"):
        tune("nano", rows(5), tmp_path, max_steps=1, resume=True, **OPTIONS)


def test_trackio_hears_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    stand_in = types.ModuleType("trackio")
    stand_in.init = lambda project, config: heard.append((project, config["rank"]))  # type: ignore[attr-defined]
    stand_in.log = lambda figures, step: heard.append((step, "canvas_loss" in figures))  # type: ignore[attr-defined]
    stand_in.finish = lambda: heard.append("finished")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    tune("nano", rows(4), tmp_path / "a", max_steps=2, trackio="mine", **OPTIONS)
    assert heard == [("mine", 2), (1, True), (2, True), "finished"]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(RequestError, match="trackio is not installed"):
        tune("nano", rows(4), tmp_path / "b", max_steps=2, trackio="mine", **OPTIONS)


@pytest.mark.subprocess
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """After kill -9 from its last checkpoint; after Ctrl-C, which saves the step at hand and ends with 130."""
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows(12)))
    out, progress = tmp_path / "out", tmp_path / "out" / "run" / "progress.json"
    options = "--max-steps 7 --batch-size 4 --rank 2 --workers 1 --checkpoint-minutes 0"
    given = ["tune", "--data", str(data), "--out", str(out), *options.split()]
    command = [sys.executable, "-m", "dgemma_core.command.cli", *given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for sent, code, step in ((signal.SIGKILL, -9, 2), (signal.SIGINT, 130, 4)):
        running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (progress.exists() and json.loads(progress.read_text())["step"] >= step):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(sent)
        assert running.wait() == code
        command = [*command[: 3 + len(given)], "--resume"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = tune("nano", data, tmp_path / "whole", max_steps=7, **OPTIONS)
    torch.set_num_threads(threads)
    a, b = (load_file(folder / ADAPTER_WEIGHTS) for folder in (out, whole.folder))
    assert equal(a, b)
