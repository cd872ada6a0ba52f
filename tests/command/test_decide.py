"""`dgemma decide`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dgemma_core import decide, load, save_model
from dgemma_core.command import cli
from tests.core import tiny

TEMPLATE = '{"sure": {sure}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with nano's tokenizer, as a checkpoint; canvases of 16."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(
        tiny.model(0, vocab_size=tiny.tokenizer().vocab_size, canvas_length=16),
        folder,
        generation=tiny.loaded().generation,
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny.NANO / name, folder / name)
    return folder


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, ["decide", *arguments], input=text)


def test_json_holds_what_decide_finds(folder: Path) -> None:
    wanted = decide(
        load(folder), TEMPLATE, {"sure": ["yes", "no", "not, really"]}, prompt="Well?", passes=2, top=3
    )  # fmt: skip
    arguments = ["--slot", "sure=yes,no,not\\, really", "-m", str(folder), "--json"]
    found = json.loads(
        run("Well?", "-t", TEMPLATE, "--passes", "2", "--top", "3", *arguments).stdout
    )
    assert found["slots"] == wanted.slots and found["causal"] == wanted.causal
    assert [each["text"] for each in found["top"]] == [each.text for each in wanted.top]
    assert found["assignments"] == 3 and found["denoising_steps"] == wanted.denoising_steps


def test_a_person_reads_the_choices_with_their_shares(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_text(TEMPLATE + "\n")
    arguments = ["--template-file", str(file), "--slot", "sure=yes,no", "-m", str(folder)]
    found = run("-", *arguments, "--top", "2", text="Well?\n")
    assert found.exit_code == 0, found.output
    first, *lines = found.stdout.splitlines()
    assert first in ('{"sure": yes}', '{"sure": no}')
    assert sum("causal" in line and "%" in line for line in lines) == 4
    assert lines[-1].startswith("2 assignments, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slot", "sure=a,b"], "give the template"),
        (["-t", "x", "--template-file", "y"], "give the template"),
        (["--template-file", "/nowhere"], "cannot be read"),
        (["-t", TEMPLATE], "slot sure has no choices"),
        (["-t", TEMPLATE, "--slot", "sure"], "write it as name=a,b,c"),
        (["-t", TEMPLATE, "--slot", "sure="], "no choices"),
        (["-t", TEMPLATE, "--slot", "sure=a,b", "--slot", "sure=c"], "is there twice"),
        (["-t", TEMPLATE, "--slot", "sure=a,a"], "is there twice"),
        (["-t", TEMPLATE, "--slot", "sure=a,b", "--slot", "other=c,d"], "unknown slot other"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    found = run("Well?", "-m", str(folder), *arguments)
    assert found.exit_code == 2
    assert message in found.stderr and found.stderr.count("\n") == 1
