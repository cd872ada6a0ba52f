"""One implementation in a process of its own, for `dgemma bench`: loads, proves its logits, and runs timed rounds.

Commands come as JSON lines on standard input, answers go as JSON lines to standard output: {"do": "load", …}
first, then "logits", "steps", "write" or "tokens": the methods of an implementation. Another "load" takes the
place of the first: its model is given up before.

What is timed is the same on all sides: a denoising step from the start of one forward pass to the start of the next
(or the end of the run), sampling, stopping and self-conditioning included; a whole run from prompt to final ids.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from dgemma_core.errors import RequestError
from dgemma_core.events import Mode
from dgemma_core.generation.settings import MODES
from dgemma_evals.resident import peak_bytes, restart_peak


class Implementation(Protocol):
    """What is measured."""

    @property
    def backend(self) -> str | None:
        """What runs this project's passes; None for others."""

    def load(self, folder: str, dtype: str, backend: str) -> None:
        """Loads a checkpoint in the public layout. backend: of this project's model."""

    def logits(self, prompt: list[int], canvas: list[int], positions: list[int]) -> Tensor:
        """Raw soft-capped logits (k, V) float32 of a first denoising pass, or, with an empty canvas, of the causal
        mode over the prompt."""

    def steps(self, prompts: list[list[int]], count: int, seed: int) -> list[float]:
        """Seconds of each of `count` fixed denoising steps of one canvas."""

    def write(self, prompts: list[list[int]], batch: int, limit: int, seed: int) -> list[list[int]]:
        """Texts with the released sampler and natural ends, `batch` at a time: kept ids of each prompt."""

    def tokens(self, prompt: list[int], count: int) -> list[float]:
        """Seconds of each of `count` greedy autoregressive tokens, the ends ignored, after the prompt's pass."""


def intervals(marks: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(marks)]


class Ours:
    """This project, by diffusion."""

    mode: ClassVar[Mode] = "diffusion"
    soft_top_k: int | None = None

    def load(self, folder: str, dtype: str, backend: str) -> None:
        from dgemma_core.files.checkpoint import load_model

        self.model = load_model(Path(folder), dtype=dtype, device="cpu").use(backend)

    @property
    def backend(self) -> str | None:
        return self.model.backend.name

    def logits(self, prompt: list[int], canvas: list[int], positions: list[int]) -> Tensor:
        cache = self.model.encode([prompt])
        if not canvas:
            assert cache.hidden is not None
            return self.model.logits(cache.hidden[0, positions])
        hidden = self.model.denoise(torch.tensor([canvas]), cache)
        return self.model.logits(hidden[0, positions])

    def steps(self, prompts: list[list[int]], count: int, seed: int) -> list[float]:
        from dgemma_core.diffusion import denoise_canvases
        from dgemma_core.events import PromptEvent, StepEvent
        from dgemma_core.request import Request

        self._refuse_unless("diffusion")
        length = self.model.config.canvas_length
        requests = [Request(prompt, seed=seed, max_new_tokens=length) for prompt in prompts]
        marks, rows = [], len(prompts)
        events = denoise_canvases(
            self.model, requests, steps=count, stop_rule=None, batch_size=rows, eos=(),
            soft_top_k=self.soft_top_k,
        )  # fmt: skip
        seen = 0
        for event in events:
            if isinstance(event, PromptEvent | StepEvent):
                seen += 1
                if seen % rows == 0:
                    marks.append(time.perf_counter())
        return intervals(marks)

    def write(self, prompts: list[list[int]], batch: int, limit: int, seed: int) -> list[list[int]]:
        from dgemma_core.config import GenerationDefaults
        from dgemma_core.events import FinishEvent
        from dgemma_core.files.checkpoint import Loaded
        from dgemma_core.generation.settings import settings_from
        from dgemma_core.request import Request

        requests = [
            Request(prompt, seed=seed, max_new_tokens=limit, id=i)
            for i, prompt in enumerate(prompts)
        ]
        found: dict[Any, list[int]] = {}
        defaults = GenerationDefaults(eos_token_ids=self.model.config.eos_token_ids)
        loaded = Loaded(self.model, None, defaults, "")
        settings = settings_from(self.mode, soft_top_k=self.soft_top_k)
        for event in settings.events(loaded, requests, batch_size=batch):
            if isinstance(event, FinishEvent):
                found[event.request] = list(event.ids)
        return [found[i] for i in range(len(prompts))]

    def tokens(self, prompt: list[int], count: int) -> list[float]:
        from dgemma_core.autoregression import decode_tokens
        from dgemma_core.events import PromptEvent, TokenEvent
        from dgemma_core.request import Request

        self._refuse_unless("diffusion", "autoregressive")
        marks = []
        request = Request(prompt, max_new_tokens=count)
        for event in decode_tokens(self.model, [request], eos=()):
            if isinstance(event, PromptEvent | TokenEvent):
                marks.append(time.perf_counter())
        return intervals(marks)

    def _refuse_unless(self, *modes: Mode) -> None:
        """Raises RequestError where what is asked for is not of this mode."""
        if self.mode not in modes:
            raise RequestError(
                f"mode {self.mode!r} has no such step of its own: compare it with bench write"
            )


class OursTop8(Ours):
    """This project, self-conditioning on the 8 most probable tokens alone: other work than the others do."""

    soft_top_k = 8


class OursByToken(Ours):
    """This project, token by token."""

    mode = "autoregressive"


class OursSpeculative(Ours):
    """This project, by drafts that are verified: the texts of `OursByToken`."""

    mode = "speculative"


class Transformers:
    """Hugging Face transformers: dynamic cache, sdpa."""

    experts = "eager"
    backend: str | None = None

    def load(self, folder: str, dtype: str, backend: str) -> None:
        from transformers import DiffusionGemmaForBlockDiffusion

        self.folder, self.dtype = folder, getattr(torch, dtype)
        self.model = DiffusionGemmaForBlockDiffusion.from_pretrained(
            folder, dtype=self.dtype, attn_implementation="sdpa"
        ).eval()
        self.model.set_experts_implementation(self.experts)
        self.causal: Any = None

    def _causal(self) -> Any:
        """Gemma 4, from the checkpoint that `dgemma export --autoregressive` wrote beside."""
        if self.causal is None:
            from transformers import Gemma4ForCausalLM

            self.causal = Gemma4ForCausalLM.from_pretrained(
                f"{self.folder}-autoregressive", dtype=self.dtype, attn_implementation="sdpa"
            ).eval()
            self.causal.set_experts_implementation(self.experts)
        return self.causal

    @torch.no_grad()
    def logits(self, prompt: list[int], canvas: list[int], positions: list[int]) -> Tensor:
        if not canvas:
            found: Tensor = self._causal()(torch.tensor([prompt])).logits[0, positions].float()
            return found
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        self.model.model.encoder(torch.tensor([prompt]), past_key_values=cache)
        output = self.model(past_key_values=cache, decoder_input_ids=torch.tensor([canvas]))
        chosen: Tensor = output.logits[0, positions].float()
        return chosen

    def _generate(self, prompts: list[list[int]], seed: int, **settings: Any) -> Any:
        longest = max(map(len, prompts))
        pad = self.model.config.get_text_config(decoder=True).pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(seed)
        config = self._settings(pad, **settings)
        output = self.model.generate(ids, attention_mask=mask, generation_config=config)
        return output.sequences[:, longest:]

    def _settings(self, pad: int, **changes: Any) -> Any:
        """The released sampler, and what differs."""
        from transformers.models.diffusion_gemma import generation_diffusion_gemma as theirs

        released = {
            "max_denoising_steps": 48,
            "sampler_config": theirs.EntropyBoundSamplerConfig(entropy_bound=0.1),
            "t_min": 0.4,
            "t_max": 0.8,
            "stability_threshold": 1,
            "confidence_threshold": 0.005,
            "eos_token_id": self.model.generation_config.eos_token_id,
            "pad_token_id": pad,
        }
        return theirs.DiffusionGemmaGenerationConfig(**{**released, **changes})

    def steps(self, prompts: list[list[int]], count: int, seed: int) -> list[float]:
        marks: list[float] = []
        hook = self.model.model.decoder.register_forward_pre_hook(
            lambda *_: marks.append(time.perf_counter())
        )
        try:
            length = self.model.config.canvas_length
            self._generate(
                prompts, seed, max_new_tokens=length, max_denoising_steps=count,
                confidence_threshold=1e-9, eos_token_id=None,  # never reached; 0 is refused
            )  # fmt: skip
        finally:
            hook.remove()
        return intervals([*marks, time.perf_counter()])

    def write(self, prompts: list[list[int]], batch: int, limit: int, seed: int) -> list[list[int]]:
        """One batch after the other: `generate` knows no other way."""
        ends = set(self.model.generation_config.eos_token_id)
        texts = []
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            texts += self._generate(part, seed, max_new_tokens=limit).tolist()
        return [kept(ids, ends, limit) for ids in texts]

    def tokens(self, prompt: list[int], count: int) -> list[float]:
        from transformers import GenerationConfig

        model, marks = self._causal(), []
        # What a generation config leaves open, `generate` takes from the model's own: ends, too.
        model.generation_config.eos_token_id = None
        hook = model.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
        try:
            plain = GenerationConfig(
                max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            mask = torch.ones(1, len(prompt), dtype=torch.long)
            model.generate(torch.tensor([prompt]), attention_mask=mask, generation_config=plain)
        finally:
            hook.remove()
        # The first mark is the prompt's pass; what follows it are the tokens.
        return intervals([*marks[1:], time.perf_counter()])


class TransformersGrouped(Transformers):
    """Hugging Face transformers with its grouped experts."""

    experts = "grouped_mm"


class _NoProcessor:
    """Stands where diffusers' pipeline wants a processor: hands over ids as they are."""

    def __init__(self) -> None:
        self.ids = torch.empty(0, dtype=torch.long)

    def apply_chat_template(self, messages: Any, **_: Any) -> dict[str, Tensor]:
        return {"input_ids": self.ids}


class Diffusers(Transformers):
    """Hugging Face diffusers' pipeline around transformers' model."""

    experts = "grouped_mm"

    def load(self, folder: str, dtype: str, backend: str) -> None:
        from diffusers import EntropyBoundScheduler
        from diffusers.pipelines.diffusion_gemma.pipeline_diffusion_gemma import (
            DiffusionGemmaPipeline,
        )

        super().load(folder, dtype, backend)
        self.prompts = _NoProcessor()
        self.pipeline = DiffusionGemmaPipeline(self.model, EntropyBoundScheduler(), self.prompts)
        self.pipeline.set_progress_bar_config(disable=True)

    def steps(self, prompts: list[list[int]], count: int, seed: int) -> list[float]:
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError("the pipeline takes prompts of one length")
        self.prompts.ids = torch.tensor(prompts)
        marks: list[float] = []
        hook = self.model.model.decoder.register_forward_pre_hook(
            lambda *_: marks.append(time.perf_counter())
        )
        try:
            self.pipeline(
                "", gen_length=self.model.config.canvas_length, num_inference_steps=count,
                confidence_threshold=None, eos_early_stop=False, output_type="seq",
                generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
        finally:
            hook.remove()
        return intervals([*marks, time.perf_counter()])


def kept(ids: Sequence[int], ends: set[int], limit: int) -> list[int]:
    """Kept tokens: up to the first end, which counts, and at most `limit`."""
    found = []
    for token in ids[:limit]:
        found.append(int(token))
        if token in ends:
            break
    return found


IMPLEMENTATIONS: dict[str, type[Implementation]] = {
    "dgemma": Ours,
    "dgemma (soft_top_k=8)": OursTop8,
    **{f"dgemma:{MODES[kind.mode].short}": kind for kind in (OursByToken, OursSpeculative)},
    "transformers": Transformers,
    "transformers (grouped experts)": TransformersGrouped,
    "diffusers": Diffusers,
}


def main() -> None:
    """Answers commands until standard input ends."""
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    implementation = IMPLEMENTATIONS[sys.argv[1]]()
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        answer: dict[str, Any] = {}
        if do == "load":
            implementation = IMPLEMENTATIONS[sys.argv[1]]()
            gc.collect()  # a model before this one
            start = time.perf_counter()
            implementation.load(**command)
            answer["seconds"] = time.perf_counter() - start
        elif do == "logits":
            path = command.pop("path")
            np.save(path, implementation.logits(**command).numpy())
        else:
            restart_peak()  # what loading took is another figure
            start = time.perf_counter()
            answer["result"] = getattr(implementation, do)(**command)
            answer["seconds"] = time.perf_counter() - start
        answer["backend"] = implementation.backend
        answer["peak_bytes"] = peak_bytes()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
