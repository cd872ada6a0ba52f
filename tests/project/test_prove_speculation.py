"""The script that proves speculation: it goes on where it stopped, and tells a near-tie from a mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgemma_core.files.checkpoint import Loaded, load
from scripts import prove_speculation as script
from scripts.prove_speculation import Text


@pytest.fixture(scope="module")
def nano() -> Loaded:
    return load("nano", dtype="float32")


@pytest.mark.slow
def test_a_small_proof_and_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "proof.json"
    arguments = ["--families", "chain_sum", "--count", "2", "--sampled", "1", "--batches", "1", "2",
                 "--max-new-tokens", "24", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["prove_speculation.py", *arguments])
    script.main()
    record = json.loads(out.read_text())
    backends, ways = ("cpu", "torch"), ("greedy", "sampled")
    assert list(record["parts"]) == [f"{b}/{w}/chain_sum" for b in backends for w in ways]
    for part, writers in record["parts"].items():
        assert list(writers) == ["speculative, batch 1", "speculative, batch 2", "autoregressive, batch 2"]  # fmt: skip
        assert {found["documents"] for found in writers.values()} == {2 if "greedy" in part else 1}
    said = capsys.readouterr().out
    assert "| cpu | greedy | speculative, batch 1 | 2 | 0 (0.00 %) | 0 |" in said

    broken = record["parts"]["torch/greedy/chain_sum"]["speculative, batch 2"]["different"]
    broken.append({"document": 1, "at": 3, "near_tie": False})
    del record["parts"]["cpu/sampled/chain_sum"]
    out.write_text(json.dumps(record))
    written = []
    monkeypatch.setattr(script, "measured_part", lambda *_: written.append(1) or {})
    with pytest.raises(SystemExit, match=r"torch/greedy/chain_sum/1: speculative, batch 2"):
        script.main()
    assert written == [1], "only the part that was missing is written"


def test_other_formats_are_counted_and_not_judged() -> None:
    different = [{"document": 0, "at": 1, "near_tie": False}]
    parts = {"cpu/greedy/json": {"speculative, batch 3": {"documents": 8, "different": different}}}
    for settings, judged in (
        ({"dtype": "float32", "quantize": None}, True),
        ({"dtype": "bfloat16", "quantize": None}, False),
        ({"dtype": "float32", "quantize": "int8"}, False),
    ):
        assert script.exact(settings) == judged
        table = script.markdown({"settings": settings, "parts": parts})
        assert "1 (12.50 %)" in table and ("near-ties" in table) == judged


def test_near_ties_and_mistakes(nano: Loaded) -> None:
    """Greedy: two hidden states whose first choices are apart by less than rounding, and by more."""
    hidden = torch.randn(
        nano.model.config.text.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    first, second = nano.model.logits(hidden).topk(2).indices.tolist()
    theirs = Text([5, first], [hidden, hidden], end=(1,))
    ours = Text([5, second], [hidden, hidden], end=(2,))
    found = script.parting(nano, theirs, ours)
    assert found["at"] == 1 and found["tokens"] == (first, second)
    assert found["logits_apart"] == 0 and found["gap"] > 2e-4 and not found["near_tie"]
    weight = nano.model.embed_tokens.weight  # the head's, tied
    apart = weight[first].float() - weight[second].float()
    even = hidden - apart * (hidden @ apart) / (apart @ apart)  # scores both alike
    tied = script.parting(
        nano, replace(theirs, hidden=[hidden, even]), replace(ours, hidden=[hidden, even])
    )
    assert tied["gap"] < 1e-4 and tied["near_tie"]
    shorter = replace(theirs, tokens=[5])
    assert script.parting(nano, theirs, shorter) == {"at": 1, "near_tie": False}


def test_sampling_takes_a_neighbour_only_at_an_edge() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert script.taken(logits, 1.0, 1.0, 0.5 + 5e-5) == {0, 1}
    assert script.taken(logits, 1.0, 1.0, 0.4) == {0}
    assert script.taken(logits, 1.0, 0.8 - 5e-5, 0.9999) == {1, 2}  # the nucleus's own edge
    assert script.taken(logits, 1.0, 0.7, 0.9) == {1}
