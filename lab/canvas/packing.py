"""Passes as bytes, the form in which a browser gets them: small, the same live and afterwards.

A pass is one self-describing row; a run is its rows in order. (Live, one row may hold several passes of an
autoregressive run, a token each.) All numbers are little-endian:

    offset  type     what
    0       u32      length of the row in bytes, a multiple of 4
    4       u16      n, positions
    6       u8, u8   bytes of an id (2; 4 beyond 65,536 tokens) · k, alternatives
    8       u16 ×2   canvas · accepted positions, pins left out (as Trace.accepted_count)
    12      u32 ×2   step · answer position of the first entry
    20      f32 ×3   temperature · mean entropy over free positions, nats · seconds
    32      u8 ×4    kind (index into trace.KINDS) · 1 if this pass decided its canvas · 1 if it was constrained
                     · f, forbidden tokens
    36      ids      n of the canvas as the pass left it, then n × k alternatives, the argmax first
            u8       n probabilities of the sample, n entropies, n × k probabilities, n marks

Of a constrained pass, alternatives are given the constraint, at pinned positions before it. Behind, at a multiple of 4,

            ids      n × f tokens among the model's k most probable ones that the constraint forbids
            u16      n states of the automaton, 65,535 where it is not known
            u8       n × f probabilities of the forbidden tokens, 0 for none; n of all that is forbidden

Ids are local: indices into the table of tokens that occur in the run, which travels apart.
Probabilities and entropies are finest where it matters, near 0 and 1: p = sin²(π/2 · q/255),
h = 16 · (q/255)² nats. 256 tokens × 48 steps × 5 alternatives make 247,488 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgemma_core.files.recording import as_array
from dgemma_core.files.trace import KINDS, STATES, Trace
from dgemma_lab.canvas.conditioning import NO_STATE, Seen, conditioning, left

HEADER = struct.Struct("<IHBBHHIIfffBBBB")
MAX_ENTROPY = 16.0  # nats; e^16 is more tokens than any vocabulary has

MARK_ACCEPTED, MARK_PINNED, MARK_REMELTED, MARK_AFTER_EOS, MARK_STEADY = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Pass:
    """One pass, ready to be packed: n positions, k alternatives, the argmax first.

    A pinned position shows its pin, and as alternatives what the model would have said there.
    """

    canvas: int
    step: int
    position: int  # answer position of the first entry
    kind: int
    decided: bool  # its argmax is committed: it converged, or no pass was left
    temperature: float
    seconds: float
    tokens_out: NDArray[Any]  # (n,) ids
    alternatives: NDArray[Any]  # (n, k) ids
    probabilities: NDArray[Any]  # (n, k)
    sample_probability: NDArray[Any]  # (n,)
    entropy: NDArray[Any]  # (n,) nats
    accepted: NDArray[Any]  # (n,) bool
    pinned: NDArray[Any]  # (n,) bool
    # of a constrained pass; else 0, −1 and −1
    forbidden: NDArray[Any]  # (n,) free probability of all forbidden tokens
    states: NDArray[Any]  # (n,) of the automaton
    barred: NDArray[Any]  # (n, k) ids: forbidden tokens among the k most probable ones, −1 for none
    barred_probabilities: NDArray[Any]  # (n, k)

    @property
    def constrained(self) -> bool:
        return bool((self.states >= 0).any())

    @property
    def argmax(self) -> NDArray[Any]:
        return np.where(self.pinned, self.tokens_out, self.alternatives[:, 0])

    def mean_entropy(self) -> float:
        """Over the positions that are not pinned, nats."""
        free = self.entropy[~self.pinned]
        return float(free.mean()) if len(free) else 0.0


@dataclass
class TokenTable:
    """The tokens that occur in a run: id → local index, in order of first occurrence."""

    text: Callable[[int], str]
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def local(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Local indices of an array of ids, of its shape; new ids enter the table."""
        unique, inverse = np.unique(ids, return_inverse=True)
        places = np.empty(len(unique), np.int64)
        for i, token in enumerate(unique.tolist()):
            place = self._places.get(token)
            if place is None:
                place = self._places[token] = len(self.ids)
                self.ids.append(token)
                self.texts.append(self.text(token))
            places[i] = place
        return places[inverse].reshape(ids.shape)


def quantise_probability(p: NDArray[Any]) -> NDArray[np.uint8]:
    """0 … 1 → 0 … 255, finest at both ends (the angular transform)."""
    angle = np.arcsin(np.sqrt(np.clip(p, 0.0, 1.0)))
    return np.rint(angle * (255 / (np.pi / 2))).astype(np.uint8)


def quantise_entropy(nats: NDArray[Any]) -> NDArray[np.uint8]:
    """0 … 16 nats → 0 … 255, finest near 0."""
    return np.rint(np.sqrt(np.clip(nats, 0.0, MAX_ENTROPY) / MAX_ENTROPY) * 255).astype(np.uint8)


def marks(now: Pass, before: Pass | None, eos_ids: frozenset[int]) -> NDArray[np.uint8]:
    """(n,) the mark byte of each position: what `Trace.states` is made of, one bit a fact.

    `before` is the pass before on the same canvas, None at its first.
    """
    bits = now.accepted * MARK_ACCEPTED + now.pinned * MARK_PINNED
    if before is not None:
        bits = bits + (before.accepted & ~now.accepted & ~now.pinned) * MARK_REMELTED
        bits = bits + (before.argmax == now.argmax) * MARK_STEADY
    held = now.accepted | now.pinned
    ended = np.logical_or.accumulate(held & np.isin(now.tokens_out, sorted(eos_ids)))
    bits[1:] += ended[:-1] * MARK_AFTER_EOS
    return bits.astype(np.uint8)


def pack(now: Pass, marks: NDArray[np.uint8], tokens: TokenTable) -> bytes:
    """One row. New tokens enter `tokens`."""
    out, alternatives = tokens.local(now.tokens_out), tokens.local(now.alternatives)
    barred, chances = left(now.barred, now.barred_probabilities)
    barred = tokens.local(np.where(barred < 0, now.tokens_out[:, None], barred))
    n, k = alternatives.shape
    width = 2 if len(tokens) <= 1 << 16 else 4
    ids = np.concatenate([out, alternatives.ravel()]).astype(f"<u{width}")
    body = b"".join(
        [
            ids.tobytes(),
            quantise_probability(now.sample_probability).tobytes(),
            quantise_entropy(now.entropy).tobytes(),
            quantise_probability(now.probabilities).tobytes(),
            marks.tobytes(),
        ]
    )
    if now.constrained:
        states = np.where((now.states >= 0) & (now.states < NO_STATE), now.states, NO_STATE)
        body += bytes(-len(body) % 4) + barred.astype(f"<u{width}").tobytes()
        body += states.astype("<u2").tobytes() + quantise_probability(chances).tobytes()
        body += quantise_probability(now.forbidden).tobytes()
    body += bytes(-len(body) % 4)
    accepted = int(((marks & (MARK_ACCEPTED | MARK_PINNED)) == MARK_ACCEPTED).sum())
    header = HEADER.pack(
        HEADER.size + len(body), n, width, k, now.canvas, accepted, now.step, now.position,
        now.temperature, now.mean_entropy(), now.seconds, now.kind, now.decided,
        now.constrained, barred.shape[1],
    )  # fmt: skip
    return header + body


def joined(passes: Sequence[Pass]) -> Pass:
    """Passes of an autoregressive run that follow each other as one: n tokens, the time of the last."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in passes])
        for name, value in vars(passes[0]).items()
        if isinstance(value, np.ndarray)
    }
    return replace(passes[0], seconds=passes[-1].seconds, **arrays)


def pass_from_event(event: Any, canvas_length: int, alternatives: int) -> Pass:
    """A StepEvent or TokenEvent of `dgemma_core.events` as a Pass with at most `alternatives`."""
    if type(event).__name__ == "TokenEvent":
        token, probability = np.array([event.token]), np.array([float(event.probability)])
        yes, no = np.array([True]), np.array([False])
        ids, probabilities = _alternatives(token, probability, no, event.observed, alternatives)
        entropy = np.array([float(event.entropy)])
        return Pass(
            0, event.index, event.index, KINDS.index("token"), False, 0.0, event.seconds,
            token, ids, probabilities, probability, entropy, yes, no,
            **conditioning(event.observed, no, ids.shape[1]),
        )  # fmt: skip
    argmax = as_array(event.argmax, np.int64)
    probability = as_array(event.argmax_probability, np.float32)
    pinned = as_array(event.pinned, np.bool_)
    ids, probabilities = _alternatives(argmax, probability, pinned, event.observed, alternatives)
    return Pass(
        event.canvas, event.step, event.canvas * canvas_length, KINDS.index(event.kind),
        event.finished or event.step + 1 == event.steps, event.temperature, event.seconds,
        as_array(event.tokens_out, np.int64), ids, probabilities, as_array(event.sample_probability, np.float32),
        as_array(event.entropy, np.float32), as_array(event.accepted, np.bool_),
        pinned, **conditioning(event.observed, pinned, ids.shape[1]),
    )  # fmt: skip


def passes_from_trace(trace: Trace, alternatives: int) -> Iterator[Pass]:
    """All passes of a trace, each with at most `alternatives`."""
    positions, decided = trace.positions(), trace.decided()
    for r in range(len(trace)):
        cut = slice(int(trace.offsets[r]), int(trace.offsets[r + 1]))
        seen, pinned = Seen.of(trace, cut), trace.pinned[cut]
        ids, probabilities = _alternatives(
            trace.argmax[cut], trace.probability[cut], pinned, seen, alternatives
        )
        yield Pass(
            int(trace.canvas[r]), int(trace.step[r]), int(positions[cut.start]), int(trace.kind[r]),
            bool(decided[r]), float(trace.temperature[r]), float(trace.seconds[r]),
            trace.tokens_out[cut], ids, probabilities, trace.sample_probability[cut],
            trace.entropy[cut], trace.accepted[cut], pinned, **conditioning(seen, pinned, ids.shape[1]),
        )  # fmt: skip


def pack_trace(trace: Trace, tokens: TokenTable, alternatives: int = 5) -> list[bytes]:
    """The rows of a whole trace, one a pass."""
    eos_ids = trace.eos_ids() if trace.mode == "diffusion" else frozenset[int]()
    kept = dict(zip(trace.commit_canvas.tolist(), trace.commit_kept.tolist(), strict=True))
    passes = list(passes_from_trace(trace, alternatives))
    rows = []
    for r, now in enumerate(passes):
        before = passes[r - 1] if r and passes[r - 1].canvas == now.canvas else None
        if trace.token_by_token:
            before = None
        bits = marks(now, before, eos_ids)
        last = r + 1 == len(passes) or passes[r + 1].canvas != now.canvas
        if last and now.canvas in kept:
            bits[kept[now.canvas] :] |= MARK_AFTER_EOS
        rows.append(pack(now, bits, tokens))
    return rows


def packed_rounds(trace: Trace, tokens: TokenTable) -> list[dict[str, Any]]:
    """The rounds of a run of speculation as json values, ids local, probabilities as in rows."""
    return [
        {
            "start": int(made.start),
            "tokens": tokens.local(made.tokens).tolist(),
            "probabilities": quantise_probability(made.probability).tolist(),
            "steps": int(made.steps),
            "verified": int(made.verified),
            "accepted": int(made.accepted),
            "replacement": int(tokens.local(np.array([made.replacement]))[0]),
        }
        for made in trace.rounds
    ]


def state_of(bits: int) -> int:
    """The state, an index into `trace.STATES`, that a mark byte says; as run.js reads it."""
    for bit, name in (
        (MARK_PINNED, "pinned"), (MARK_AFTER_EOS, "after EOS"), (MARK_REMELTED, "re-melted"),
        (MARK_ACCEPTED, "accepted"), (MARK_STEADY, "candidate"),
    ):  # fmt: skip
        if bits & bit:
            return STATES.index(name)
    return STATES.index("noise")


def _alternatives(
    argmax: NDArray[Any],
    probability: NDArray[Any],
    pinned: NDArray[Any],
    observed: Any,
    count: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """ids and probabilities (n, k ≤ count), the argmax first; alone where no top-k was observed.

    A top-k may break ties of the first place otherwise than the argmax does, so it is put there.
    The argmax of a pinned position is the pin; its alternatives stay the model's own.
    """
    top_ids = getattr(observed, "top_ids", None)
    n = len(argmax)
    if top_ids is None or count == 1:
        return argmax.reshape(n, 1), probability.reshape(n, 1)
    ids = as_array(top_ids, np.int64).reshape(n, -1)
    values = as_array(observed.top_probabilities, np.float32).reshape(n, -1)
    if (free := getattr(observed, "free_top_ids", None)) is not None:
        known = pinned & (as_array(observed.automaton_states, np.int64).reshape(n) >= 0)
        before = as_array(observed.free_top_probabilities, np.float32).reshape(n, -1)
        ids = np.where(known[:, None], as_array(free, np.int64).reshape(n, -1), ids)
        values = np.where(known[:, None], before, values)
    k = min(count, ids.shape[1])
    own = pinned & (ids[:, 0] >= 0)
    argmax = np.where(own, ids[:, 0], argmax)
    probability = np.where(own, values[:, 0], probability)
    later = np.argsort(ids == argmax[:, None], axis=1, kind="stable")[
        :, : k - 1
    ]  # argmax sorts last
    ids = np.concatenate([argmax[:, None], np.take_along_axis(ids, later, 1)], axis=1)
    values = np.concatenate([probability[:, None], np.take_along_axis(values, later, 1)], axis=1)
    missing = ids < 0  # a pass that was not observed repeats its argmax, with probability 0
    return np.where(missing, argmax[:, None], ids), np.where(missing, 0.0, values)
