"""Whatever can write an answer and be timed: our models, Hugging Face models, servers.

A writer is named as on the command line: `nano`, a folder or hub name (diffusion), the same with
`:ar` (token by token), `hf:NAME` (any causal model of transformers), `gguf:FILE` or
`gguf:gemma3-270m` (likewise, from a GGUF file), `http://HOST/v1#MODEL` (an OpenAI-compatible server).
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion
from lm_eval.models.utils import normalize_gen_kwargs

from dgemma_core import CheckpointError, DgemmaError, RequestError
from dgemma_evals.harness.models import DGemma, DGemmaAR, Written
from dgemma_evals.harness.records import digest
from dgemma_evals.writers.counting import Counts
from dgemma_evals.writers.options import FOREIGN, fingerprint


class Writer(Protocol):
    """One side of a comparison."""

    name: str
    deterministic: bool
    """The same text whatever the seed."""
    template: Any
    """Messages → prompt text, for lm-eval; None where there is no chat template."""
    tokenizer_name: str
    identity: str

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """The answer to a request; `more` overrides its gen_kwargs."""

    def describe(self) -> dict[str, Any]:
        """Model and settings, as plain values."""


def writer(spec: str, **arguments: Any) -> Writer:
    """The writer that `spec` names. arguments: device and dtype; for our models also their options.

    Raises DgemmaError where there is none, or where it cannot be quantised as asked.
    """
    if spec.startswith(FOREIGN) and arguments.get("quantize") is not None:
        raise RequestError(
            f"quantize is of checkpoints that this project runs, which {spec} is not"
        )
    if spec.startswith(("http://", "https://")):
        return ServerWriter(spec)
    shared = {name: arguments[name] for name in ("device", "dtype") if name in arguments}
    if spec.startswith("hf:"):
        return HFWriter(spec.removeprefix("hf:"), name=spec, **shared)
    if spec.startswith("gguf:"):
        from dgemma_evals.writers.gguf import converted

        return HFWriter(str(converted(spec.removeprefix("gguf:"))), name=spec, **shared)
    quantize = arguments.get("quantize")
    name = spec if quantize is None else f"{spec} {quantize}"
    if spec.endswith(":ar"):
        causal = DGemmaAR(pretrained=spec.removesuffix(":ar"), quantize=quantize, **shared)
        return OwnWriter(name, causal)
    return OwnWriter(name, DGemma(pretrained=spec, **arguments))


class OwnWriter:
    """A DiffusionGemma, in either mode."""

    def __init__(self, name: str, lm: DGemma) -> None:
        self.name = name
        self.lm = lm
        self.deterministic = lm.mode == "autoregressive"
        self.template = lm.apply_chat_template if lm.text.template is not None else None
        self.tokenizer_name = lm.tokenizer_name
        self.identity = lm.identity

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """The model writes alone: nothing else shares its batch."""
        prompt, given = instance.args
        asked = Instance(
            "generate_until", instance.doc, (prompt, {**given, **more}), instance.idx,
            (instance.task_name, instance.doc_id, instance.repeats),
        )  # fmt: skip
        return self.lm.respond(asked, seed=seed)

    def describe(self) -> dict[str, Any]:
        """As lm-eval's results name it."""
        return {"name": self.name, **self.lm.describe()}


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
        self.identity = digest(name, fingerprint(folder) if folder.is_dir() else None, dtype)
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
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

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """Greedy; `more` has no meaning here and must be empty."""
        import torch

        if more:
            raise RequestError(f"{', '.join(more)} has no meaning for {self.name}")
        prompt, given = instance.args
        asked = normalize_gen_kwargs(dict(given))
        until = [text for text in asked["until"] if text]
        spelled = self.tokenizer.bos_token and prompt.startswith(self.tokenizer.bos_token)
        encoded = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not spelled)
        inputs = {key: value.to(self.model.device) for key, value in encoded.items()}
        length = inputs["input_ids"].shape[1]
        clock = _Clock()
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=asked["max_gen_toks"],
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


class ServerWriter:
    """An OpenAI-compatible server, asked by lm-eval's `local-chat-completions`, at temperature 0.

    The request is lm-eval's (its stop strings, seed and key from OPENAI_API_KEY); the answer is
    streamed, which lm-eval's API models do not do, so that it is seen when parts arrive. What the
    client sees besides: the text, and its tokens as the server counts them. Passes and steps are the
    server's secret, so they are not reported.
    """

    deterministic = True
    template = None

    def __init__(self, url: str, *, timeout: float = 600) -> None:
        self.url, _, self.model = url.partition("#")
        self.url = self.url.rstrip("/")
        self.name = url
        self.tokenizer_name = url
        self.identity = digest(url)
        self.timeout = timeout
        self.client = LocalChatCompletion(base_url=f"{self.url}/chat/completions", timeout=timeout)
        served = self._json(b"".join(self._call("/models", None)))
        names = [str(entry["id"]) for entry in served.get("data", [])]
        self.model = self.model or (names[0] if names else "")
        if names and self.model not in names:
            raise RequestError(f"{url}: the server has {', '.join(names)}, not {self.model}")
        self.client.model = self.model

    def _call(self, path: str, body: Any) -> Iterator[bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.client.api_key:
            headers |= self.client.header
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                yield from answer
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(300).decode(errors="replace").split())
            raise DgemmaError(
                f"{self.url}{path}: the server answers {error.code}: {said}"
            ) from error
        except http.client.HTTPException as error:
            said = str(error) or type(error).__name__
            raise DgemmaError(f"{self.url}{path}: the server broke off ({said})") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise DgemmaError(
                f"{self.url}: no server there ({reason}); start it, or correct the address"
            ) from error

    def _json(self, text: bytes) -> dict[str, Any]:
        """An object of the protocol; the error that a server may send instead is raised."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            said = text[:100].decode(errors="replace")
            raise DgemmaError(f"{self.url}: no OpenAI-compatible server, it says {said!r}")
        if "error" in found:
            raise DgemmaError(f"{self.url}: the server says {json.dumps(found['error'])}")
        return found

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """One chat of one user message (the server applies its template)."""
        if more:
            raise RequestError(f"{', '.join(more)} has no meaning for {self.name}")
        prompt, given = instance.args
        asked = normalize_gen_kwargs(dict(given))
        until = [text for text in asked["until"] if text]
        body = self.client._create_payload(  # what lm-eval's API models define themselves by
            [{"role": "user", "content": prompt}],
            generate=True,
            gen_kwargs={"max_gen_toks": asked["max_gen_toks"], "temperature": 0.0, "until": until},
            seed=seed,
        )
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        started = time.perf_counter()
        text, reason = "", "length"
        usage: dict[str, Any] = {}
        first: float | None = None
        for line in self._call("/chat/completions", body):
            field, _, part = line.strip().partition(b":")
            if field != b"data" or part.strip() == b"[DONE]":
                continue  # an empty line, or a comment that keeps the connection alive
            event = self._json(part)
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                piece = (choice.get("delta") or {}).get("content") or ""
                if piece and first is None:
                    first = time.perf_counter() - started
                text += piece
                if choice.get("finish_reason"):
                    reason = str(choice["finish_reason"])
        seconds = time.perf_counter() - started
        if "completion_tokens" not in usage:
            raise DgemmaError(
                f"{self.url}: the server counts no tokens (usage): it cannot be timed"
            )
        kept = int(usage["completion_tokens"])
        counts = Counts(
            mode="server",
            prompt_tokens=usage.get("prompt_tokens"),
            kept_tokens=kept,
            passes=None,
            denoising_steps=None,
            steps_per_canvas=(),
            converged=(),
            positions=0,
            prompt_seconds=None,
            seconds=seconds,
            milestones=() if first is None else ((1, first),),
            stop_reason=reason,
        )
        return Written(text, counts)

    def describe(self) -> dict[str, Any]:
        """What the client knows."""
        return {
            "name": self.name,
            "mode": "server",
            "engine": f"OpenAI-compatible server, model {self.model}; only what the client sees",
            "identity": self.identity,
        }
