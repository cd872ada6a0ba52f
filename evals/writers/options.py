"""The arguments of the lm-eval models, by lm-eval's names and the samplers' public ones.

Every argument either has an effect or is refused: with a wrong name, in the wrong mode, or where
another argument makes it meaningless.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from dgemma_core import (
    GenerationDefaults,
    RequestError,
    StopRule,
    sampler_from,
)
from dgemma_core.backends import check_name
from dgemma_core.constraints.language import Constraint, read_constraint
from dgemma_core.errors import shown
from dgemma_core.events import Mode
from dgemma_core.files.finding import SHIPPED
from dgemma_core.files.quantised import scheme
from dgemma_core.generation.settings import MODES, ModeSettings, settings_from
from dgemma_core.samplers import SAMPLERS
from dgemma_evals.hashes import digest, fingerprint
from dgemma_evals.writers.asked import FOREIGN_ARGUMENTS, LIMITS, Asked

Likelihood = Literal["ar_encoder", "nelbo", "slot"]
LIKELIHOODS: Mapping[str, str] = {
    "ar_encoder": "ar_encoder: exact, the chain rule through the causal encoder",
    "nelbo": "nelbo: an upper bound on -log p by the denoiser, the end included; no perplexity",
    "slot": "slot: log of a choice's share among its question's, read from a slot on the canvas; no likelihood",
}
FOREIGN = ("hf:", "gguf:", "http://", "https://")
"""How names of models begin that this project does not run itself."""
_RULE = ("stability_threshold", "confidence_threshold")
_WRITING = (
    "sampler", "steps", "soft_top_k", *_RULE,
    *dict.fromkeys(option.name for rule in SAMPLERS.values() for option in fields(rule)),
)  # fmt: skip
_INTEGERS = (
    "steps",
    "draft_positions",
    "draft_steps",
    "soft_top_k",
    "stability_threshold",
    "top_k",
    "corrector_steps",
    "corrector_k",
)
_CONSTRAINT = ("regex", "json_schema", "choices")
"""A regular expression, a JSON Schema's file, or texts between bars: what every text must be."""
_HARNESS = ("until", *LIMITS, "do_sample")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `--model_args` (and lm-eval's own flags) may say of a model.

    quantize: int8 or int4, the weights as they are if None. adapter: the folder of one, in PEFT's
    layout. backend: what runs the passes.
    batch_size: a number, or auto.
    max_length: tokens of prompt and answer together, the model's own limit if None; a longer prompt
    loses its beginning. max_gen_toks: where neither task nor `--gen_kwargs` sets a limit, the
    checkpoint's own if None. likelihood_samples: noise levels a canvas of the bound. slot_passes:
    denoising steps of slots. records: the
    folder of the records, none are kept if None. writing: sampler settings by name.
    """

    mode: Mode
    pretrained: str = "nano"
    revision: str | None = None
    dtype: str = "auto"
    quantize: str | None = None
    adapter: str | None = None
    device: str = "auto"
    backend: str = "auto"
    batch_size: str = "1"
    max_batch_size: int | None = None
    max_length: int | None = None
    max_gen_toks: int | None = None
    seed: int = 0
    enable_thinking: bool = False
    think_end_token: str | None = None
    likelihood: str = "ar_encoder"
    likelihood_samples: int = 64
    slot_passes: int = 1
    records: str | None = None
    writing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if re.fullmatch(r"auto:.+", self.batch_size):
            raise RequestError(
                f"batch_size {self.batch_size}: sizing anew as documents shorten has no effect where rows "
                "join and leave a batch one by one; use auto"
            )
        if not re.fullmatch(r"auto|[1-9]\d*", self.batch_size):
            raise RequestError(f"batch_size: expected a number or auto, got {self.batch_size}")
        if self.max_batch_size is not None and not self.auto_batch:
            raise RequestError(
                "max_batch_size has an effect with batch_size auto only: leave it out"
            )
        for name in ("max_batch_size", "max_length", "max_gen_toks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name}: expected at least 1, got {value}")
        check_name(self.backend)
        if self.quantize is not None:
            scheme(self.quantize)
        if self.adapter is not None and not _is_folder(self.adapter):
            raise RequestError(f"adapter {self.adapter}: expected a folder, found none")
        if self.enable_thinking and _constraint(self.writing) is not None:
            raise RequestError(
                "a constraint holds for whole answers, thoughts too: leave enable_thinking off"
            )
        if self.seed < 0:
            raise RequestError(f"seed: expected 0 or above, got {self.seed}")
        if self.likelihood not in LIKELIHOODS:
            choices = ", ".join(LIKELIHOODS)
            raise RequestError(f"likelihood: choose one of {choices}, not {self.likelihood}")
        if self.mode != "diffusion" and self.likelihood != "ar_encoder":
            raise RequestError(f"{self.likelihood} is of the denoiser: use --model dgemma for it")
        if self.likelihood != "nelbo" and self.likelihood_samples != 64:
            raise RequestError("likelihood_samples has an effect with likelihood=nelbo only")
        if self.likelihood != "slot" and self.slot_passes != 1:
            raise RequestError("slot_passes has an effect with likelihood=slot only")
        if self.slot_passes < 1:
            raise RequestError(f"slot_passes: expected at least 1, got {self.slot_passes}")
        local = self.pretrained in SHIPPED or _is_folder(self.pretrained)
        if self.revision is not None and local:
            raise RequestError("revision is of a checkpoint on the hub: leave it out for a folder")
        self.settings(GenerationDefaults())  # refuses what is wrong before a long load

    @property
    def auto_batch(self) -> bool:
        """The batch size is to be found."""
        return self.batch_size == "auto"

    @classmethod
    def parse(cls, mode: Mode, given: Mapping[str, Any]) -> Options:
        """From names and values as a command line or YAML holds them."""
        own = {f.name: f for f in fields(cls) if f.name not in ("mode", "writing")}
        values: dict[str, Any] = {}
        writing: dict[str, Any] = {}
        for name, value in given.items():
            if value is None or (name == "records" and str(value).lower() == "none"):
                continue
            if name in own:
                values[name] = _typed(name, value, str(own[name].type))
            elif any(name in _allowed(other) for other in MODES):
                writing[name] = value
            else:
                valid = ", ".join((*own, *_allowed(mode)))
                raise RequestError(f"unknown model argument {name}: valid are {valid}")
        return cls(mode=mode, **values, writing=_checked(mode, writing))

    def settings(
        self, defaults: GenerationDefaults, more: Mapping[str, Any] | None = None
    ) -> ModeSettings:
        """How to write, with the checkpoint's defaults; `more` are a task's `gen_kwargs`."""
        writing = {**self.writing, **_checked(self.mode, more or {})}
        constraint = _constraint(writing)
        writing = {name: value for name, value in writing.items() if name not in _CONSTRAINT}
        if self.mode != "diffusion":
            return settings_from(self.mode, constraint=constraint, **writing)
        name = str(writing.pop("sampler", "entropy_bound"))
        steps, soft_top_k = writing.pop("steps", None), writing.pop("soft_top_k", None)
        rule = {key: writing.pop(key) for key in _RULE if key in writing}
        if name == "entropy_bound":
            known = ("entropy_bound", "t_min", "t_max")
            writing = {key: getattr(defaults, key) for key in known} | writing
        stop = StopRule(
            stability=rule.get("stability_threshold", defaults.stability_threshold),
            confidence=rule.get("confidence_threshold", defaults.confidence_threshold),
        )
        sampler = sampler_from(name, **writing)
        sampler.plan(defaults.max_denoising_steps if steps is None else steps)
        return settings_from(
            self.mode, sampler=sampler, steps=steps, stop_rule=stop, soft_top_k=soft_top_k,
            constraint=constraint,
        )  # fmt: skip

    def request_settings(
        self, gen_kwargs: Mapping[str, Any], defaults: GenerationDefaults
    ) -> tuple[ModeSettings, Asked, dict[str, Any]]:
        """Settings of one request, what else it asks (its limit set), and what is ignored of it.

        do_sample=False and temperature 0 are what the harness puts into every request: greedy for
        `dgemma-ar` and `dgemma-spec`, and for diffusion "the sampler as it is". Raises RequestError for an argument
        that is nobody's.
        """
        asked = Asked.of(gen_kwargs)
        limit = asked.limit or self.max_gen_toks or defaults.max_new_tokens
        given, ignored = dict(asked.rest), {}
        if not asked.do_sample and (asked.do_sample is False or not given.get("temperature")):
            given.pop("temperature", None)
        elif asked.do_sample and self.mode != "diffusion":
            given.setdefault("temperature", 1.0)
        elif asked.do_sample:
            ignored["do_sample"] = True  # a diffusion sampler always draws
        meant = self._meant(given)
        for name in FOREIGN_ARGUMENTS:
            if name in given and name not in meant:
                ignored[name] = given.pop(name)
        return self.settings(defaults, given), replace(asked, limit=limit), ignored

    def _meant(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of the sampling arguments of other libraries this model's sampler has, too."""
        if self.mode != "diffusion":
            return ("temperature",)
        writing = {**self.writing, **given}
        rule = SAMPLERS.get(str(writing.get("sampler", "entropy_bound")))
        has = [] if rule is None else [option.name for option in fields(rule)]
        if "temperature" in has and not writing.get("temperature"):
            has = [name for name in has if name not in ("top_k", "top_p")]  # no effect at 0
        return tuple(has)

    def identity(self) -> str:
        """The hash of everything that decides an answer: weights and their form, sampler, limits, seed."""
        return digest(
            self.mode,
            fingerprint(self.folder()),
            self.dtype,
            dict(self.writing),
            [self.max_length, self.max_gen_toks, self.seed],
            [self.enable_thinking, self.think_end_token],
            [self.likelihood, self.likelihood_samples],
            *([] if self.slot_passes == 1 else ["slot_passes", self.slot_passes]),
            *([] if (found := _constraint(self.writing)) is None else [found.kind, found.source]),
            *([] if self.quantize is None else [self.quantize]),
            *([] if self.adapter is None else ["adapter", fingerprint(Path(self.adapter))]),
            *([] if self.backend == "auto" else [f"backend {self.backend}"]),
        )

    def folder(self) -> Path:
        """The checkpoint's folder; a hub checkpoint is downloaded if need be."""
        from dgemma_core.files.finding import find_folder

        if self.revision is None:
            return find_folder(self.pretrained)
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.jinja", "model*.safetensors"]
            return Path(
                snapshot_download(self.pretrained, revision=self.revision, allow_patterns=patterns)
            )
        except Exception as error:  # whatever network, hub and cache may raise
            reason = str(error).strip().partition("\n")[0]
            raise RequestError(
                f"{self.pretrained} at revision {self.revision}: not found ({reason}); check both"
            ) from error


def _is_folder(name: str) -> bool:
    return os.path.isdir(os.path.expanduser(name))


def _allowed(mode: Mode) -> tuple[str, ...]:
    """Sampler settings by name: diffusion's are those of its samplers, the others' those of their dataclass."""
    if mode == "diffusion":
        return (*_WRITING, *_CONSTRAINT)
    own = (f.name for f in fields(MODES[mode]) if f.name not in ("max_new_tokens", "constraint"))
    return (*own, *_CONSTRAINT)


def _constraint(writing: Mapping[str, Any]) -> Constraint | None:
    """What the options of a constraint name; None where there are none."""
    regex, schema, choices = (writing.get(name) for name in _CONSTRAINT)
    return read_constraint(regex, schema, choices)


def split_mode(spec: str) -> tuple[str, Mode]:
    """A checkpoint's name and the mode that it is to write in: `nano:ar` → ("nano", "autoregressive")."""
    name, _, short = spec.rpartition(":")
    for mode, kind in MODES.items():
        if name and kind.short == short != "":
            return name, mode
    return spec, "diffusion"


def _checked(mode: Mode, writing: Mapping[str, Any]) -> dict[str, Any]:
    """Sampler settings with their types; what the mode does not know is refused."""
    values: dict[str, Any] = {}
    for name, value in writing.items():
        if name not in _allowed(mode):
            known = any(name in _allowed(other) for other in MODES)
            kind = f"no meaning in mode {mode!r}" if known else "no meaning here"
            valid = ", ".join((*_HARNESS, *_allowed(mode)))
            raise RequestError(f"{name} has {kind}: valid are {valid}")
        if value is None:
            values[name] = None
        elif name in ("sampler", "draft", *_CONSTRAINT):
            values[name] = _typed(name, value, "str")
        else:
            values[name] = _typed(name, value, "int" if name in _INTEGERS else "float")
    return values


def _typed(name: str, value: Any, type: str) -> Any:
    """`value` as the annotation says; RequestError where it cannot be that."""
    try:
        if type.startswith("int") and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if type.startswith("float") and not isinstance(value, bool):
            return float(value)
        if type.startswith("bool"):
            return {"true": True, "false": False}[str(value).lower()]
        if type.startswith("str") and isinstance(value, str | int | float | os.PathLike):
            return str(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    raise RequestError(f"{name}: expected {type.partition(' ')[0]}, got {shown(value)}")
