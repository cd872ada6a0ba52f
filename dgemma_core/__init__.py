"""DiffusionGemma in PyTorch: the model, its samplers, and the record of a run.

    import dgemma_core as dg
    loaded = dg.load("nano")
    print(dg.generate(loaded, "Spell backward:\\nSTEP")[0].text)

Everything public is here by name; modules are imported when a name of theirs is first used. `__init__.pyi` tells type
checkers the same names.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "autoregression": ("decode_tokens",),
    "cache": ("PrefixCache",),
    "constraints.language": ("Constraint",),
    "config": ("GenerationDefaults", "LayerConfig", "ModelConfig", "TextConfig"),
    "diffusion": ("denoise_canvases",),
    "draws": ("CounterDraws",),
    "errors": ("CheckpointError", "DeviceError", "DgemmaError", "RequestError"),
    "events": ("CanvasEvent", "DraftEvent", "FinishEvent", "PromptEvent", "StepEvent", "TokenEvent"),
    "files.checkpoint": ("Loaded", "load", "load_model"),
    "files.finding": ("read_config",),
    "files.saving": ("save_model",),
    "files.trace": ("Trace",),
    "generation": ("Chat", "Decision", "Generation", "decide", "generate", "prompt_ids"),
    "generation.drafting": ("AdaptiveDraft", "FixedDraft", "PayingDraft"),
    "head": ("Prediction",),
    "model": ("DiffusionGemma",),
    "observe": ("Observe", "Observed"),
    "request": ("DecodeState", "Request", "TokenState"),
    "speculation": ("DraftPlan", "DraftRule", "decode_speculative"),
    "samplers": ("BlockRefinement", "DiscreteDDIM", "EntropyBound", "StopRule", "sampler_from"),
    "generation.settings": ("AutoregressiveSettings", "DiffusionSettings", "Settings", "SpeculativeSettings"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports the module of a public name at its first use, so that reading a trace needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'dgemma_core' has no attribute {name!r}")
    value = getattr(import_module(f"dgemma_core.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
