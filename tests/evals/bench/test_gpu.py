"""`dgemma bench gpu` on a CPU: it runs through on a small shape, proves itself first, and refuses in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.errors import DeviceError, RequestError
from dgemma_core.events import PromptEvent, TokenEvent
from dgemma_evals.bench import page as bench_page
from dgemma_evals.bench.gpu import card, loop, proof
from dgemma_evals.bench.gpu import model as gpu_model
from dgemma_evals.bench.gpu import public as bench_gpu_public
from dgemma_evals.bench.gpu.model import Shape
from dgemma_evals.commands.bench import bench_app

HOST = torch.device("cpu")
SMALL = Shape(
    layers=2, experts=48, vocab=600, width=64, dense_width=48, expert_width=32, canvas=24, prefix=40
)
OPTIONS = (
    "--device cpu --dtype float32 --rounds 1 --repeats 2 --layers 2 --experts 48 --touched 36 --vocab 600 "
    "--prefix 40 --canvas 24 --width 64 --dense-width 48 --expert-width 32 --batch 3"
).split()


@pytest.mark.slow
def test_a_small_shape_from_the_proof_to_the_page(tmp_path: Path) -> None:
    """Two routings, all figures, transformers on the same weights, and a page that says that no GPU was there."""
    done = CliRunner().invoke(bench_app, ["gpu", "--out", str(tmp_path), *OPTIONS])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["environment"]["note"].startswith("no GPU result")
    assert max(record["proof"].values()) < 3e-2 and record["backend"] == "cuda"
    ids = [key for key in record["proof"] if key.startswith("ids, ")]
    assert len(ids) == 8 and not any(record["proof"][key] for key in ids)
    all_of_them, fewer = record["rows"]
    assert all_of_them["touched_experts"]["mean"] > 46
    assert fewer["touched_experts"]["most"] <= 36
    for row in record["rows"]:
        for found in (row["step"], row["token"]):
            assert len(found["rounds_ms"]) == 1
            assert found["to_floor"] == pytest.approx(found["median_ms"] / found["floor_ms"])
        assert [(t["mode"], t["batch"]) for t in row["generate"]] == [
            ("diffusion", 1), ("diffusion", 3), ("autoregressive", 1), ("autoregressive", 3),
        ]  # fmt: skip
        for found in row["generate"]:
            assert found["replay_ms"] > 0 and found["loop_share"] < 1
        assert set(row["step"]["parts"]) >= {"attention", "experts", "head and sampling"}
        rates = row["tokens_per_second"]
        assert rates["ratio"] == pytest.approx(rates["diffusion"] / rates["autoregression"])
    saved = fewer["step"]["read_bytes"]["experts"] / all_of_them["step"]["read_bytes"]["experts"]
    assert saved < 0.8
    assert record["public"]["measured"]
    assert record["public"]["logits_difference"]["largest"] < 1e-3
    page = bench_page.write(tmp_path).read_text()
    assert "no GPU result" in page and "transformers on the same card" in page


@pytest.mark.slow
def test_a_wrong_card_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the experts, or one in the ids, ends the run before any stopwatch starts."""
    right = grouped.outputs

    def wrong(*arguments: Any) -> Tensor:
        return right(*arguments) * 1.01

    monkeypatch.setattr(grouped, "outputs", wrong)
    with pytest.raises(RequestError, match=r"CPU in experts.*nothing is timed"):
        proof.prove(HOST, prompts=1)
    monkeypatch.undo()
    written = proof.generate

    def other_seed(loaded: Any, prompts: Any, **options: Any) -> Any:
        return written(loaded, prompts, seed=int("batch_size" in options), **options)

    monkeypatch.setattr(proof, "generate", other_seed)
    with pytest.raises(RequestError, match="in ids, diffusion, sampled, batch 1"):
        proof.prove(HOST, prompts=2)


def test_the_loops_share_is_what_generate_takes_beyond_the_replay() -> None:
    found = loop.Timing("diffusion", 8, generate=[10.0, 12.0, 11.0], replay=[10.5, 9.9, 10.0])
    assert found.share == pytest.approx(1 - 10.0 / 11.0)
    assert found.record()["loop_share"] == found.share and found.record()["median_ms"] == 11.0


def test_rows_that_did_not_run_together_are_not_timed() -> None:
    watch = loop.Stopwatch(HOST)
    first, second = (PromptEvent(request=i, ids=(1,), seed=0, seconds=0.0) for i in range(2))
    state: Any = None
    token = TokenEvent(
        0, index=1, token=5, probability=1.0, entropy=0.0, seconds=0.0, observed=None, state=state
    )
    for event in (first, token, second):
        watch(event)
    with pytest.raises(RequestError, match="2 texts were not written as one batch"):
        watch.milliseconds(2)


def test_no_card_and_too_small_a_card_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"no CUDA device is there: .* --device cpu"):
        card.find_device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (24 * 10**9, 24 * 10**9))
    released = Shape()
    with pytest.raises(DeviceError, match=r"needs about 5\d GB, and 24 GB .* pass --layers \d+ or"):
        card.check_memory(released.config(), released, 50, torch.device("cuda"), torch.bfloat16)
    done = CliRunner().invoke(bench_app, ["gpu", *OPTIONS, "--touched", "20"])
    assert isinstance(done.exception, RequestError)
    wide = CliRunner().invoke(bench_app, ["gpu", *OPTIONS, "--batch", "1,99"])
    assert "--batch 1,99: expected sizes of 1 … 32" in str(wide.exception)
    assert "touched: expected 32 … 48 of 48 experts, found 20" in str(done.exception)


def test_what_a_run_needs() -> None:
    needed = gpu_model.needed_bytes(Shape().config(), 4096, 50, 2)
    assert 52e9 < needed < 65e9  # one card of 80 GB holds it


def test_weights_are_drawn_by_name() -> None:
    """The same again, others with another seed."""
    config = SMALL.config()
    one, two = (gpu_model.build(config, HOST, torch.float32) for _ in range(2))
    other = gpu_model.build(config, HOST, torch.float32, seed=1)
    for (name, a), b, c in zip(
        one.named_parameters(), two.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b) and not torch.equal(a, c), name


@pytest.mark.slow
def test_the_public_model_shares_its_weights() -> None:
    """Encoder and decoder are one set there, too: no more memory than ours and a small vision tower."""
    config = SMALL.config()
    theirs = bench_gpu_public.build(config, HOST, torch.float32)
    ours = gpu_model.build(config, HOST, torch.float32)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count < 1.02 * sum(parameter.numel() for parameter in ours.parameters())
    bench_gpu_public.free(theirs)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 0


MINIMAL = """
import importlib.abc, sys
ALLOWED = {"torch", "triton", "numpy", "safetensors", "typer", "tqdm", "dgemma_core", "dgemma_evals"}
ABSENT = {"transformers", "diffusers", "plotly", "pandas", "lm_eval", "tokenizers", "huggingface_hub", "pyarrow",
          "jinja2", "scipy", "datasets", "ipywidgets"}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["bench_gpu_command", *sys.argv[1:]]
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *more: None if name in ABSENT else found(name, *more)
from dgemma_evals.commands.gpu import main
main()
"""


@pytest.mark.subprocess
def test_only_torch_and_this_project_are_needed(tmp_path: Path) -> None:
    """Without transformers, plotly and the rest it measures, says what it could not, and writes its results."""
    done = subprocess.run(
        [sys.executable, "-c", MINIMAL, "--out", str(tmp_path), *OPTIONS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not measured (transformers is not installed)" in done.stdout
    assert "plotly is not installed" in done.stdout
    assert not json.loads((tmp_path / "gpu.json").read_text())["public"]["measured"]
