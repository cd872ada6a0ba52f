"""`dgemma bench`: how fast this project is, as ratios against public implementations in one run.

Notable:
- one process per implementation, all alive at once and asked in turn (A B C A B C …), after a warm-up each; what is
  reported are medians, ranges, and ratios of medians;
- before anything is timed, every implementation proves the same logits on the same weights;
- same weights, prompts, steps, dtype, threads and allocator: whether tcmalloc is preloaded matters as much as the code.

A result is a JSON file with the environment and every single time; page.py draws the page from these files.
"""

from __future__ import annotations

import ctypes.util
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dgemma_core import RequestError
from dgemma_evals.bench.worker import IMPLEMENTATIONS

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
"""How far a peer's logits may lie from ours before it counts as another model: root mean square, as a share of the
logits' own spread. In bfloat16 a token whose router wavers between two experts moves all its logits; another model's
lie 1.4 apart."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all implementations have in common in one table row."""

    dtype: str = "float32"
    allocator: str = "system"
    """"system" or "tcmalloc"."""
    threads: int = 2
    rounds: int = 5
    seed: int = 0


@dataclass
class Measured:
    """One implementation's figures of one setting."""

    name: str
    rounds: list[float] = field(default_factory=list)
    """One figure a round: seconds (lower is better) or tokens a second (higher is better)."""
    peak_bytes: int = 0
    """The most memory resident, weights included."""
    loaded_bytes: int = 0
    """The most until the weights were loaded and the logits proven."""
    logits_difference: float = 0.0
    """How far its logits lie from this project's (`TOLERANCE`), over the positions that were compared."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


class Worker:
    """An implementation in a process of its own (worker.py)."""

    def __init__(self, name: str, setting: Setting) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(setting.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("LD_PRELOAD", None)
        if setting.allocator == "tcmalloc":
            environment["LD_PRELOAD"] = tcmalloc()
        self.name = name
        # A pipe that nobody reads would fill, and block the process.
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dgemma_evals.bench.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command. RequestError with the process's last words if it died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RequestError(f"{self.name} ended in {do!r}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def logits(self, prompt: list[int], canvas: list[int]) -> tuple[np.ndarray[Any, Any], Any]:
        """Logits at a few positions of the canvas (of the prompt, if it is empty), and the whole answer."""
        count = len(canvas or prompt)
        positions = sorted({0, count // 3, count // 2, count - 1})
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "logits.npy")
            answer = self.ask(
                "logits", path=path, prompt=prompt, canvas=canvas, positions=positions
            )
            return np.load(path), answer

    def _last_words(self) -> str:
        """Why the process ended, in its own words, or by the signal that ended it."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return name + " (memory ran out?)" if name == "SIGKILL" else name
        self.said.seek(0)
        words = self.said.read().decode(errors="replace").strip().splitlines()
        return words[-1] if words else "no word"

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


def tcmalloc() -> str:
    """The allocator's library. RequestError where it is not installed."""
    found = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    if found is None:
        raise RequestError(
            "tcmalloc is not installed (Debian, Ubuntu: sudo apt-get install libtcmalloc-minimal4); "
            "install it, or pass --allocator system"
        )
    return found


def check_peers(names: Sequence[str]) -> list[str]:
    """Names of implementations, this project first. RequestError for an unknown one."""
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise RequestError(
                f"unknown implementation {name!r}: choose from {', '.join(IMPLEMENTATIONS)}"
            )
    return ["dgemma", *(name for name in names if name != "dgemma")]


@contextmanager
def workers(
    folder: Path, names: Sequence[str], setting: Setting, prompt: list[int], canvas: list[int]
) -> Iterator[list[tuple[Worker, Measured]]]:
    """Loaded implementations that have proven the same logits of the canvas (of the prompt, if it is empty)."""
    with ExitStack() as stack:
        found: list[tuple[Worker, Measured]] = []
        expected: np.ndarray[Any, Any] | None = None
        for name in names:
            worker = Worker(name, setting)
            stack.callback(worker.close)
            worker.ask("load", folder=str(folder), dtype=setting.dtype)
            logits, answer = worker.logits(prompt, canvas)
            expected = logits if expected is None else expected
            difference = apart(name, logits, names[0], expected, setting)
            found.append(
                (
                    worker,
                    Measured(name, logits_difference=difference, loaded_bytes=answer["peak_bytes"]),
                )
            )
        yield found


def apart(
    name: str, logits: np.ndarray[Any, Any], first: str, expected: np.ndarray[Any, Any],
    setting: Setting,
) -> float:  # fmt: skip
    """How far two implementations' logits lie apart (`TOLERANCE`). RequestError where it is another model's."""
    difference = float(np.sqrt(np.mean((logits - expected) ** 2)) / expected.std())
    if not difference <= TOLERANCE[setting.dtype]:
        raise RequestError(
            f"{name} gives other logits than {first} ({difference:.3g} of their spread apart): not the same model, so "
            "nothing is timed"
        )
    return difference


def interleaved(
    found: Sequence[tuple[Worker, Measured]],
    setting: Setting,
    do: str,
    progress: str,
    arguments: Callable[[int], dict[str, Any]],
) -> list[Measured]:
    """`rounds` rounds of every worker in turn, after one to warm up; a round's figure is the median of its answer.

    arguments(turn): the command's, of that round.
    """
    from tqdm.auto import tqdm

    with tqdm(total=(setting.rounds + 1) * len(found), desc=progress, leave=False) as bar:
        for turn in range(setting.rounds + 1):
            for worker, measured in found:
                answer = worker.ask(do, **arguments(turn))
                if turn:
                    measured.rounds.append(statistics.median(answer["result"]))
                measured.peak_bytes = answer["peak_bytes"]
                bar.update()
    return [measured for _, measured in found]


def steps(
    folder: Path, names: Sequence[str], setting: Setting, *, prompt: list[int], canvas: list[int],
    count: int, batch: int = 1,
) -> list[Measured]:  # fmt: skip
    """Seconds a denoising step, the median of `count` fixed steps a round."""
    with workers(folder, names, setting, prompt, canvas) as found:
        return interleaved(
            found, setting, "steps",
            f"step, {setting.dtype}, {setting.allocator}",
            lambda turn: {"prompts": [prompt] * batch, "count": count, "seed": setting.seed + turn},
        )  # fmt: skip


def tokens(
    folder: Path, names: Sequence[str], setting: Setting, *, prompt: list[int], count: int
) -> list[Measured]:
    """Seconds a greedy autoregressive token, the median of `count` a round."""
    with workers(folder, names, setting, prompt, []) as found:
        return interleaved(
            found, setting, "tokens",
            f"token, {setting.dtype}, {setting.allocator}",
            lambda _: {"prompt": prompt, "count": count},
        )  # fmt: skip


def writing(
    folder: Path, names: Sequence[str], setting: Setting, *, prompts: list[list[int]], batch: int,
    limit: int, judge: Any,
) -> list[Measured]:  # fmt: skip
    """Kept tokens a second over real prompts with natural ends, and the share of texts that `judge(i, ids)` accepts.

    Everybody gets all prompts at once and may write `batch` of them at a time.
    """
    from tqdm.auto import tqdm

    with workers(folder, names, setting, prompts[0], [0]) as found:
        for measured in (measured for _, measured in found):
            measured.extra = {"solved": 0, "texts": 0, "kept_tokens": 0}
        job = {"batch": batch, "limit": limit}
        with tqdm(total=setting.rounds * len(found), desc=f"batch {batch}", leave=False) as bar:
            for worker, _ in found:
                worker.ask("write", prompts=prompts[:batch], seed=setting.seed, **job)
            for turn in range(setting.rounds):
                for worker, measured in found:
                    answer = worker.ask("write", prompts=prompts, seed=setting.seed + turn, **job)
                    count = 0
                    for i, ids in enumerate(answer["result"]):
                        count += len(ids)
                        measured.extra["solved"] += int(judge(i, ids))
                        measured.extra["texts"] += 1
                    measured.peak_bytes = answer["peak_bytes"]
                    measured.extra["kept_tokens"] += count
                    measured.rounds.append(count / answer["seconds"])
                    bar.update()
        return [measured for _, measured in found]


def row(
    table: str, setting: Setting, measured: Sequence[Measured], *, unit: str, **facts: Any
) -> dict[str, Any]:
    """A table row as JSON: all times, medians, and the ratio to the fastest public implementation."""
    better = max if unit.endswith("/s") else min
    own = measured[0]
    public = [m for m in measured if not m.name.startswith("dgemma")]
    ratio = None
    if public:
        best = better(public, key=lambda m: m.median)
        ratio = own.median / best.median if better is max else best.median / own.median
    return {
        "table": table,
        "unit": unit,
        **facts,
        "setting": asdict(setting),
        "ratio_to_fastest_peer": ratio,
        "implementations": [{**asdict(m), "median": m.median} for m in measured],
    }


def random_checkpoint(
    folder: Path, *, vocab: int = 262_144, width: int = 640, layers: int = 6, experts: int = 32,
    chosen: int = 4, expert_width: int = 256, canvas: int = 256, heads: int = 8,
    sliding: tuple[int, int] = (2, 64), full: tuple[int, int] = (1, 128), autoregressive: bool = True,
) -> Path:  # fmt: skip
    """A model of random weights, drawn calmly (spec §3), in the public layout, beside its autoregressive half.

    The defaults are shape A. sliding, full: key heads of such layers, and their size. autoregressive=False leaves the
    half out. Kept if it is there already.
    """
    import torch

    from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig, TextConfig
    from dgemma_core.files.saving import save_model, tiny_vision
    from dgemma_core.model import DiffusionGemma
    from dgemma_evals.writers.export import export_autoregressive

    if (folder / "config.json").exists():
        return folder
    near = LayerConfig(False, *sliding, rope_theta=1e4, rotary_fraction=1.0)
    far = LayerConfig(True, *full, rope_theta=1e6, rotary_fraction=0.25)
    config = ModelConfig(
        text=TextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=width,
            num_attention_heads=heads,
            num_experts=experts,
            top_k_experts=chosen,
            moe_intermediate_size=expert_width,
            sliding_window=1024,
            rms_norm_eps=1e-6,
            final_logit_softcapping=30.0,
            max_position_embeddings=65_536,
            layers=tuple(far if i % 6 == 5 or i == layers - 1 else near for i in range(layers)),
        ),
        canvas_length=canvas,
        bos_token_id=2,
        eos_token_ids=(1,),
        pad_token_id=0,
        # transformers compares prompts with them; none of `random_ids`
        media_token_ids=(9, 10, 11),
    )
    model = DiffusionGemma(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
            if name.endswith(
                ("q_norm.weight", "router.proj.weight", "self_conditioning.down_proj.weight")
            ):
                parameter.mul_(0.2)
    vision_config, vision = tiny_vision(config)
    save_model(
        model, folder, vision=vision, vision_config=vision_config,
        generation=GenerationDefaults(max_new_tokens=canvas, eos_token_ids=(1,), pad_token_id=0, bos_token_id=2),
    )  # fmt: skip
    if autoregressive:
        export_autoregressive(folder, f"{folder}-autoregressive")
    return folder


def random_ids(vocab: int, count: int, seed: int) -> list[int]:
    """Ids without the special ones at the vocabulary's start."""
    generator = np.random.default_rng(seed)
    return [int(i) for i in generator.integers(min(16, vocab // 2), vocab, count)]


def settings(base: Setting, dtypes: Sequence[str], allocators: Sequence[str]) -> Iterator[Setting]:
    """All combinations, checked before the first is run."""
    for dtype in dtypes:
        if dtype not in TOLERANCE:
            raise RequestError(f"unknown dtype {dtype!r}: choose from {', '.join(TOLERANCE)}")
    for allocator in allocators:
        if allocator not in ("system", "tcmalloc"):
            raise RequestError(f"unknown allocator {allocator!r}: choose system or tcmalloc")
    if "tcmalloc" in allocators:
        tcmalloc()
    for dtype, allocator in itertools.product(dtypes, allocators):
        yield replace(base, dtype=dtype, allocator=allocator)
