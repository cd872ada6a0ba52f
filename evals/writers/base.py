"""What every writer is: it answers a request, and says what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lm_eval.api.instance import Instance

from dgemma_evals.writers.counting import Counts


@dataclass(frozen=True)
class Written:
    """An answer, as lm-eval gets it, and what it cost."""

    text: str
    counts: Counts


class Writer(Protocol):
    """One side of a comparison."""

    name: str
    deterministic: bool
    """The same text whatever the seed."""
    template: Any
    """Messages → prompt text, for lm-eval; None where there is no chat template."""
    tokenizer_name: str
    identity: str

    def check(self, gen_kwargs: Mapping[str, Any]) -> None:
        """Notes what of a request's arguments is ignored, as `write` does. Raises RequestError for a wrong one."""

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """The answer to a request; `more` overrides its gen_kwargs."""

    def describe(self) -> dict[str, Any]:
        """Model and settings, as plain values."""
