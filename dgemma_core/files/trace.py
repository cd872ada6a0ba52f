"""The record of one run: what stood on the canvas at every pass, and what the model thought of it.

- One `Trace` is one request. A pass is a denoising step or, in autoregression, one token: the same
  record with one position a row. Rows are ragged: flat arrays over all positions, cut by `offsets`.
- It is filled from the event stream of `dgemma_core.events` and knows events by their names and
  fields only: this file needs numpy, not torch. Tensors leave the device as they arrive, so a trace
  keeps no model memory alive.
- It saves to one `.npz` file: plain arrays and one json header, nothing pickled.

Words (spec, "Notation"): *accepted*, the sample stays on the canvas; *settled*, from this step on
the argmax no longer changes; *re-melted*, accepted at the step before and redrawn now;
*committed*, encoded into the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError

if TYPE_CHECKING:
    import pandas

FORMAT = "dgemma-trace"
SCHEMA = 1

KINDS = ("predict", "correct", "token")
STATES = ("noise", "candidate", "accepted", "re-melted", "pinned", "after EOS")
NOISE, CANDIDATE, ACCEPTED, REMELTED, PINNED, AFTER_EOS = range(len(STATES))

# Field groups: name → dtype. They drive recording, checking, saving and the digest.
PASS_FIELDS = {
    "canvas": np.int32, "step": np.int32, "kind": np.uint8,
    "temperature": np.float32, "seconds": np.float64, "finished": np.bool_,
}  # fmt: skip
TOKEN_FIELDS = {
    "tokens_in": np.int32, "tokens_out": np.int32, "sample": np.int32, "argmax": np.int32,
    "sample_probability": np.float32, "probability": np.float32, "entropy": np.float32,
    "accepted": np.bool_, "pinned": np.bool_,
}  # fmt: skip
OBSERVED_FIELDS = {
    "top_ids": np.int32, "top_probabilities": np.float32,
    "router_ids": np.int32, "router_weights": np.float32,
}  # fmt: skip
COMMIT_FIELDS = {
    "commit_canvas": np.int32, "commit_kept": np.int32,
    "commit_converged": np.bool_, "commit_seconds": np.float64,
}  # fmt: skip
COMMIT_TOKEN_FIELDS = {
    "commit_ids": np.int32,
    "commit_probability": np.float32,
    "commit_entropy": np.float32,
}
# What numpy and zipfile raise on damaged files.
UNREADABLE = (
    ValueError,
    EOFError,
    KeyError,
    OSError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)


class Commit(NamedTuple):
    """One canvas as committed: C ids, the first `kept` of them text (an ending EOS included)."""

    canvas: int
    ids: NDArray[np.int32]  # (C,)
    kept: int
    converged: bool
    probability: NDArray[np.float32]  # (C,)
    entropy: NDArray[np.float32]  # (C,) nats
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """One request's run. R passes, n recorded positions in all, S committed canvases.

    In autoregression a pass holds one position; `canvas` is 0, `step` the index of the token, and
    the four token arrays hold the emitted token. Seconds count from when the request entered the
    loop; entropies are in nats. `None` stands in an observed group that was not asked for; a pass
    that did not report one has −1 ids and zeros.
    """

    mode: str  # "diffusion" | "autoregressive"
    # passes (R,)
    canvas: NDArray[np.int32]
    step: NDArray[np.int32]  # within its canvas, from 0
    kind: NDArray[np.uint8]  # index into KINDS
    temperature: NDArray[np.float32]
    seconds: NDArray[np.float64]  # at the end of the pass
    finished: NDArray[np.bool_]  # the stop rule said so at this pass
    offsets: NDArray[
        np.int64
    ]  # (R + 1,): pass r owns flat positions offsets[r] … offsets[r + 1] − 1
    # positions (n,)
    tokens_in: NDArray[np.int32]
    tokens_out: NDArray[np.int32]
    sample: NDArray[np.int32]
    argmax: NDArray[np.int32]
    sample_probability: NDArray[np.float32]
    probability: NDArray[np.float32]  # of the argmax
    entropy: NDArray[np.float32]
    accepted: NDArray[np.bool_]
    pinned: NDArray[np.bool_]
    # commits (S,), and flat over their ids
    commit_canvas: NDArray[np.int32]
    commit_kept: NDArray[np.int32]
    commit_converged: NDArray[np.bool_]
    commit_seconds: NDArray[np.float64]
    commit_offsets: NDArray[np.int64]
    commit_ids: NDArray[np.int32]
    commit_probability: NDArray[np.float32]
    commit_entropy: NDArray[np.float32]
    # observed, if asked for
    top_ids: NDArray[np.int32] | None = None  # (n, k), most probable first
    top_probabilities: NDArray[np.float32] | None = None  # (n, k)
    router_ids: NDArray[np.int32] | None = None  # (n, layers, K)
    router_weights: NDArray[np.float32] | None = None  # (n, layers, K)
    attention: tuple[NDArray[np.float32], ...] | None = (
        None  # a pass each: (layers, positions, H, P + C)
    )
    # the request and its end
    prompt_ids: NDArray[np.int32]
    ids: NDArray[np.int32]  # kept tokens
    seed: int | None
    steps: int  # N of the schedule; 0 in autoregression
    stop_reason: str | None  # None: the record stops before the run did
    denoising_steps: int
    passes: int  # prefill + denoising steps + commits
    canvases: int
    prompt_seconds: float
    total_seconds: float
    strings: Mapping[int, str] = field(default_factory=dict)  # every occurring id → its text
    metadata: Mapping[str, Any] = field(
        default_factory=dict
    )  # json values, e.g. model, sampler, eos_token_ids

    def __post_init__(self) -> None:
        passes, positions, commits = (
            len(self.canvas),
            int(self.offsets[-1]),
            len(self.commit_canvas),
        )
        groups = {
            passes: [*PASS_FIELDS, *(["attention"] if self.attention is not None else [])],
            positions: [
                *TOKEN_FIELDS,
                *(name for name in OBSERVED_FIELDS if getattr(self, name) is not None),
            ],
        }
        for length, names in [*groups.items(), (commits, [*COMMIT_FIELDS])]:
            for name in names:
                if len(getattr(self, name)) != length:
                    raise DgemmaError(
                        f"trace: {name} has {len(getattr(self, name))} entries, expected {length}"
                    )
        for name, count, end in (
            ("offsets", passes, positions),
            ("commit_offsets", commits, len(self.commit_ids)),
        ):
            offsets = getattr(self, name)
            if (
                len(offsets) != count + 1
                or offsets[0] != 0
                or offsets[-1] != end
                or np.any(np.diff(offsets) < 0)
            ):
                raise DgemmaError(f"trace: {name} must rise from 0 to {end} in {count + 1} entries")

    # recording

    @classmethod
    def record(
        cls,
        events: Iterable[Any],
        *,
        metadata: Mapping[str, Any] | None = None,
        decode: Callable[[int], str] | None = None,
    ) -> Trace:
        """Drain the events of one request; those of several are a DgemmaError.

        `decode` gives the text of one id; `metadata` are json values: model, sampler,
        eos_token_ids, …
        """
        traces = cls.record_all(events, metadata=metadata, decode=decode)
        if len(traces) != 1:
            found = (
                f"{len(traces)} requests ({', '.join(map(str, traces))})" if traces else "no event"
            )
            raise DgemmaError(
                f"Trace.record takes the events of one request, got {found}: use Trace.record_all"
            )
        return next(iter(traces.values()))

    @classmethod
    def record_all(
        cls,
        events: Iterable[Any],
        *,
        metadata: Mapping[str, Any] | None = None,
        decode: Callable[[int], str] | None = None,
    ) -> dict[Hashable, Trace]:
        """Drain interleaved requests: request id → Trace, in order of their first events."""
        recorders: dict[Hashable, TraceRecorder] = {}
        for event in events:
            if event.request not in recorders:
                recorders[event.request] = TraceRecorder(metadata=metadata, decode=decode)
            recorders[event.request].add(event)
        return {request: recorder.trace() for request, recorder in recorders.items()}

    # reading

    def __len__(self) -> int:
        """Number of recorded passes."""
        return len(self.canvas)

    def __repr__(self) -> str:
        return (
            f"Trace({self.mode}, {len(self.ids)} kept tokens, {len(self)} recorded passes, "
            f"{self.canvases} canvases, stop {self.stop_reason})"
        )

    @property
    def canvas_length(self) -> int:
        """C; 1 in autoregression; 0 before the first pass."""
        return int(np.diff(self.offsets).max(initial=0))

    def positions(self) -> NDArray[np.int32]:
        """Answer position of each entry (n,): canvas · C + place; in autoregression the index."""
        if self.mode == "autoregressive":
            return self.step.copy()
        starts = np.repeat(
            self.offsets[:-1] - self.canvas.astype(np.int64) * self.canvas_length,
            np.diff(self.offsets),
        )
        return (np.arange(self.offsets[-1]) - starts).astype(np.int32)

    def passes_of(self, canvas: int) -> range:
        """Indices of the passes of one canvas, which are always neighbours."""
        where = np.flatnonzero(self.canvas == canvas)
        if len(where) == 0:
            has = sorted(set(self.canvas.tolist()))
            raise DgemmaError(f"the trace has no pass of canvas {canvas}, only of {has}")
        return range(int(where[0]), int(where[-1]) + 1)

    def rows(self, name: str, canvas: int = 0) -> NDArray[Any]:
        """A flat field of one canvas as (passes, C, …); in autoregression (passes, 1, …)."""
        flat = getattr(self, name)
        if flat is None:
            raise DgemmaError(f"{name} was not observed in this run: ask for it with Observe")
        passes = self.passes_of(canvas)
        part = flat[self.offsets[passes.start] : self.offsets[passes.stop]]
        return part.reshape(len(passes), -1, *flat.shape[1:])

    @property
    def commits(self) -> list[Commit]:
        """The committed canvases, in order."""
        cuts = [
            slice(a, b) for a, b in zip(self.commit_offsets, self.commit_offsets[1:], strict=False)
        ]
        return [
            Commit(
                int(self.commit_canvas[i]),
                self.commit_ids[cut],
                int(self.commit_kept[i]),
                bool(self.commit_converged[i]),
                self.commit_probability[cut],
                self.commit_entropy[cut],
                float(self.commit_seconds[i]),
            )
            for i, cut in enumerate(cuts)
        ]

    def text(self, token: int) -> str:
        """The text of one id, or `<id>` where the trace was recorded without `decode`."""
        return self.strings.get(int(token), f"<{int(token)}>")

    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text: the metadata's `eos_token_ids`, and the one that ended this run."""
        known = {int(token) for token in self.metadata.get("eos_token_ids", ())}
        if self.stop_reason == "eos" and len(self.ids):
            known.add(int(self.ids[-1]))
        return frozenset(known)

    def decided(self) -> NDArray[np.bool_]:
        """(R,) whether the pass's argmax was committed: it converged, or its canvas had no pass left."""
        decided = self.finished.copy()
        for canvas in self.commit_canvas.tolist():
            decided[self.passes_of(canvas).stop - 1] = self.mode == "diffusion"
        return decided

    def settled_step(self) -> dict[int, NDArray[np.int32]]:
        """Canvas → (C,): the step from which the argmax of each position no longer changes.

        In autoregression a position settles at its own step. Where a canvas never converged,
        positions "settle" at its last step: read it together with `commits[…].converged`.
        """
        if self.mode == "autoregressive":
            return {0: self.step.copy()} if len(self) else {}
        settled = {}
        for canvas in dict.fromkeys(self.canvas.tolist()):
            argmax = self.rows("argmax", canvas)
            moved = argmax != argmax[-1]  # (S, C): still different from the last
            last_moved = len(argmax) - 1 - moved[::-1].argmax(axis=0)
            first = np.where(moved.any(axis=0), last_moved + 1, 0)
            settled[canvas] = self.step[self.passes_of(canvas).start + first]
        return settled

    def remelted(self) -> NDArray[np.bool_]:
        """(n,): accepted at the step before, on the same canvas, and redrawn now."""
        return _same_canvas_before(self, self.accepted) & ~self.accepted & ~self.pinned

    def after_eos(self) -> NDArray[np.bool_]:
        """(n,): behind an EOS that stays on the canvas: accepted or pinned.

        At a canvas's last pass also what its commit did not keep.
        """
        after = np.zeros(int(self.offsets[-1]), dtype=np.bool_)
        if self.mode == "autoregressive":
            return after
        held = self.accepted | self.pinned
        is_eos = held & np.isin(self.tokens_out, sorted(self.eos_ids()))
        kept = dict(zip(self.commit_canvas.tolist(), self.commit_kept.tolist(), strict=True))
        for r, (start, stop) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            row = is_eos[start:stop]
            after[start + 1 : stop] = np.logical_or.accumulate(row)[:-1]
            canvas = int(self.canvas[r])
            last = r + 1 == len(self) or self.canvas[r + 1] != canvas
            if last and canvas in kept:
                after[start + kept[canvas] : stop] = True
        return after

    def states(self) -> NDArray[np.uint8]:
        """(n,) index into STATES, what a position is after each pass; later ones win.

        noise: redrawn at random · candidate: redrawn, yet the model's best guess is that of the
        step before · accepted · re-melted · after EOS · pinned.
        """
        steady = _same_canvas_before(self, self.argmax, fill=-1) == self.argmax
        states = np.where(steady, CANDIDATE, NOISE).astype(np.uint8)
        states[self.accepted] = ACCEPTED
        states[self.remelted()] = REMELTED
        states[self.after_eos()] = AFTER_EOS
        states[self.pinned] = PINNED
        return states

    def mean_entropy(self) -> NDArray[np.float32]:
        """(R,) mean over the positions that are not pinned, nats; what the stop rule looks at."""
        free = ~self.pinned
        return _sum_rows(self, np.where(free, self.entropy, 0.0)) / np.maximum(
            _sum_rows(self, free), 1
        )

    def accepted_count(self) -> NDArray[np.int64]:
        """(R,) positions accepted at each pass, pinned ones left out."""
        return _sum_rows(self, self.accepted & ~self.pinned).astype(np.int64)

    def to_frame(self) -> pandas.DataFrame:
        """A tidy table: one row a canvas, step and position. Needs pandas."""
        import pandas

        lengths = np.diff(self.offsets)
        columns: dict[str, Any] = {"pass_index": np.repeat(np.arange(len(self)), lengths)}
        for name in PASS_FIELDS:
            columns[name] = np.repeat(getattr(self, name), lengths)
        columns["kind"] = pandas.Categorical.from_codes(columns["kind"], categories=list(KINDS))
        columns["position"] = self.positions()
        for name in TOKEN_FIELDS:  # a column named like a method of DataFrame would hide it
            columns[f"{name}_id" if name in ("sample", "argmax") else name] = getattr(self, name)
        columns["text"] = [self.text(token) for token in self.argmax]
        columns["remelted"] = self.remelted()
        columns["state"] = pandas.Categorical.from_codes(self.states(), categories=list(STATES))
        return pandas.DataFrame(columns)

    def digest(self) -> str:
        """sha256 over what was decided, integers only: the last bits of floats do not matter."""
        names = [
            "canvas",
            "step",
            "kind",
            "finished",
            "offsets",
            "tokens_in",
            "tokens_out",
            "sample",
            "argmax",
        ]
        names += [
            "accepted",
            "pinned",
            "commit_canvas",
            "commit_kept",
            "commit_converged",
            "commit_offsets",
        ]
        names += ["commit_ids", "prompt_ids", "ids"]
        digest = hashlib.sha256(f"{FORMAT} {SCHEMA} {self.mode} {self.stop_reason}".encode())
        for name in names:
            values = np.ascontiguousarray(getattr(self, name), dtype="<i8")
            digest.update(f"{name} {values.shape}".encode() + values.tobytes())
        return digest.hexdigest()

    # files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one compressed `.npz`, whole or not at all; returns the path as given."""
        arrays: dict[str, NDArray[Any]] = {}
        header: dict[str, Any] = {"format": FORMAT, "schema": SCHEMA}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                arrays[item.name] = value
            elif item.name == "attention" and value is not None:
                arrays.update({f"attention_{r}": part for r, part in enumerate(value)})
                header["attention"] = len(value)
            elif value is not None:
                header[item.name] = dict(value) if isinstance(value, Mapping) else value
        try:
            encoded = json.dumps(header, ensure_ascii=True).encode()
        except TypeError as error:
            raise DgemmaError(f"trace metadata must be json values: {error}") from None
        arrays["header"] = np.frombuffer(encoded, dtype=np.uint8)
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a file written by `save`. Missing, foreign, truncated or newer: one DgemmaError."""
        try:
            with zipfile.ZipFile(path):  # numpy would also open a bare array
                pass
            with np.load(path, allow_pickle=False) as file:
                header = _read_header(file, path)
                arrays = {name: file[name] for name in file.files if name != "header"}
        except FileNotFoundError:
            raise DgemmaError(f"no trace file at {path}") from None
        except UNREADABLE as error:
            raise DgemmaError(
                f"{path} is not a whole trace file (truncated, or another kind of file): {error}"
            ) from None
        if "attention" in header:
            count = header.pop("attention")
            header["attention"] = tuple(
                arrays.pop(f"attention_{r}", np.zeros(0)) for r in range(count)
            )
        header["strings"] = {int(token): text for token, text in header.get("strings", {}).items()}
        for name in ("seed", "stop_reason"):
            header.setdefault(name, None)
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in {**header, **arrays}.items() if name in known}
        try:
            return cls(**values)
        except TypeError as error:
            raise DgemmaError(f"{path} lacks parts of a trace: {error}") from None


class TraceRecorder:
    """Fills a Trace from a live stream: `add` each event, take `trace()` at any time.

    One recorder serves one request; an event of another one is a DgemmaError.
    """

    def __init__(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        decode: Callable[[int], str] | None = None,
    ) -> None:
        self._metadata = dict(metadata or {})
        self._decode = decode
        self._strings: dict[int, str] = {}
        self._request: Hashable | None = None
        self._mode: str | None = None
        self._passes: dict[str, list[Any]] = {name: [] for name in PASS_FIELDS}
        self._tokens: dict[str, list[NDArray[Any]]] = {name: [] for name in TOKEN_FIELDS}
        self._observed: dict[str, list[NDArray[Any] | None]] = {
            name: [] for name in OBSERVED_FIELDS
        }
        self._attention: list[NDArray[np.float32] | None] = []
        self._commits: list[Commit] = []
        self._prompt: Any = None
        self._finish: Any = None
        self._steps = 0
        self._last_seconds = 0.0

    def __len__(self) -> int:
        """Number of passes recorded so far."""
        return len(self._passes["canvas"])

    def add(self, event: Any) -> None:
        """Take one event of `dgemma_core.events`; its class name says which."""
        if self._request is None:
            self._request = event.request
        elif event.request != self._request:
            raise DgemmaError(
                f"this recorder holds {self._request}, not {event.request}: use Trace.record_all"
            )
        name = type(event).__name__
        match name:
            case "PromptEvent":
                self._prompt = event
            case "StepEvent":
                self._set_mode("diffusion")
                self._add_step(event)
            case "TokenEvent":
                self._set_mode("autoregressive")
                self._add_token(event)
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
                raise DgemmaError(f"not an event of a decode loop: {name}")
        self._last_seconds = float(event.seconds)

    def _set_mode(self, mode: str) -> None:
        if self._mode not in (None, mode):
            raise DgemmaError(f"one trace cannot hold both {self._mode} and {mode} passes")
        self._mode = mode

    def _add_step(self, event: Any) -> None:
        self._steps = int(event.steps)
        of_pass = {name: getattr(event, name) for name in PASS_FIELDS}
        of_tokens = {
            name: event.argmax_probability if name == "probability" else getattr(event, name)
            for name in TOKEN_FIELDS
        }
        self._add_pass(of_pass, of_tokens, event.observed)

    def _add_token(self, event: Any) -> None:
        of_pass = {"canvas": 0, "step": event.index, "kind": "token", "seconds": event.seconds}
        of_pass |= {"temperature": self._metadata.get("temperature", 0.0), "finished": False}
        of_tokens = dict.fromkeys(("tokens_in", "tokens_out", "sample", "argmax"), event.token)
        of_tokens |= dict.fromkeys(("sample_probability", "probability"), event.probability)
        of_tokens |= {"entropy": event.entropy, "accepted": True, "pinned": False}
        self._add_pass(of_pass, of_tokens, event.observed)

    def _add_pass(self, of_pass: dict[str, Any], of_tokens: dict[str, Any], observed: Any) -> None:
        for name in PASS_FIELDS:
            value = of_pass[name]
            self._passes[name].append(KINDS.index(value) if name == "kind" else value)
        for name, value in of_tokens.items():
            self._tokens[name].append(as_array(value, TOKEN_FIELDS[name]).reshape(-1))
        length = len(self._tokens["argmax"][-1])
        for name, dtype in OBSERVED_FIELDS.items():
            value = getattr(observed, name, None)
            if value is None:
                self._observed[name].append(None)
                continue
            array = as_array(value, dtype)
            if name.startswith("router"):  # (layers, C, K) → (C, layers, K): position first
                array = array.reshape(array.shape[0], length, -1).transpose(1, 0, 2)
            else:
                array = array.reshape(length, -1)
            self._observed[name].append(array)
        attention = getattr(observed, "attention", None)
        self._attention.append(None if attention is None else as_array(attention, np.float32))

    def trace(self) -> Trace:
        """The record so far; complete once the FinishEvent was added."""
        lengths = [len(row) for row in self._tokens["argmax"]]
        kept = [commit.ids[: commit.kept] for commit in self._commits]
        if self._mode == "autoregressive":
            kept = self._tokens["tokens_out"]
        finish, prompt = self._finish, self._prompt
        arrays: dict[str, Any] = {
            "offsets": _offsets(lengths),
            "commit_offsets": _offsets([len(commit.ids) for commit in self._commits]),
            "prompt_ids": as_array(prompt.ids if prompt else [], np.int32),
            "ids": as_array(finish.ids, np.int32) if finish else _concatenate(kept, np.int32),
        }
        for name, dtype in PASS_FIELDS.items():
            arrays[name] = np.asarray(self._passes[name], dtype)
        for name, dtype in TOKEN_FIELDS.items():
            arrays[name] = _concatenate(self._tokens[name], dtype)
        for name in OBSERVED_FIELDS:
            arrays[name] = _stack_observed(self._observed[name], lengths)
        for name, dtype in COMMIT_FIELDS.items():
            values = [getattr(commit, name.removeprefix("commit_")) for commit in self._commits]
            arrays[name] = np.asarray(values, dtype)
        for name, dtype in COMMIT_TOKEN_FIELDS.items():
            values = [getattr(commit, name.removeprefix("commit_")) for commit in self._commits]
            arrays[name] = _concatenate(values, dtype)
        if any(part is not None for part in self._attention):
            empty = np.zeros((0, 0, 0, 0), np.float32)
            arrays["attention"] = tuple(empty if part is None else part for part in self._attention)
        canvases = len(set(self._passes["canvas"])) if self._mode == "diffusion" else 0
        steps_done = len(self) if self._mode == "diffusion" else 0
        return Trace(
            mode=self._mode or "diffusion",
            **arrays,
            seed=int(prompt.seed) if prompt else self._metadata.get("seed"),
            steps=self._steps,
            stop_reason=finish.stop_reason if finish else None,
            denoising_steps=int(finish.denoising_steps) if finish else steps_done,
            passes=int(finish.passes) if finish else len(self) + 1,
            canvases=int(finish.canvases) if finish else canvases,
            prompt_seconds=float(prompt.seconds) if prompt else 0.0,
            total_seconds=self._last_seconds,
            strings=self._texts(arrays),
            metadata=dict(self._metadata),
        )

    def _texts(self, arrays: Mapping[str, Any]) -> dict[int, str]:
        """Every occurring id → text; each is decoded once, however often `trace` is called."""
        if self._decode is None:
            return {}
        names = ("tokens_in", "tokens_out", "sample", "argmax", "top_ids")
        parts = [
            arrays[name].ravel()
            for name in (*names, "prompt_ids", "ids", "commit_ids")
            if arrays[name] is not None
        ]
        occurring = np.unique(np.concatenate(parts))
        for token in occurring[occurring >= 0].tolist():
            if token not in self._strings:
                self._strings[token] = self._decode(token)
        return dict(self._strings)


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


def _sum_rows(trace: Trace, values: NDArray[Any]) -> NDArray[Any]:
    """Sums of a flat array over each pass (R,)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (sums[trace.offsets[1:]] - sums[trace.offsets[:-1]]).astype(np.float32)


def _same_canvas_before(trace: Trace, values: NDArray[Any], fill: Any = False) -> NDArray[Any]:
    """(n,): a position's value at the pass before; `fill` at the first pass of a canvas."""
    before = np.full_like(values, fill)
    if trace.mode == "autoregressive":
        return before
    for r in np.flatnonzero(np.diff(trace.canvas) == 0) + 1:
        start, stop = trace.offsets[r], trace.offsets[r + 1]
        before[start:stop] = values[trace.offsets[r - 1] : start]
    return before


def _read_header(file: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    if "header" not in file.files:
        raise DgemmaError(f"{path} is an npz file but not a trace: it has no header")
    header = json.loads(file["header"].tobytes())
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise DgemmaError(f"{path} is not a trace: its header does not say {FORMAT!r}")
    schema = header.pop("schema", None)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise DgemmaError(
            f"{path} has trace schema {schema}, this version reads {SCHEMA}: update dgemma-lab"
        )
    return header
