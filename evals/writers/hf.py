"""A causal language model of transformers as a writer, also from a GGUF file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from dgemma_core import CheckpointError
from dgemma_evals.hashes import digest, fingerprint
from dgemma_evals.writers.asked import LIMIT, Ignored, asked_of_greedy
from dgemma_evals.writers.base import Served, Traffic, Written, one_by_one
from dgemma_evals.writers.counting import Counts


class HFWriter:
    """A causal language model of transformers, greedy, with its own cache, token by token."""

    deterministic = True

    def __init__(self, path: str, *, name: str, device: str = "auto", dtype: str = "auto") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"{name}: transformers cannot load it ({reason})") from error
        self.model.to(device).eval()
        self.name = name
        self.tokenizer_name = name
        self.template = self._render if self.tokenizer.chat_template else None
        folder = Path(path).expanduser()
        commit = getattr(self.model.config, "_commit_hash", None)  # of a checkpoint on the hub
        content = fingerprint(folder) if folder.is_dir() else commit
        self.identity = digest(name, content, dtype)
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        self._ignored = Ignored()
        self.eos = {eos} if isinstance(eos, int) else set(eos or ())

    def _render(self, chat: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def check(self, gen_kwargs: Mapping[str, Any]) -> None:
        """As `write`, without writing."""
        asked_of_greedy(self.name, gen_kwargs, {}, self._ignored)

    def serve(self, instances: Sequence[Instance], seed: int, traffic: Traffic) -> list[Served]:
        """One text at a time: `generate` lets no request join a batch."""
        return one_by_one(self, instances, seed, traffic)

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """Greedy; `more` has no meaning here and must be empty."""
        import torch

        prompt, given = instance.args
        asked = asked_of_greedy(self.name, given, more, self._ignored)
        until = list(asked.stop)
        spelled = self.tokenizer.bos_token and prompt.startswith(self.tokenizer.bos_token)
        encoded = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not spelled)
        inputs = {key: value.to(self.model.device) for key, value in encoded.items()}
        length = inputs["input_ids"].shape[1]
        clock = _Clock()
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=asked.limit or LIMIT,
                do_sample=False,
                temperature=None,
                top_k=None,
                top_p=None,
                pad_token_id=self.tokenizer.pad_token_id or next(iter(self.eos), 0),
                streamer=clock,
                **({"stop_strings": until, "tokenizer": self.tokenizer} if until else {}),
            )
        seconds = clock.seconds
        ids = [int(id) for id in output[0, length:]]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        reason = "eos" if ids and ids[-1] in self.eos else "length"
        kept = len(ids)
        places = [place for place in map(text.find, until) if place >= 0]
        if places:
            text, reason = text[: min(places)], "stop"
            while kept and len(self._decode(ids[:kept])) > len(text):
                kept -= 1
        counts = Counts(
            mode="autoregressive",
            prompt_tokens=length,
            kept_tokens=kept,
            passes=len(ids),
            denoising_steps=0,
            steps_per_canvas=(),
            converged=(),
            positions=0,
            prompt_seconds=clock.times[0] if clock.times else None,
            seconds=seconds,
            milestones=tuple(
                (min(n + 1, kept), at) for n, at in enumerate(clock.times[: len(ids)])
            ),
            stop_reason=reason,
        )
        return Written(text, counts)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def describe(self) -> dict[str, Any]:
        """Model and settings."""
        return {
            "name": self.name,
            "model_dtype": str(self.model.dtype).removeprefix("torch."),
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_device": str(self.model.device),
            "mode": "autoregressive",
            "engine": "transformers generate, greedy",
            "identity": self.identity,
            **self._ignored.facts(),
        }


class _Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.times: list[float] = []
        self.prompt = True
        self.seconds = 0.0

    def put(self, value: Any) -> None:
        """The prompt first, then each token."""
        if self.prompt:
            self.prompt = False
        else:
            self.times.append(time.perf_counter() - self.started)

    def end(self) -> None:
        """The text is complete."""
        self.seconds = time.perf_counter() - self.started
