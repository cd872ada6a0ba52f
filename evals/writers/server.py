"""An OpenAI-compatible server as a writer: what a client sees of it."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from dgemma_core import DgemmaError, RequestError
from dgemma_evals.hashes import digest
from dgemma_evals.writers.asked import LIMIT, Ignored, asked_of_greedy
from dgemma_evals.writers.base import Written
from dgemma_evals.writers.counting import Counts


class ServerWriter:
    """An OpenAI-compatible server, asked by lm-eval's `local-chat-completions`, at temperature 0.

    The request is lm-eval's (its stop strings, seed and key from OPENAI_API_KEY); the answer is
    streamed, which lm-eval's API models do not do, so that it is seen when parts arrive. What the
    client sees besides: the text, and its tokens as the server counts them. Passes and steps are the
    server's secret, so they are not reported.
    """

    deterministic = True
    template = None

    def __init__(self, url: str, *, chat: bool = True, timeout: float = 600) -> None:
        self.url, _, self.model = url.partition("#")
        self.url = self.url.rstrip("/")
        self.name = url
        self.tokenizer_name = url
        self.identity = digest(url) if chat else digest(url, "completions")
        self.timeout = timeout
        self.chat = chat
        self._ignored = Ignored()
        self.path = "/chat/completions" if chat else "/completions"
        kind = LocalChatCompletion if chat else LocalCompletionsAPI
        self.client = kind(
            base_url=f"{self.url}{self.path}", timeout=timeout, tokenizer_backend=None
        )
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
        """One chat of one user message, to which the server applies its template; without `chat` the prompt alone."""
        prompt, given = instance.args
        asked = asked_of_greedy(self.name, given, more, self._ignored)
        wanted = {
            "max_gen_toks": asked.limit or LIMIT, "temperature": 0.0, "until": list(asked.stop),
        }  # fmt: skip
        messages = [{"role": "user", "content": prompt}]
        # What lm-eval's API models define themselves by.
        body = self.client._create_payload(
            messages if self.chat else prompt, generate=True, gen_kwargs=wanted, seed=seed
        )
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        started = time.perf_counter()
        text, reason = "", "length"
        usage: dict[str, Any] = {}
        first: float | None = None
        for line in self._call(self.path, body):
            field, _, part = line.strip().partition(b":")
            if field != b"data" or part.strip() == b"[DONE]":
                continue  # an empty line, or a comment that keeps the connection alive
            event = self._json(part)
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                said = (
                    (choice.get("delta") or {}).get("content") if self.chat else choice.get("text")
                )
                piece = said or ""
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
            "prompts": "a chat of one message, worded by the server"
            if self.chat
            else "as they are",
            "engine": f"OpenAI-compatible server, model {self.model}; only what the client sees",
            "identity": self.identity,
            **self._ignored.facts(),
        }
