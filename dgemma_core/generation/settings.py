"""How to write: the settings of each mode, and the one way from options to settings.

A mode is one dataclass here, one loop that its `_loop` calls, one entry in `MODES`, and one name in `events.Mode`.
`generate`, the command line, lm-eval's model arguments and the lab all make settings by `settings_from`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from dgemma_core.autoregression import decode_tokens
from dgemma_core.constraints.language import Constraint
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError, check_kind, finite_number, shown, whole_number
from dgemma_core.events import Event, Mode
from dgemma_core.facts.cost import pass_tokens
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.generation.drafting import DRAFT_RULES, FixedDraft, PayingDraft
from dgemma_core.head import Filters
from dgemma_core.loop import queue
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound, Sampler, StopRule, describe
from dgemma_core.speculation import DraftRule, decode_speculative

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma


@dataclass(frozen=True, kw_only=True)
class ModeSettings(ABC):
    """What the settings of all modes share. None means the checkpoint's own value."""

    mode: ClassVar[Mode]
    short: ClassVar[str]
    """Names the mode in `nano:ar` and `dgemma-ar`; "" is the mode that a bare `nano` means."""
    max_new_tokens: int | None = None
    """The most tokens to keep."""
    constraint: Constraint | None = None
    """The language that every answer must be in."""

    def __post_init__(self) -> None:
        self._convert("max_new_tokens")
        check_constraint(self.constraint)

    def _convert(self, *names: str) -> None:
        """Checks fields that hold None or a whole number of at least 1, and makes the numbers Python's."""
        for name in names:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, low=1))

    def resolved(self, loaded: Loaded) -> Self:
        """The same with the checkpoint's values filled in. Raises RequestError for what `load` does not return."""
        check_loaded(loaded)
        limit = loaded.generation.max_new_tokens
        return replace(
            self, max_new_tokens=limit if self.max_new_tokens is None else self.max_new_tokens
        )

    def events(
        self,
        loaded: Loaded,
        requests: Iterable[Request],
        *,
        batch_size: int = 1,
        observe: Observe | None = None,
    ) -> Iterator[Event]:
        """The event stream of these settings over `requests` (their own limits and constraints hold)."""
        settings = self.resolved(loaded)
        if self.constraint is not None:
            automaton = self.constraint.compile(loaded)
            requests = (
                replace(request, constraint=automaton) if request.constraint is None else request
                for request in queue(requests)
            )
        return settings._loop(
            loaded.model,
            requests,
            batch_size=batch_size,
            eos=loaded.generation.eos_token_ids,
            decode=None if loaded.tokenizer is None else loaded.tokenizer.decode,
            observe=observe,
        )

    @abstractmethod
    def _loop(
        self, model: DiffusionGemma, requests: Iterable[Request], **options: Any
    ) -> Iterator[Event]:
        """The mode's loop with these settings, which are resolved; `options` are those that all loops take."""

    def described(self) -> dict[str, Any]:
        """All settings as JSON values, for traces and records."""
        return {setting.name: _described(getattr(self, setting.name)) for setting in fields(self)}


def check_constraint(constraint: Any) -> None:
    """Raises RequestError for what is neither a Constraint nor None."""
    what = "a Constraint, e.g. Constraint.regex(…)"
    check_kind("constraint", constraint, Constraint | None, what)


def check_observe(observe: Any) -> None:
    """Raises RequestError for what is neither an Observe nor None."""
    check_kind("observe", observe, Observe | None, "an Observe, e.g. Observe(top_k=5), or None")


def _is_rule(value: Any) -> bool:
    """Whether it can plan, as samplers and draft rules do; their classes cannot."""
    return hasattr(value, "plan") and not isinstance(value, type)


def _described(value: Any) -> Any:
    if isinstance(value, StopRule):
        return asdict(value)
    return value if isinstance(value, int | float | str | None) else describe(value)


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(ModeSettings):
    """How canvases are written. None means the checkpoint's own value, save where a field says otherwise."""

    mode: ClassVar[Mode] = "diffusion"
    short: ClassVar[str] = ""
    sampler: Sampler | None = None
    steps: int | None = None
    """The most denoising steps of a canvas."""
    stop_rule: StopRule | Literal["checkpoint"] | None = "checkpoint"
    """None: every canvas takes all its steps."""
    soft_top_k: int | None = None
    """Self-condition on so many of the most probable tokens; None: on all, as the model was trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._convert("steps", "soft_top_k")
        if self.sampler is not None and not _is_rule(self.sampler):
            raise RequestError(
                f"sampler must be a rule such as EntropyBound(), got {shown(self.sampler)}"
            )
        if not (isinstance(self.stop_rule, str) and self.stop_rule == "checkpoint"):
            known = "a StopRule, None or 'checkpoint'"
            check_kind("stop_rule", self.stop_rule, StopRule | None, known)
        if self.steps is not None:
            (self.sampler or EntropyBound()).plan(
                self.steps
            )  # refuses steps that the sampler cannot take

    def resolved(self, loaded: Loaded) -> Self:
        """The same with the checkpoint's values filled in."""
        resolved = super().resolved(loaded)
        defaults = loaded.generation
        values: dict[str, Any] = {}
        if self.steps is None:
            values["steps"] = defaults.max_denoising_steps
        if self.sampler is None:
            values["sampler"] = EntropyBound(
                entropy_bound=defaults.entropy_bound, t_min=defaults.t_min, t_max=defaults.t_max
            )
        if self.stop_rule == "checkpoint":
            values["stop_rule"] = StopRule(
                stability=defaults.stability_threshold, confidence=defaults.confidence_threshold
            )
        return replace(resolved, **values)

    def _loop(
        self, model: DiffusionGemma, requests: Iterable[Request], **options: Any
    ) -> Iterator[Event]:
        assert self.steps is not None and self.stop_rule != "checkpoint"
        return denoise_canvases(
            model,
            requests,
            sampler=self.sampler,
            steps=self.steps,
            stop_rule=self.stop_rule,
            soft_top_k=self.soft_top_k,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class AutoregressiveSettings(ModeSettings):
    """How tokens are written, one after the other."""

    mode: ClassVar[Mode] = "autoregressive"
    short: ClassVar[str] = "ar"
    temperature: float | None = None
    """None or 0: the most probable token."""
    top_k: int | None = None
    """Sample from so many of the most probable tokens alone; None: from all."""
    top_p: float | None = None
    """Sample from the smallest set of tokens that holds this share of the probability, above 0 and at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._convert("top_k")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, finite_number(name, value))
        if self.filters is not None and not self.temperature:
            raise RequestError(
                "top_k and top_p have no effect at temperature 0: set a temperature, or leave them out"
            )

    @property
    def filters(self) -> Filters | None:
        """Top-k and top-p as the head takes them; None where neither is set."""
        filters = Filters(self.top_k, self.top_p)
        return None if filters == Filters() else filters

    def resolved(self, loaded: Loaded) -> Self:
        """The same with the checkpoint's values filled in."""
        return replace(super().resolved(loaded), temperature=self.temperature or 0.0)

    def _loop(
        self, model: DiffusionGemma, requests: Iterable[Request], **options: Any
    ) -> Iterator[Event]:
        assert self.temperature is not None
        return decode_tokens(
            model, requests, temperature=self.temperature, filters=self.filters, **options
        )


@dataclass(frozen=True, kw_only=True)
class SpeculativeSettings(AutoregressiveSettings):
    """How the denoiser drafts tokens that the causal mode verifies. The text is autoregression's."""

    mode: ClassVar[Mode] = "speculative"
    short: ClassVar[str] = "spec"
    draft: DraftRule | str | None = None
    """How much to draft a round: a rule, or "fixed", "adaptive" or "paying"; None: "adaptive"."""
    draft_positions: int | None = None
    """Positions of a fixed draft, the chosen first token included; None: a whole canvas."""
    draft_steps: int | None = None
    """Denoising steps of a draft; None: 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._convert("draft_positions", "draft_steps")
        self.draft_rule  # noqa: B018 (refuses options that do not go together)

    @property
    def draft_rule(self) -> DraftRule:
        """The rule that the draft's options name."""
        steps = 1 if self.draft_steps is None else self.draft_steps
        draft = self.draft
        if draft is None:
            draft = "adaptive" if self.draft_positions is None else "fixed"
        if not ((isinstance(draft, str) and draft in DRAFT_RULES) or _is_rule(draft)):
            raise RequestError(f"unknown draft {shown(draft)}: choose fixed, adaptive or paying")
        if draft == "fixed":
            return FixedDraft(positions=self.draft_positions, steps=steps)
        if self.draft_positions is not None:
            raise RequestError("draft_positions belongs to draft='fixed'")
        if isinstance(draft, str):
            return DRAFT_RULES[draft](steps=steps)
        if self.draft_steps is not None:
            raise RequestError("draft_steps has no effect on a rule: give the rule its steps")
        return draft

    def resolved(self, loaded: Loaded) -> Self:
        """The same with the checkpoint's values filled in, and the rule that the draft's options name. "paying" learns
        what a pass of this model costs."""
        rule = self.draft_rule
        if isinstance(rule, PayingDraft) and self.draft == "paying":
            rule = replace(rule, pass_tokens=pass_tokens(loaded.model))
        return replace(super().resolved(loaded), draft=rule, draft_positions=None, draft_steps=None)

    def _loop(
        self, model: DiffusionGemma, requests: Iterable[Request], **options: Any
    ) -> Iterator[Event]:
        assert self.temperature is not None
        return decode_speculative(
            model,
            requests,
            draft=self.draft_rule,
            temperature=self.temperature,
            filters=self.filters,
            **options,
        )


MODES: Mapping[Mode, type[ModeSettings]] = {
    kind.mode: kind for kind in (DiffusionSettings, AutoregressiveSettings, SpeculativeSettings)
}
"""The settings of each mode."""

_ADVICE = {("diffusion", "temperature"): "give the sampler its temperature instead"}
"""(mode, option of another mode) → what to do instead, where that is more than leaving it out."""


def settings_from(mode: str = "diffusion", **options: Any) -> ModeSettings:
    """The settings of a mode from options by name: `settings_from("autoregressive", temperature=0.7)`.

    Raises RequestError for an unknown mode or option, and for an option of another mode unless it holds that mode's
    default, which asks for nothing.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise RequestError(f"unknown mode {shown(mode)}: choose one of {', '.join(MODES)}")
    kind = next(kind for name, kind in MODES.items() if name == mode)
    given: dict[str, Any] = {}
    for option, value in options.items():
        homes = {
            home: setting.default
            for home, other in MODES.items()
            for setting in fields(other)
            if setting.name == option
        }
        if not homes:
            known = ", ".join(setting.name for setting in fields(kind))
            raise RequestError(f"unknown option {option}: mode {mode!r} has {known}")
        if mode in homes:
            given[option] = value
        elif not any(value is default for default in homes.values()):
            advice = _ADVICE.get((mode, option), f"it belongs to mode={next(iter(homes))!r}")
            raise RequestError(f"{option} has no meaning in mode {mode!r}: {advice}")
    return kind(**given)


Settings = settings_from
"""The public name of `settings_from`."""
