"""An OpenAI-compatible server as a writer: what a client sees of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from dgemma_core import DgemmaError, RequestError
from dgemma_evals.hashes import digest
from dgemma_evals.writers.asked import LIMIT, Ignored, asked_of_greedy
from dgemma_evals.writers.base import Served, Traffic, Written
from dgemma_evals.writers.counting import Counts

_PROBE = "Count from one to nine."
_BUSY = (429, 502, 503)
"""Answers of a server that is too busy for the moment."""
_TRIES = 4


@dataclass
class _Stream:
    """What has arrived of one answer."""

    started: float
    text: str = ""
    first_text: str = ""
    first: float | None = None
    seconds: float = 0.0
    reason: str = "length"
    ended_itself: bool = False
    usage: dict[str, Any] = field(default_factory=dict)


class ServerWriter:
    """An OpenAI-compatible server, asked by lm-eval's `local-chat-completions`, at temperature 0 unless told otherwise.

    The request is lm-eval's (its stop strings, seed and key from OPENAI_API_KEY), and `extra`, which is sent in its
    body as it is. The answer is streamed, so that it is seen when parts arrive. Passes and steps are the server's
    secret. Tokens are those of the text that arrived, as its own /tokenize counts them, and the end token; where it has
    no /tokenize, those that it bills, which may hold stop strings.
    """

    def __init__(
        self,
        url: str,
        *,
        chat: bool = True,
        extra: Mapping[str, Any] | None = None,
        timeout: float = 600,
    ) -> None:
        self.url, _, self.model = url.partition("#")
        self.url = self.url.rstrip("/")
        self.extra = dict(extra or {})
        told = [f"{name}={value}" for name, value in self.extra.items()]
        self.name = self.tokenizer_name = ",".join([url, *told])
        self.deterministic = not self.extra.get("temperature")
        self.chat = chat
        self.template = _as_json if chat else None
        self._ignored = Ignored()
        self.path = "/chat/completions" if chat else "/completions"
        kind = LocalChatCompletion if chat else LocalCompletionsAPI
        self.client = kind(
            base_url=f"{self.url}{self.path}", timeout=timeout, tokenizer_backend=None
        )
        self._http = httpx.Client(
            timeout=timeout,
            transport=httpx.HTTPTransport(retries=2, limits=httpx.Limits(max_connections=None)),
        )
        served = self._json(self._get("/models"))
        names = [str(entry["id"]) for entry in served.get("data", [])]
        self.model = self.model or (names[0] if names else "")
        if names and self.model not in names:
            raise RequestError(f"{url}: the server has {', '.join(names)}, not {self.model}")
        self.client.model = self.model
        self._counts_text = self._tokens("one two") is not None
        self.identity = digest(self.name, chat, self._probe(served))

    # --- the protocol

    @property
    def _headers(self) -> dict[str, str]:
        own = {"Content-Type": "application/json"}
        return own | self.client.header if self.client.api_key else own

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """What may happen on the way, as one clear line."""
        try:
            yield
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise DgemmaError(
                f"{self.url}: no server there ({error}); start it, or correct the address"
            ) from error
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise DgemmaError(f"{self.url}{path}: the server broke off ({said})") from error

    def _get(self, path: str) -> bytes:
        with self._errors(path):
            answer = self._http.get(self.url + path, headers=self._headers)
            self._refuse(path, answer)
            return answer.content

    def _refuse(self, path: str, answer: httpx.Response) -> None:
        if answer.is_error:
            said = " ".join(answer.read()[:300].decode(errors="replace").split())
            raise DgemmaError(f"{self.url}{path}: the server answers {answer.status_code}: {said}")

    def _lines(self, body: Any) -> Iterator[tuple[float, str]]:
        """The lines of a streamed answer, each with the start of the try that they are of."""
        for tried in range(1, _TRIES + 1):
            started = time.perf_counter()
            with (
                self._errors(self.path),
                self._http.stream(
                    "POST", self.url + self.path, json=body, headers=self._headers
                ) as answer,
            ):
                if answer.status_code not in _BUSY or tried == _TRIES:
                    self._refuse(self.path, answer)
                    for line in answer.iter_lines():
                        yield started, line
                    return
                pause = answer.headers.get("Retry-After", "")
            time.sleep(min(float(pause) if pause.isdecimal() else 0.5 * 2**tried, 30))

    def _json(self, text: bytes | str) -> dict[str, Any]:
        """An object of the protocol; the error that a server may send instead is raised."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            said = text[:100]
            said = said.decode(errors="replace") if isinstance(said, bytes) else said
            raise DgemmaError(f"{self.url}: no OpenAI-compatible server, it says {said!r}")
        if "error" in found:
            raise DgemmaError(f"{self.url}: the server says {json.dumps(found['error'])}")
        return found

    def _tokens(self, text: str) -> int | None:
        """Tokens of a text by the server's own tokenizer (vLLM, SGLang, llama.cpp); None where it does not say."""
        body = {"model": self.model, "prompt": text, "content": text, "add_special_tokens": False}
        try:
            answer = self._http.post(
                self.url.removesuffix("/v1") + "/tokenize", json=body, headers=self._headers
            )
            found = answer.json() if answer.is_success else None
        except (httpx.HTTPError, ValueError):
            return None
        if not isinstance(found, dict):
            return None
        tokens = found.get("count", found.get("tokens"))
        return len(tokens) if isinstance(tokens, list) else tokens if type(tokens) is int else None

    def _probe(self, served: Mapping[str, Any]) -> Any:
        """What tells that the model behind the address is another one: what is served, and an answer of it."""
        entry: Mapping[str, Any] = next(
            (e for e in served.get("data", []) if e.get("id") == self.model), {}
        )
        stable = {name: entry.get(name) for name in ("root", "max_model_len", "owned_by", "meta")}
        messages = [{"role": "user", "content": _PROBE}]
        body = self.client._create_payload(
            messages if self.chat else _PROBE,
            generate=True,
            gen_kwargs={"max_gen_toks": 24, "temperature": 0.0, "until": []},
            seed=0,
        )
        return stable, self._stream(body).text

    # --- texts

    def check(self, gen_kwargs: Mapping[str, Any]) -> None:
        """As `write`, without writing."""
        asked_of_greedy(self.name, gen_kwargs, {}, self._ignored)

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """A chat, to which the server applies its template; without `chat` the prompt alone."""
        return self._counted(self._stream(self._body(instance, seed, more)))

    def _body(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> dict[str, Any]:
        prompt, given = instance.args
        asked = asked_of_greedy(self.name, given, more, self._ignored)
        wanted = {
            "max_gen_toks": asked.limit or LIMIT, "temperature": 0.0, "until": list(asked.stop),
        }  # fmt: skip
        # What lm-eval's API models define themselves by.
        body = self.client._create_payload(
            _messages(prompt) if self.chat else prompt, generate=True, gen_kwargs=wanted, seed=seed
        )
        return {**body, **self.extra}

    def _stream(self, body: Mapping[str, Any]) -> _Stream:
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        found = _Stream(time.perf_counter())
        for started, line in self._lines(asked):
            found.started = started
            name, _, part = line.strip().partition(":")
            if name != "data" or part.strip() == "[DONE]":
                continue  # an empty line, or a comment that keeps the connection alive
            event = self._json(part)
            found.usage = event.get("usage") or found.usage
            for choice in event.get("choices", []):
                self._take(found, choice)
        found.seconds = time.perf_counter() - found.started
        return found

    def _take(self, found: _Stream, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")  # written, but no answer
        piece = (delta.get("content") if self.chat else choice.get("text")) or ""
        if (piece or thought) and found.first is None:
            found.first = time.perf_counter() - found.started
            found.first_text = piece or str(thought)
        found.text += piece
        if choice.get("finish_reason"):
            found.reason = str(choice["finish_reason"])
            # vLLM and SGLang name the stop string that they met.
            met = choice.get("stop_reason", choice.get("matched_stop"))
            found.ended_itself = found.reason == "stop" and not isinstance(met, str)

    def _counted(self, found: _Stream) -> Written:
        kept, began = None, 1
        thoughts = (found.usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        if self._counts_text:
            counted = self._tokens(found.text)
            kept = None if counted is None else counted + found.ended_itself + thoughts
            began = self._tokens(found.first_text) or 1
        if kept is None:
            if "completion_tokens" not in found.usage:
                raise DgemmaError(
                    f"{self.url}: the server counts no tokens (usage): it cannot be timed"
                )
            kept = int(found.usage["completion_tokens"])
        counts = Counts(
            mode="server",
            prompt_tokens=found.usage.get("prompt_tokens"),
            kept_tokens=kept,
            passes=None,
            denoising_steps=None,
            steps_per_canvas=(),
            converged=(),
            positions=0,
            prompt_seconds=None,
            seconds=found.seconds,
            milestones=() if found.first is None else ((min(began, kept), found.first),),
            stop_reason=found.reason,
        )
        return Written(found.text, counts)

    def serve(self, instances: Sequence[Instance], seed: int, traffic: Traffic) -> list[Served]:
        """So many connections at a time; in an open loop, one for each request that is under way."""
        start = time.perf_counter()

        def one(place: int) -> tuple[_Stream, float]:
            due = None if traffic.arrivals is None else start + traffic.arrivals[place]
            if due is not None:
                time.sleep(max(0.0, due - time.perf_counter()))
            waited = 0.0 if due is None else max(0.0, time.perf_counter() - due)
            return self._stream(self._body(instances[place], seed, {})), waited

        rows = traffic.rows if traffic.arrivals is None else len(instances)
        with ThreadPoolExecutor(rows) as pool:
            streams = list(pool.map(one, range(len(instances))))
        # Tokens are counted afterwards, so that this takes no time of the server's meanwhile.
        return [Served(self._counted(stream), waited) for stream, waited in streams]

    def describe(self) -> dict[str, Any]:
        """What the client knows."""
        return {
            "name": self.name,
            "mode": "server",
            "prompts": "worded by the server, examples as turns" if self.chat else "as they are",
            "engine": f"OpenAI-compatible server, model {self.model}; only what the client sees",
            "sent_besides": self.extra,
            "tokens": "of the text, counted by the server's /tokenize, and the end token"
            if self._counts_text
            else "as the server bills them: stop strings may be among them",
            "identity": self.identity,
            **self._ignored.facts(),
        }


def _as_json(chat: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """A chat as it is sent. Raises RequestError for one that begins the answer."""
    if not add_generation_prompt:
        raise RequestError("a server is not asked to go on with an answer that has been begun")
    return json.dumps([dict(message) for message in chat], ensure_ascii=False)


def _messages(prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt that `_as_json` made; of another one, the user's alone."""
    try:
        found = json.loads(prompt)
    except ValueError:
        found = None
    if (
        isinstance(found, list)
        and found
        and all(isinstance(m, dict) and "role" in m for m in found)
    ):
        return found
    return [{"role": "user", "content": prompt}]
