"""`dgemma bench`: real processes on a tiny model, honest ratios, clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dgemma_core import RequestError
from dgemma_evals.bench import interleaved as bench
from dgemma_evals.bench import page as bench_page
from dgemma_evals.bench import processes, random_model
from dgemma_evals.bench import start as bench_start
from dgemma_evals.bench.interleaved import row
from dgemma_evals.bench.processes import Measured, Setting, Worker, check_peers, settings
from dgemma_evals.bench.worker import IMPLEMENTATIONS, intervals, kept
from dgemma_evals.commands.bench import bench_app

TINY = {
    "vocab": 512,
    "width": 64,
    "layers": 2,
    "experts": 4,
    "chosen": 2,
    "expert_width": 32,
    "canvas": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.random_checkpoint(tmp_path_factory.mktemp("bench") / "model", **TINY)


@pytest.mark.slow
def test_peers_prove_the_same_logits_and_are_timed(folder: Path, tmp_path: Path) -> None:
    """Steps, tokens and whole texts of this project and both Hugging Face ones, in their own processes."""
    setting = Setting(threads=1, rounds=2, backend="torch")
    prompt = random_model.random_ids(512, 9, 0)
    own = ["dgemma", "dgemma (soft_top_k=8)"]
    names = [*own, "transformers", "diffusers"]
    found = bench.steps(
        folder, names, setting, prompt=prompt, canvas=random_model.random_ids(512, 16, 1), count=3
    )
    assert [m.name for m in found] == names
    for measured in found:
        assert len(measured.rounds) == 2 and min(measured.rounds) > 0
        assert measured.peak_bytes >= measured.loaded_bytes > 5e7
        assert measured.logits_difference < 1e-4
        assert measured.backend == ("torch" if measured.name.startswith("dgemma") else None)
    causal = bench.tokens(folder, ["dgemma", "transformers"], setting, prompt=prompt, count=4)
    assert all(m.logits_difference < 1e-4 and min(m.rounds) > 0 for m in causal)
    rows = [row("A", setting, found, unit="s/step"), row("C", setting, causal, unit="s/token")]
    (tmp_path / "steps.json").write_text(
        json.dumps({"command": "dgemma bench steps", "environment": {"cores": 1}, "rows": rows})
    )
    page = bench_page.write(tmp_path).read_text()
    assert (
        "diffusers" in page
        and "to the fastest peer" in page
        and "http" not in page.split("<script>")[0]
    )


@pytest.mark.slow
def test_another_model_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(processes.TOLERANCE, "float32", -1.0)
    with pytest.raises(RequestError, match=r"other logits than dgemma .* nothing is timed"):
        bench.steps(
            folder, ["dgemma"], Setting(threads=1, rounds=1), prompt=[20], canvas=[20] * 16, count=2
        )


@pytest.mark.slow
def test_whole_texts_are_judged(folder: Path) -> None:
    """Two batches; every text of every round is judged, with its own number."""
    seen = []

    def judge(i: int, ids: list[int]) -> bool:
        seen.append((i, len(ids)))
        return i == 1

    (found,) = bench.writing(
        folder, ["dgemma"], Setting(threads=1, rounds=2), prompts=[[20, 21], [22], [23]], batch=2,
        limit=5, judge=judge,
    )  # fmt: skip
    assert [i for i, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert found.extra == {"solved": 2, "texts": 6, "kept_tokens": sum(n for _, n in seen)}
    assert len(found.rounds) == 2


def test_modes_are_sides_of_whole_texts(folder: Path) -> None:
    """Drafted texts are those of the causal mode, token for token."""
    texts: dict[str, list[list[int]]] = {}
    for name in ("dgemma:ar", "dgemma:spec"):
        kind = IMPLEMENTATIONS[name]()
        kind.load(str(folder), "float32", "cpu")
        texts[name] = kind.write([[20, 21], [22], [23]], batch=2, limit=7, seed=0)
        with pytest.raises(RequestError, match="bench write"):
            kind.steps([[20]], count=1, seed=0)
    assert texts["dgemma:ar"] == texts["dgemma:spec"] and len(texts["dgemma:ar"]) == 3
    assert check_peers(["dgemma:spec"]) == ["dgemma", "dgemma:spec"]


@pytest.mark.slow
def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    worker = Worker("dgemma", Setting(threads=1))
    try:
        with pytest.raises(
            RequestError, match=r"dgemma ended in 'load': .*not there|no such|holds no"
        ):
            worker.load(tmp_path / "nothing", Setting())
    finally:
        worker.close()


def test_a_worker_that_is_killed_says_so() -> None:
    worker = Worker("dgemma", Setting(threads=1))
    try:
        worker.process.kill()
        with pytest.raises(RequestError, match=r"dgemma ended in 'load': SIGKILL \(memory ran out"):
            worker.load(Path("x"), Setting())
    finally:
        worker.close()


@pytest.mark.subprocess
def test_a_process_has_a_peak_of_its_own() -> None:
    """Not that of the process that started it, which Linux hands on; and it can be counted anew."""
    held = np.ones(60_000_000)  # 480 MB
    code = (
        "from dgemma_evals.resident import *\n"
        "before = peak_bytes(); held = b'x' * 10**8; raised = peak_bytes(); del held\n"
        "anew = restart_peak()\n"
        "print(before, raised, anew, peak_bytes(), resident_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, raised, anew, after, now = done.stdout.split()
    assert held.nbytes > 3e8 > int(before) >= 1e6
    assert int(raised) >= int(before) + 9e7 and anew == "True"
    assert int(now) <= int(after) < int(raised) - 5e7


def test_ratios_are_to_the_fastest_public_one() -> None:
    def of(name: str, *rounds: float) -> Measured:
        return Measured(name, rounds=list(rounds))

    ours, top_8 = of("dgemma", 1.0, 1.2, 9.0), of("dgemma (soft_top_k=8)", 0.1)
    slow, quick = of("transformers", 6.0), of("diffusers", 3.6, 3.6)
    seconds = row("A", Setting(), [ours, top_8, slow, quick], unit="s/step")
    assert seconds["ratio_to_fastest_peer"] == pytest.approx(3.6 / 1.2)
    rates = row("B", Setting(), [ours, slow, quick], unit="kept tokens/s")
    assert rates["ratio_to_fastest_peer"] == pytest.approx(1.2 / 6.0)
    assert row("A", Setting(), [ours], unit="s/step")["ratio_to_fastest_peer"] is None


def test_intervals_and_kept_tokens() -> None:
    assert intervals([1.0, 1.5, 3.0]) == [0.5, 1.5]
    assert kept([5, 6, 1, 7], {1}, 10) == [5, 6, 1]
    assert kept([5, 6, 7, 8], {1}, 3) == [5, 6, 7]


def test_bad_input() -> None:
    with pytest.raises(RequestError, match="unknown implementation 'vllm': choose from dgemma"):
        check_peers(["vllm"])
    with pytest.raises(RequestError, match="unknown dtype 'int3'"):
        list(settings(Setting(), ["int3"], ["system"]))
    with pytest.raises(RequestError, match="unknown backend 'fast'"):
        list(settings(Setting(backend="fast"), ["float32"], ["system"]))
    with pytest.raises(RequestError, match="unknown allocator 'jemalloc'"):
        list(settings(Setting(), ["float32"], ["jemalloc"]))


def test_a_page_needs_results(tmp_path: Path) -> None:
    found = CliRunner().invoke(bench_app, ["page", "--out", str(tmp_path)])
    assert isinstance(found.exception, RequestError) and "holds no results" in str(found.exception)


def test_a_stopped_run_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(folder: Path, names: list[str], setting: Setting, **_: object) -> list[Measured]:
        if setting.dtype == "bfloat16":
            raise KeyboardInterrupt
        return [Measured(name, rounds=[1.0]) for name in names]

    monkeypatch.setattr(random_model, "random_checkpoint", lambda folder, vocab: folder)
    monkeypatch.setattr(bench, "steps", measured)
    asked = [
        "steps",
        "--out",
        str(tmp_path),
        "--dtype",
        "float32,bfloat16",
        "--allocator",
        "system",
    ]
    assert CliRunner().invoke(bench_app, [*asked, "--peers", "transformers"]).exit_code
    kept = json.loads((tmp_path / "steps.json").read_text())
    assert [each["setting"]["dtype"] for each in kept["rows"]] == ["float32"]


def test_starting_is_measured_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_start, "CODES", {name: "import json" for name in bench_start.CODES})
    found = bench_start.measure(2)
    assert all(len(times) == 2 for times in found["rounds"].values())
    assert found["ratio"] == pytest.approx(found["import dgemma_core"] / found["import torch"])
