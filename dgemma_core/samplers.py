"""The rules that decide, pass by pass, which tokens stay on a canvas and which turn into noise.

A rule is a frozen dataclass: `plan(N)` names the N passes of a canvas, and a pure `step` turns (canvas, prediction,
random numbers) into the next canvas. Uniform diffusion has no mask token, so noise is a random token and the rule's
memory of what it kept is `CanvasBatch.accepted`. The stop rule is a value of its own, beside them.

Axes: B rows, C canvas positions, V vocabulary, N passes, k positions that a sweep resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from dgemma_core.config import MAX_DENOISING_STEPS
from dgemma_core.draws import StepDraws, upload
from dgemma_core.errors import (
    RequestError,
    check_count,
    check_number,
    check_temperature,
    shown,
    whole_number,
)
from dgemma_core.head import Filters, Prediction, Reference

Kind = Literal["predict", "correct"]


@dataclass(frozen=True)
class PlannedStep:
    """One forward pass of a canvas's schedule.

    A "predict" pass samples, steps, and feeds the next soft embedding and the stop rule. A "correct" pass is a sweep
    of the corrector over the canvas that the predict pass before it left: it draws no sample (temperature 0), needs
    the prediction's two likeliest tokens (`top_k` of at least 2), and soft embedding and argmax history stay those
    of that predict pass.
    """

    index: int  # of the pass within the canvas, 0 … N-1
    kind: Kind
    temperature: float  # of the sample, read as float32; 0 takes the argmax
    alpha_t: float  # the chance that a token has survived the noise, on the canvas of this pass
    alpha_s: float  # … and on the canvas that it leaves; a sweep does not change it


@dataclass(frozen=True)
class CanvasBatch:
    """What a rule knows of the canvases before a pass. All rows make the same kind of pass, each at its own step."""

    canvas: Tensor  # (B, C) int64, as the model just saw it
    accepted: Tensor  # (B, C) bool, positions that hold a token kept from the model; none at first
    pinned: Tensor  # (B, C) bool, positions that are given: never changed, never counted
    plan: tuple[PlannedStep, ...]  # the pass of each row
    total: int  # N
    vocab_size: int  # V


@runtime_checkable
class Sampler(Protocol):
    """A rule. `reference` says which distribution entropy and soft embedding are taken from: softmax of logits / T, or
    of the raw logits. `filters` cut the distribution of the sample."""

    @property
    def name(self) -> str: ...

    @property
    def reference(self) -> Reference: ...

    @property
    def filters(self) -> Filters | None: ...

    def plan(self, steps: int) -> tuple[PlannedStep, ...]:
        """A canvas's N = `steps` forward passes. RequestError for fewer than the rule needs."""

    def step(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        """The next state (its `plan` still names the pass just made) and its (B, C) `accepted`: the positions that now
        hold a token kept from the model; all others but the pins are noise. A position that was accepted and no
        longer is has re-melted."""


@dataclass(frozen=True, kw_only=True)
class EntropyBound:
    """Keeps the surest samples while their joint entropy stays under a bound; redraws all others, also those kept
    before.

    In order of entropy, a position is accepted if the entropies before it sum to at most `entropy_bound` (nats), so
    at least one always is. The temperature falls linearly from `t_max` at the first pass towards `t_min`. The
    model's own rule: spec §4, arXiv 2505.24857.
    """

    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8

    name: ClassVar[str] = "entropy_bound"
    reference: ClassVar[Reference] = "tempered"
    filters: ClassVar[Filters | None] = None

    def __post_init__(self) -> None:
        check_number(self, "entropy_bound", low=0.0)
        check_temperature(self, "t_min")
        check_number(self, "t_max", above=0.0)
        check_temperature(self, "t_max")
        if self.t_min > self.t_max:
            raise RequestError(
                f"entropy_bound: t_min {self.t_min} is above t_max {self.t_max}; "
                "the temperature falls from t_max to t_min"
            )

    def plan(self, steps: int) -> tuple[PlannedStep, ...]:
        steps = _check_steps(steps)
        # float32, and in this order: T must round as the model's sampler was defined
        left = torch.arange(steps, 0, -1, dtype=torch.float32) / steps
        temperatures = (self.t_min + (self.t_max - self.t_min) * left).tolist()
        return tuple(
            PlannedStep(i, "predict", temperature, i / steps, (i + 1) / steps)
            for i, temperature in enumerate(temperatures)
        )

    def step(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        # pins sort last, and inf - inf = nan is never within the bound
        free = prediction.entropy.masked_fill(state.pinned, math.inf)
        entropy, order = free.sort(dim=-1, stable=True)
        within = entropy.cumsum(-1) - entropy <= self.entropy_bound
        accepted = torch.zeros_like(within).scatter(-1, order, within)
        return _next(state, draws, prediction.sample, ~accepted, accepted)


@dataclass(frozen=True, kw_only=True)
class BlockRefinement:
    """Keeps the likeliest samples by a quota, and every sample likelier than `threshold`; what is kept stays kept.

    After pass i at least ⌈(i+1)·C/N⌉ positions are kept, pins not counted. With `editing_threshold` a kept token
    gives way to another sample of higher probability than that. `top_k` and `top_p` cut the distribution of the
    sample (temperature > 0). Spec §4.
    """

    threshold: float = 0.95
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    editing_threshold: float | None = None

    name: ClassVar[str] = "block_refinement"
    reference: ClassVar[Reference] = "raw"

    def __post_init__(self) -> None:
        check_number(self, "threshold", low=0.0, high=1.0)
        check_temperature(self, "temperature")
        if self.top_k is not None:
            check_count(self, "top_k", low=1)
        if self.top_p is not None:
            check_number(self, "top_p", above=0.0, high=1.0)
        if self.editing_threshold is not None:
            check_number(self, "editing_threshold", low=0.0, high=1.0)
        if self.temperature == 0.0 and (self.top_k is not None or self.top_p is not None):
            raise RequestError(
                "block_refinement: top_k and top_p have no effect at temperature 0; "
                "set a temperature above 0 or leave them out"
            )

    @property
    def filters(self) -> Filters | None:
        filters = Filters(self.top_k, self.top_p)
        return None if filters == Filters() else filters

    def plan(self, steps: int) -> tuple[PlannedStep, ...]:
        return _predict_only(steps, self.temperature)

    def step(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        closed = state.accepted | state.pinned
        probability = prediction.sample_probability
        # ⌈(i+1)·C/N⌉ in integers
        done = upload(torch.tensor([step.index + 1 for step in state.plan]), closed.device)
        quota = (done * (~state.pinned).sum(-1) + state.total - 1) // state.total
        need = quota - state.accepted.sum(-1)
        open_first = probability.masked_fill(closed, -math.inf)
        ranks = open_first.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        new = ~closed & ((ranks < need[:, None]) | (probability > self.threshold))
        written = new
        if self.editing_threshold is not None:
            # no harm where the sample is the token, or where noise follows
            written = new | (probability > self.editing_threshold)
        tokens = torch.where(written, prediction.sample, state.canvas)
        accepted = state.accepted | new
        return _next(state, draws, tokens, ~accepted, accepted)


@dataclass(frozen=True, kw_only=True)
class DiscreteDDIM:
    """Samples the exact posterior of uniform diffusion given the predicted token; can correct.

    Each position takes the predicted token, stays, or turns into noise (D3PM, arXiv 2107.03006); the last pass takes
    the predicted token everywhere. With `corrector_steps` = c > 0 each of the first ⌊(N-1)/(1+c)⌋ predict passes is
    followed by c sweeps, which count among the N passes. A sweep resamples at most `corrector_k` positions from
    their leave-one-out conditional, preferring (the more so the smaller `corrector_selection_tau`) the least sure
    (arXiv 2605.22765). Spec §4.
    """

    temperature: float = 0.0
    corrector_steps: int = 0
    corrector_k: int = 1
    corrector_selection_tau: float = 1.0

    name: ClassVar[str] = "discrete_ddim"
    reference: ClassVar[Reference] = "raw"
    filters: ClassVar[Filters | None] = None

    def __post_init__(self) -> None:
        check_temperature(self, "temperature")
        check_count(self, "corrector_steps", low=0)
        check_count(self, "corrector_k", low=1)
        check_number(self, "corrector_selection_tau", above=0.0)
        tuned = self.corrector_k != 1 or self.corrector_selection_tau != 1.0
        if tuned and self.corrector_steps == 0:
            raise RequestError(
                "discrete_ddim: corrector_k and corrector_selection_tau have no effect without a "
                "corrector; set corrector_steps to 1 or more or leave them out"
            )

    def plan(self, steps: int) -> tuple[PlannedStep, ...]:
        steps = _check_steps(steps)
        sweeps = self.corrector_steps
        if not sweeps:
            return _predict_only(steps, self.temperature)
        if steps < sweeps + 2:
            raise RequestError(
                f"discrete_ddim: {steps} steps leave no room for {sweeps} corrector steps; "
                f"give at least {sweeps + 2} steps or fewer corrector_steps"
            )
        corrected = (steps - 1) // (1 + sweeps)
        predictions = steps - sweeps * corrected
        passes: list[PlannedStep] = []
        for i in range(predictions):
            alpha_t, alpha_s = i / predictions, (i + 1) / predictions
            passes.append(PlannedStep(len(passes), "predict", self.temperature, alpha_t, alpha_s))
            for _ in range(sweeps if i < corrected else 0):
                passes.append(PlannedStep(len(passes), "correct", 0.0, alpha_s, alpha_s))
        return tuple(passes)

    def step(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        kinds = {planned.kind for planned in state.plan}
        if kinds == {"predict"}:
            return self._predict(state, prediction, draws)
        if kinds == {"correct"}:
            return self._correct(state, prediction, draws)
        raise ValueError("the rows of a batch mix predict and correct passes")

    def _predict(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        same = prediction.sample == state.canvas
        masses = [_posterior(p.alpha_t, p.alpha_s, state.vocab_size) for p in state.plan]
        mass = upload(torch.tensor(masses, dtype=torch.float32), same.device)
        clean, agree, stay, noise = mass[:, None].unbind(-1)  # (B, 1) each
        routes = torch.stack(torch.broadcast_tensors(clean + agree * same, stay, noise), -1)
        route = draws.choose(routes / routes.sum(-1, keepdim=True))  # (B, C): clean, stay, noise
        tokens = torch.where(route == 0, prediction.sample, state.canvas)
        accepted = ((route == 0) | ((route == 1) & state.accepted)) & ~state.pinned
        return _next(state, draws, tokens, route == 2, accepted)

    def _correct(
        self, state: CanvasBatch, prediction: Prediction, draws: StepDraws
    ) -> tuple[CanvasBatch, Tensor]:
        """One Gibbs sweep: k positions by Gumbel-top-k of -margin/τ, resampled given all others."""
        if prediction.top_ids is None or prediction.top_logits is None:
            raise ValueError("a correct pass needs the prediction's two likeliest tokens")
        canvas = state.canvas
        alphas = [[planned.alpha_s] for planned in state.plan]
        alpha = upload(torch.tensor(alphas, dtype=torch.float64), canvas.device)  # (B, 1)
        # being seen multiplies p of a token by 1 + odds
        odds = state.vocab_size * alpha / (1 - alpha)
        noise = (1 - alpha) / state.vocab_size

        # margin = log q of the token seen - log q of its best rival, in float64, where
        # q = α·p'/Σp' + noise and p' is p with the seen token's part divided by 1 + odds
        leads = prediction.top_ids[..., 0] == canvas
        best, second = prediction.top_logits[..., :2].double().unbind(-1)
        seen = torch.where(leads, best, prediction.token_logit(canvas).double())
        total = prediction.logsumexp.double()
        p_seen, p_rival = (seen - total).exp(), (torch.where(leads, second, best) - total).exp()
        others = torch.maximum(1 - p_seen, p_rival)  # stays positive however `total` was rounded
        scale = alpha / (1 + odds * others)
        margin = (scale * p_seen + noise).log() - (scale * (1 + odds) * p_rival + noise).log()

        keys = draws.gumbel() - margin / self.corrector_selection_tau
        k = min(self.corrector_k, canvas.shape[-1])
        positions = keys.masked_fill(state.pinned, -math.inf).topk(k, -1).indices  # (B, k)
        current = canvas.gather(-1, positions)
        logits = torch.stack([prediction.rows(b, chosen) for b, chosen in enumerate(positions)])
        unseen = -odds.log1p()[..., None].expand(-1, k, -1)  # (B, k, 1)
        leave_one_out = logits.scatter_add(-1, current[..., None], unseen).softmax(-1)  # (B, k, V)
        q = alpha[..., None] * leave_one_out + noise[..., None]
        resampled = draws.categorical_rows(q, positions)

        # a row with fewer than k free positions was handed pins
        free = ~state.pinned.gather(-1, positions)
        canvas = canvas.scatter(-1, positions, torch.where(free, resampled, current))
        accepted = state.accepted.scatter(-1, positions, free)
        return replace(state, canvas=canvas, accepted=accepted), accepted


@dataclass(frozen=True)
class StopRule:
    """When a canvas is finished before its last pass: its argmax equals that of each of the last `stability` predict
    passes, and its mean entropy is below `confidence` (nats). The earliest stop is pass stability + 1; with
    stability 0 the entropy alone decides. Spec §4.

    The history is a (B, stability, C) int64 tensor of argmax canvases, the newest last, and starts afresh with each
    canvas. The caller latches: a row once finished stays finished.
    """

    stability: int = 1
    confidence: float = 0.005

    name: ClassVar[str] = "stop rule"

    def __post_init__(self) -> None:
        check_count(self, "stability", low=0, high=MAX_DENOISING_STEPS)
        check_number(self, "confidence", above=0.0)

    def initial(
        self, canvas_length: int, *, rows: int = 1, device: torch.device | str = "cpu"
    ) -> Tensor:
        """(rows, stability, C): -1, which no token equals."""
        shape = (rows, self.stability, canvas_length)
        return torch.full(shape, -1, dtype=torch.int64, device=device)

    def update(
        self, history: Tensor, argmax: Tensor, entropy: Tensor, pinned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """history (B, stability, C), argmax (B, C), entropy (B, C) nats and pinned (B, C) bool → the next history and
        finished (B,) bool.

        Pins count neither as change nor in the mean; a row of pins alone has mean entropy 0.
        """
        stable = ((history == argmax[:, None]) | pinned[:, None]).flatten(1).all(-1)
        mean = entropy.masked_fill(pinned, 0.0).sum(-1) / (~pinned).sum(-1).clamp(min=1)
        history = torch.cat([history, argmax[:, None]], 1)[:, 1:]
        return history, stable & (mean < self.confidence)


SAMPLERS: Mapping[str, type[EntropyBound] | type[BlockRefinement] | type[DiscreteDDIM]] = {
    rule.name: rule for rule in (EntropyBound, BlockRefinement, DiscreteDDIM)
}


def sampler_from(name: str, **options: Any) -> Sampler:
    """The rule of that name ("entropy_bound", "block_refinement", "discrete_ddim") with `options`.

    RequestError for an unknown name or option, listing the valid ones, and for a bad value.
    """
    if not isinstance(name, str) or name not in SAMPLERS:
        raise RequestError(f"unknown sampler {shown(name)}: choose one of {', '.join(SAMPLERS)}")
    rule = SAMPLERS[name]
    valid = [field.name for field in fields(rule)]
    for option in options:
        if option not in valid:
            raise RequestError(f"{name} has no option {option!r}: it takes {', '.join(valid)}")
    return rule(**options)


def describe(sampler: Sampler) -> dict[str, Any]:
    """Name and settings as plain values; `sampler_from(**describe(sampler))` equals the sampler."""
    return {"name": sampler.name, **vars(sampler)}


def _next(
    state: CanvasBatch, draws: StepDraws, tokens: Tensor, redrawn: Tensor, accepted: Tensor
) -> tuple[CanvasBatch, Tensor]:
    """`tokens` on the canvas, noise where `redrawn`, pins untouched. All (B, C)."""
    noise = draws.tokens(state.vocab_size)  # drawn at every pass, needed or not: the oracles' order
    canvas = torch.where(state.pinned, state.canvas, torch.where(redrawn, noise, tokens))
    return replace(state, canvas=canvas, accepted=accepted), accepted


def _posterior(alpha_t: float, alpha_s: float, vocab_size: int) -> Sequence[float]:
    """The masses, not normalised, of the routes of q(x_s | x_t, x̂): clean, what clean gains where x_t = x̂, stay,
    noise."""
    survival = alpha_t / alpha_s
    return (
        alpha_s * (1 - survival) / vocab_size,
        survival * alpha_s,
        survival * (1 - alpha_s) / vocab_size,
        (1 - survival) * (1 - alpha_s) / vocab_size,
    )


def _predict_only(steps: int, temperature: float) -> tuple[PlannedStep, ...]:
    steps = _check_steps(steps)
    return tuple(
        PlannedStep(i, "predict", temperature, i / steps, (i + 1) / steps) for i in range(steps)
    )


def _check_steps(steps: int) -> int:
    return whole_number("steps", steps, low=1, high=MAX_DENOISING_STEPS)
