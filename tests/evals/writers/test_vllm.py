"""A real vLLM server as a side. Opt-in: DGEMMA_VLLM names the folder of its environment.

evals/README.md says how to set that environment up. `pytest -m vllm` runs this file alone.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import closing

import pandas as pd
import pytest

from dgemma_core.command.cli import app
from dgemma_evals.comparison.questions import documents, load_tasks
from dgemma_evals.writers.named import writer

ENVIRONMENT = os.environ.get("DGEMMA_VLLM")
TASK = "dgemma_nano_spell_backward"
START_SECONDS = 900

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not ENVIRONMENT, reason="no vLLM: set DGEMMA_VLLM=/path/to/its/virtual/environment"
    ),
]


def dgemma(*arguments):
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    assert not ended.value.code


def free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def is_up(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of vLLM with nano's causal half."""
    work = tmp_path_factory.mktemp("vllm")
    dgemma("export", "nano", "--autoregressive", work / "nano-ar", "--dtype", "float32")
    address, log = f"http://127.0.0.1:{free_port()}", work / "log"
    settings = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as file:
        server = subprocess.Popen(
            # The module: the program `vllm` of vllm-cpu 0.32.0 misses metadata by the name of vllm.
            [f"{ENVIRONMENT}/bin/python", "-m", "vllm.entrypoints.openai.api_server",
             "--model", work / "nano-ar", "--served-model-name", "nano-ar",
             "--host", "127.0.0.1", "--port", address.rpartition(":")[2],
             "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"],
            stdout=file, stderr=file, start_new_session=True, env={**os.environ, **settings},
        )  # fmt: skip
    try:
        latest = time.monotonic() + START_SECONDS
        while not is_up(f"{address}/health"):
            if server.poll() is not None or time.monotonic() > latest:
                end = log.read_text(errors="replace")[-4000:]
                pytest.fail(f"vLLM did not start (exit code {server.poll()}):\n{end}")
            time.sleep(1)
        yield f"{address}/v1"
    finally:
        for kind, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
            if server.poll() is None:
                os.killpg(server.pid, kind)
                try:
                    server.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue


def test_the_exported_half_in_vllm_is_the_same_model(served, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dgemma", "compare"])
    server = f"{served}#nano-ar"
    dgemma("compare", "nano", server, "--tasks", TASK, "--limit", "3", "--seeds", "1",
           "--dtype", "float32", "--device", "cpu", "--batch", "1,4", "--out", tmp_path)  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    side = results["sides"][server]
    assert len(results["traffic"]) == 2 * 2
    assert side["texts"] == 3 and math.isfinite(side["first_seconds"])
    assert "tokens_per_forward" not in side  # a client does not see passes
    assert any("client cannot see" in line for line in results["not_measured"])

    table = pd.read_parquet(tmp_path / "generations.parquet")
    theirs = table[table.side == server].set_index("doc_id")
    ours = writer("nano:ar", dtype="float32", device="cpu")
    for question in documents(load_tasks([TASK], limit=3), {"ours": ours}, limit=3, chat=True):
        mine, other = ours.write(question.instances["ours"], 0, {}), theirs.loc[question.doc_id]
        assert other.text == mine.text
        assert other.kept_tokens == mine.counts.kept_tokens  # the end token counts, there too
        assert other.prompt_tokens == mine.counts.prompt_tokens
