"""Fills a `Trace` from the events of a decode loop (`dgemma_core.events`).

Events are known by their names and fields alone, so this needs numpy, not torch. Tensors are copied
to the CPU as they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError, RequestError, check_kind, shown
from dgemma_core.events import Mode
from dgemma_core.files.trace_schema import (
    COMMIT_TOKENS,
    COMMITS,
    KINDS,
    OBSERVED,
    PASSES,
    ROUND_TOKENS,
    ROUNDS,
    TOKENS,
    Commit,
    Round,
)


class TraceRecorder:
    """Fills a Trace from a live stream: `add` each event, take `Trace(**recorder.fields())` at any time.

    One recorder serves one request; an event of another one is a DgemmaError. mode: of the run; if
    None, the events tell it (a text that speculation ends at its first token has no round to tell it).
    decode: the text of one token. onward: what may follow in a state of the request's automaton.
    """

    def __init__(
        self,
        *,
        mode: Mode | None = None,
        metadata: Mapping[str, Any] | None = None,
        decode: Callable[[int], str] | None = None,
        onward: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        if not isinstance(mode, str | None) or mode not in (None, *get_args(Mode)):
            known = ", ".join(get_args(Mode))
            raise RequestError(f"unknown mode {shown(mode)}: choose one of {known}")
        check_kind("metadata", metadata, Mapping | None, "a mapping of json values, or None")
        check_kind("decode", decode, Callable | None, "a function of one token id, or None")
        check_kind("onward", onward, Callable | None, "a function of one state, or None")
        self._metadata = dict(metadata or {})
        self._decode, self._onward = decode, onward
        self._strings: dict[int, str] = {}
        self._followed: dict[int, Mapping[str, Any]] = {}
        self._request: Hashable | None = None
        self._given, self._mode = mode, mode
        self._passes: dict[str, list[Any]] = {name: [] for name in PASSES}
        self._tokens: dict[str, list[NDArray[Any]]] = {name: [] for name in TOKENS}
        self._observed: dict[str, list[NDArray[Any] | None]] = {name: [] for name in OBSERVED}
        self._attention: list[NDArray[np.float32] | None] = []
        self._commits: list[Commit] = []
        self._rounds: list[Round] = []
        self._prompt: Any = None
        self._finish: Any = None
        self._steps = 0
        self._last_seconds = 0.0

    def __len__(self) -> int:
        """Number of passes recorded so far."""
        return len(self._passes["canvas"])

    def add(self, event: Any) -> None:
        """Take one event of `dgemma_core.events`; its class name says which."""
        request = request_of(event)
        if self._request is None:
            self._request = request
        elif request != self._request:
            raise DgemmaError(
                f"this recorder holds {self._request}, not {request}: use Trace.record_all"
            )
        name = type(event).__name__
        match name:
            case "PromptEvent":
                self._prompt = event
            case "StepEvent":
                self._set_mode("diffusion")
                self._add_step(event)
            case "TokenEvent":
                if self._mode != "speculative":
                    self._set_mode("autoregressive")
                self._add_token(event)
            case "DraftEvent":
                if self._given is None and self._mode == "autoregressive":
                    self._mode = (
                        "speculative"  # the first token came of the prompt, without a draft
                    )
                self._set_mode("speculative")
                self._add_round(event)
            case "CanvasEvent":
                self._commits.append(
                    Commit(
                        int(event.canvas),
                        as_array(event.ids, np.int32),
                        int(event.kept),
                        bool(event.converged),
                        as_array(event.probability, np.float32),
                        as_array(event.entropy, np.float32),
                        float(event.seconds),
                    )
                )
            case "FinishEvent":
                self._finish = event
            case _:
                raise _not_an_event(event)
        self._last_seconds = float(event.seconds)

    def _set_mode(self, mode: Mode) -> None:
        if self._mode not in (None, mode):
            raise DgemmaError(f"one trace cannot hold both {self._mode} and {mode} passes")
        self._mode = mode

    def _add_step(self, event: Any) -> None:
        self._steps = int(event.steps)
        of_pass = {name: getattr(event, name) for name in PASSES}
        of_tokens = {
            name: event.argmax_probability if name == "probability" else getattr(event, name)
            for name in TOKENS
        }
        self._add_pass(of_pass, of_tokens, event.observed)

    def _add_token(self, event: Any) -> None:
        of_pass = {"canvas": 0, "step": event.index, "kind": "token", "seconds": event.seconds}
        of_pass |= {"temperature": self._metadata.get("temperature", 0.0), "finished": False}
        of_tokens = dict.fromkeys(("tokens_in", "tokens_out", "sample", "argmax"), event.token)
        of_tokens |= dict.fromkeys(("sample_probability", "probability"), event.probability)
        of_tokens |= {"entropy": event.entropy, "accepted": True, "pinned": False}
        self._add_pass(of_pass, of_tokens, event.observed)

    def _add_round(self, event: Any) -> None:
        self._rounds.append(
            Round(
                int(event.start),
                as_array(event.tokens, np.int32),
                as_array(event.probability, np.float32),
                int(event.steps),
                int(event.verified),
                int(event.accepted),
                int(event.replacement),
                float(event.seconds),
            )
        )

    def _add_pass(self, of_pass: dict[str, Any], of_tokens: dict[str, Any], observed: Any) -> None:
        for name in PASSES:
            value = of_pass[name]
            self._passes[name].append(KINDS.index(value) if name == "kind" else value)
        for name, value in of_tokens.items():
            self._tokens[name].append(as_array(value, TOKENS[name].dtype).reshape(-1))
        length = len(self._tokens["argmax"][-1])
        for name, (dtype, axes) in OBSERVED.items():
            value = getattr(observed, name, None)
            if value is None:
                self._observed[name].append(None)
                continue
            array = as_array(value, dtype)
            if name.startswith("router"):  # (layers, C, K) → (C, layers, K): position first
                array = array.reshape(array.shape[0], length, -1).transpose(1, 0, 2)
            else:
                array = array.reshape(length, *[-1] * (len(axes) - 1))
            self._observed[name].append(array)
        attention = getattr(observed, "attention", None)
        self._attention.append(None if attention is None else as_array(attention, np.float32))

    def fields(self) -> dict[str, Any]:
        """The fields of the Trace so far; complete once the FinishEvent was added."""
        lengths = [len(row) for row in self._tokens["argmax"]]
        kept = [commit.ids[: commit.kept] for commit in self._commits]
        if self._mode != "diffusion":
            kept = self._tokens["tokens_out"]
        finish, prompt = self._finish, self._prompt
        arrays: dict[str, Any] = {
            "offsets": _offsets(lengths),
            "commit_offsets": _offsets([len(commit.ids) for commit in self._commits]),
            "round_offsets": _offsets([len(made.tokens) for made in self._rounds]),
            "prompt_ids": as_array(prompt.ids if prompt else [], np.int32),
            "ids": as_array(finish.ids, np.int32) if finish else _concatenate(kept, np.int32),
        }
        for name, (dtype, _) in PASSES.items():
            arrays[name] = np.asarray(self._passes[name], dtype)
        for name, (dtype, _) in TOKENS.items():
            arrays[name] = _concatenate(self._tokens[name], dtype)
        for name in OBSERVED:
            arrays[name] = _stack_observed(self._observed[name], lengths)
        for name, (dtype, _) in COMMITS.items():
            values = [getattr(commit, name.removeprefix("commit_")) for commit in self._commits]
            arrays[name] = np.asarray(values, dtype)
        for name, (dtype, _) in COMMIT_TOKENS.items():
            values = [getattr(commit, name.removeprefix("commit_")) for commit in self._commits]
            arrays[name] = _concatenate(values, dtype)
        for name, (dtype, _) in ROUNDS.items():
            values = [getattr(made, name.removeprefix("round_")) for made in self._rounds]
            arrays[name] = np.asarray(values, dtype)
        for name, (dtype, _) in ROUND_TOKENS.items():
            values = [getattr(made, name.removeprefix("round_")) for made in self._rounds]
            arrays[name] = _concatenate(values, dtype)
        if any(part is not None for part in self._attention):
            empty = np.zeros((0, 0, 0, 0), np.float32)
            arrays["attention"] = tuple(empty if part is None else part for part in self._attention)
        canvases, steps_done, passes = self._cost_so_far()
        return dict(
            mode=self._mode or "diffusion",
            **arrays,
            seed=int(prompt.seed) if prompt else self._metadata.get("seed"),
            steps=self._steps,
            stop_reason=finish.stop_reason if finish else None,
            denoising_steps=int(finish.denoising_steps) if finish else steps_done,
            passes=int(finish.passes) if finish else passes,
            canvases=int(finish.canvases) if finish else canvases,
            prompt_seconds=float(prompt.seconds) if prompt else 0.0,
            total_seconds=self._last_seconds,
            strings=self._texts(arrays),
            onward=self._following(arrays["automaton_states"]),
            metadata=dict(self._metadata),
        )

    def _cost_so_far(self) -> tuple[int, int, int]:
        """Canvases or rounds, denoising steps and passes, of a run that has not ended."""
        if self._mode == "diffusion":
            return len(set(self._passes["canvas"])), len(self), len(self) + 1
        if self._mode == "speculative":
            steps = sum(made.steps for made in self._rounds)
            return len(self._rounds), steps, 1 + steps + len(self._rounds)
        return 0, 0, len(self) + 1

    def _texts(self, arrays: Mapping[str, Any]) -> dict[int, str]:
        """Every occurring id → text; each is decoded once, however often `fields` is called."""
        if self._decode is None:
            return {}
        names = ("tokens_in", "tokens_out", "sample", "argmax", "top_ids", "free_top_ids")
        parts = [
            arrays[name].ravel()
            for name in (
                *names,
                "prompt_ids",
                "ids",
                "commit_ids",
                "round_tokens",
                "round_replacement",
            )
            if arrays[name] is not None
        ]
        occurring = np.unique(np.concatenate(parts))
        for token in occurring[occurring >= 0].tolist():
            if token not in self._strings:
                self._strings[token] = self._decode(token)
        return dict(self._strings)

    def _following(self, states: NDArray[np.int32] | None) -> dict[int, Mapping[str, Any]]:
        """Every occurring state → what may follow; each is asked for once."""
        if self._onward is None or states is None:
            return {}
        for state in np.unique(states[states >= 0]).tolist():
            if state not in self._followed:
                self._followed[state] = self._onward(state)
        return dict(self._followed)


def request_of(event: Any) -> Hashable:
    """The request that an event belongs to. Raises DgemmaError for what is no event."""
    if not hasattr(event, "request"):
        raise _not_an_event(event)
    request: Hashable = event.request
    return request


def _not_an_event(value: Any) -> DgemmaError:
    return DgemmaError(f"not an event of a decode loop: {shown(value)}")


def as_array(value: Any, dtype: Any) -> NDArray[Any]:
    """An owned numpy array from a tensor on any device, an array or a sequence."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return np.array(value, dtype=dtype)


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _concatenate(parts: list[Any], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)


def _stack_observed(parts: list[NDArray[Any] | None], lengths: list[int]) -> NDArray[Any] | None:
    """Rows of one observed group, joined; passes without it are filled with −1 (ids) or 0."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    fill = -1 if known.dtype.kind == "i" else 0
    return np.concatenate(
        [
            np.full((length, *known.shape[1:]), fill, known.dtype) if part is None else part
            for part, length in zip(parts, lengths, strict=True)
        ]
    )
