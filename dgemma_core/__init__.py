"""DiffusionGemma in PyTorch: the model, its samplers, and the record of a run.

    import dgemma_core as dg
    loaded = dg.load("nano")
    print(dg.generate(loaded, "Spell backward:\\nSTEP")[0].text)

Everything public is here by name; modules are imported when a name of theirs is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgemma_core.autoregression import decode_tokens as decode_tokens
    from dgemma_core.cache import PrefixCache as PrefixCache
    from dgemma_core.config import GenerationDefaults as GenerationDefaults
    from dgemma_core.config import LayerConfig as LayerConfig
    from dgemma_core.config import ModelConfig as ModelConfig
    from dgemma_core.config import TextConfig as TextConfig
    from dgemma_core.diffusion import denoise_canvases as denoise_canvases
    from dgemma_core.draws import CounterDraws as CounterDraws
    from dgemma_core.errors import CheckpointError as CheckpointError
    from dgemma_core.errors import DeviceError as DeviceError
    from dgemma_core.errors import DgemmaError as DgemmaError
    from dgemma_core.errors import RequestError as RequestError
    from dgemma_core.events import CanvasEvent as CanvasEvent
    from dgemma_core.events import DraftEvent as DraftEvent
    from dgemma_core.events import FinishEvent as FinishEvent
    from dgemma_core.events import PromptEvent as PromptEvent
    from dgemma_core.events import StepEvent as StepEvent
    from dgemma_core.events import TokenEvent as TokenEvent
    from dgemma_core.files.checkpoint import Loaded as Loaded
    from dgemma_core.files.checkpoint import load as load
    from dgemma_core.files.checkpoint import load_model as load_model
    from dgemma_core.files.finding import read_config as read_config
    from dgemma_core.files.saving import save_model as save_model
    from dgemma_core.files.trace import Trace as Trace
    from dgemma_core.generation import Chat as Chat
    from dgemma_core.generation import Generation as Generation
    from dgemma_core.generation import generate as generate
    from dgemma_core.generation import prompt_ids as prompt_ids
    from dgemma_core.head import Prediction as Prediction
    from dgemma_core.model import DiffusionGemma as DiffusionGemma
    from dgemma_core.observe import Observe as Observe
    from dgemma_core.observe import Observed as Observed
    from dgemma_core.request import DecodeState as DecodeState
    from dgemma_core.request import Request as Request
    from dgemma_core.request import TokenState as TokenState
    from dgemma_core.samplers import BlockRefinement as BlockRefinement
    from dgemma_core.samplers import DiscreteDDIM as DiscreteDDIM
    from dgemma_core.samplers import EntropyBound as EntropyBound
    from dgemma_core.samplers import StopRule as StopRule
    from dgemma_core.samplers import sampler_from as sampler_from
    from dgemma_core.settings import AutoregressiveSettings as AutoregressiveSettings
    from dgemma_core.settings import DiffusionSettings as DiffusionSettings
    from dgemma_core.settings import Settings as Settings
    from dgemma_core.speculation import AdaptiveDraft as AdaptiveDraft
    from dgemma_core.speculation import FixedDraft as FixedDraft
    from dgemma_core.speculation import decode_speculative as decode_speculative

_HOMES = {
    "autoregression": ("decode_tokens",),
    "cache": ("PrefixCache",),
    "config": ("GenerationDefaults", "LayerConfig", "ModelConfig", "TextConfig"),
    "diffusion": ("denoise_canvases",),
    "draws": ("CounterDraws",),
    "errors": ("CheckpointError", "DeviceError", "DgemmaError", "RequestError"),
    "events": (
        "CanvasEvent",
        "DraftEvent",
        "FinishEvent",
        "PromptEvent",
        "StepEvent",
        "TokenEvent",
    ),
    "files.checkpoint": ("Loaded", "load", "load_model"),
    "files.finding": ("read_config",),
    "files.saving": ("save_model",),
    "files.trace": ("Trace",),
    "generation": ("Chat", "Generation", "generate", "prompt_ids"),
    "head": ("Prediction",),
    "model": ("DiffusionGemma",),
    "observe": ("Observe", "Observed"),
    "request": ("DecodeState", "Request", "TokenState"),
    "speculation": ("AdaptiveDraft", "FixedDraft", "decode_speculative"),
    "samplers": ("BlockRefinement", "DiscreteDDIM", "EntropyBound", "StopRule", "sampler_from"),
    "settings": ("AutoregressiveSettings", "DiffusionSettings", "Settings"),
}
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
