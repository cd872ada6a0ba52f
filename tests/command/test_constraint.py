"""Constraints on the command line: what is written obeys, what is wrong is one line, and examples test a grammar."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from dgemma_core import Constraint, Trace, generate, load, save_model
from dgemma_core.command import cli
from tests.constraints.conftest import no_automata_of_the_user
from tests.core import tiny

__all__ = ["no_automata_of_the_user"]
PATTERN = "(yes|no)( please| thanks){0,2}"
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "why": {"enum": ["so", "because"]}},
    "required": ["sure", "why"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with nano's tokenizer, as a checkpoint; canvases of 16."""
    folder = tmp_path_factory.mktemp("tiny")
    size = tiny.tokenizer().vocab_size
    generation = tiny.loaded(max_new_tokens=32).generation
    save_model(tiny.model(0, vocab_size=size, canvas_length=16), folder, generation=generation)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny.NANO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("schema") / "form.json"
    file.write_text(json.dumps(SCHEMA))
    return file


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], input=text)


def written(folder: Path, *arguments: object) -> str:
    found = run("generate", "Well?", "-m", folder, *arguments)
    assert found.exit_code == 0 and found.stderr == "", found.output
    return found.stdout.removesuffix("\n")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive", "speculative"])
def test_every_mode_writes_within_each_kind(folder: Path, schema: Path, mode: str) -> None:
    said = written(folder, "--mode", mode, "--regex", PATTERN)
    assert re.fullmatch(PATTERN, said)
    (same,) = generate(load(folder), "Well?", mode=mode, constraint=Constraint.regex(PATTERN))
    assert said == same.text
    jsonschema.validate(
        json.loads(written(folder, "--mode", mode, "--json-schema", schema)), SCHEMA
    )
    assert written(folder, "--mode", mode, "--choices", "yes|a\\|b") in ("yes", "a|b")


def test_a_trace_says_what_the_text_obeyed(folder: Path, tmp_path: Path) -> None:
    written(folder, "--choices", "yes|no", "--trace", tmp_path / "run.npz")
    trace = Trace.load(tmp_path / "run.npz")
    kept = trace.metadata["constraint"]
    assert kept["kind"] == "choices" and json.loads(kept["source"]) == ["yes", "no"]
    assert trace.forbidden is not None and trace.automaton_states is not None
    assert 0 < float(trace.forbidden.max()) <= 1 and len({*trace.automaton_states.tolist()}) > 1
    assert trace.top_ids is not None and trace.top_ids.shape[-1] == 5
    assert trace.free_top_ids is not None and (trace.free_top_ids != trace.top_ids).any()


def test_a_chat_keeps_to_its_choices(folder: Path) -> None:
    found = run("chat", "-m", folder, "--choices", "yes|no", text="Well?\nReally?\n")
    assert found.exit_code == 0, found.output
    assert len(re.findall(r"\b(yes|no)\b", found.stdout)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "(a"], "cannot be an automaton"),
        (["--regex", "a", "--choices", "b"], "exclude each other"),
        (["--json-schema", "/nowhere.json"], "cannot be read"),
        (["--regex", "a{90}"], "raise max_new_tokens"),
        (["--regex", "[^\\s\\S]"], "its language is empty"),
        (["--regex", "a", "--thinking"], "leave thinking off"),
    ],
)
def test_what_cannot_be_met_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    found = run("generate", "Well?", "-m", folder, *arguments)
    assert found.exit_code == 2 and found.stdout == ""
    assert message in found.stderr and found.stderr.count("\n") == 1


# --- dgemma constraint check


def check(folder: Path, file: Path, *arguments: object) -> Result:
    return run("constraint", "check", file, "-m", folder, *arguments)


def test_right_answers_are_counted(folder: Path, tmp_path: Path) -> None:
    (file := tmp_path / "answers.txt").write_text("yes\nno please\n\nno thanks please\n")
    found = check(folder, file, "--regex", PATTERN)
    assert found.exit_code == 0 and found.stdout.startswith("3 of 3 examples accepted; ")
    assert found.stderr == ""


def test_a_rejected_answer_is_named_with_its_place(folder: Path, tmp_path: Path) -> None:
    (file := tmp_path / "answers.txt").write_text("yes\nno, please\nperhaps\n")
    found = check(folder, file, "--regex", PATTERN)
    assert found.exit_code == 1
    assert "2: leaves the language at character 2" in found.stdout
    assert "3: leaves the language at character 0" in found.stdout
    assert "1 of 3 examples accepted" in found.stdout
    assert "widen the constraint" in found.stderr and found.stderr.count("\n") == 1


def test_examples_of_several_lines_stand_in_jsonl(folder: Path, tmp_path: Path) -> None:
    (file := tmp_path / "answers.jsonl").write_text('"1\\n2"\n')
    assert check(folder, file, "--regex", "1\\n2").exit_code == 0
    file.write_text('{"sure": true, "why": "so"}\n')  # a line that is no text in quotes is itself
    (schema := tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert check(folder, file, "--json-schema", schema).exit_code == 0


def test_an_answer_beyond_the_limit_is_rejected(folder: Path, tmp_path: Path) -> None:
    (file := tmp_path / "answers.txt").write_text("a" * 60 + "\n")
    found = check(folder, file, "--regex", "a+", "--max-new-tokens", 8)
    assert found.exit_code == 1 and "more than the limit of 8" in found.stdout


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("yes\n", [], "name a constraint"),
        ("\n", ["--regex", "a"], "no examples"),
        ("yes\n", ["--regex", "("], "cannot be an automaton"),
        (None, ["--regex", "a"], "cannot be read"),
    ],
)
def test_a_check_that_cannot_be_made_is_one_line(
    folder: Path, tmp_path: Path, content: str | None, arguments: list[str], message: str
) -> None:
    file = tmp_path / "answers.txt"
    if content is not None:
        file.write_text(content)
    found = check(folder, file, *arguments)
    assert found.exit_code == 2 and message in found.stderr and found.stderr.count("\n") == 1
