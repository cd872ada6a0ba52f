"""The run: it learns, repeats itself, and keeps a learning curve."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.events import FinishEvent
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from dgemma_core.train import Recipe, Trainer, loop
from dgemma_core.train.initial import initialise
from dgemma_core.train.loss import Losses, loss
from tests.core import tiny
from tests.train.copying import COPYING, END, RECIPE, copy_text, equal, stop_after, trainer, weights


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("uninterrupted"))
    assert run.run(curve_every=3)
    return run


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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

    def noted(*arguments: Any) -> Losses:
        seeds.append(arguments[3].initial_seed())
        return loss(*arguments)

    monkeypatch.setattr(loop, "loss", noted)
    stop_after(trainer(tmp_path), 4)
    stop_after(trainer(tmp_path / "other", replace(RECIPE, seed=1)), 4)
    assert len(set(seeds)) == len(seeds) == 2 * 4 * RECIPE.micro_batches


@pytest.mark.slow
def test_a_sitting_of_given_minutes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.run(minutes=0) is False and run.progress.step == 1
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 1
    assert again.progress.seconds == run.progress.seconds > 0
    again.run()
    assert again.progress.seconds > run.progress.seconds, "all sittings together"


@pytest.mark.slow
def test_the_learning_curve(uninterrupted: Trainer, tmp_path: Path) -> None:
    figures = []
    run = trainer(tmp_path)
    run.run(curve_every=3, report=lambda _, of_step: figures.append(of_step))
    curve = run.progress.curve
    ends = [0, 1, 3, 6, 9, 11]
    assert [(row["step"], row["examples"]) for row in curve] == [(end, 6 * end) for end in ends[1:]]
    for row, first, last in zip(curve, ends, ends[1:], strict=False):
        for name in ("canvas_loss", "autoregressive_loss", "balance", "gradient_norm"):
            mean = sum(of_step[name] for of_step in figures[first:last]) / (last - first)
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


def test_initial_weights_are_calm() -> None:
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


@pytest.mark.slow
def test_the_learning_curve_after_a_resume(uninterrupted: Trainer, tmp_path: Path) -> None:
    """A row covers the same steps whether or not the run was stopped within it."""
    for steps in (2, 2, 20):
        run = trainer(tmp_path)
        run.resume()
        stop_after(run, steps, curve_every=3)
    for row, whole in zip(run.progress.curve, uninterrupted.progress.curve, strict=True):
        assert {**row, "seconds": 0} == {**whole, "seconds": 0}


def test_a_run_stops_when_asked(tmp_path: Path) -> None:
    """It saves after the step at hand, and another process goes on."""
    run = trainer(tmp_path)

    def report(progress: Any, figures: dict[str, float]) -> None:
        assert figures["tokens"] > 0
        run.stopping = progress.step == 4

    assert run.run(report=report) is False and run.progress.step == 4
    again = trainer(tmp_path)
    assert again.resume() and again.progress.step == 4


@pytest.mark.slow
def test_validation_is_part_of_the_run(tmp_path: Path) -> None:
    """Every so many steps and at the end, with the weights of that step; its figures stand in a CSV and survive."""
    seen: list[float] = []

    def validate(model: DiffusionGemma) -> dict[str, float]:
        seen.append(float(model.norm.weight.detach().sum()))
        return {"accepted": len(seen) / 4}

    run = trainer(tmp_path)
    run.validate, run.validate_every = validate, 4
    assert run.run()
    assert [row["step"] for row in run.progress.validation] == [4, 8, 11]
    assert len(set(seen)) == 3
    with (tmp_path / "validation.csv").open() as file:
        assert [(row["step"], row["accepted"]) for row in csv.DictReader(file)] == [
            ("4", "0.25"), ("8", "0.5"), ("11", "0.75"),
        ]  # fmt: skip
    again = trainer(tmp_path)
    assert again.resume() and again.progress.validation == run.progress.validation
