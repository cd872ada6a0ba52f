"""Records: nothing is lost or computed twice, whatever ends a run."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from dgemma_core import DgemmaError, RequestError
from dgemma_evals.harness.models import DGemma, DGemmaAR
from dgemma_evals.harness.records import Records, read
from dgemma_evals.hashes import digest, fingerprint
from dgemma_evals.writers.counting import Counts
from dgemma_evals.writers.options import Options

REQUESTS = 6
GEN = {"until": [], "max_gen_toks": 10}


def requests():
    return [
        Instance("generate_until", {}, (f"prompt {doc}", GEN), 0, ("task", doc, 1))
        for doc in range(REQUESTS)
    ]


def record(number, **more):
    counts = Counts(
        mode="autoregressive", prompt_tokens=1, kept_tokens=2, passes=2, denoising_steps=0,
        steps_per_canvas=(), converged=(), positions=0, prompt_seconds=0.1, seconds=0.2,
        milestones=((1, 0.1),), stop_reason="eos",
    )  # fmt: skip
    answer = {"key": f"k{number}", "answer": f"answer {number}", "counts": counts.to_json()}
    return json.loads(json.dumps({**answer, **more}))  # as a file gives it back


def test_what_was_added_is_there_again(tmp_path):
    first = Records(tmp_path, "id", {"steps": 8})
    first.add(record(0))
    first.add(record(1))
    again = Records(tmp_path, "id", {"steps": 8})
    assert again.resumed == 2 and again.get("k1") == record(1) and again.get("k9") is None
    assert len(Records(tmp_path, "another", {})) == 0  # of another model or sampler
    other = Records(tmp_path, "id", {}, rank=1, of=2)  # another number of processes
    assert other.resumed == 2
    head = json.loads(first.path.read_text().splitlines()[0])
    assert head["settings"] == {"steps": 8}


def test_a_half_written_line_is_cut_off(tmp_path):
    records = Records(tmp_path, "id", {})
    records.add(record(0))
    whole = records.path.read_bytes()
    for tail in (b'{"key": "k1", "ans', b"{", b'{"key": "k1", "answer": "x"}'):
        records.path.write_bytes(whole + tail)
        again = Records(tmp_path, "id", {})
        assert len(again) == 1 and records.path.read_bytes() == whole
    again.add(record(1))
    assert [r["key"] for r in read(records.path)] == ["k0", "k1"]


def test_a_damaged_line_is_named(tmp_path):
    records = Records(tmp_path, "id", {})
    for number in range(3):
        records.add(record(number))
    lines = records.path.read_text().splitlines(keepends=True)
    counted = json.loads(lines[2])
    half = {**counted["counts"], "kept_tokens": None}
    values = (
        {"key": "k"}, {**counted, "answer": None}, {"key": "k", "answer": "no counts"},
        {**counted, "counts": None}, {**counted, "counts": half}, {**counted, "counts": {}},
        {**counted, "answer": [1.0]}, {**counted, "answer": {}},
    )  # fmt: skip
    bad_lines = [json.dumps(value) + "\n" for value in values]
    for bad in ('{"key": \n', "[1]\n", "\0\0\0\n", *bad_lines):
        records.path.write_text("".join([*lines[:2], bad, *lines[3:]]))
        with pytest.raises(DgemmaError, match=r"line 3 is damaged; delete that line") as caught:
            Records(tmp_path, "id", {})
        assert "\n" not in str(caught.value)
    records.path.write_text("".join([*lines[:2], *lines[3:]]))
    assert Records(tmp_path, "id", {}).resumed == 2
    records.path.write_text('{"schema": 99}\n')
    with pytest.raises(DgemmaError, match="schema 99"):
        Records(tmp_path, "id", {})


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_line(tmp_path):
    records = Records(tmp_path, "id", {})
    records.add(record(0))
    size = records.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))  # room for half of a record
    try:
        with pytest.raises(DgemmaError, match="1 answers so far are kept"):
            records.add(record(1, text="long " * 40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert records.path.stat().st_size == size
    records.add(record(1))
    assert Records(tmp_path, "id", {}).resumed == 2


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DgemmaError, match="cannot hold records"):
        Records(tmp_path / "file" / "deeper", "id", {})


KILLED = """
import os, signal, sys
from tests.evals.harness.test_records import requests
from dgemma_evals.harness.models import DGemma
import dgemma_evals.harness.records as records

added, whole_add = [0], records.Records.add
def add(self, record):
    if added[0] == 3:  # in the middle of writing a line
        with self.path.open("ab") as file:
            file.write(b'{"key": "half')
        os.kill(os.getpid(), signal.SIGKILL)
    added[0] += 1
    whole_add(self, record)

records.Records.add = add
DGemma(pretrained=sys.argv[1], device="cpu", records=sys.argv[2]).generate_until(requests(), True)
"""


@pytest.mark.subprocess
def test_a_run_killed_goes_on_without_recomputing_or_losing(checkpoint, tmp_path, monkeypatch):
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, checkpoint, tmp_path],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (path,) = tmp_path.glob("*.jsonl")
    assert not path.read_bytes().endswith(b"\n")
    known = {r["key"]: r for r in read(path)}
    assert len(known) == 3

    lm = DGemma(pretrained=str(checkpoint), device="cpu", records=tmp_path)
    written = []
    inner = lm.writer.stream

    def spied(jobs):
        written.extend(jobs)
        return inner(jobs)

    monkeypatch.setattr(lm.writer, "stream", spied)
    answers = lm.generate_until(requests(), True)
    assert len(written) == REQUESTS - 3
    records = read(path)
    assert len(records) == len({r["key"] for r in records}) == REQUESTS
    fresh = DGemma(pretrained=str(checkpoint), device="cpu").generate_until(requests(), True)
    assert answers == fresh
    info = lm.get_model_info()
    assert info["written"]["texts"] == REQUESTS and info["resumed_records"] == 3
    for line in records:
        assert line["counts"]["steps_per_canvas"] and line["counts"]["seconds"] > 0


def test_another_sampler_or_model_has_other_records(checkpoint, tmp_path):
    def identity(**given):
        return Options.parse("diffusion", {"pretrained": str(checkpoint), **given}).identity()

    assert identity() == identity(batch_size=8)
    others = [{"steps": 3}, {"soft_top_k": 8}, {"seed": 1}, {"dtype": "bfloat16"}]
    assert len({identity(), *(identity(**given) for given in others)}) == 5
    before = identity()
    config = checkpoint / "generation_config.json"
    text = config.read_text()
    try:
        config.write_text(text + " ")
        assert identity() != before
    finally:
        config.write_text(text)
    assert digest(1, "a") == digest(1, "a") != digest("1a")


def test_weights_are_known_by_their_content(tmp_path):
    """Large ones, too, whose time of change a copy keeps or a tool sets."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(80 * 2**20)
    before, state = fingerprint(tmp_path), path.stat()
    with path.open("r+b") as file:
        file.seek(50 * 2**20)
        file.write(b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(tmp_path) != before
    with path.open("r+b") as file:
        file.seek(50 * 2**20)
        file.write(b"\0")
    os.utime(path)
    assert fingerprint(tmp_path) == before, "the same again, written later"


def test_a_resumed_run_names_what_is_ignored_and_cut(checkpoint, tmp_path):
    asked = [
        Instance("generate_until", {}, ("word " * 60, {**GEN, "top_p": 0.9}), 0, ("task", 0, 1))
    ]
    pairs = [Instance("loglikelihood", {}, ("word " * 60, " end"), 0, ("task", 0, 1))]
    given = {"pretrained": str(checkpoint), "device": "cpu", "records": tmp_path, "max_length": 40}
    infos = []
    for _ in range(2):
        lm = DGemma(**given)
        lm.generate_until(asked, True)
        lm.loglikelihood(pairs, True)
        infos.append(lm.get_model_info())
    assert infos[1].pop("resumed_records") == 2 and infos[0].pop("resumed_records") == 0
    assert infos[0] == infos[1]
    assert infos[1]["ignored_arguments"] == {"top_p": [0.9]}
    assert infos[1]["written"]["truncated_prompts"] == 1
    assert infos[1]["written"]["truncated_tokens"] > 0
    assert infos[1]["truncated_contexts"] == 1 and infos[1]["truncated_context_tokens"] > 0


def test_the_response_cache_of_the_harness(checkpoint, tmp_path):
    """It knows neither models nor repeats: it is taken where neither can be mixed up."""
    from lm_eval.api.model import CachingLM

    lm = DGemmaAR(pretrained=str(checkpoint), device="cpu")
    with pytest.raises(RequestError, match="mix up models"):
        CachingLM(lm, str(tmp_path / "cache_rank0.db"))
    cached = CachingLM(lm, str(tmp_path / f"cache-{lm.identity}_rank0.db"))
    assert cached.generate_until(requests()[:1]) == cached.generate_until(requests()[:1])
    timed = DGemmaAR(pretrained=str(checkpoint), device="cpu", records=tmp_path)
    with pytest.raises(RequestError, match="without a time"):
        CachingLM(timed, str(tmp_path / f"c-{timed.identity}_rank0.db"))
    sampling = DGemma(pretrained=str(checkpoint), device="cpu")
    with pytest.raises(RequestError, match=r"every repeat .* the same answer.*records=FOLDER"):
        CachingLM(sampling, str(tmp_path / f"c-{sampling.identity}_rank0.db"))
