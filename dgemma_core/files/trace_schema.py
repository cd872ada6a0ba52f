"""What a trace consists of: the dtype and axes of each array, the kind of each value, and one check of it all.

Recording, checking, saving, loading and the digest follow these tables. Needs numpy, not torch.

Axes: R passes, n recorded positions of all passes, S committed canvases, m their positions, D rounds of speculation,
d their drafted tokens, k most probable tokens, L layers, K experts a token, P prompt, T kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError

if TYPE_CHECKING:
    from dgemma_core.files.trace import Trace

FORMAT = "dgemma-trace"
SCHEMA = 3
"""1 knew no rounds of speculation, 2 no constraints; their files are read as traces without any."""

MODES = ("diffusion", "autoregressive", "speculative")
KINDS = ("predict", "correct", "token")
STOP_REASONS = ("eos", "stop", "length", None)
STATES = ("noise", "candidate", "accepted", "re-melted", "pinned", "after EOS")
NOISE, CANDIDATE, ACCEPTED, REMELTED, PINNED, AFTER_EOS = range(len(STATES))


class Array(NamedTuple):
    """An array's dtype, and the names of its axes."""

    dtype: Any
    axes: tuple[str, ...]


PASSES = {
    "canvas": Array(np.int32, ("R",)), "step": Array(np.int32, ("R",)),
    "kind": Array(np.uint8, ("R",)), "temperature": Array(np.float32, ("R",)),
    "seconds": Array(np.float64, ("R",)), "finished": Array(np.bool_, ("R",)),
}  # fmt: skip
TOKENS = {
    "tokens_in": Array(np.int32, ("n",)), "tokens_out": Array(np.int32, ("n",)),
    "sample": Array(np.int32, ("n",)), "argmax": Array(np.int32, ("n",)),
    "sample_probability": Array(np.float32, ("n",)), "probability": Array(np.float32, ("n",)),
    "entropy": Array(np.float32, ("n",)), "accepted": Array(np.bool_, ("n",)),
    "pinned": Array(np.bool_, ("n",)),
}  # fmt: skip
OBSERVED = {
    "top_ids": Array(np.int32, ("n", "k")), "top_probabilities": Array(np.float32, ("n", "k")),
    "router_ids": Array(np.int32, ("n", "L", "K")),
    "router_weights": Array(np.float32, ("n", "L", "K")),
    "forbidden": Array(np.float32, ("n",)), "automaton_states": Array(np.int32, ("n",)),
    "free_top_ids": Array(np.int32, ("n", "k")),
    "free_top_probabilities": Array(np.float32, ("n", "k")),
}  # fmt: skip
COMMITS = {
    "commit_canvas": Array(np.int32, ("S",)), "commit_kept": Array(np.int32, ("S",)),
    "commit_converged": Array(np.bool_, ("S",)), "commit_seconds": Array(np.float64, ("S",)),
}  # fmt: skip
COMMIT_TOKENS = {
    "commit_ids": Array(np.int32, ("m",)), "commit_probability": Array(np.float32, ("m",)),
    "commit_entropy": Array(np.float32, ("m",)),
}  # fmt: skip
ROUNDS = {
    "round_start": Array(np.int32, ("D",)), "round_steps": Array(np.int32, ("D",)),
    "round_verified": Array(np.int32, ("D",)), "round_accepted": Array(np.int32, ("D",)),
    "round_replacement": Array(np.int32, ("D",)), "round_seconds": Array(np.float64, ("D",)),
}  # fmt: skip
ROUND_TOKENS = {
    "round_tokens": Array(np.int32, ("d",)), "round_probability": Array(np.float32, ("d",)),
}  # fmt: skip
SPECULATION: Mapping[str, Array] = {
    **ROUNDS, "round_offsets": Array(np.int64, ("D + 1",)), **ROUND_TOKENS,
}  # fmt: skip
ARRAYS: Mapping[str, Array] = {
    **PASSES, "offsets": Array(np.int64, ("R + 1",)), **TOKENS, **COMMITS,
    "commit_offsets": Array(np.int64, ("S + 1",)), **COMMIT_TOKENS, **SPECULATION, **OBSERVED,
    "prompt_ids": Array(np.int32, ("P",)), "ids": Array(np.int32, ("T",)),
}  # fmt: skip
ATTENTION = Array(np.float32, ("layers", "positions", "heads", "keys"))
"""Of each pass; the sizes may differ from pass to pass."""

_COUNTS = ("steps", "denoising_steps", "passes", "canvases")
_SECONDS = ("prompt_seconds", "total_seconds")


class Commit(NamedTuple):
    """One canvas as committed: C ids, the first `kept` of them text (an ending EOS included)."""

    canvas: int
    ids: NDArray[np.int32]  # (C,)
    kept: int
    converged: bool
    probability: NDArray[np.float32]  # (C,)
    entropy: NDArray[np.float32]  # (C,) nats
    seconds: float


class Round(NamedTuple):
    """One round of speculation, as `events.DraftEvent` tells it: `tokens` were drafted from answer position `start` on.

    The causal mode had chosen tokens[0]; it verified the first `verified`, accepted `accepted` behind tokens[0], and
    put `replacement` behind those.
    """

    start: int
    tokens: NDArray[np.int32]  # (C,)
    probability: NDArray[np.float32]  # (C,) of the denoiser
    steps: int
    verified: int
    accepted: int
    replacement: int
    seconds: float

    @property
    def replaced(self) -> int | None:
        """The drafted token that `replacement` stands for; None where it is the same or the draft was over."""
        drafted = self.tokens[self.accepted + 1 :].tolist()
        return drafted[0] if drafted and drafted[0] != self.replacement else None


def no_rounds(name: str) -> NDArray[Any]:
    """The array `name` of a run without rounds."""
    return np.zeros(int(name == "round_offsets"), SPECULATION[name].dtype)


def check_array(name: str, values: Any, form: Array) -> NDArray[Any]:
    """`values`, if it is an array of that dtype and rank. Raises DgemmaError otherwise."""
    dtype = np.dtype(form.dtype)
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != len(form.axes):
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "no array"
        axes = ", ".join(form.axes)
        raise DgemmaError(f"trace: {name}: expected {dtype} ({axes}), found {found}")
    return values


def check(trace: Trace) -> None:
    """Raises DgemmaError unless the parts have their dtypes and ranks, and their sizes agree."""
    sizes: dict[str, int] = {}
    for name, form in ARRAYS.items():
        values = getattr(trace, name)
        if values is None and name in OBSERVED:
            continue
        for axis, size in zip(form.axes, check_array(name, values, form).shape, strict=True):
            # "R + 1" comes after "R", which the fields before it have set
            expected = sizes.setdefault(axis, sizes[axis[0]] + 1 if "+" in axis else size)
            if size != expected:
                raise DgemmaError(f"trace: {name} has {size} entries, expected {expected}")
    if trace.attention is not None:
        if not isinstance(trace.attention, tuple) or len(trace.attention) != len(trace.canvas):
            raise DgemmaError(f"trace: attention has not {len(trace.canvas)} entries, one a pass")
        for part in trace.attention:
            check_array("attention", part, ATTENTION)
    for name, end in (
        ("offsets", sizes["n"]),
        ("commit_offsets", sizes["m"]),
        ("round_offsets", sizes["d"]),
    ):
        offsets = getattr(trace, name)
        if offsets[0] != 0 or offsets[-1] != end or np.any(np.diff(offsets) < 0):
            raise DgemmaError(f"trace: {name} must rise from 0 to {end} in {len(offsets)} entries")
    _check_values(trace)


def _check_values(trace: Trace) -> None:
    """Raises DgemmaError for a value that no run can have had and that a reader would trip over."""

    def require(holds: Any, what: str) -> None:
        if not holds:
            raise DgemmaError(f"trace: {what}: the file is damaged, record the run again")

    require(trace.mode in MODES, f"mode: expected {', '.join(MODES)}, found {trace.mode!r:.40}")
    require(trace.stop_reason in STOP_REASONS, f"stop_reason is {trace.stop_reason!r:.40}")
    for name in _COUNTS:
        require(_is_whole(getattr(trace, name)), f"{name} is no count")
    require(trace.seed is None or _is_whole(trace.seed), "seed is no seed")
    for name in _SECONDS:
        value = getattr(trace, name)
        require(type(value) in (int, float) and np.isfinite(float(value)), f"{name} is no number")
    lengths, same = np.diff(trace.offsets), np.diff(trace.canvas) == 0
    require(np.all(trace.kind < len(KINDS)), "kind is beyond its names")
    require(np.all(trace.canvas >= 0) and np.all(trace.step >= 0), "a canvas or step is below 0")
    require(np.all(np.diff(trace.canvas) >= 0), "canvases are not in order")
    require(np.all(lengths[1:][same] == lengths[:-1][same]), "one canvas has two lengths")
    if trace.token_by_token:
        require(np.all(lengths == 1), "a pass that writes a token has not one position")
    _check_rounds(trace, require)
    _check_constraint(trace, require)
    kept = (trace.commit_kept >= 0) & (trace.commit_kept <= np.diff(trace.commit_offsets))
    require(np.all(kept), "commit_kept is beyond the canvas")
    floats = [name for name, form in ARRAYS.items() if np.dtype(form.dtype).kind == "f"]
    for name in floats:
        values = getattr(trace, name)
        require(values is None or np.isfinite(values).all(), f"{name} holds NaN or infinity")
    require(isinstance(trace.metadata, Mapping), "metadata is no mapping")
    require(
        all(isinstance(key, str) for key in trace.metadata), "metadata has keys that are no text"
    )
    eos = trace.metadata.get("eos_token_ids", ())
    is_ids = isinstance(eos, list | tuple | set | frozenset) and all(map(_is_whole, eos))
    require(is_ids, "metadata: eos_token_ids are no token ids")
    require(
        isinstance(trace.strings, Mapping)
        and all(_is_whole(k, signed=True) and _is_text(v) for k, v in trace.strings.items()),
        "strings is no mapping from token ids to texts",
    )


def _check_rounds(trace: Trace, require: Callable[[Any, str], None]) -> None:
    drafted, verified = np.diff(trace.round_offsets), trace.round_verified
    require(trace.mode == "speculative" or len(drafted) == 0, "rounds belong to speculation")
    require(np.all((verified >= 1) & (verified <= drafted)), "round_verified is beyond the draft")
    accepted = trace.round_accepted
    require(np.all((accepted >= 0) & (accepted < verified)), "round_accepted is beyond verified")
    require(np.all(trace.round_steps >= 1), "a round has no denoising step")
    require(np.all(trace.round_start >= 0), "a round starts below 0")
    require(np.all(np.diff(trace.round_start) > 0), "rounds are not in order")


def _check_constraint(trace: Trace, require: Callable[[Any, str], None]) -> None:
    states, forbidden = trace.automaton_states, trace.forbidden
    require(states is None or np.all(states >= -1), "an automaton's state is below -1")
    within = forbidden is None or np.all((forbidden >= 0) & (forbidden <= 1.001))  # rounded sums
    require(within, "forbidden is no probability")
    require(
        isinstance(trace.onward, Mapping)
        and all(_is_whole(k) and _is_onward(v) for k, v in trace.onward.items()),
        "onward is no mapping from states to what may follow",
    )


def _is_onward(value: Any) -> bool:
    """Whether it has the form that `constraints.onward.onward` gives."""
    if not isinstance(value, Mapping) or set(value) != {"tokens", "texts", "end"}:
        return False
    texts = value["texts"]
    return (
        _is_whole(value["tokens"])
        and isinstance(texts, list)
        and all(map(_is_text, texts))
        and isinstance(value["end"], bool)
    )


def _is_text(value: Any) -> bool:
    """Whether it is a text without lone surrogates, which no file and no table can hold."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _is_whole(value: Any, signed: bool = False) -> bool:
    """Whether it is an int below 2⁶⁴, and not below 0 unless `signed`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return (-(2**63) if signed else 0) <= int(value) < 2**64
