"""A constraint as a value: which texts may be written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dgemma_core.errors import RequestError, shown

if TYPE_CHECKING:
    from dgemma_core.constraints.automaton import TokenAutomaton
    from dgemma_core.files.checkpoint import Loaded

Kind = Literal["regex", "json_schema", "choices"]


@dataclass(frozen=True)
class Constraint:
    """The language of a text, from its first token to its end. Make it with `regex`, `json_schema` or `choices`."""

    kind: Kind
    source: str
    """The regular expression; or the JSON Schema or the list of choices, as JSON."""
    whitespace: str | None = None
    """JSON Schema: a regular expression of what may stand between tokens of JSON; None: one blank or none."""
    joint: bool = False
    """A canvas's samples are one text of the language, drawn exactly, instead of one token a position out of those that
    the language holds there. The committed text is in the language in any case."""
    name: ClassVar[str] = "constraint"

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """The texts that a regular expression matches as a whole; Rust's syntax, without look-around."""
        if not isinstance(pattern, str):
            raise RequestError(f"a regular expression must be a text, got {shown(pattern)}")
        return cls("regex", pattern)

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | str, whitespace: str | None = None
    ) -> Constraint:
        """JSON texts that a schema (or its own JSON text) allows, properties in its order. Recursion is bounded."""
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
            return cls("json_schema", json.dumps(found, ensure_ascii=False), whitespace)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the JSON Schema is no JSON ({error}): correct it") from error

    @classmethod
    def choices(cls, choices: Iterable[str]) -> Constraint:
        """One of some texts."""
        found = None if isinstance(choices, str) else list(choices)
        if not found or not all(isinstance(choice, str) for choice in found):
            raise RequestError(f"choices must be a list of at least one text, got {shown(choices)}")
        return cls("choices", json.dumps(found, ensure_ascii=False))

    def compile(self, loaded: Loaded) -> TokenAutomaton:
        """The language over a checkpoint's tokens; kept in memory and on disk.

        Raises RequestError where the source is none, no text satisfies it, or the tokens cannot spell one.
        """
        from dgemma_core.constraints.building import built

        return built(self, loaded)


def listed(choices: str) -> list[str]:
    """Texts between bars, as a command line names them; a bar in a text is written \\|."""
    parts = re.split(r"(?<!\\)\|", choices)
    return [part.replace("\\|", "|") for part in parts]


def read_constraint(
    regex: str | None, schema: str | os.PathLike[str] | None, choices: str | None
) -> Constraint | None:
    """The constraint that options name: a regular expression, a JSON Schema's file, or texts between bars.

    None where none is named. Raises RequestError for two of them, and for a file that cannot be read.
    """
    if sum(option is not None for option in (regex, schema, choices)) > 1:
        raise RequestError("regex, json_schema and choices exclude each other: give one of them")
    if regex is not None:
        return Constraint.regex(regex)
    if choices is not None:
        return Constraint.choices(listed(choices))
    if schema is None:
        return None
    try:
        return Constraint.json_schema(Path(schema).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        name = str(schema).replace("\0", "\\0")
        raise RequestError(f"{name}: the JSON Schema cannot be read ({error})") from error
