"""A chain of runs by one command: each leg begins with what came of the one before, and a stopped chain goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dgemma_core.command.train import train
from dgemma_core.errors import RequestError
from dgemma_core.files.tensors import SINGLE
from dgemma_core.nano import chains, recipes
from dgemma_core.nano.chains import CHAINS, Chain, Leg
from dgemma_core.nano.recipes import FIRST, NANO, RECIPES, NamedRecipe
from dgemma_core.nano.validation import Validation
from dgemma_core.train.chained import run_chain


def small(seed: int) -> NamedRecipe:
    settings = replace(
        FIRST.training, steps=2, batch_size=2, warmup=0, micro_batches=1, pool=1, seed=seed
    )
    return replace(FIRST, training=settings)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain "tiny" of three legs, two steps each: b ends after one, c's weights lie between a's and its own."""
    legs = Leg(recipe="a"), Leg(recipe="b", steps=1), Leg(recipe="c", share=0.25, since="a")
    monkeypatch.setattr(recipes, "RECIPES", {name: small(i) for i, name in enumerate("abc")})
    monkeypatch.setattr(chains, "CHAINS", {"tiny": Chain(legs)})
    # a run's last step is followed by a validation of many texts
    monkeypatch.setattr(Validation, "__call__", lambda *_: {})


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / SINGLE)


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_legs_follow_each_other_and_a_stopped_chain_goes_on(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("tiny", whole)
    told = capsys.readouterr().out
    assert all(f"leg {i} of 3: {name}" in told for i, name in enumerate("abc", 1))
    assert "step 1 of 1" in told and f"all legs are done: {whole / 'checkpoint'}" in told
    a, c, found = (weights(whole / part) for part in ("a/result", "c/checkpoint", "checkpoint"))
    for name, tensor in found.items():
        between = torch.lerp(a[name].float(), c[name].float(), 0.25).to(tensor.dtype)
        assert torch.equal(tensor, between), name
    assert not same(whole / "a/result", whole / "b/result")

    # killed behind the second leg's last step, before its result is there
    with monkeypatch.context() as patch:
        patch.setattr("dgemma_core.train.checkpoints.put_in_place", failing_at("b/result"))
        with pytest.raises(KeyboardInterrupt):
            train("tiny", parts)
    with pytest.raises(RequestError, match="holds a run"):
        train("tiny", parts)
    train("tiny", parts, resume=True)
    assert same(whole / "checkpoint", parts / "checkpoint")
    train("tiny", parts, resume=True)  # all is done: nothing happens


def failing_at(place: str) -> Callable[[Path, Callable[[Path], object]], None]:
    from dgemma_core.train.checkpoints import put_in_place

    def fail(folder: Path, make: Callable[[Path], object]) -> None:
        if str(folder).endswith(place):
            raise KeyboardInterrupt
        put_in_place(folder, make)

    return fail


def test_minutes_are_of_all_legs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dgemma_core.train.chained.time.monotonic", lambda: now[0])
    asked: list[tuple[str, str | None, float | None]] = []

    def run(leg: Leg, folder: Path, start: str | None, left: float | None) -> bool:
        asked.append((leg.recipe, start, left))
        now[0] += 6 * 60
        (folder / "checkpoint").mkdir(parents=True)
        return True

    chain = Chain((Leg(recipe="a"), Leg(recipe="b"), Leg(recipe="c")), start="nano")
    assert not run_chain(chain, tmp_path, None, 10, run)
    assert asked == [("a", "nano", 10), ("b", str(tmp_path / "a/result"), 4)]
    assert not (tmp_path / "checkpoint").exists()
    assert run_chain(chain, tmp_path, None, 10, run)
    assert asked[2:] == [("c", str(tmp_path / "b/result"), 10)]
    assert (tmp_path / "checkpoint").is_dir()


def test_the_shipped_chains_are_of_recipes_whose_weights_fit() -> None:
    assert set(CHAINS) == {"nano", "nano-talk"} and not set(CHAINS) & set(RECIPES)
    for chain in CHAINS.values():
        for leg in chain.legs:
            recipe = RECIPES[leg.recipe]
            assert leg.steps is None or leg.steps < recipe.training.steps
            begins = leg is not chain.legs[0] or chain.start is not None
            assert begins or (recipe.teacher is None and recipe.replies is None)
        shapes = {replace(RECIPES[leg.recipe].config.text, sliding_window=0) for leg in chain.legs}
        assert len(shapes) == 1


@pytest.mark.parametrize(
    ("legs", "start"),
    [
        ((Leg(recipe="a"), Leg(recipe="a")), None),
        ((Leg(recipe="a", share=0.5),), None),
        ((Leg(recipe="a"), Leg(recipe="b", share=0.5, since="c")), str(NANO)),
    ],
)
def test_legs_that_cannot_follow(legs: tuple[Leg, ...], start: str | None) -> None:
    with pytest.raises(RequestError, match=r"leg [ab]"):
        Chain(legs, start)


def test_what_can_be_asked_for(tiny: None, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown recipe 'tinier'"):
        train("tinier", tmp_path)
    with pytest.raises(RequestError, match="holds no run to resume"):
        train("tiny", tmp_path, resume=True)
