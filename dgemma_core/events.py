"""What happens while a text is written, as the loops tell it. Types only: importing this needs no torch.

Axes: C canvas length.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from dgemma_core.cache import PrefixCache
    from dgemma_core.observe import Observed
    from dgemma_core.request import DecodeState, TokenState

Mode = Literal["diffusion", "autoregressive", "speculative"]
"""How the same weights write. `settings.MODES` has the settings of each."""
StopReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class PromptEvent:
    """A prompt has been encoded. `seconds`, here and below: since the request joined the batch."""

    request: Hashable
    ids: tuple[int, ...]
    seed: int
    seconds: float


@dataclass(frozen=True)
class StepEvent:
    """One denoising pass of one row; tensors are (C,), on the model's device."""

    request: Hashable
    canvas: int
    step: int
    steps: int
    kind: Literal["predict", "correct"]
    temperature: float
    tokens_in: Tensor
    tokens_out: Tensor
    sample: Tensor
    argmax: Tensor
    accepted: Tensor
    pinned: Tensor
    sample_probability: Tensor
    argmax_probability: Tensor
    entropy: Tensor
    finished: bool
    seconds: float
    observed: Observed | None
    state: DecodeState


@dataclass(frozen=True)
class CanvasEvent:
    """A canvas is decided: its argmax is committed. Of `ids` (C,) the first `kept` belong to the text."""

    request: Hashable
    canvas: int
    ids: tuple[int, ...]
    kept: int
    converged: bool
    probability: Tensor
    entropy: Tensor
    seconds: float


@dataclass(frozen=True)
class TokenEvent:
    """One autoregressive step of one row. `probability` and `entropy` are of the model's raw distribution."""

    request: Hashable
    index: int
    token: int
    probability: float
    entropy: float
    seconds: float
    observed: Observed | None
    state: TokenState


@dataclass(frozen=True)
class DraftEvent:
    """One round of speculative decoding: the denoiser drafted `tokens`, the causal mode verified them.

    start: the answer position of tokens[0], which the causal mode had chosen already. probability: the denoiser's, of
    each token. steps: denoising steps of the draft. verified: how many of the tokens the causal pass went over; 1 where
    the denoiser had begun with another token and the draft was given up. accepted: how many behind the first are the
    causal mode's own choice. replacement: its choice behind those.
    """

    request: Hashable
    round: int
    start: int
    tokens: tuple[int, ...]
    probability: tuple[float, ...]
    steps: int
    verified: int
    accepted: int
    replacement: int
    seconds: float


@dataclass(frozen=True)
class FinishEvent:
    """A text has ended. `ids` are the kept tokens: an end-of-sequence token is kept, a stop string is not.

    text: cut at the stop string; None where the loop got no tokenizer. cache: what has been encoded so far, for a next
    turn: prompt and committed tokens, of which a stop string may have cut the last.
    """

    request: Hashable
    ids: tuple[int, ...]
    text: str | None
    stop_reason: StopReason
    denoising_steps: int
    passes: int
    canvases: int
    seconds: float
    cache: PrefixCache = field(repr=False)


Event = PromptEvent | StepEvent | CanvasEvent | TokenEvent | DraftEvent | FinishEvent
