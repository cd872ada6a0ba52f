"""Training: the noise, the loss against a plain computation, and a run that resumes to the bit."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.events import FinishEvent, StepEvent
from dgemma_core.experts import Experts, Routing
from dgemma_core.files.checkpoint import load_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.recipes import NANO, FamilyTexts, nano_tokenizer
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound
from dgemma_core.train import training
from dgemma_core.train.dense_pass import DensePass, run_experts
from dgemma_core.train.training import (
    Batch,
    Recipe,
    Text,
    Trainer,
    balance_loss,
    batches,
    canvas_count,
    collate,
    initialise,
    looks,
    loss,
    noised,
    walk,
)
from tests.core import tiny

ROOT = Path(__file__).parents[2]
BOS, SEPARATOR, END = 2, 3, 1
WORDS = range(4, 12)
COPYING = tiny.config(vocab_size=12, canvas_length=4, sliding_window=16)
RECIPE = Recipe(steps=11, batch_size=6, micro_batches=2, pool=4, warmup=3, learning_rate=1e-2)


def copy_text(number: int) -> Text:
    """Three words to be copied."""
    rng = random.Random(number)
    words = tuple(rng.choices(WORDS, k=3))
    return Text((BOS, *words, SEPARATOR), words)


def trainer(
    folder: Path, recipe: Recipe = RECIPE, texts: Callable[[int], Text] = copy_text
) -> Trainer:
    """A run at step 0; equal recipes start from equal weights."""
    model = DiffusionGemma(COPYING)
    initialise(model, recipe.seed)
    return Trainer(model, texts, recipe, folder, end=END)


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """To the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("uninterrupted"))
    assert run.run(curve_every=3)
    return run


# --- noise


def noise(canvas: Tensor, vocab: int, generator: torch.Generator) -> Tensor:
    """Noised once, each row with a rate of its own."""
    return noised(canvas, torch.rand(len(canvas), 1, generator=generator), vocab, generator)


@pytest.mark.parametrize("noisings", [1, 2, 3])
def test_noise_rates_are_uniform_and_evenly_apart(model: DiffusionGemma, noisings: int) -> None:
    """Of rows of 4096 tokens, the share that was replaced is t(1 − 1/V), t uniform on (0, 1); the noisings of a row
    lie 1/n apart, around the corner."""
    rows, vocab = 800, 48
    canvas = torch.full((rows, 4096), 5)
    batch = Batch(canvas, canvas, torch.zeros(rows, dtype=torch.long), canvas)
    recipe = replace(RECIPE, noisings=noisings, self_conditioning=0.25)
    drawn = list(looks(model, batch, recipe, torch.Generator().manual_seed(0)))
    assert len(drawn) == noisings
    rates = []
    for noisy, before in drawn:
        assert torch.equal(before, noisy[:200])
        t = (noisy != canvas).double().mean(1) / (1 - 1 / vocab)
        counts = torch.histc(t.clamp(0, 1), bins=8, min=0, max=1)
        assert ((counts - rows / 8) ** 2 / (rows / 8)).sum() < 7 + 5 * math.sqrt(14)
        assert abs(float(t.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / rows)
        assert t.min() < 0.02 and t.max() > 0.98
        rates.append(t)
    for i, t in enumerate(rates):
        apart = (t - rates[0] - i / noisings + 0.5) % 1 - 0.5
        assert apart.abs().max() < 0.06, "4096 tokens tell a rate to about 0.008"


def test_every_noising_counts(model: DiffusionGemma) -> None:
    """The canvas loss is the mean over the noisings, the causal loss is read once."""
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=0.5, noisings=3)
    with torch.no_grad():
        ours = loss(model, batch, recipe, torch.Generator().manual_seed(7))
        both, single = DensePass(model, batch), []
        both.encode()
        for noisy, before in looks(model, batch, recipe, torch.Generator().manual_seed(7)):
            p = model.logits(both.denoise(before, None, slice(len(before)))).softmax(-1)
            soft = p @ model.embed_tokens.weight * 16**0.5
            soft = torch.cat((soft, torch.zeros(len(noisy) - len(before), *soft.shape[1:])))
            logits = model.logits(both.denoise(noisy, soft))
            single.append(F.cross_entropy(logits.flatten(0, 1), batch.canvas.flatten()))
        once = loss(model, batch, replace(recipe, noisings=1), torch.Generator().manual_seed(7))
    assert len({float(value) for value in single}) == 3
    close(ours.canvas, torch.stack(single).mean())
    close(ours.autoregressive, once.autoregressive)


def test_noise_is_any_token_at_any_position() -> None:
    vocab = 8
    canvas = torch.arange(6).expand(20_000, 6)
    noisy = noise(canvas, vocab, torch.Generator().manual_seed(1))
    changed = noisy != canvas
    share = changed.double().mean(0)
    assert ((share - 0.5 * (1 - 1 / vocab)).abs() < 0.02).all(), "no position is spared"
    for position in range(6):
        counts = noisy[changed[:, position], position].bincount(minlength=vocab).double()
        assert counts[position] == 0
        others = counts[torch.arange(vocab) != position]
        expected = others.sum() / (vocab - 1)
        assert ((others - expected) ** 2 / expected).sum() < 6 + 5 * math.sqrt(12)


def test_noise_comes_from_its_generator_alone() -> None:
    canvas = torch.arange(12).view(2, 6)
    first = noise(canvas, 50, torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    assert torch.equal(noise(canvas, 50, torch.Generator().manual_seed(3)), first)
    assert not torch.equal(noise(canvas, 50, torch.Generator().manual_seed(4)), first)


# --- batches


def test_collate_by_hand() -> None:
    """A short answer, the second canvas of a long one, and the end that has a canvas to itself."""
    texts = [
        Text((20, 21), (30,)),
        Text((22,), tuple(range(40, 46))),
        Text((23,), (50, 51, 52, 53)),
    ]
    assert [canvas_count(text, 4) for text in texts] == [1, 2, 2]
    batch = collate(texts, 4, END, [0, 1, 1])
    assert batch.clean.shape == batch.targets.shape == (3, 16), "rounded up, so that shapes recur"
    assert batch.clean[:, :8].tolist() == [
        [20, 21, 30, 1, 1, 1, 1, 1],
        [22, 40, 41, 42, 43, 44, 45, 1],
        [23, 50, 51, 52, 53, 1, 1, 1],
    ]
    none = -100
    assert batch.targets[:, :8].tolist() == [
        [none, 30, 1, none, none, none, none, none],
        [none, none, none, none, 44, 45, 1, none],
        [none, none, none, none, 1, none, none, none],
    ]
    assert (batch.clean[:, 8:] == END).all() and (batch.targets[:, 8:] == none).all()
    assert batch.prefix.tolist() == [2, 5, 5]
    assert batch.canvas.tolist() == [[30, 1, 1, 1], [44, 45, 1, 1], [1, 1, 1, 1]]
    first = collate([texts[1]], 4, END, [0])
    assert first.clean[0, :5].tolist() == [22, 40, 41, 42, 43]
    assert first.targets[0, :5].tolist() == [40, 41, 42, 43, none], "a full canvas has no end"


def numbered(number: int) -> Text:
    """A text that tells its number, with 0 to 9 answer tokens."""
    return Text((BOS, 100 + number), tuple([7] * (number % 10)))


def examples(micro: list[Batch]) -> list[int]:
    return [int(row[1]) - 100 for batch in micro for row in batch.clean]


def test_every_example_is_used_once() -> None:
    recipe = replace(RECIPE, steps=8)
    steps = list(batches(numbered, recipe, 4, END))
    assert len(steps) == 8 and all(len(micro) == 2 for micro in steps)
    assert all(len(batch.clean) == 3 for micro in steps for batch in micro)
    assert sorted(n for micro in steps for n in examples(micro)) == list(range(48))
    other = list(batches(numbered, replace(recipe, seed=1), 4, END))
    assert [examples(micro) for micro in steps] != [examples(micro) for micro in other]


def test_batches_resume_at_any_step() -> None:
    """Also where the recipe's steps end within a pool."""
    whole = list(batches(numbered, RECIPE, 4, END))
    assert len(whole) == RECIPE.steps
    for start in range(RECIPE.steps + 1):
        rest = list(batches(numbered, RECIPE, 4, END, start))
        assert len(rest) == RECIPE.steps - start
        for micro, expected in zip(rest, whole[start:], strict=True):
            for batch, wanted in zip(micro, expected, strict=True):
                assert batch.noisy is None and batch.before is None
                for name in ("clean", "targets", "prefix", "canvas"):
                    assert torch.equal(getattr(batch, name), getattr(wanted, name))


def test_micro_batches_hold_texts_of_like_length() -> None:
    for micro in batches(numbered, replace(RECIPE, batch_size=24, steps=8), 16, END):
        lengths = [(batch.targets != -100).sum(1) for batch in micro]
        assert lengths[0].max() <= lengths[1].min(), "short ones, then long ones, at every step"


def test_every_canvas_of_a_text_has_its_turn() -> None:
    recipe = replace(RECIPE, steps=60)
    texts = Text((BOS,), tuple([7] * 10))
    found = Counter(
        int(prefix)
        for micro in batches(lambda _: texts, recipe, 4, END)
        for batch in micro
        for prefix in batch.prefix
    )
    assert found.keys() == {1, 5, 9} and min(found.values()) > 120 - 5 * math.sqrt(360 * 2 / 9)


# --- the loss


def uneven() -> Batch:
    """Prefixes from 1 to 20 tokens, around the window of 6 too, first and later canvases."""
    generator = torch.Generator().manual_seed(5)
    texts, chosen = [], []
    for prompt, answer, canvas in (
        (1, 3, 0),
        (5, 8, 0),
        (6, 2, 0),
        (4, 19, 2),
        (7, 8, 1),
        (3, 13, 1),
    ):
        ids = torch.randint(2, 48, (prompt + answer,), generator=generator).tolist()
        texts.append(Text(tuple(ids[:prompt]), tuple(ids[prompt:])))
        chosen.append(canvas)
    return collate(texts, 8, END, chosen)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny.model(2)


def test_the_dense_pass_is_the_inference_path(model: DiffusionGemma) -> None:
    batch = uneven()
    assert batch.prefix.tolist() == [1, 5, 6, 20, 15, 11]
    both = DensePass(model, batch)
    canvas = noise(batch.canvas, 48, torch.Generator().manual_seed(0))
    soft = torch.randn(*canvas.shape, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = both.encode()
        plain, fed = both.denoise(canvas, None), both.denoise(canvas, soft)
        some = both.denoise(canvas[:2], None, slice(2))
    for row, prefix in enumerate(batch.prefix.tolist()):
        clean = batch.clean[row : row + 1]
        cache = model.encode(clean[:, :prefix])
        close(encoded[row], model.encode(clean).hidden[0])
        close(plain[row], model.denoise(canvas[row : row + 1], cache)[0])
        close(fed[row], model.denoise(canvas[row : row + 1], cache, soft[row : row + 1])[0])
    close(some, plain[:2])


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_loss_is_the_plain_one(model: DiffusionGemma, share: float) -> None:
    """Row by row through `encode` and `denoise`; all positions count alike, the filled tail too."""
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=share)
    with torch.no_grad():
        ours = loss(model, batch, recipe, torch.Generator().manual_seed(7))
    canvas = noise(batch.canvas, 48, torch.Generator().manual_seed(7))
    causal, denoised, fed = [], [], torch.zeros(*canvas.shape, 16)
    for row, prefix in enumerate(batch.prefix.tolist()):
        clean, counted = batch.clean[row : row + 1], batch.targets[row] != -100
        hidden = model.encode(clean).hidden[0, counted]
        causal.append(
            F.cross_entropy(model.logits(hidden), batch.targets[row, counted], reduction="none")
        )
        cache, noisy = model.encode(clean[:, :prefix]), canvas[row : row + 1]
        soft = None
        if row < math.ceil(share * len(canvas)):
            p = model.logits(model.denoise(noisy, cache)).softmax(-1)
            soft = p @ model.embed_tokens.weight * 16**0.5
            fed[row] = soft[0]
        logits = model.logits(model.denoise(noisy, cache, soft))[0]
        denoised.append(F.cross_entropy(logits, batch.canvas[row], reduction="none"))
    close(ours.autoregressive, torch.cat(causal).mean())
    close(ours.canvas, torch.cat(denoised).mean())
    both = DensePass(model, batch)
    with torch.no_grad():
        both.encode()
        both.denoise(canvas, fed)
    close(ours.balance, balance_loss(both.routings))  # the first look is left out
    total = ours.canvas + recipe.autoregressive * ours.autoregressive + 0.01 * ours.balance
    close(ours.total(recipe), total)
    assert float(ours.total(replace(recipe, autoregressive=0.0, balance=0.0))) == float(ours.canvas)


@pytest.mark.parametrize(("share", "conditioned"), [(0.0, 0), (0.4, 3), (0.5, 3), (1.0, 6)])
def test_the_share_of_self_conditioning(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch, share: float, conditioned: int
) -> None:
    seen = []
    denoise = DensePass.denoise

    def noted(self: DensePass, canvas: Tensor, soft: Tensor | None, *rows: Any) -> Tensor:
        fed = 0 if soft is None else int((soft != 0).any(-1).all(-1).sum())
        seen.append((len(canvas), fed, torch.is_grad_enabled()))
        return denoise(self, canvas, soft, *rows)

    monkeypatch.setattr(DensePass, "denoise", noted)
    loss(model, uneven(), replace(RECIPE, self_conditioning=share), torch.Generator())
    first = [(conditioned, 0, False)] if conditioned else []
    assert seen == [*first, (6, conditioned, True)]


# --- the model's own steps


def walkers() -> tuple[DiffusionGemma, Batch]:
    """Nano, and problems on which it makes 4, 3, 1 and no steps."""
    tokenizer = nano_tokenizer()
    texts = FamilyTexts(("word_sum", "mini_sudoku"), tokenizer)
    rows = [replace(texts(i), steps=steps) for i, steps in enumerate((3, 0, 4, 1))]
    batch = collate(rows, 32, END, [0] * 4)
    assert batch.steps is not None and batch.steps.tolist() == [4, 3, 1, 0], "the most come first"
    return load_model(NANO, dtype="float32", device="cpu"), batch


def test_a_walk_is_the_samplers() -> None:
    """From a sampler's first noise, the canvases are those that its passes read, and the soft embedding is the last
    pass's; the prompt's keys are the training pass's own."""
    model, batch = walkers()
    drawn = torch.Generator().manual_seed(5)
    warmth = torch.rand(4, generator=drawn).tolist()
    seeds = torch.randint(2**62, (4,), generator=drawn).tolist()
    keys = [RowKey(seed, 0) for seed in seeds]
    noise = CounterDraws().first_canvas(keys, 32, model.config.text.vocab_size)
    both = DensePass(model, batch)
    with torch.no_grad():
        both.encode()
    routings = len(both.routings)
    canvas, soft = walk(model, both, noise, batch.steps, torch.Generator().manual_seed(5))
    assert soft is not None and len(soft) == 3 and len(both.routings) == routings
    assert not soft.is_inference() and not canvas.is_inference()
    for row, made in enumerate(batch.steps.tolist()):
        heat = 0.4 + 0.4 * warmth[row]
        request = Request(batch.clean[row, : batch.prefix[row]].tolist(), seed=seeds[row])
        passes = [
            event
            for event in denoise_canvases(
                model, [request], sampler=EntropyBound(t_min=heat, t_max=heat), stop_rule=None
            )
            if isinstance(event, StepEvent) and event.canvas == 0
        ]
        assert canvas[row].tolist() == passes[made].tokens_in.tolist()
        if made:
            theirs = passes[made - 1].state.soft_embedding
            assert theirs is not None
            close(soft[row], theirs, 1e-3)


def test_the_loss_after_a_walk() -> None:
    """The first noising is learnt from where the walk ends, conditioned on its last step; the second as published. Half
    of the walks begin with noise alone."""
    model, batch = walkers()
    recipe = replace(RECIPE, noisings=2)
    with torch.no_grad():
        ours = loss(model, batch, recipe, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        both = DensePass(model, batch)
        both.encode()
        parts = []
        for i, (canvas, before) in enumerate(looks(model, batch, recipe, generator)):
            if i == 0:
                canvas, soft = walk(model, both, canvas, batch.steps, generator)
            else:
                embedded = both.denoise(before, None, slice(len(before)))
                soft = model.logits(embedded).softmax(-1) @ model.embed_tokens.weight * 128**0.5
            assert soft is not None
            fed = torch.cat((soft, torch.zeros(4 - len(soft), *soft.shape[1:])))
            logits = model.logits(both.denoise(canvas, fed))
            parts.append(F.cross_entropy(logits.flatten(0, 1), batch.canvas.flatten()))
    close(ours.canvas, torch.stack(parts).mean())
    kept = []
    for seed in range(40):
        (first, _), _ = looks(model, batch, recipe, torch.Generator().manual_seed(seed))
        kept += (first == batch.canvas).float().mean(dim=1).tolist()
    alone = sum(share < 0.03 for share in kept)
    assert 65 <= alone <= 110, f"{alone} of 160 canvases began as noise"


def test_who_walks() -> None:
    """A quarter of the texts, and all prose, are learnt from as they are noised; the others after 1 to 6 steps."""
    texts = FamilyTexts(("spell_backward", "prose"), nano_tokenizer(), own_steps=6)
    plain = FamilyTexts(("spell_backward", "prose"), nano_tokenizer())
    made = Counter(texts(i).steps for i in range(400) if len(plain(i).prompt) < 25)
    assert set(made) == set(range(7)) and 0.15 < made[0] / made.total() < 0.6
    assert all(replace(texts(i), steps=0) == plain(i) for i in range(40))
    prose = FamilyTexts(("prose",), nano_tokenizer(), own_steps=6)
    assert all(prose(i).steps == 0 for i in range(40))


def gradients(model: DiffusionGemma, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_both_losses_meet_in_the_weights() -> None:
    model = tiny.model(2).requires_grad_(True)
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=1.0)
    parts = loss(model, batch, recipe, torch.Generator().manual_seed(7))
    of_total = gradients(model, parts.total(recipe))
    assert of_total.keys() == dict(model.named_parameters()).keys()
    # The last layer's scalar is normed away: its gradient is what rounding leaves.
    last = f"layers.{len(model.layers) - 1}.layer_scalar"
    assert all(gradient.any() for name, gradient in of_total.items() if name != last)
    of_causal = gradients(model, loss(model, batch, recipe, torch.Generator()).autoregressive)
    assert not {
        name for name in of_causal if "self_conditioning" in name or "layer_scalar" in name
    } - {"encoder_layer_scalars"}
    parts = loss(model, batch, recipe, torch.Generator().manual_seed(7))
    of_canvas = gradients(model, parts.canvas)
    # The canvas learns through the prefix's keys: those of the last layer come before its scalar.
    assert of_canvas["encoder_layer_scalars"].tolist()[0] != 0
    assert of_canvas["encoder_layer_scalars"].tolist()[-1] == 0


def test_no_gradient_flows_through_the_soft_embedding() -> None:
    """The gradient is that of the second pass with the soft embedding as a constant."""
    model = tiny.model(2).requires_grad_(True)
    batch, recipe = uneven(), replace(RECIPE, self_conditioning=1.0)
    ours = gradients(model, loss(model, batch, recipe, torch.Generator().manual_seed(7)).canvas)
    canvas = noise(batch.canvas, 48, torch.Generator().manual_seed(7))
    both = DensePass(model, batch)
    both.encode()
    p = model.logits(both.denoise(canvas, None).detach()).softmax(-1)
    soft = (p @ model.embed_tokens.weight * 4).detach()
    predicted = 30 * torch.tanh(both.denoise(canvas, soft) @ model.embed_tokens.weight.T / 30)
    plain = gradients(model, F.cross_entropy(predicted.flatten(0, 1), batch.canvas.flatten()))
    for name, gradient in plain.items():
        close(ours[name], gradient, 1e-4)


def test_experts_in_padded_slices(model: DiffusionGemma) -> None:
    """Values and gradients of the padded product are those of the experts one by one."""
    experts = model.layers[0].experts
    assert isinstance(experts, Experts)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 70, 16, generator=generator, requires_grad=True)
    # Expert 0 takes more than a slice holds, expert 1 nothing at all.
    chosen = torch.tensor([0, 2]).expand(3, 70, 2)
    weights = torch.rand(3, 70, 2, generator=generator)
    outputs = run_experts(experts, x, chosen)
    padded = (outputs * weights.unsqueeze(-1)).sum(-2)
    plain = experts(x, weights, chosen)
    close(padded, plain)
    parameters = [x, *experts.requires_grad_(True).parameters()]
    upstream = torch.randn(3, 70, 16, generator=generator)
    ours = torch.autograd.grad(
        (run_experts(experts, x, chosen) * weights.unsqueeze(-1)).sum(-2), parameters, upstream
    )
    theirs = torch.autograd.grad(experts(x, weights, chosen), parameters, upstream)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-4)
    experts.requires_grad_(False)


def test_balance_by_hand() -> None:
    def routing(chosen: list[list[int]], probabilities: list[list[float]]) -> Routing:
        p = torch.tensor(probabilities)
        return Routing(torch.ones(len(p), 1), torch.tensor(chosen), p)

    even = routing([[0], [1]], [[0.6, 0.4], [0.4, 0.6]])
    lopsided = routing([[0], [0]], [[0.9, 0.1], [0.7, 0.3]])
    assert float(balance_loss([even])) == pytest.approx(1.0)
    assert float(balance_loss([lopsided])) == pytest.approx(2 * 1.0 * 0.8)
    assert float(balance_loss([even, lopsided])) == pytest.approx(1.3)


def test_learning_rates() -> None:
    recipe = Recipe(steps=110, warmup=10, final_learning_rate=0.1)
    rates = [recipe.rate_at(step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[110] == pytest.approx(0.1)
    assert rates[60] == pytest.approx((1.0 + 0.1) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    late = replace(recipe, decay=40)
    assert [late.rate_at(step) for step in (10, 40, 70)] == [1.0, 1.0, 1.0]
    assert late.rate_at(90) == pytest.approx((1.0 + 0.1) / 2)
    assert late.rate_at(110) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"pool": 0}, "at least 1"),
        ({"micro_batches": 0}, "at least 1"),
        ({"batch_size": 6, "micro_batches": 4}, "6 does not divide into 4"),
        ({"decay": 4}, "at most the 3 steps"),
        ({"decay": -1}, "at most the 3 steps"),
        ({"self_conditioning": 1.1}, "share of the examples, got 1.1"),
        ({"self_conditioning": -0.1}, "share of the examples"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Recipe(**{"steps": 3, "warmup": 0, **changes})


# --- the run


def test_it_learns(tmp_path: Path) -> None:
    """50 updates teach copying three words of eight: from ln 12 = 2.5 nats to below 0.4, both ways;
    and what training calls a canvas is what decoding denoises."""
    recipe = Recipe(
        steps=50,
        batch_size=32,
        micro_batches=1,
        learning_rate=2e-2,
        matrix_learning_rate=6e-2,
        warmup=10,
    )
    model = DiffusionGemma(tiny.config(
        vocab_size=12, hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
        canvas_length=4, sliding_window=16, layers=(tiny.FULL, tiny.SLIDING),
    ))  # fmt: skip
    initialise(model, 0)
    run = Trainer(model, copy_text, recipe, tmp_path, end=END)
    run.run(curve_every=10)
    first, last = run.progress.curve[0], run.progress.curve[-1]
    assert first["canvas_loss"] > 1 and first["autoregressive_loss"] > 1.5
    assert last["canvas_loss"] < 0.4 and last["autoregressive_loss"] < 0.4
    texts = [copy_text(10_000 + i) for i in range(20)]
    requests = [Request(t.prompt, max_new_tokens=8, id=t.answer) for t in texts]
    model.requires_grad_(False)
    for events in (
        denoise_canvases(model, requests, steps=8, batch_size=20, eos=(END,)),
        decode_tokens(model, requests, batch_size=20, eos=(END,)),
    ):
        right = [e.ids == (*e.request, END) for e in events if isinstance(e, FinishEvent)]
        assert len(right) == 20 and sum(right) >= 14


def test_a_run_is_deterministic(uninterrupted: Trainer, tmp_path: Path) -> None:
    again = trainer(tmp_path)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert again.run(curve_every=3) and again.progress.step == RECIPE.steps
    assert equal(weights(again), weights(uninterrupted))
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is not touched"
    other = trainer(tmp_path / "other", replace(RECIPE, seed=1))
    other.run()
    assert not equal(weights(other), weights(uninterrupted))


def test_workers_change_no_number(uninterrupted: Trainer, tmp_path: Path) -> None:
    model = DiffusionGemma(COPYING)
    initialise(model, RECIPE.seed)
    run = Trainer(model, copy_text, RECIPE, tmp_path, end=END, workers=2)
    assert run.run(curve_every=3)
    assert equal(weights(run), weights(uninterrupted))
    assert run.progress.curve == uninterrupted.progress.curve or [
        {**row, "seconds": 0} for row in run.progress.curve
    ] == [{**row, "seconds": 0} for row in uninterrupted.progress.curve]


def test_every_part_of_every_step_has_its_own_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def noted(*arguments: Any) -> training.Losses:
        seeds.append(arguments[3].initial_seed())
        return loss(*arguments)

    monkeypatch.setattr(training, "loss", noted)
    stop_after(trainer(tmp_path), 4)
    stop_after(trainer(tmp_path / "other", replace(RECIPE, seed=1)), 4)
    assert len(set(seeds)) == len(seeds) == 2 * 4 * RECIPE.micro_batches


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_resumes_to_the_bit(uninterrupted: Trainer, tmp_path: Path, steps: int) -> None:
    """Sitting by sitting, `steps` updates each, in fresh processes' stead fresh models."""
    sittings, ended = 0, False
    while not ended:
        run = trainer(tmp_path)
        assert run.resume() == (sittings > 0)
        for p, stored in zip(run.model.parameters(), run.optimiser.param_groups, strict=False):
            assert p.requires_grad and stored["betas"] == RECIPE.betas
        ended = stop_after(run, steps)
        sittings += 1
    assert sittings == math.ceil(RECIPE.steps / steps)
    assert equal(weights(run), weights(uninterrupted))
    assert run.progress.step == RECIPE.steps
    assert not trainer(tmp_path / "elsewhere").resume()
    after = trainer(tmp_path)
    assert after.resume() and after.run() and equal(weights(after), weights(run)), "nothing left"


def stop_after(run: Trainer, steps: int) -> bool:
    """Makes at most so many updates and saves."""

    class Enough(Exception):
        pass

    end = run.progress.step + steps

    def report(progress: Any, figures: dict[str, float]) -> None:
        if progress.step == end:
            raise Enough

    try:
        return run.run(report=report)
    except Enough:
        run.save()
        return run.progress.step == RECIPE.steps


def test_a_sitting_of_given_minutes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.run(minutes=0) is False and run.progress.step == 1
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 1
    assert again.progress.seconds == run.progress.seconds > 0
    again.run()
    assert again.progress.seconds > run.progress.seconds, "all sittings together"


@pytest.mark.subprocess
def test_a_killed_run_resumes_to_the_bit(uninterrupted: Trainer, tmp_path: Path) -> None:
    """kill -9, at whatever place a process that saves all the time happens to be."""
    script = (
        "import sys; from pathlib import Path; from tests.train.test_training import trainer\n"
        "run = trainer(Path(sys.argv[1])); run.resume()\n"
        "run.run(checkpoint_minutes=0, report=lambda progress, _: print(progress.step, flush=True))"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    step = next(int(line) for line in process.stdout if int(line) >= 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    record = json.loads((tmp_path / "progress.json").read_text())
    assert step - 1 <= record["step"] < RECIPE.steps
    run = trainer(tmp_path)
    assert run.resume() and run.progress.step == record["step"] and run.run()
    assert equal(weights(run), weights(uninterrupted))


@pytest.mark.parametrize("place", range(3))
def test_a_crash_while_saving(
    uninterrupted: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Whichever file is not renamed any more: the checkpoint before is whole, and is taken up."""
    run = trainer(tmp_path)
    stop_after(run, 2)
    run.resume()
    renamed = []

    def replace_(source: Any, target: Any) -> None:
        if len(renamed) == place:
            raise OSError("killed")
        renamed.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(training.os, "replace", replace_)
        with pytest.raises(OSError, match="killed"):
            stop_after(run, 3)
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 2 and again.run()
    assert equal(weights(again), weights(uninterrupted))
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == [
        f"optimiser-{RECIPE.steps}.safetensors",
        f"weights-{RECIPE.steps}.safetensors",
    ], "what the crash left is cleared away"


def test_the_learning_curve(uninterrupted: Trainer, tmp_path: Path) -> None:
    figures = []
    run = trainer(tmp_path)
    run.run(curve_every=3, report=lambda _, of_step: figures.append(of_step))
    curve = run.progress.curve
    assert [(row["step"], row["examples"]) for row in curve] == [(3, 18), (6, 36), (9, 54)]
    for point, row in enumerate(curve):
        for name in ("canvas_loss", "autoregressive_loss", "balance", "gradient_norm"):
            mean = sum(of_step[name] for of_step in figures[3 * point : 3 * point + 3]) / 3
            assert row[name] == pytest.approx(mean, abs=1e-5)
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == curve
    again = trainer(tmp_path)
    again.resume()
    assert again.progress.curve == curve


def test_divergence_is_told_and_not_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    stop_after(run, 1)
    with torch.no_grad():
        run.model.norm.weight.fill_(math.nan)
    with pytest.raises(RequestError, match=r"diverged at step 1 .*lower learning rate"):
        run.run()
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 1
    assert all(torch.isfinite(weight).all() for weight in weights(again).values())


# --- checkpoints


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    run = trainer(tmp_path)
    stop_after(run, 2)
    run.progress.curve.append({"step": 2})
    run.save()
    assert trainer(tmp_path).resume()
    names = {"curve.csv", "progress.json", "weights-2.safetensors", "optimiser-2.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert equal(load_file(tmp_path / "weights-2.safetensors"), weights(run))


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def damage_garble(file: Path) -> None:
    file.write_bytes(b"\x80\x04garbage")


def damage_name(file: Path) -> None:
    tensors = load_file(file)
    tensors["another"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, file)


def damage_record(file: Path) -> None:
    record = json.loads(file.read_text())
    del record["recipe"]
    file.write_text(json.dumps(record))


DAMAGES = [
    *[(file, damage) for file in ("progress.json", "weights-2.safetensors", "optimiser-2.safetensors")
      for damage in (damage_cut, damage_garble)],
    ("weights-2.safetensors", Path.unlink),
    ("optimiser-2.safetensors", Path.unlink),
    ("weights-2.safetensors", damage_name),
    ("optimiser-2.safetensors", damage_name),
    ("progress.json", damage_record),
    ("progress.json", lambda file: file.write_text("[]")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_damaged_checkpoints(tmp_path: Path, file: str, damage: Callable[[Path], Any]) -> None:
    stop_after(trainer(tmp_path), 2)
    damage(tmp_path / file)
    run = trainer(tmp_path)
    before = weights(run)
    with pytest.raises(CheckpointError, match=r"damaged|another model") as caught:
        run.resume()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert equal(weights(run), before) and run.progress.step == 0, "nothing half taken up"


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    stop_after(trainer(tmp_path), 2)
    for name, value in asdict(RECIPE).items():
        if name == "micro_batches":
            changed = 3
        elif name == "betas":
            changed = (0.9, 0.99)
        elif name == "batch_size":
            changed = 12
        elif value is None:
            changed = 1
        else:
            changed = value / 2 if isinstance(value, float) else value + 1
        with pytest.raises(CheckpointError, match=rf"another recipe \({name} differ"):
            trainer(tmp_path, replace(RECIPE, **{name: changed})).resume()


def test_another_model_is_refused(tmp_path: Path) -> None:
    stop_after(trainer(tmp_path), 2)
    wider = DiffusionGemma(replace(COPYING, text=replace(COPYING.text, vocab_size=13)))
    initialise(wider, 0)
    with pytest.raises(CheckpointError, match="another model: resume with the same configuration"):
        Trainer(wider, copy_text, RECIPE, tmp_path, end=END).resume()


def test_a_run_saved_before_its_first_step(uninterrupted: Trainer, tmp_path: Path) -> None:
    trainer(tmp_path).save()
    run = trainer(tmp_path)
    assert run.resume() and run.progress.step == 0 and run.run()
    assert equal(weights(run), weights(uninterrupted))


def test_initial_weights_are_calm(model: DiffusionGemma) -> None:
    """Every parameter is filled; logits of unit scale, so that the first loss is about ln V."""
    fresh = DiffusionGemma(tiny.config(vocab_size=256, hidden_size=64))
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(math.nan)
    initialise(fresh, 3)
    assert all(torch.isfinite(p).all() for p in fresh.parameters())
    hidden = fresh.encode(
        torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
    ).hidden
    assert float(fresh.logits(hidden).std()) == pytest.approx(1.0, rel=0.3)
    again = DiffusionGemma(fresh.config)
    initialise(again, 3)
    assert equal(dict(again.named_parameters()), dict(fresh.named_parameters()))
