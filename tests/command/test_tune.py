"""`dgemma tune`, `dgemma merge` and `--adapter`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dgemma_core.command.cli import app
from dgemma_core.errors import RequestError
from dgemma_core.train.tune import Tuned
from dgemma_core.train.tuning import TuneRecipe

QUICK = "--max-steps 2 --batch-size 4 --rank 2 --workers 1".split()


def run(*arguments: str | Path) -> Any:
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
    merged = run("merge", "--adapter", adapter, "--out", tmp_path / "merged", "--dtype", "float32")
    assert merged.exit_code == 0, merged.output
    alone = run(*asked, "--model", tmp_path / "merged")
    texts = [json.loads(found.output) for found in (beside, alone)]
    assert texts[0]["text"] == texts[1]["text"]
    assert texts[0]["backend"] == texts[1]["backend"] == "cpu"


def test_a_recipe_file(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are those of the command, and the command line wins."""
    from dgemma_core.train import tune as module

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
    assert seen["targets"] == ("attention",) and seen["noise"] == (0.5, 1.0)
    recipe.write_text("rnk: 4")
    done = run("tune", "--recipe", recipe, "--data", data, "--out", tmp_path)
    assert done.exit_code == 2


def test_the_defaults_are_the_recipes() -> None:
    import inspect

    from dgemma_core.command.tune import tune

    options = inspect.signature(tune).parameters
    recipe = TuneRecipe(steps=1)
    names = {"weight_decay", "self_conditioning", "noise", "autoregressive", "clip", "rank", "modes",
             "dropout", "schedule"}  # fmt: skip
    for name in names:
        assert options[name].default == getattr(recipe, name), name
    assert tuple(options["targets"].default.split(",")) == recipe.targets
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
    ],
)
def test_what_has_no_meaning(data: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    given = ["--data", data] if "--data" not in arguments else []
    done = run("tune", "--out", tmp_path / "out", *given, *arguments, *QUICK)
    assert done.exit_code == code
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_an_adapter_that_is_none(tmp_path: Path) -> None:
    assert run("generate", "x", "--adapter", tmp_path).exit_code == 2
    assert run("merge", "--adapter", tmp_path, "--out", tmp_path / "out").exit_code == 2
