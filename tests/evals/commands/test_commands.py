"""`dgemma eval`: lm-eval's own command line with our models and tasks in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgemma_core.command.cli import app
from dgemma_core.nano import families
from dgemma_evals.harness.models import DGemma
from dgemma_evals.tasks import manager

HERE = Path(__file__).parent


@pytest.fixture
def dgemma(monkeypatch, capsys):
    """Runs `dgemma …` → (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["dgemma"])
    # lm-eval's own thousands of task files are not what is tested here, and take long to index.
    monkeypatch.setattr(manager.Tasks, "_complete_index", lambda self: None)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def lines(folder, pattern):
    (path,) = folder.rglob(pattern)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_request_type_by_command_line(dgemma, checkpoint, tmp_path):
    code, out, _ = dgemma(
        "eval", "run", "--model", "dgemma", "--model_args", f"pretrained={checkpoint}", "steps=3",
        "--tasks", "dgemma_nano_word_sum,made_choices,made_rolling",
        "--include_path", HERE / "tasks", "--limit", "3", "--gen_kwargs", "max_gen_toks=8",
        "--apply_chat_template", "--system_instruction", "Be brief.",
        "--output_path", tmp_path, "--log_samples", "--seed", "7",
    )  # fmt: skip
    assert code == 0 and "word_sum" in out and "made_choices" in out
    (results,) = tmp_path.rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["steps"] == 3 and config["sampler"]["name"] == "entropy_bound"
    assert config["likelihood"].startswith("ar_encoder") and config["written"]["texts"] == 3
    samples = lines(tmp_path, "samples_dgemma_nano_word_sum_*.jsonl")
    records = {r["prompt_hash"]: r for r in lines(tmp_path, "records-*.jsonl")[1:]}
    assert len(records) >= 3 + 3 + 3  # of two answers to a question, the prompt is the same
    for sample in samples:
        record = records[sample["prompt_hash"]]
        assert record["answer"] == sample["resps"][0][0]
        counts = record["counts"]
        assert counts["kept_tokens"] <= 8 and counts["passes"] > sum(counts["steps_per_canvas"])
        wasted = 1 - counts["kept_tokens"] / counts["positions"]
        assert counts["wasted_fraction"] == wasted and counts["seconds"] > 0
        assert counts["stop_reason"] in ("eos", "length")
        assert "Be brief." in sample["arguments"]["gen_args_0"]["arg_0"]


@pytest.mark.slow
def test_a_config_file_and_token_by_token(dgemma, checkpoint, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"model: dgemma-ar\nmodel_args:\n  pretrained: {checkpoint}\n"
        f"tasks: [dgemma_nano_json]\nlimit: 2\noutput_path: {tmp_path}\ngen_kwargs:\n"
        "  max_gen_toks: 5\n"
    )
    code, out, _ = dgemma("eval", "run", "--config", tmp_path / "run.yaml")
    assert code == 0 and "json" in out
    records = lines(tmp_path, "records-*.jsonl")[1:]
    assert [r["counts"]["mode"] for r in records] == ["autoregressive"] * 2


@pytest.mark.slow
def test_use_cache_keeps_models_and_repeats_apart(dgemma, checkpoint, tmp_path):
    """lm-eval's own cache would give each of three repeats the last one's answer, and a second model the first's."""

    def run(model, out):
        code, _, err = dgemma(
            "eval", "run", "--model", model, "--model_args", f"pretrained={checkpoint}", "--tasks",
            "made_filters", "--include_path", HERE / "tasks", "--limit", "2", "--log_samples",
            "--use_cache", tmp_path / "cache", "--output_path", tmp_path / out,
        )  # fmt: skip
        assert code == 0, err
        return [row["resps"][0] for row in lines(tmp_path / out, "samples_*.jsonl")]

    first = run("dgemma", "one")
    assert all(len(set(answers)) > 1 for answers in first)
    assert run("dgemma", "two") == first
    assert run("dgemma-ar", "three") != first
    (results,) = (tmp_path / "two").rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["resumed_records"] == 2 * 3
    assert len(list((tmp_path / "cache").glob("records-*.jsonl"))) == 2
    code, _, err = dgemma("eval", "run", "--model", "dgemma", "--model_args", f"records={tmp_path}",
                          "--tasks", "made_filters", "--use_cache", tmp_path)  # fmt: skip
    assert code == 2 and "the same thing: give one" in err


@pytest.mark.slow
def test_the_seed_of_lm_eval_is_the_models(dgemma, checkpoint, tmp_path):
    def answers(*more):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        code, _, err = dgemma(
            "eval", "run", "--model", "dgemma", "--model_args", f"pretrained={checkpoint}",
            "--tasks", "dgemma_nano_json", "--limit", "3", "--gen_kwargs", "max_gen_toks=8",
            "--log_samples", "--output_path", out, *more,
        )  # fmt: skip
        assert code == 0, err
        (results,) = out.rglob("results_*.json")
        rows = lines(out, "samples_*.jsonl")
        return json.loads(results.read_text())["config"]["seed"], [row["resps"] for row in rows]

    seven = answers("--seed", "7")
    assert seven[0] == 7 and answers("--seed", "1,2,7,3") == seven
    plain = answers()
    assert plain[0] == 0 and plain[1] != seven[1]
    assert answers("--seed", "9", "--model_args", f"pretrained={checkpoint}", "seed=7") == seven


@pytest.mark.slow
def test_several_filters_examples_as_turns_and_a_system_instruction(dgemma, checkpoint, tmp_path):
    code, _, err = dgemma(
        "eval", "run", "--model", "dgemma-ar", "--model_args", f"pretrained={checkpoint}", "--tasks",
        "made_filters", "--include_path", HERE / "tasks", "--limit", "2", "--num_fewshot", "2",
        "--apply_chat_template", "--fewshot_as_multiturn", "true", "--system_instruction", "Be brief.",
        "--log_samples", "--output_path", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    (results,) = tmp_path.rglob("results_*.json")
    found = json.loads(results.read_text())
    assert {"exact_match,first", "exact_match,vote"} <= found["results"]["made_filters"].keys()
    rows = lines(tmp_path, "samples_*.jsonl")
    assert {row["filter"] for row in rows} == {"first", "vote"}
    for row in rows:
        prompt = row["arguments"]["gen_args_0"]["arg_0"]
        assert prompt.count("<|turn>user") == 3 and prompt.count("<|turn>model") == 3
        assert prompt.startswith("<bos><|turn>system\nBe brief.<turn|>")


@pytest.mark.slow
def test_predictions_alone_without_a_network(dgemma, checkpoint, tmp_path, monkeypatch):
    """--predict_only, with the hub switched off and every connection refused."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refused(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", refused)
    code, _, err = dgemma(
        "eval", "run", "--model", "dgemma", "--model_args", f"pretrained={checkpoint}", "--tasks",
        "dgemma_nano_json", "--limit", "2", "--gen_kwargs", "max_gen_toks=4", "--predict_only",
        "--output_path", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    rows = lines(tmp_path, "samples_*.jsonl")
    assert len(rows) == 2 and all(isinstance(row["resps"][0][0], str) for row in rows)
    assert "solved" not in rows[0]


class Logged:
    """Stands where wandb or trackio is: notes what it is given, as JSON."""

    __version__ = "99"
    run = None

    def __init__(self):
        self.started, self.given = [], []

    def init(self, **arguments):
        self.started.append(arguments)
        self.run = self.config = self
        return self

    def update(self, *values, **_):
        self.given.append(json.dumps(values, default=str))

    log = log_artifact = update

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *values, **_: Logged()


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["wandb", "trackio"])
def test_loggers_get_our_results(dgemma, checkpoint, tmp_path, monkeypatch, tool):
    logged = Logged()
    monkeypatch.setitem(sys.modules, tool, logged)
    for name in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.printer"):
        monkeypatch.setitem(sys.modules, name, Logged())
    code, _, err = dgemma(
        "eval", "run", "--model", "dgemma", "--model_args", f"pretrained={checkpoint}", "--tasks",
        "dgemma_nano_json", "--limit", "1", "--gen_kwargs", "max_gen_toks=4", f"--{tool}_args",
        "project=nano,name=one", "--output_path", tmp_path, "--log_samples",
    )  # fmt: skip
    assert code == 0, err
    assert logged.started == [{"project": "nano", "name": "one"}]
    assert any("entropy_bound" in text for text in logged.given), "what our model says of itself"


@pytest.mark.slow
def test_results_that_were_not_written_whole_end_a_run(dgemma, checkpoint, tmp_path, monkeypatch):
    """lm-eval logs that a disk is full, and ends with exit code 0."""
    asked = (
        "eval", "run", "--model", "dgemma", "--model_args", f"pretrained={checkpoint}", "--tasks",
        "dgemma_nano_json", "--limit", "1", "--gen_kwargs", "max_gen_toks=4", "--output_path",
        tmp_path, "--log_samples",
    )  # fmt: skip
    whole = Path.write_text

    def half(self, text, *rest, **more):
        if not self.name.startswith("results_"):
            return whole(self, text, *rest, **more)
        whole(self, text[: len(text) // 2], *rest, **more)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    code, _, err = dgemma(*asked)
    (line,) = [line for line in err.splitlines() if line.startswith("dgemma: ")]
    assert code == 2 and "the results were not written whole" in line
    assert not list(tmp_path.rglob("results_*.json")), "nobody takes half a file for a result"
    monkeypatch.setattr(Path, "write_text", whole)
    assert dgemma(*asked)[0] == 0  # and the answers were kept
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["resumed_records"] == 1


@pytest.mark.slow
def test_a_quantised_model_by_command_line(dgemma, checkpoint, tmp_path):
    asked = ("eval", "run", "--model", "dgemma", "--tasks", "dgemma_nano_json", "--limit", "1",
             "--gen_kwargs", "max_gen_toks=4", "--output_path", tmp_path / "out")  # fmt: skip
    own = ("--model_args", f"pretrained={checkpoint}")
    assert dgemma(*asked, "--quantize", "int4", "--backend", "torch", *own)[0] == 0
    (results,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["model_quantize"] == "int4" and config["model_backend"] == "torch"
    identity = DGemma(pretrained=str(checkpoint), quantize="int4", backend="torch").identity
    (records,) = tmp_path.rglob("records-*.jsonl")
    assert identity in records.name
    for given, says in (
        (("--quantize=int2",), "quantize: expected int8 or int4, found int2"),
        (("--quantize",), "--quantize needs a value"),
        (("--quantize=int4", "--quantize", "int8"), "--quantize is given twice"),
        (("--quantize=int4", "--model_args", "quantize=int8"), "give one"),
        (("--backend=fast",), "unknown backend 'fast'"),
        (
            ("--backend=torch", "--model_args", "backend=cpu"),
            "--backend torch and the model argument",
        ),
        (
            ("--quantize=int4", "--model", "hf"),
            "--quantize is of the models dgemma, dgemma-ar, dgemma-spec",
        ),
    ):
        code, _, err = dgemma(*asked, *own[: 0 if "--model_args" in given else 2], *given)
        (line,) = [line for line in err.splitlines() if line.startswith("dgemma: ")]
        assert code == 2 and says in line
    code, _, err = dgemma("eval", "ls", "tasks", "--quantize", "int4")
    assert code == 2 and "--quantize has no meaning for ls" in err


def test_the_tasks_are_found_without_a_path(dgemma):
    code, out, _ = dgemma("eval", "validate", "--tasks", "dgemma_nano,dgemma_nano_json")
    assert code == 0 and "All tasks found" in out
    assert dgemma("eval", "ls", "groups")[1].count("dgemma_nano") >= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--tasks", "no_such_task"), "Tasks not found: no_such_task"),
        (("--tasks", ""), "--tasks names none"),
        (("--tasks", ","), "--tasks names none"),
        (("--tasks", "dgemma_nano_json", "--model_args", "colour=1"), "unknown model argument"),
        (("--tasks", "dgemma_nano_json", "--model_args", "temperature=1"), "no option"),
        (("--tasks", "dgemma_nano_json", "--device", "warp"), "cannot be used here"),
        (("--tasks", "dgemma_nano_json", "--model", "nonesuch"), "nonesuch"),
        (("--tasks", "dgemma_nano_json", "--config", "/no/such.yaml"), "not found"),
        (("--tasks", "dgemma_nano_json", "--model_args", "pretrained=/no/such"), "no such folder"),
        (("--tasks", "dgemma_nano_json", "--log_samples"), "Specify --output_path"),
    ],
)
def test_bad_input_is_one_clear_line(dgemma, checkpoint, arguments, says):
    code, _, err = dgemma("eval", "run", "--model", "dgemma", *arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("dgemma: ")]
    assert code == 2 and says in line


def test_scores_are_the_verifiers():
    from dgemma_evals.tasks.nano import problems, verdict

    for name in ("mini_sudoku", "json"):
        for row in problems(name, 3)["test"]:
            assert verdict(row, [f" {row['answer']}\n"]) == {
                "solved": 1.0, "score": 1.0, "readable": 1.0,
            }  # fmt: skip
            assert verdict(row, ["no"])["solved"] == 0.0
    assert problems("json", 2)["test"][0]["seed"] == families.TEST_SEEDS[0]


def test_all_families_have_a_task():
    tasks = manager.Tasks(include_defaults=False)
    names = {f"dgemma_nano_{name}" for name in families.TASKS}
    assert names <= set(tasks.all_subtasks)
    assert set(tasks.task_index["dgemma_nano"].cfg["task"]) == names


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
    # Its --multi_gpu means several processes, and is how it starts them without a GPU too.
    "accelerate": (
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ),
}  # fmt: skip


def needs_accelerate():
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")


@pytest.mark.slow
def test_the_exported_half_runs_in_lm_evals_own_hf(dgemma, checkpoint, tmp_path):
    needs_accelerate()
    assert dgemma("export", checkpoint, "--autoregressive", tmp_path / "causal")[0] == 0
    asked = ("--tasks", "made_choices", "--include_path", HERE / "tasks", "--limit", "3",
             "--apply_chat_template", "--log_samples", "--device", "cpu")  # fmt: skip

    def scores(model, folder, out):
        code, _, err = dgemma("eval", "run", "--model", model, "--model_args",
                              f"pretrained={folder},dtype=float32", *asked,
                              "--output_path", tmp_path / out)  # fmt: skip
        assert code == 0, err
        found = lines(tmp_path / out, "samples_made_choices_*.jsonl")
        return [[float(one[0][0]) for one in sample["resps"]] for sample in found]

    ours = scores("dgemma-ar", checkpoint, "ours")
    for mine, theirs in zip(ours, scores("hf", tmp_path / "causal", "theirs"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)


@pytest.mark.subprocess
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_results_of_one(dgemma, checkpoint, tmp_path, launcher):
    if launcher == "accelerate":
        pytest.importorskip(
            "accelerate", reason="accelerate is not installed: pip install accelerate"
        )
    arguments = [
        "eval", "run", "--model", "dgemma", "--model_args", f"pretrained={checkpoint}",
        "--tasks", "made_choices,dgemma_nano_json", "--include_path", str(HERE / "tasks"),
        "--limit", "3", "--gen_kwargs", "max_gen_toks=8", "--log_samples",
    ]  # fmt: skip
    assert dgemma(*arguments, "--output_path", tmp_path / "one")[0] == 0
    ran = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher],
         "-m", "dgemma_core.command.cli", *arguments, "--output_path", tmp_path / "two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
             "HF_HOME": str(tmp_path)},  # where accelerate would find someone's configuration
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]

    def results(folder):
        (path,) = folder.rglob("results_*.json")
        return json.loads(path.read_text())

    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    for task in ("made_choices", "dgemma_nano_json"):
        for metric, value in one["results"][task].items():
            if isinstance(value, float):
                assert two["results"][task][metric] == pytest.approx(value)
    assert two["config"]["written"]["texts"] == one["config"]["written"]["texts"] == 3
    assert two["config"]["written"]["kept_tokens"] == one["config"]["written"]["kept_tokens"]

    def answers(folder):
        rows = [line for path in folder.rglob("records-*.jsonl")
                for line in path.read_text().splitlines()[1:]]  # fmt: skip
        return {r["key"]: r["answer"] for r in map(json.loads, rows) if "counts" in r}

    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    ranks = [path.stem[-4:] for path in (tmp_path / "two").rglob("records-*.jsonl")]
    assert sorted(ranks) == ["0of2", "1of2"]  # both took part
