"""Run by test_distributed.py, by itself and under torchrun: tunes a small random model on a few chats."""

import os
import sys
from pathlib import Path

import torch

from dgemma_core.config import GenerationDefaults
from dgemma_core.files.finding import NANO
from dgemma_core.files.saving import save_model
from dgemma_core.train import tune as module
from dgemma_core.train.run import TOKENIZER_FILES
from tests.core import tiny

torch.set_num_threads(1)
out = Path(sys.argv[1])
base = out.with_name(f"{out.name}-base-{os.environ.get('RANK', 'alone')}")
save_model(
    tiny.text_model(1), base, generation=GenerationDefaults(eos_token_ids=(1, tiny.TURN_END))
)
for name in TOKENIZER_FILES:
    (base / name).write_bytes((NANO / name).read_bytes())
rows = [{"prompt": f"Echo: {i % 5}", "completion": f"{i % 5} {i % 3}"} for i in range(40)]
module.tune(
    base, rows, out, max_steps=25, batch_size=4, accumulate=2, rank=2, workers=1, learning_rate=3e-3,
    progress=False,
)  # fmt: skip
