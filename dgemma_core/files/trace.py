"""The record of one run: what stood on the canvas at every pass, and what the model thought of it.

- One `Trace` is one request. A pass is a denoising step or, in autoregression and speculation, one
  token: the same record with one position a row. Rows are ragged: flat arrays over all positions,
  cut by `offsets`. Speculation records its rounds beside the tokens that came of them.
- `recording.TraceRecorder` fills it from a stream of events, `trace_file` writes it to a file and
  reads it back, `trace_schema` says what it consists of.
- It needs numpy, not torch, and keeps no model memory alive.

Words (spec, "Notation"): *accepted*, the sample stays on the canvas; *settled*, from this step on
the argmax no longer changes; *re-melted*, accepted at the step before and redrawn now;
*committed*, encoded into the cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError, check_kind, shown, whole_number
from dgemma_core.events import Mode
from dgemma_core.files import trace_file, trace_schema
from dgemma_core.files.recording import TraceRecorder, request_of
from dgemma_core.files.trace_schema import (
    ACCEPTED,
    AFTER_EOS,
    CANDIDATE,
    FORMAT,
    KINDS,
    NOISE,
    OBSERVED,
    PASSES,
    PINNED,
    REMELTED,
    ROUND_TOKENS,
    ROUNDS,
    STATES,
    TOKENS,
    Commit,
    Round,
    no_rounds,
)

if TYPE_CHECKING:
    import pandas

DIGESTED = (
    "canvas", "step", "kind", "finished", "offsets", "tokens_in", "tokens_out", "sample", "argmax",
    "accepted", "pinned", "commit_canvas", "commit_kept", "commit_converged", "commit_offsets",
    "commit_ids", "prompt_ids", "ids",
)  # fmt: skip
"""Fields that `digest` reads."""
DIGESTED_ROUNDS = (
    "round_start", "round_steps", "round_verified", "round_accepted", "round_replacement",
    "round_offsets", "round_tokens",
)  # fmt: skip
"""What `digest` reads of speculation as well."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """One request's run. R passes, n recorded positions in all, S committed canvases.

    In autoregression and speculation a recorded pass holds one position; `canvas` is 0, `step` the
    index of the token, and the four token arrays hold the emitted token. Seconds count from when
    the request entered the loop; entropies are in nats. `None` stands in an observed group that was
    not asked for; a pass that did not report one has −1 ids and zeros.
    """

    mode: str  # "diffusion" | "autoregressive" | "speculative"
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
    # rounds of speculation (D,), and flat over their drafted tokens (see `Round`)
    round_start: NDArray[np.int32] = field(default_factory=partial(no_rounds, "round_start"))
    round_steps: NDArray[np.int32] = field(default_factory=partial(no_rounds, "round_steps"))
    round_verified: NDArray[np.int32] = field(default_factory=partial(no_rounds, "round_verified"))
    round_accepted: NDArray[np.int32] = field(default_factory=partial(no_rounds, "round_accepted"))
    round_replacement: NDArray[np.int32] = field(
        default_factory=partial(no_rounds, "round_replacement")
    )
    round_seconds: NDArray[np.float64] = field(default_factory=partial(no_rounds, "round_seconds"))
    round_offsets: NDArray[np.int64] = field(default_factory=partial(no_rounds, "round_offsets"))
    round_tokens: NDArray[np.int32] = field(default_factory=partial(no_rounds, "round_tokens"))
    round_probability: NDArray[np.float32] = field(
        default_factory=partial(no_rounds, "round_probability")
    )
    # observed, if asked for
    top_ids: NDArray[np.int32] | None = None  # (n, k), most probable first
    top_probabilities: NDArray[np.float32] | None = None  # (n, k)
    router_ids: NDArray[np.int32] | None = None  # (n, layers, K)
    router_weights: NDArray[np.float32] | None = None  # (n, layers, K)
    attention: tuple[NDArray[np.float32], ...] | None = (
        None  # a pass each: (layers, positions, H, P + C)
    )
    # observed of a constrained run: see `observe.Observed`; −1 and 0 in passes that had no condition
    forbidden: NDArray[np.float32] | None = None  # (n,)
    automaton_states: NDArray[np.int32] | None = None  # (n,)
    free_top_ids: NDArray[np.int32] | None = None  # (n, k) before conditioning
    free_top_probabilities: NDArray[np.float32] | None = None  # (n, k)
    # the request and its end
    prompt_ids: NDArray[np.int32]
    ids: NDArray[np.int32]  # kept tokens
    seed: int | None
    steps: int  # N of the schedule; 0 in autoregression
    stop_reason: str | None  # None: the record stops before the run did
    denoising_steps: int
    passes: int  # prefill + denoising steps + commits; a pass of speculation may verify and draft
    canvases: int  # of speculation: rounds
    prompt_seconds: float
    total_seconds: float
    strings: Mapping[int, str] = field(default_factory=dict)  # every occurring id → its text
    onward: Mapping[int, Mapping[str, Any]] = field(
        default_factory=dict
    )  # every occurring state of the automaton → what may follow (`constraints.onward`)
    metadata: Mapping[str, Any] = field(
        default_factory=dict
    )  # json values, e.g. model, sampler, eos_token_ids

    def __post_init__(self) -> None:
        """Raises DgemmaError where the parts do not fit (`trace_schema.check`)."""
        trace_schema.check(self)

    # recording

    @classmethod
    def record(
        cls,
        events: Iterable[Any],
        *,
        mode: Mode | None = None,
        metadata: Mapping[str, Any] | None = None,
        decode: Callable[[int], str] | None = None,
        onward: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> Trace:
        """Drain the events of one request; those of several are a DgemmaError.

        `decode` gives the text of one id, `onward` what may follow in a state of the constraint's
        automaton; `metadata` are json values: model, sampler, eos_token_ids, …; `mode` as for
        `TraceRecorder`.
        """
        traces = cls.record_all(events, mode=mode, metadata=metadata, decode=decode, onward=onward)
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
        mode: Mode | None = None,
        metadata: Mapping[str, Any] | None = None,
        decode: Callable[[int], str] | None = None,
        onward: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> dict[Hashable, Trace]:
        """Drain interleaved requests: request id → Trace, in order of their first events."""
        check_kind("events", events, Iterable, "the stream of a decode loop")
        recorders: dict[Hashable, TraceRecorder] = {}
        for event in events:
            request = request_of(event)
            if request not in recorders:
                recorders[request] = TraceRecorder(
                    mode=mode, metadata=metadata, decode=decode, onward=onward
                )
            recorders[request].add(event)
        return {request: cls(**recorder.fields()) for request, recorder in recorders.items()}

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
    def token_by_token(self) -> bool:
        """Whether a recorded pass is one token (autoregression, speculation), not a canvas."""
        return self.mode != "diffusion"

    @property
    def canvas_length(self) -> int:
        """C; 1 where a pass is a token; 0 before the first pass."""
        return int(np.diff(self.offsets).max(initial=0))

    def positions(self) -> NDArray[np.int32]:
        """Answer position of each entry (n,): canvas · C + place; where a pass is a token its index."""
        if self.token_by_token:
            return self.step.copy()
        starts = np.repeat(
            self.offsets[:-1] - self.canvas.astype(np.int64) * self.canvas_length,
            np.diff(self.offsets),
        )
        return (np.arange(self.offsets[-1]) - starts).astype(np.int32)

    def round_of(self) -> NDArray[np.int64]:
        """(R,) the round of speculation that wrote each token; −1: the prompt's pass, or one that had no draft."""
        found = np.full(len(self), -1)
        for i, made in enumerate(self.rounds):
            found[made.start + 1 : made.start + made.accepted + 2] = i
        return found

    def passes_of(self, canvas: int) -> range:
        """Indices of the passes of one canvas, which are always neighbours."""
        canvas = whole_number("canvas", canvas)
        where = np.flatnonzero(self.canvas == canvas)
        if len(where) == 0:
            has = sorted(set(self.canvas.tolist()))
            raise DgemmaError(f"the trace has no pass of canvas {canvas}, only of {has}")
        return range(int(where[0]), int(where[-1]) + 1)

    def rows(self, name: str, canvas: int = 0) -> NDArray[Any]:
        """A flat field of one canvas as (passes, C, …); where a pass is a token (passes, 1, …)."""
        if not isinstance(name, str) or name not in (*TOKENS, *OBSERVED):
            raise DgemmaError(
                f"a trace has no rows of {shown(name)}: there are {', '.join(TOKENS)}"
            )
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

    @property
    def rounds(self) -> list[Round]:
        """The rounds of speculation, in order; of the other modes none."""
        found = []
        for i, (a, b) in enumerate(zip(self.round_offsets, self.round_offsets[1:], strict=False)):
            values = {name.removeprefix("round_"): getattr(self, name)[i].item() for name in ROUNDS}
            flat = {name.removeprefix("round_"): getattr(self, name)[a:b] for name in ROUND_TOKENS}
            found.append(Round(**values, **flat))
        return found

    def text(self, token: int) -> str:
        """The text of one id, or `<id>` where the trace was recorded without `decode`."""
        token = whole_number("token", token, low=-(2**63))
        return self.strings.get(token, f"<{token}>")

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

        Where a pass is a token, a position settles at its own step. Where a canvas never converged,
        positions "settle" at its last step: read it together with `commits[…].converged`.
        """
        if self.token_by_token:
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
        if self.token_by_token:
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
        """A tidy table: one row a canvas, step and position. Needs pandas.

        Column `step` counts from 1, as the views do: 1 is the first pass over a canvas. (The array counts from 0.)
        """
        import pandas

        lengths = np.diff(self.offsets)
        columns: dict[str, Any] = {"pass_index": np.repeat(np.arange(len(self)), lengths)}
        for name in PASSES:
            columns[name] = np.repeat(getattr(self, name), lengths)
        columns["step"] = columns["step"] + 1
        columns["kind"] = pandas.Categorical.from_codes(columns["kind"], categories=list(KINDS))
        columns["position"] = self.positions()
        for name in TOKENS:  # a column named like a method of DataFrame would hide it
            columns[f"{name}_id" if name in ("sample", "argmax") else name] = getattr(self, name)
        columns["text"] = [self.text(token) for token in self.argmax]
        columns["remelted"] = self.remelted()
        columns["state"] = pandas.Categorical.from_codes(self.states(), categories=list(STATES))
        return pandas.DataFrame(columns)

    def digest(self) -> str:
        """sha256 over what was decided, integers only: the last bits of floats do not matter."""
        digest = hashlib.sha256(f"{FORMAT} 1 {self.mode} {self.stop_reason}".encode())
        for name in (*DIGESTED, *(DIGESTED_ROUNDS if self.mode == "speculative" else ())):
            values = np.ascontiguousarray(getattr(self, name), dtype="<i8")
            digest.update(f"{name} {values.shape}".encode() + values.tobytes())
        return digest.hexdigest()

    # files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one compressed `.npz`, whole or not at all; returns the path as given.

        Only a new file is written, or an earlier trace replaced. Raises DgemmaError where another
        file, a folder, a device or a pipe has this name, or writing fails.
        """
        trace_file.save(self, _path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Reads a file that `save` wrote. Raises DgemmaError for any other file."""
        return cls(**trace_file.load(_path(path), {item.name for item in fields(cls)}))


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise DgemmaError(f"a trace's file is a text or a path, got {shown(path)}") from None


def _sum_rows(trace: Trace, values: NDArray[Any]) -> NDArray[Any]:
    """Sums of a flat array over each pass (R,)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (sums[trace.offsets[1:]] - sums[trace.offsets[:-1]]).astype(np.float32)


def _same_canvas_before(trace: Trace, values: NDArray[Any], fill: Any = False) -> NDArray[Any]:
    """(n,): a position's value at the pass before; `fill` at the first pass of a canvas."""
    before = np.full_like(values, fill)
    if trace.token_by_token:
        return before
    for r in np.flatnonzero(np.diff(trace.canvas) == 0) + 1:
        start, stop = trace.offsets[r], trace.offsets[r + 1]
        before[start:stop] = values[trace.offsets[r - 1] : start]
    return before
