"""`dgemma tune`, `dgemma merge` and `--adapter`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from dgemma_core.command.cli import app
from dgemma_core.errors import RequestError
from dgemma_core.files.checkpoint import load, load_model
from dgemma_core.train.data import Counts
from dgemma_core.train.tuning import TuneRecipe
from dgemma_core.train.tuning_run import Tuned

QUICK = "--max-steps 2 --batch-size 4 --rank 2 --workers 1".split()


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"Echo: {i}", "completion": str(i)} for i in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def adapter(data: Path) -> Path:
    out = data.parent / "adapter"
    done = run("tune", "--data", data, "--out", out, *QUICK)
    assert done.exit_code == 0, done.output
    assert "training: 29 conversations, 29 answers" in done.output
    assert "held out: 1 conversations" in done.output and f"adapter: {out}" in done.output
    return out


@pytest.mark.slow
def test_an_adapter_is_used_and_merged(adapter: Path, tmp_path: Path) -> None:
    """A merged checkpoint writes what the adapter beside its base does."""
    asked = ["generate", "Echo: 3", "--json"]
    beside = run(*asked, "--adapter", adapter)
    merged = run("merge", "--adapter", adapter, "--out", tmp_path / "merged")
    assert merged.exit_code == 0 and "in float32" in merged.output, merged.output
    alone = run(*asked, "--model", tmp_path / "merged")
    texts = [json.loads(found.output) for found in (beside, alone)]
    assert texts[0]["text"] == texts[1]["text"]
    assert texts[0]["backend"] == texts[1]["backend"] == "cpu"
    half = run("merge", "--adapter", adapter, "--out", tmp_path / "half", "--dtype", "bfloat16")
    assert half.exit_code == 0 and load_model(tmp_path / "half").dtype == torch.bfloat16
    ids = [[2, 6, 7, 8]]
    models = load("nano", adapter=adapter).model, load(tmp_path / "merged").model
    one, other = (model.encode(ids).hidden for model in models)
    assert one is not None and other is not None and torch.equal(one, other)


def test_a_recipe_file(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are those of the command, and the command line wins."""
    import dgemma_core.train as module

    seen: dict[str, Any] = {}

    def stand_in(**given: Any) -> Tuned:
        seen.update(given)
        raise RequestError("enough")

    monkeypatch.setattr(module, "tune", stand_in)
    recipe = tmp_path / "recipe.yaml"
    wanted = {
        "about": "a note",
        "lr": 0.001,
        "rank": 4,
        "targets": "attention",
        "noise": [0.5, 1.0],
    }
    recipe.write_text(yaml.safe_dump({**wanted, "max-steps": 7}))
    run("tune", "--recipe", recipe, "--data", data, "--out", tmp_path, "--rank", "8")
    assert seen["learning_rate"] == 0.001 and seen["rank"] == 8 and seen["max_steps"] == 7
    assert seen["targets"] == "attention" and seen["noise"] == (0.5, 1.0)
    recipe.write_text("rnk: 4")
    done = run("tune", "--recipe", recipe, "--data", data, "--out", tmp_path)
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("lr: 2e-4", "learning_rate", 2e-4),
        ("max_steps: 1e1", "max_steps", 10),
        ("rank: '4'", "rank", 4),
        ("rank: 4.0", "rank", 4),
        ("minutes: '3'", "minutes", 3.0),
        ("drafts: 8", "drafts", (8,)),
        ("targets: [attention, mlp]", "targets", "attention,mlp"),
        ("validation: 0.5", "validation", 0.5),
        ("full: true", "full", True),
    ],
)
def test_values_of_a_recipe_are_those_of_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, option: str, value: Any
) -> None:
    import dgemma_core.train as module

    seen: dict[str, Any] = {}
    monkeypatch.setattr(module, "tune", lambda **given: seen.update(given) or _done(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{text}\nmodel: other\n")
    done = run("tune", "--recipe", recipe, "--data", "x", "--out", tmp_path)
    assert done.exit_code == 0 and seen[option] == value and type(seen[option]) is type(value)
    closing = f"checkpoint: {tmp_path}" if option == "full" else "--model other --adapter"
    assert closing in done.stdout.splitlines()[-1], "what the recipe says"


def _done(folder: Path) -> Tuned:
    return Tuned(folder, Counts(), Counts(), 1, True, (), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("full: 'no'", "full: expected true or false, found 'no'"),
        ("rank: null", "rank: expected a whole number, found None"),
        ("rank: 4.5", "rank: expected a whole number, found 4.5"),
        ("rank: .inf", "rank: expected a whole number, found inf"),
        ("seed: true", "seed: expected a whole number, found True"),
        ("lr: fast", "lr: expected a number, found 'fast'"),
        ("noise: 0.5", "noise: expected two numbers, found 0.5"),
        ("drafts: [8, x]", "drafts: expected whole numbers, found [8, 'x']"),
        ("model: {a: b}", "model: expected a text, found {'a': 'b'}"),
        ("targets: 3", "targets: '3' names no matrix of the layers; choose of attention"),
        ("lr: 0", "learning_rate must be a number above 0, got 0"),
        ("ctx: 3", "unknown options ctx"),
    ],
)
def test_values_that_a_recipe_cannot_have(
    data: Path, tmp_path: Path, text: str, words: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    done = run("tune", "--recipe", recipe, "--data", data, "--out", tmp_path / "out", "--epochs", 1)
    assert done.exit_code == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_one_process_speaks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that torchrun started, the first."""
    import dgemma_core.train as module

    given = ["tune", "--data", data, "--out", tmp_path]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        wrong = run(*given, "--lr", "0")
        assert wrong.exit_code == 2 and bool(wrong.stderr) == speaks
        with monkeypatch.context() as patch:
            patch.setattr(module, "tune", lambda **_: _done(tmp_path))
            assert bool(run(*given).output) == speaks


def test_the_defaults_are_the_recipes() -> None:
    import inspect

    from dgemma_core.command.tune import tune

    options = inspect.signature(tune).parameters
    recipe = TuneRecipe(steps=1)
    names = {"weight_decay", "self_conditioning", "noise", "autoregressive", "clip", "rank", "modes",
             "dropout", "schedule"}  # fmt: skip
    for name in names:
        assert options[name].default == getattr(recipe, name), name
    assert replace(recipe, targets=options["targets"].default).targets == recipe.targets
    assert recipe.alpha == 2 * recipe.rank


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--data", "absent.jsonl"], 2),
        (["--minutes", "0"], 2),
        (["--full", "--modes", "causal"], 2),
        (["--targets", "nothing"], 2),
        (["--model", "absent"], 2),
        (["--shard"], 2),
        (["--lr", "0"], 2),
        (["--lr", "nan"], 2),
        (["--clip", "0"], 2),
        (["--autoregressive", "-1"], 2),
        (["--warmup", "-1"], 2),
        (["--validate-every", "-1"], 2),
        (["--checkpoint-minutes", "nan"], 2),
        (["--minutes", "1e400"], 2),
        (["--weight-decay", "-1"], 2),
        (["--full", "--targets", "foo"], 2),
        (["--modes", "causal", "--targets", "self_conditioning"], 2),
    ],
)
def test_what_has_no_meaning(data: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    given = ["--data", data] if "--data" not in arguments else []
    done = run("tune", "--out", tmp_path / "out", *given, *arguments, *QUICK)
    assert done.exit_code == code and done.stderr.startswith("dgemma: ")
    assert done.stderr.count("\n") == 1 or "--shard" in arguments
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_an_adapter_that_is_none(tmp_path: Path) -> None:
    assert run("generate", "x", "--adapter", tmp_path).exit_code == 2
    assert run("merge", "--adapter", tmp_path, "--out", tmp_path / "out").exit_code == 2
