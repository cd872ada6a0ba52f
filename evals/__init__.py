"""Measures and compares: lm-eval models and tasks, timing, statistics, reports."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgemma_evals.harness.models import DGemma, DGemmaAR, DGemmaSpec

__all__ = ["DGemma", "DGemmaAR", "DGemmaSpec"]


def __getattr__(name: str) -> Any:
    """The lm-eval models, imported when they are first asked for: lm-eval takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dgemma_evals.harness import models

    return getattr(models, name)
