"""Run by test_distributed.py, by itself and under torchrun: tunes a small random model on a few chats.

    python tune_tiny.py DIR RUNS     # JSON: by the name of a folder in DIR, settings of `tune`, and `half`

half: whether passes run in bfloat16, whatever this machine multiplies fast.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from dgemma_core.config import GenerationDefaults
from dgemma_core.files.finding import NANO
from dgemma_core.files.saving import save_model
from dgemma_core.train import tuning_run as module
from dgemma_core.train.distributed import joined
from dgemma_core.train.run import TOKENIZER_FILES
from dgemma_core.train.tuning import Tuner
from tests.core import tiny

torch.set_num_threads(1)
out = Path(sys.argv[1])
base = out / f"base-{os.environ.get('RANK', 'alone')}"
save_model(
    tiny.text_model(1), base, generation=GenerationDefaults(eos_token_ids=(1, tiny.TURN_END))
)
for name in TOKENIZER_FILES:
    (base / name).write_bytes((NANO / name).read_bytes())
rows = [{"prompt": f"Echo: {i % 5}", "completion": f"{i % 5} {i % 3}"} for i in range(40)]
with joined() as group:
    module.joined = lambda: nullcontext(group)  # a process joins once
    for of_one in json.loads(sys.argv[2]):
        half = of_one.pop("half", False)
        Tuner.passes_in_bfloat16 = lambda tuner, half=half: half  # type: ignore[method-assign,misc]
        settings = {"max_steps": 6, "learning_rate": 3e-3, "progress": False, **of_one}
        if not settings.get("full"):
            settings.setdefault("rank", 2)
        folder = out / settings.pop("out")
        module.tune(base, rows, folder, batch_size=4, accumulate=2, workers=1, **settings)
