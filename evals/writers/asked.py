"""What a request asks of a text, read the same way for every writer.

Public tasks bring arguments of other libraries. What a writer cannot honour it ignores, and says so once: `Ignored`
keeps the names and values for the results. A name that is no known argument of anything is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgemma_core import RequestError
from dgemma_core.errors import shown
from dgemma_core.request import stop_strings

_log = logging.getLogger(__name__)

LIMIT = 256
"""Tokens of an answer where nobody sets a limit: lm-eval's own."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the token limit; the first that is given holds, as in lm-eval."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
FOREIGN_ARGUMENTS = (
    *SAMPLING, "num_beams", "num_return_sequences", "early_stopping", "length_penalty", "repetition_penalty",
    "no_repeat_ngram_size", "presence_penalty", "frequency_penalty", "best_of", "n", "use_cache", "seed",
)  # fmt: skip
"""Arguments of other libraries that public tasks bring."""


@dataclass(frozen=True)
class Asked:
    """A request's `gen_kwargs`: token limit (None: not set), stop strings, `do_sample`, and all other arguments."""

    limit: int | None
    stop: tuple[str, ...]
    do_sample: bool | None
    rest: Mapping[str, Any]

    @classmethod
    def of(cls, gen_kwargs: Mapping[str, Any]) -> Asked:
        """Raises RequestError for a limit that is no whole number of at least 1."""
        rest = dict(gen_kwargs)
        until = stop_strings(rest.pop("until", None))
        limits = [rest.pop(name, None) for name in LIMITS]
        limit = next((value for value in limits if value is not None), None)
        if limit is not None:
            try:
                whole = int(limit)
            except (TypeError, ValueError, OverflowError):
                whole = 0
            if whole < 1 or (isinstance(limit, float) and whole != limit):
                said = f"max_gen_toks: expected a whole number from 1, got {shown(limit)}"
                raise RequestError(said)
            limit = whole
        do_sample = rest.pop("do_sample", None)
        given = {name: value for name, value in rest.items() if value is not None}
        return cls(limit, tuple(text for text in until if text), do_sample, given)

    def gen_kwargs(self, default: int) -> dict[str, Any]:
        """The same in lm-eval's names, with a limit in any case."""
        found = {"until": list(self.stop), "max_gen_toks": self.limit or default, **self.rest}
        return found if self.do_sample is None else {**found, "do_sample": self.do_sample}


def asked_of_greedy(
    name: str, gen_kwargs: Mapping[str, Any], more: Mapping[str, Any], ignored: Ignored
) -> Asked:
    """What a greedy writer is asked; adds to `ignored` what it cannot honour.

    name: the writer's; more: settings of a sampler. Raises RequestError for any of these.
    """
    if more:
        raise RequestError(f"{', '.join(more)} has no meaning for {name}")
    asked = Asked.of(gen_kwargs)
    ignored.add(greedily_ignored(asked))
    return asked


def greedily_ignored(asked: Asked) -> dict[str, Any]:
    """What a greedy writer does not honour; do_sample=False and temperature 0 it does.

    Raises RequestError for a name that is no known argument.
    """
    ignored = {"do_sample": True} if asked.do_sample else {}
    for name, value in asked.rest.items():
        if name not in FOREIGN_ARGUMENTS:
            raise RequestError(f"{name} has no meaning for a greedy writer: leave it out")
        if name != "temperature" or value:
            ignored[name] = value
    return ignored


class Ignored:
    """Arguments that a writer did not honour, each told once."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name not in self._values:
                _log.warning("%s=%s is ignored: the model cannot honour it", name, value)
            seen = self._values.setdefault(name, [])
            if value not in seen:
                seen.append(value)

    def facts(self) -> dict[str, Any]:
        """For results: nothing where everything was honoured."""
        return {"ignored_arguments": dict(self._values)} if self._values else {}
