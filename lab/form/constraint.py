"""Fields of a form that ask for a constraint, folded away at first, and the constraint that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dgemma_core.constraints.language import Constraint, listed
from dgemma_core.errors import RequestError
from dgemma_core.generation.settings import check_constraint
from dgemma_lab.form.form import Field

KINDS = {
    "": "anything",
    "regex": "a regular expression",
    "json_schema": "a JSON Schema",
    "choices": "one of several choices",
}
"""Kinds of constraints, as the field shows them."""
_LABELS = {
    "regex": ("text", "which the whole answer must match", "[a-z]+( [a-z]+)*"),
    "json_schema": ("area", "of the answer", None),
    "choices": ("text", "with bars between them", "yes|no"),
}


def constraint_fields() -> list[Field]:
    """A choice of the kind, and under each kind its own text, which is kept when another kind is chosen."""
    kind: Field = {
        "name": "constraint", "kind": "choice", "label": "the answer must be", "advanced": True,
        "options": [{"value": value, "label": label} for value, label in KINDS.items()],
    }  # fmt: skip
    return [kind] + [
        {"name": name, "kind": control, "label": label, "placeholder": example, "advanced": True,
         "when": {"constraint": [name]}, "wide": True}
        for name, (control, label, example) in _LABELS.items()
    ]  # fmt: skip


def constraint_values(constraint: Constraint | None = None) -> dict[str, str]:
    """What these fields hold at first."""
    check_constraint(constraint)
    values = {"constraint": "", **dict.fromkeys(_LABELS, "")}
    if constraint is None:
        return values
    source = constraint.source
    if constraint.kind == "choices":
        source = "|".join(choice.replace("|", "\\|") for choice in json.loads(source))
    return {**values, "constraint": constraint.kind, constraint.kind: source}


def constraint_from(values: Mapping[str, Any]) -> Constraint | None:
    """The constraint that the fields name, None for none. Raises RequestError where its text is none."""
    kind = values.get("constraint") or ""
    if not kind:
        return None
    text = values[kind] or ""
    if not text.strip():
        raise RequestError(
            f"the answer must be {KINDS[kind]}: write it in its field, or choose “{KINDS['']}”"
        )
    if kind == "regex":
        return Constraint.regex(text)
    return (
        Constraint.json_schema(text) if kind == "json_schema" else Constraint.choices(listed(text))
    )
