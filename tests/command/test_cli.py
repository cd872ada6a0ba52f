"""The command line: what it prints, what it refuses, and what a terminal shows."""

import dataclasses
import errno
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner, Result

from dgemma_core import (
    Chat,
    DiscreteDDIM,
    EntropyBound,
    GenerationDefaults,
    Loaded,
    Settings,
    Trace,
    load,
    save_model,
)
from dgemma_core.command import cli, screen, terminal
from dgemma_core.files.recording import TraceRecorder
from dgemma_core.generation import generate
from dgemma_core.generation.settings import MODES
from tests.core import tiny
from tests.files.fake_events import DraftEvent, StepEvent

DEFAULTS = GenerationDefaults(
    max_new_tokens=16, max_denoising_steps=4, entropy_bound=0.2, eos_token_ids=(1, tiny.TURN_END)
)
PROMPT = "Sort ascending: 3 1 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with nano's tokenizer, as a checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(tiny.text_model(), folder, generation=DEFAULTS)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny.NANO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load(folder)


def run(*arguments: object, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=input)


def succeeded(*arguments: object, input: str | bytes | None = None) -> str:
    result = run(*arguments, input=input)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refused(result: Result) -> str:
    """The one line on stderr."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"dgemma: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


# --- generate


@pytest.mark.slow
def test_a_pipe_gets_the_text_and_nothing_else(folder: Path, loaded: Loaded) -> None:
    (expected,) = generate(loaded, PROMPT, seed=3)
    assert expected.text.strip()
    assert succeeded("generate", PROMPT, "-m", folder, "--seed", 3) == expected.text + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_json_is_one_object_with_what_the_core_counted(
    mode: str, folder: Path, loaded: Loaded
) -> None:
    (expected,) = generate(loaded, PROMPT, mode=mode, seed=5)
    found = json.loads(
        succeeded("generate", PROMPT, "-m", folder, "--mode", mode, "--seed", 5, "--json")
    )
    assert found.pop("seconds") > 0
    assert found.pop("backend") == loaded.model.backend.name
    asked = {
        "text", "kept_tokens", "denoising_steps", "passes", "canvases", "tokens_per_forward",
        "seed", "stop_reason",
    }  # fmt: skip
    assert asked <= found.keys()
    assert found.pop("rounds") == len(expected.accepted)
    assert (found["accepted_per_round"] is not None) == (mode == "speculative")
    for name, value in found.items():
        assert value == getattr(expected, name), name


@pytest.mark.slow
def test_seeds_make_texts_and_repeat_them(folder: Path) -> None:
    texts = [succeeded("generate", PROMPT, "-m", folder, "--seed", seed) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_the_prompt_comes_from_standard_input(folder: Path) -> None:
    named = succeeded("generate", "é → 1", "-m", folder)
    assert succeeded("generate", "-", "-m", folder, input="é → 1\n") == named


def test_limits_reach_the_run(folder: Path) -> None:
    options = ("--steps", 2, "--max-new-tokens", 11, "--json")
    found = json.loads(succeeded("generate", PROMPT, "-m", folder, *options))
    assert found["kept_tokens"] == 11 and found["stop_reason"] == "length"
    assert found["canvases"] == 2 and found["denoising_steps"] == 4


def test_a_stop_string_ends_the_text(folder: Path) -> None:
    whole = succeeded("generate", PROMPT, "-m", folder).removesuffix("\n")
    stop = whole[len(whole) // 2 :][:4]
    cut = succeeded("generate", PROMPT, "-m", folder, "--stop", "never", "--stop", stop)
    assert cut == whole[: whole.index(stop)] + "\n"


@pytest.mark.slow
def test_raw_and_system_change_the_prompt(folder: Path, tmp_path: Path) -> None:
    def prompt(*options: str) -> str:
        file = tmp_path / "run.npz"
        succeeded("generate", "3 1 2", "-m", folder, "--trace", file, *options)
        trace = Trace.load(file)
        return "".join(map(trace.text, trace.prompt_ids.tolist()))

    assert prompt("--raw") == "<bos>3 1 2"
    assert "<|turn>user\n3 1 2<turn|>" in prompt()
    assert "Be brief." in prompt("--system", "Be brief.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), EntropyBound(entropy_bound=0.2)),
        (("t_min=0.1",), EntropyBound(entropy_bound=0.2, t_min=0.1)),
        (("entropy_bound=2", "t_max=0.9"), EntropyBound(entropy_bound=2, t_max=0.9)),
    ],
)
def test_what_is_not_given_of_the_sampler_is_the_checkpoints(
    options: Sequence[str], expected: EntropyBound, folder: Path, tmp_path: Path
) -> None:
    given = [part for option in options for part in ("--sampler-option", option)]
    succeeded("generate", PROMPT, "-m", folder, *given, "--trace", tmp_path / "run.npz")
    recorded = Trace.load(tmp_path / "run.npz").metadata["sampler"]
    assert recorded == {"name": "entropy_bound", **dataclasses.asdict(expected)}


def test_other_samplers_run_as_the_core_runs_them(folder: Path, loaded: Loaded) -> None:
    sampler = DiscreteDDIM(temperature=0.5, corrector_steps=1)
    (expected,) = generate(loaded, PROMPT, sampler=sampler)
    options = ["temperature=0.5", "corrector_steps=1"]
    given = [part for option in options for part in ("--sampler-option", option)]
    found = succeeded("generate", PROMPT, "-m", folder, "--sampler", "discrete_ddim", *given)
    assert found == expected.text + "\n"


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["generate"], "prompt"),
        (["trace"], "command"),
        (["generate", "x", "--nonsense"], "--nonsense"),
        (["generate", "x", "--mode", "sideways"], "sideways"),
        (["generate", "x", "--seed", "-1"], "--seed"),
        (["generate", "x", "--steps", "0"], "steps"),
        (["generate", "x", "--soft-top-k", "0"], "--soft-top-k"),
        (["generate", "x", "--soft-top-k", "2000"], "at least 1 and at most 1024"),
        (["generate", "x", "--mode", "autoregressive", "--soft-top-k", "8"], "soft_top_k"),
        (["generate", "x", "--max-new-tokens", "0"], "max_new_tokens"),
        (["generate", "x", "--sampler", "magic"], "entropy_bound, block_refinement, discrete_ddim"),
        (["generate", "x", "--sampler-option", "t_min"], "KEY=VALUE"),
        (["generate", "x", "--sampler-option", "=3"], "KEY=VALUE"),
        (["generate", "x", "--sampler-option", "tmin=0.3"], "t_min"),
        (["generate", "x", "--sampler-option", "t_min=warm"], "warm"),
        (["generate", "x", "--sampler-option", "t_min=2"], "t_m"),
        (["generate", "x", "--sampler-option", "name=x"], "--sampler"),
        (["generate", "x", "--sampler-option", "t_min=" + "9" * 5000], "t_min"),
        (["generate", "x", "--sampler-option", "t_min=" + "[" * 100_000], "t_min"),
        (["generate", "x", "--sampler-option", "t_min=NaN"], "t_min"),
        (["generate", "x", "--steps", "9" * 20], "steps"),
        (["generate", "x", "--steps", "9" * 5000], "--steps"),
        (["generate", "x", "--max-new-tokens", "9" * 20], "max_new_tokens"),
        (["generate", "x", "--seed", "9" * 20], "seed"),
        (["generate", "x", "--temperature", "0.5"], "temperature"),
        (["generate", "x", "--top-k", "3"], "top_k"),
        (["generate", "x", "--mode", "autoregressive", "--temperature", "nan"], "temperature"),
        (["generate", "x", "--mode", "autoregressive", "--temperature", "inf"], "temperature"),
        (["generate", "x", "--mode", "autoregressive", "--top-k", "3"], "temperature 0"),
        (["generate", "x", "--mode", "autoregressive", "--top-p", "2"], "top_p"),
        (["generate", "x", "--backend", "abacus"], "auto, torch, cpu, cuda"),
        (["generate", "\udcff"], "UTF-8"),
        (["generate", "x", "--system", "\udcff"], "--system"),
        (["generate", "x", "--stop", "y", "--stop", "\ud800"], "--stop"),
        (["generate", "x", "--sampler", "\udcff"], "sampler"),
        (["generate", "x", "--mode", "autoregressive", "--steps", "3"], "steps"),
        (["generate", "x", "--draft", "fixed"], "draft has no meaning"),
        (
            ["generate", "x", "--mode", "speculative", "--draft", "bold"],
            "fixed, adaptive or paying",
        ),
        (["generate", "x", "--mode", "speculative", "--draft-steps", "0"], "draft_steps"),
        (["generate", "x", "--mode", "speculative", "--steps", "3"], "steps"),
        (["generate", "x", "--mode", "autoregressive", "--sampler", "discrete_ddim"], "sampler"),
        (["generate", "x", "--raw", "--system", "y"], "raw"),
        (["generate", "x", "--stop", ""], "stop"),
        (["generate", "x", "--trace", "no/such/folder/run.npz"], "no/such/folder"),
        (["generate", "x", "--trace", "."], "a folder"),
        (["generate", "x", "--trace", "/dev/null"], "a device"),
        (["generate", "x", "--trace", __file__], "another file"),
        (["generate", "x", "--dtype", "int3"], "int3"),
        (["generate", "x", "--device", "warp"], "warp"),
        (["generate", "look: <|image|>"], "image"),
        (["generate", "x" * 5000], "tokens"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: Sequence[str], words: str, folder: Path
) -> None:
    model = ["--model", folder] if arguments[:2][1:] else []
    assert words in refused(run(*arguments, *model))


@pytest.mark.parametrize("command", [["generate", "x", "-m"], ["info"], ["chat", "-m"]])
def test_a_model_that_is_not_there(command: Sequence[str]) -> None:
    assert "no-such-model" in refused(run(*command, "no-such-model"))


def test_a_prompt_that_is_no_text(folder: Path) -> None:
    assert "UTF-8" in refused(run("generate", "-", "-m", folder, input=b"\xff\xfe"))


def test_a_message_that_is_no_text(folder: Path) -> None:
    answered = run("chat", "-m", folder, input=b"One.\n\xff\xfe\n")
    assert answered.exit_code == 2 and answered.stderr.startswith(
        "dgemma: the message is not UTF-8"
    )
    assert answered.stdout == succeeded("chat", "-m", folder, input="One.\n"), "nothing is lost"


def test_filters_reach_the_run(folder: Path, loaded: Loaded) -> None:
    options: dict[str, Any] = {"temperature": 0.9, "top_k": 5, "top_p": 0.8}
    (expected,) = generate(loaded, PROMPT, mode="autoregressive", **options)
    given = ["--mode", "autoregressive", "--temperature", 0.9, "--top-k", 5, "--top-p", 0.8]
    assert succeeded("generate", PROMPT, "-m", folder, *given) == expected.text + "\n"


@pytest.mark.slow
def test_draft_options_reach_the_run(folder: Path, loaded: Loaded, tmp_path: Path) -> None:
    options: dict[str, Any] = {"draft": "fixed", "draft_positions": 3, "draft_steps": 2}
    (expected,) = generate(loaded, PROMPT, mode="speculative", **options)
    file = tmp_path / "run.npz"
    given = ["--draft", "fixed", "--draft-positions", 3, "--draft-steps", 2]
    common = ["-m", folder, "--mode", "speculative", *given]
    found = json.loads(succeeded("generate", PROMPT, *common, "--json", "--trace", file))
    assert found["passes"] == expected.passes and found["text"] == expected.text
    rounds = Trace.load(file).rounds
    assert len(rounds) == found["rounds"] == len(expected.accepted) > 0
    assert all((len(made.tokens), made.steps) == (3, 2) for made in rounds)
    assert [made.accepted for made in rounds] == list(expected.accepted)
    assert succeeded("chat", *common, input=PROMPT) == expected.text + "\n"


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_the_backend_is_chosen_and_named(backend: str, folder: Path, tmp_path: Path) -> None:
    file, chosen = tmp_path / "run.npz", ["--backend", backend]
    found = json.loads(succeeded("generate", "x", "-m", folder, *chosen, "--json", "--trace", file))
    assert found["backend"] == Trace.load(file).metadata["backend"] == backend
    assert json.loads(succeeded("info", folder, *chosen, "--json"))["backend"] == backend
    assert succeeded("chat", "-m", folder, *chosen, input="x\n") == found["text"] + "\n"


def test_info_says_which_backend_auto_means(folder: Path, loaded: Loaded) -> None:
    facts = json.loads(succeeded("info", folder, "--device", "cpu", "--json"))
    assert facts["backend"] == loaded.model.backend.name
    assert "abacus" in refused(run("info", folder, "--backend", "abacus"))


def test_a_trace_that_cannot_be_written_costs_no_text(
    folder: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trace, "save", full)
    result = run("generate", PROMPT, "-m", folder, "--trace", tmp_path / "run.npz")
    (expected,) = generate(loaded, PROMPT)
    assert result.exit_code == 2 and result.stdout == expected.text + "\n"
    assert re.fullmatch(r"dgemma: [^\n]*No space left[^\n]*\n", result.stderr)


def test_ctrl_c_keeps_what_was_traced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.npz"
    add, seen = TraceRecorder.add, []

    def interrupted(self: TraceRecorder, event: Any) -> None:
        add(self, event)
        seen.append(event)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TraceRecorder, "add", interrupted)
    result = run("generate", PROMPT, "-m", folder, "--trace", file)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "dgemma: stopped by Ctrl-C\n"
    assert len(Trace.load(file)) == 2


@pytest.mark.subprocess
def test_a_reader_that_has_left_ends_it_quietly(folder: Path) -> None:
    command = [sys.executable, "-m", "dgemma_core.command.cli", "info", str(folder)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.subprocess
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_output_that_cannot_be_written_is_said(folder: Path) -> None:
    command = [sys.executable, "-m", "dgemma_core.command.cli", "info", str(folder)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"dgemma: [^\n]*No space left[^\n]*\n", done.stderr)


@pytest.mark.subprocess
def test_a_terminal_without_unicode_gets_escapes(folder: Path) -> None:
    command = [sys.executable, "-m", "dgemma_core.command.cli", "trace", "show", "näme"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "n\\xe4me" in done.stderr


def test_a_trace_cannot_steer_the_terminal(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    succeeded("generate", PROMPT, "-m", folder, "--trace", file)
    evil = "\x1b[2J\x9b2J\u202e\r"
    trace = Trace.load(file)
    metadata = {**trace.metadata, "model": evil, evil: evil}
    strings = {token: evil for token in trace.strings}
    dataclasses.replace(trace, metadata=metadata, strings=strings).save(file)
    shown = succeeded("trace", "show", file)
    assert not set(shown) & set("\x1b\x9b\u202e\r")
    assert "2J" in shown


@pytest.mark.parametrize("arguments", [["{}"], ["info", "{}"], ["trace", "show", "{}"], ["--{}"]])
def test_an_error_cannot_steer_the_terminal(arguments: Sequence[str]) -> None:
    said = refused(run(*(part.format("no\x1b[2J\x9b2J\u202e") for part in arguments)))
    assert "2J" in said and not set(said) & set("\x1b\x9b\u202e")


def test_training_into_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    options = ["train", "--recipe", "nano", "--out"]
    assert "cannot be written" in refused(run(*options, tmp_path / "file" / "run"))
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "1 MB free, and a run needs up to" in refused(run(*options, tmp_path / "run"))


def test_a_checkpoint_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    assert "tokenizer" in refused(run("generate", "x", "-m", tmp_path))
    assert "tokenizer" in refused(run("chat", "-m", tmp_path, input="x\n"))


@pytest.mark.parametrize("content", [None, b"", b"no trace at all"])
def test_a_file_that_is_no_trace(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    if content is not None:
        file.write_bytes(content)
    assert str(file) in refused(run("trace", "show", file))


# --- trace, info, chat, help


@pytest.mark.slow
def test_a_trace_holds_the_run_and_can_be_shown(
    folder: Path, loaded: Loaded, tmp_path: Path
) -> None:
    file = tmp_path / "run.npz"
    text = succeeded("generate", PROMPT, "-m", folder, "--seed", 7, "--trace", file)
    trace = Trace.load(file)
    (expected,) = generate(loaded, PROMPT, seed=7)
    assert text == expected.text + "\n"
    assert tuple(trace.ids.tolist()) == expected.ids
    assert len(trace) == expected.denoising_steps and trace.seed == 7
    shown = succeeded("trace", "show", file)
    rows = re.findall(r"^ *\d+ +\d+ +predict .*$", shown, flags=re.MULTILINE)
    assert len(rows) == len(trace)
    assert f"{len(trace.ids)} tokens, {len(trace)} steps, {trace.passes} passes" in shown
    assert "Sort ascending: 3 1 2" in shown


def test_an_autoregressive_trace_shows_a_line_a_token(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    mode = ("--mode", "autoregressive", "--max-new-tokens", 5)
    succeeded("generate", PROMPT, "-m", folder, *mode, "--trace", file)
    shown = succeeded("trace", "show", file)
    trace = Trace.load(file)
    assert len(re.findall(r"^ *\d+ +0\.\d{3} .*$", shown, flags=re.MULTILINE)) == len(trace) > 0


def test_a_speculative_trace_shows_a_line_a_round(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    given = ("--mode", "speculative", "--draft-positions", 5, "--trace", file)
    text = succeeded("generate", "Sort ascending: 30 10 20", *given)
    shown = succeeded("trace", "show", file)
    trace = Trace.load(file)
    rows = re.findall(r"^ *(\d+) +(\d+) +4 +(\d+) +(\d+)  .*$", shown, flags=re.MULTILINE)
    expected = [(made.start + 1, made.verified - 1, made.accepted) for made in trace.rounds]
    assert [tuple(map(int, row[1:])) for row in rows] == expected and len(expected) > 1
    assert f"{len(trace.rounds)} rounds" in shown and f"{trace.passes} passes" in shown
    assert text.strip() in shown


def test_info_counts_parameters_and_bytes(folder: Path, loaded: Loaded) -> None:
    facts = json.loads(succeeded("info", folder, "--json"))
    total = sum(parameter.numel() for parameter in loaded.model.parameters())
    text = loaded.model.config.text
    idle = text.num_experts - text.top_k_experts
    unused = len(text.layers) * idle * 3 * text.hidden_size * text.moe_intermediate_size
    assert facts["parameters"] == {"total": total, "active": total - unused}
    assert facts["stored_bytes"] == {"float32": 4 * total}
    assert facts["loaded_bytes"] == {"float32": 4 * total, "bfloat16": 2 * total}
    assert facts["generation_config"]["sampler_config"]["entropy_bound"] == 0.2
    assert f"{total:,} in the text model, {total - unused:,} active" in succeeded("info", folder)


def test_chat_answers_each_line_in_the_light_of_what_was_said(folder: Path, loaded: Loaded) -> None:
    chat = Chat(loaded, Settings(), system="Be brief.")
    expected = [chat.say("One.", seed=4).text, chat.say("Two.", seed=5).text]
    said = succeeded(
        "chat", "-m", folder, "--seed", 4, "--system", "Be brief.", input="One.\n\nTwo."
    )
    assert said == "".join(f"{text}\n" for text in expected)


def test_help_names_the_commands_with_and_without_being_asked() -> None:
    asked, unasked = succeeded("--help"), succeeded()
    assert asked == unasked
    for name in ("generate", "chat", "info", "trace", "train"):
        assert re.search(rf"\b{name}\b", asked)


@pytest.mark.subprocess
def test_ctrl_c_ends_cleanly(folder: Path) -> None:
    command = [sys.executable, "-m", "dgemma_core.command.cli", "chat", "-m", str(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background has Ctrl-C ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("Hello.\n")
        process.stdin.flush()
        process.stdout.readline()  # an answer: it waits for the next line now
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "dgemma: stopped by Ctrl-C\n"


# --- commands of other packages


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a module with this source as the command `guest`."""

    def install(source: str) -> None:
        (tmp_path / "guest_package.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "guest_package", raising=False)
        point = EntryPoint("guest", "guest_package:app", cli.PLUGINS)
        monkeypatch.setattr(
            cli, "entry_points", lambda group: EntryPoints([point]).select(group=group)
        )

    return install


GUEST = """
import typer
app = typer.Typer()

@app.command(help="A guest.")
def anything(word: str) -> None:
    print("guest says", word)
"""


def test_another_package_adds_a_command_that_loads_when_asked_for(
    plugin: Callable[[str], None], folder: Path
) -> None:
    plugin(GUEST)
    succeeded("info", folder)
    assert "guest_package" not in sys.modules
    assert re.search(r"guest +A guest\.", succeeded("--help"))
    assert succeeded("guest", "hello") == "guest says hello\n"
    assert "word" in refused(run("guest"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_library", "no_such_library"),
        ("", "app"),
        ("import typer\napp = typer.Typer()", "guest_package:app"),
    ],
)
def test_a_command_that_does_not_load_says_so_and_spares_the_others(
    source: str, words: str, plugin: Callable[[str], None], folder: Path
) -> None:
    plugin(source)
    assert words in refused(run("guest", "--option", "argument"))
    assert "does not load" in succeeded("--help")
    succeeded("info", folder)


# --- the terminal


WORDS = ["the", " cat", "\n", "\x1b[2J", "<turn|>"]
EOS = 4


def step(
    accepted: Sequence[bool], tokens: Sequence[int] = (0, 1, 2, 3, 4), **more: object
) -> StepEvent:
    size = len(tokens)
    values = {
        "request": 0, "canvas": 0, "step": 2, "steps": 48, "kind": "predict", "temperature": 0.75,
        "tokens_in": np.zeros(size, int), "tokens_out": np.array(tokens), "sample": np.array(tokens),
        "argmax": np.array(tokens), "accepted": np.array(accepted), "pinned": np.zeros(size, bool),
        "sample_probability": np.linspace(0, 1, size), "argmax_probability": np.full(size, 0.5),
        "entropy": np.linspace(1, 2, size), "finished": False, "seconds": 0.1,
    }  # fmt: skip
    return StepEvent(**{**values, **more})  # type: ignore[arg-type]


def pieces(text: Text) -> list[tuple[str, str]]:
    """(text, style) of each span."""
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def draw(event: StepEvent) -> Text:
    return terminal.draw_step(event, WORDS.__getitem__, {EOS})


def test_noise_is_dim_and_what_is_kept_has_the_colour_of_its_probability() -> None:
    drawn = draw(step([True, False, False, False, False]))
    assert drawn.plain == "the cat↵␛[2J<turn|>"
    kept, *noise = pieces(drawn)
    assert kept == ("the", str(terminal.shade(0.0)))
    assert {style for _, style in noise} == {"dim"}


def test_a_kept_newline_breaks_the_line_and_a_kept_end_hides_its_tail() -> None:
    drawn = draw(step([True] * 6, tokens=[0, 2, 1, 4, 0, 1]))
    assert drawn.plain == "the↵\n cat■··"


def test_a_token_that_this_step_did_not_predict_has_no_colour() -> None:
    event = step([True, True], tokens=[0, 1], sample=np.array([3, 3]), argmax=np.array([3, 1]))
    (_, unknown), (_, by_argmax) = pieces(draw(event))
    assert unknown == "bold"
    assert by_argmax == str(terminal.shade(0.5))


def test_a_pin_is_underlined() -> None:
    event = step([False, False], tokens=[0, 1], pinned=np.array([False, True]))
    assert [style for _, style in pieces(draw(event))] == ["dim", "bold underline"]


def drafted(
    tokens: Sequence[int], accepted: int, verified: int, replacement: int
) -> list[tuple[str, str]]:
    chances = tuple(0.5 for _ in tokens)
    event = DraftEvent("s", 2, 7, tuple(tokens), chances, 1, verified, accepted, replacement, 1.0)
    assert terminal.round_status(event).plain == (
        f"round 3 · token 8 · {len(tokens) - 1} drafted in 1 step · {verified - 1} verified"
        f" · {accepted} accepted"
    )
    return pieces(terminal.draw_round(event, WORDS.__getitem__, {EOS}))


def test_a_round_shows_accepted_replaced_and_rejected_by_shape_and_by_colour() -> None:
    good = str(terminal.shade(0.5))
    wrong, right = str(terminal.REPLACED), str(terminal.REPLACEMENT)
    assert drafted([1, 0, 1, 0, 1], 1, 4, 0) == [
        ("the", good), ("✗ cat", wrong), ("→the", right), ("⟨the cat⟩", "dim"),
    ]  # fmt: skip
    assert drafted([1, 0, 1], 2, 3, 0) == [("the", good), (" cat", good), ("→the", right)]
    # An end that was drafted is not verified: the causal mode chooses it, or not.
    assert drafted([1, 0, EOS, EOS], 1, 2, EOS) == [("the", good), ("→■", right)]
    assert drafted([1, 0, EOS, EOS, 0], 1, 2, 0) == [
        ("the", good), ("✗■", wrong), ("→the", right), ("⟨■⟩", "dim"),
    ]  # fmt: skip


def test_the_status_leaves_pins_out() -> None:
    event = step([True, True, False, False, False], pinned=np.arange(5) == 0)
    line = terminal.status(event).plain
    assert line == "canvas 1 · step 3/48 · temperature 0.75 · accepted 1/5 · entropy 1.625 nats"


def test_every_shade_can_be_read() -> None:
    """WCAG 2 asks for a contrast of 4.5; lightness rises with probability, colours aside."""
    lightness = []
    for probability in np.linspace(0, 1, 201):
        style = terminal.shade(float(probability))
        assert style.color is not None and style.bgcolor is not None
        back, front = (
            terminal.luminance(color.get_truecolor()) for color in (style.bgcolor, style.color)
        )
        assert (max(back, front) + 0.05) / (min(back, front) + 0.05) >= 4.5
        lightness.append(back)
    assert lightness == sorted(lightness) and lightness[0] < 0.05 and lightness[-1] > 0.7
    assert terminal.shade(-1.0) == terminal.shade(0.0) and terminal.shade(2.0) == terminal.shade(1)


@pytest.mark.parametrize(
    ("piece", "shown"),
    [("a b", "a b"), ("é漢", "é漢"), ("\t\r", "␉␍"), ("\u202e", "�"), ("\u200b", "�"), ("", "∅")],
)
def test_no_token_moves_the_cursor_or_hides(piece: str, shown: str) -> None:
    assert terminal.visible(piece) == shown


def test_the_final_text_is_coloured_token_by_token_without_what_surrounds_it() -> None:
    words = ["th", "ink", "a", "bc", "\n", "d"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids)

    chances = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    text = terminal.colour("abc\nd", range(6), chances, decode)
    assert text.plain == "abc\nd"
    expected = zip(("a", "bc", "\n", "d"), chances[2:], strict=True)
    assert pieces(text) == [(word, str(terminal.shade(chance))) for word, chance in expected]
    unrelated = terminal.colour("x\x1b", [1], [0.5], decode)
    assert unrelated.plain == "x␛" and not unrelated.spans


@pytest.mark.parametrize("mode", MODES)
def test_the_screen_shows_all_of_a_run_and_clears_itself(mode: str, loaded: Loaded) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=30, color_system="truecolor")
    assert loaded.tokenizer is not None
    decode = loaded.tokenizer.token_string
    with screen.Screen(console, decode, DEFAULTS.eos_token_ids, replay=False) as shown:
        (generation,) = generate(loaded, PROMPT, mode=mode, listen=shown.add)
    frames = plain(file.getvalue()).split("probability 0")
    assert len(frames) > 2
    assert file.getvalue().rstrip().endswith("\x1b[2K")  # the last line is wiped
    last = frames[-2].replace("\n", "")
    for token in generation.ids:
        assert terminal.visible(loaded.tokenizer.token_string(token)).strip() in last


@pytest.mark.parametrize("mode", MODES)
def test_a_short_run_is_replayed_from_its_noise_at_a_pace_that_can_be_followed(
    mode: str, loaded: Loaded
) -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=160, height=30, color_system="truecolor"
    )
    assert loaded.tokenizer is not None
    pauses: list[float] = []
    with screen.Screen(
        console, loaded.tokenizer.token_string, DEFAULTS.eos_token_ids, sleep=pauses.append
    ) as shown:
        (generation,) = generate(
            loaded,
            PROMPT,
            mode=mode,
            listen=lambda event: shown.add(replace(event, seconds=event.seconds / 1000)),
        )
        before = len(file.getvalue())
    replayed = plain(file.getvalue()[before:])
    assert 2 <= sum(pauses) <= 6.01 and len(set(pauses)) == 1
    assert re.search(r"replayed \d+ times slower: it took \d+ ms", replayed)
    # rich draws the last frame once more as it stops
    assert replayed.count("probability 0") == len(pauses) + 1 >= 3
    if mode == "diffusion":
        assert len(pauses) == generation.denoising_steps + generation.canvases
        assert "canvas 1 · noise: random tokens" in replayed
        assert f"step 1/{DEFAULTS.max_denoising_steps}" in replayed


def test_a_long_run_and_one_that_failed_are_not_replayed(loaded: Loaded) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=30)
    assert loaded.tokenizer is not None
    pauses: list[float] = []
    decode = loaded.tokenizer.token_string

    def slow(event: Any) -> None:
        shown.add(replace(event, seconds=event.seconds + 2))

    with screen.Screen(console, decode, sleep=pauses.append) as shown:
        generate(loaded, PROMPT, listen=slow)
    with (
        pytest.raises(ZeroDivisionError),
        screen.Screen(console, decode, sleep=pauses.append) as shown,
    ):
        generate(loaded, PROMPT, listen=shown.add)
        1 / 0  # noqa: B018
    assert pauses == []

    def impatient(_: float) -> None:
        raise KeyboardInterrupt

    with screen.Screen(console, decode, sleep=impatient) as shown:  # Ctrl-C ends the replay alone
        generate(loaded, PROMPT, listen=shown.add)


def test_a_low_terminal_shows_the_end(loaded: Loaded) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=20, height=8)
    lines = [f"line {i}" for i in range(50)]
    shown = console.render_lines(screen._Tail(Text("\n".join(lines)), Text("footer")))
    plain = ["".join(segment.text for segment in line).strip() for line in shown]
    assert plain == [*lines[-4:], "footer"]


def plain(written: str) -> str:
    """Terminal output without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", written)


def in_a_terminal(arguments: Sequence[str]) -> Iterator[bytes]:
    """What a command writes to a terminal of its own."""
    child, terminal_file = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS="100", LINES="30")
        os.environ.pop("NO_COLOR", None)
        os.execv(sys.executable, [sys.executable, "-m", "dgemma_core.command.cli", *arguments])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            written = os.read(terminal_file, 65536)
        except OSError:  # Linux: the child has closed its end
            break
        if not written:
            break
        yield written
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.subprocess
def test_in_a_terminal_the_canvas_is_seen_and_the_text_stays(folder: Path, loaded: Loaded) -> None:
    command = ["generate", PROMPT, "-m", str(folder), "--seed", "2"]
    written = b"".join(in_a_terminal(command)).decode()
    assert "times slower: it took" in plain(written)
    assert "canvas 1 · step 1/4" in plain(written)
    assert "\x1b[38;2;255;255;255;48;2;" in written
    (expected,) = generate(loaded, PROMPT, seed=2)
    final = plain(written.rsplit("\x1b[2K", 1)[1])
    assert final.startswith("".join(c if c == "\n" else terminal.visible(c) for c in expected.text))
    assert f"{expected.kept_tokens} tokens · " in final


@pytest.mark.subprocess
def test_a_terminal_says_where_nano_is_asked_for_what_it_does_not_know() -> None:
    def said(*command: str) -> str:
        return plain(b"".join(in_a_terminal([*command, "--max-new-tokens", "8"])).decode())

    assert "Outside what nano knows: " in said("generate", "Write a haiku about the sea.")
    assert "Outside" not in said("generate", "Spell backward:\nSTEP")
    assert "Outside" not in said("generate", "Write a haiku about the sea.", "--raw")
