"""Flips: what is counted as a change, that it is found, and that float32 has none here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dgemma_core.command.cli import app
from dgemma_evals.comparison import flips as flipping
from dgemma_evals.comparison.flips import Answer, Run, between, measure
from dgemma_evals.tasks import manager
from dgemma_evals.writers.own import OwnWriter

TASK = "dgemma_nano_letter_counting"


def run(texts, batch=1, right="yes"):
    answers = [
        Answer("ab"[i % 2], i // 2, text, float(text.startswith(right)))
        for i, text in enumerate(texts)
    ]
    return Run("float32", batch, tuple(answers))


def test_changes_counted_by_hand():
    first, other = run(["yes", "yes", "no", "no"]), run(["yes", "no", "no!", "no"], batch=8)
    found = between(first, other)
    assert (found.answers, found.changed, found.verdicts) == (4, 2, 1)
    assert found.tasks == {"a": 1, "b": 1} and found.share.estimate == 0.5
    assert found.sentence.startswith("float32, batch 8 against 1: 2 of 4 answers change (50.0 %")
    same = between(first, first)
    assert same.changed == 0 and same.share.low == 0
    assert same.share.high == pytest.approx(1 - 0.025 ** (1 / 4))  # four are not many


@pytest.mark.slow
def test_float32_answers_do_not_change_and_a_stopped_run_goes_on(checkpoint, tmp_path, monkeypatch):
    settings = {
        "dtypes": ["float32"], "batches": [1, 3, 8], "tasks": [TASK], "limit": 9, "out": tmp_path,
        "device": "cpu", "quiet": True, "settings": {"backend": "torch"},
    }  # fmt: skip
    found = measure(str(checkpoint), **settings)
    assert [(f.batch, f.against, f.answers, f.changed) for f in found] == [
        (3, 1, 9, 0),
        (8, 1, 9, 0),
    ]
    results = json.loads((tmp_path / "flips.json").read_text())
    assert results["changed"] == [] and [r["batch"] for r in results["runs"]] == [1, 3, 8]
    assert results["runs"][0]["model"]["model_dtype"] == "float32"
    assert results["runs"][0]["model"]["model_backend"] == "torch"
    assert len(list((tmp_path / "records").rglob("records-*.jsonl"))) == 3  # of each size its own
    monkeypatch.setattr(OwnWriter, "_texts", lambda *_: pytest.fail("written again"))
    assert measure(str(checkpoint), **settings) == found


@pytest.mark.slow
def test_an_answer_that_depends_on_the_batch_is_found(checkpoint, tmp_path, monkeypatch):
    inner = OwnWriter.finished

    def finished(self, generation, counts, stop):
        written = inner(self, generation, counts, stop)
        flipped = self.batch > 1 and generation.prompt_tokens % 2
        return replace(written, text=f"{written.text}!") if flipped else written

    monkeypatch.setattr(OwnWriter, "finished", finished)
    (found,) = measure(
        str(checkpoint), dtypes=["bfloat16"], batches=[1, 2], tasks=[TASK], limit=8,
        out=tmp_path, device="cpu", quiet=True, settings={"steps": 2, "max_gen_toks": 4},
    )  # fmt: skip
    lengths = [
        record["counts"]["prompt_tokens"]
        for path in tmp_path.rglob("*-1-batch1-*/records-*.jsonl")
        for record in map(json.loads, path.read_text().splitlines()[1:])
    ]
    odd = sum(length % 2 for length in lengths)
    assert len(lengths) == 8 and 0 < odd < 8 and found.changed >= odd
    changed = json.loads((tmp_path / "flips.json").read_text())["changed"]
    assert len(changed) == found.changed and changed[0]["batches"] == [1, 2]
    assert all(line["texts"][0] != line["texts"][1] for line in changed)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", ":ar", ":spec"])
def test_by_command_line(checkpoint, tmp_path, capsys, monkeypatch, mode):
    monkeypatch.setattr("sys.argv", ["dgemma", "flips"])
    with pytest.raises(SystemExit) as ended:
        app(["flips", "--model", f"{checkpoint}{mode}", "--dtype", "float32", "--batch", "1,2",
             "--tasks", TASK, "--limit", "2", "--out", str(tmp_path), "--device", "cpu"])  # fmt: skip
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    assert "float32, batch 2 against 1: 0 of 2 answers change" in said.out
    assert json.loads((tmp_path / "flips.json").read_text())["facts"]["command"] == "dgemma flips"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quantize", "int2"), "quantize: expected int8 or int4, found int2"),
        (("--backend", "fast"), "unknown backend 'fast'"),
        (("--batch", "1"), "two or more sizes"),
        (("--batch", "1,0"), "two or more sizes"),
        (("--batch", "1,auto"), "expected sizes"),
        (("--dtype", "float32,int8"), "--dtype int8"),
        (("--dtype", "float32,float32"), "each named once"),
        (("--model", "hf:gpt2"), "this project runs"),
        (("--tasks", "dgemma_nano_x"), "no task dgemma_nano_x"),
        (("--model-arg", "batch_size=4"), "option of its own"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.setattr(manager.Tasks, "_complete_index", lambda self: None)
    monkeypatch.setattr(flipping, "_load", lambda *_, **__: pytest.fail("loaded a model"))
    monkeypatch.setattr("sys.argv", ["dgemma", "flips"])
    with pytest.raises(SystemExit) as ended:
        app(["flips", "--out", str(tmp_path), *arguments])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dgemma: ")]
    assert ended.value.code == 2 and says in line
