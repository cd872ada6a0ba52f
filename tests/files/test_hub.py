"""`dgemma info OWNER/NAME` asks a hub for no more than it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgemma_core.config import GenerationDefaults
from dgemma_core.files.saving import save_model
from tests.core import tiny
from tests.files import hub_server


@pytest.mark.subprocess
@pytest.mark.parametrize("shard", [10**9, 150_000])
def test_a_hub_checkpoint_is_described_by_its_headers(tmp_path: Path, shard: int) -> None:
    """A process of its own asks a hub on this machine: weights stay there but for their beginnings."""
    folder = tmp_path / "files"
    model = tiny.model(0, torch.bfloat16, vocab_size=8192, hidden_size=48)
    save_model(model, folder, generation=GenerationDefaults(), max_shard_bytes=shard)
    total = sum(parameter.numel() for parameter in model.parameters())
    with hub_server.serving("someone/tiny", folder) as hub:

        def info(name: str, **more: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
                           "HF_ENDPOINT": hub.url, **more}  # fmt: skip
            environment.pop("HF_HUB_CACHE", None)
            command = [sys.executable, "-m", "dgemma_core.command.cli", "info", name, "--json"]
            return subprocess.run(command, capture_output=True, text=True, env=environment)

        done = info("someone/tiny")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["stored_bytes"] == {"bfloat16": 2 * total}
        assert facts["parameters"]["total"] == total
        weights = {name: sent for name, sent in hub.sent.items() if name.endswith("safetensors")}
        assert len(weights) == len(list(folder.glob("*.safetensors")))
        assert all(sent <= 100_001 for sent in weights.values())  # of a first look at each file
        assert max(file.stat().st_size for file in folder.glob("*.safetensors")) > 700_000
        assert not list((tmp_path / "hub").rglob("*.safetensors"))
        for name, more in (("someone/other", {}), ("someone/tiny", {"HF_HUB_OFFLINE": "1"})):
            refused = info(name, **more)
            assert refused.returncode == 2 and refused.stdout == ""
            (line,) = [x for x in refused.stderr.splitlines() if x.startswith("dgemma: ")]
            assert f"{name}: expected a folder, or a checkpoint" in line
        # What was downloaded before needs no hub.
        loaded = "import dgemma_core.files.checkpoint as c; print(c.find_folder('someone/tiny'))"
        subprocess.run(
            [sys.executable, "-c", loaded], check=True, capture_output=True,
            env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
                 "HF_ENDPOINT": hub.url},
        )  # fmt: skip
        assert (
            json.loads(info("someone/tiny", HF_HUB_OFFLINE="1").stdout)["stored_bytes"]
            == facts["stored_bytes"]
        )
