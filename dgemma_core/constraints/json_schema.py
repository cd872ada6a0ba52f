"""JSON Schemas as regular expressions, by outlines-core, and what it does not hold to is refused.

outlines-core passes over keywords that it does not know, which would let invalid texts through, so every keyword of a
schema is looked at first. Objects are written with their properties in the schema's order, and without others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from dgemma_core.constraints.patterns import compiled
from dgemma_core.errors import RequestError, shown

DEPTH = 3
"""How often a recursive schema is unfolded."""
LISTED = 4096
"""Most whole numbers between bounds: they are listed one by one."""
_NOTES = {
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly",
    "$defs", "definitions",
}  # fmt: skip
_KEYS = {
    "null": set(),
    "boolean": set(),
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_FORMATS = {"date", "date-time", "uuid"}


def schema_pattern(schema: Any, whitespace: str | None = None) -> str:
    """The regular expression of a JSON Schema's texts; whitespace: what may stand between tokens, `[ ]?` if None.

    Raises RequestError for a keyword that cannot be held to, naming its place.
    """
    from outlines_core.json_schema import build_regex_from_schema

    try:
        plain = _plain(schema, "#")
        found = build_regex_from_schema(
            json.dumps(plain, ensure_ascii=False), whitespace, max_recursion_depth=DEPTH
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"this JSON Schema cannot be a constraint: {_line(error)}") from error
    # Rust's \d holds the digits of all scripts
    return re.sub(r"(?<!\\)((?:\\\\)*)\\d", r"\1[0-9]", found)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).split(" Make sure")[0]


def _refused(place: str, why: str) -> RequestError:
    return RequestError(f"JSON Schema at {place}: {why}")


def _plain(schema: Any, place: str) -> dict[str, Any]:
    """The schema with what outlines-core does not know said otherwise, and checked."""
    if not isinstance(schema, Mapping):
        raise _refused(place, f"expected an object, got {shown(schema)}; say what may stand there")
    given = {key: value for key, value in schema.items() if key not in _NOTES}
    found: dict[str, Any] = {}
    for key in ("$defs", "definitions"):
        if key in schema:
            found[key] = {
                name: _plain(part, f"{place}/{key}/{name}") for name, part in schema[key].items()
            }
    if "$ref" in given:
        _only(given, {"$ref"}, place)
        reference = given["$ref"]
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refused(
                place, f"$ref {shown(reference)}: only definitions in the schema itself can be used"
            )
        return found | {"$ref": reference}
    if "const" in given or "enum" in given:
        values = [given["const"]] if "const" in given else given["enum"]
        _only(given, {"const", "enum", "type"}, place)
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise _refused(place, "enum needs a list of at least one value")
        if "type" in given:
            values = [value for value in values if _is(value, given["type"])]
        if not values:
            raise _refused(place, "no value of enum has the type")
        return found | {"enum": values}
    for key in ("anyOf", "oneOf"):
        if key in given:
            _only(given, {key, "type"}, place)
            parts = [_plain(part, f"{place}/{key}/{i}") for i, part in enumerate(given[key])]
            if key == "oneOf" and not _apart(parts):
                raise _refused(
                    place, "oneOf whose parts may overlap; use anyOf, or parts of different types"
                )
            return found | {"anyOf": parts}
    if "allOf" in given and len(given["allOf"]) == 1:
        _only(given, {"allOf"}, place)
        return found | _plain(given["allOf"][0], f"{place}/allOf/0")
    if "type" not in given:
        raise _refused(
            place,
            f"says no type; it has {', '.join(given) or 'nothing'}. Give type, enum, anyOf or $ref",
        )
    kinds = given["type"]
    if not isinstance(kinds, str):
        _only(given, {"type"}.union(*(_KEYS.get(kind, set()) for kind in kinds)), place)
        if not kinds:
            raise _refused(place, "type needs at least one type")
        parts = [{k: v for k, v in given.items() if k in _KEYS.get(kind, set())} for kind in kinds]
        return found | {
            "anyOf": [
                _typed({**part, "type": kind}, place)
                for part, kind in zip(parts, kinds, strict=True)
            ]
        }
    return found | _typed(given, place)


def _typed(given: dict[str, Any], place: str) -> dict[str, Any]:
    """A schema of one type."""
    kind = given["type"]
    if kind not in _KEYS:
        raise _refused(place, f"unknown type {shown(kind)}")
    _only(given, {"type", *_KEYS[kind]}, place)
    if kind == "integer":
        return _integer(given, place)
    if kind == "string":
        return _string(given, place)
    if kind == "array":
        return _array(given, place)
    if kind == "object":
        return _object(given, place)
    return given


def _only(given: Mapping[str, Any], known: set[str], place: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise _refused(
            place,
            f"{', '.join(unknown)} cannot be held to here; leave it out, or write a regular expression",
        )


def _integer(given: dict[str, Any], place: str) -> dict[str, Any]:
    bounds = {key: value for key, value in given.items() if key != "type"}
    if not bounds:
        return given
    low = max(bounds.get("minimum", -(10**18)), bounds.get("exclusiveMinimum", -(10**18) - 1) + 1)
    high = min(bounds.get("maximum", 10**18), bounds.get("exclusiveMaximum", 10**18 + 1) - 1)
    low, high = -(-low // 1), high // 1
    if not 0 <= high - low < LISTED:
        raise _refused(
            place,
            f"whole numbers need both bounds, and at most {LISTED} numbers between them; got {low} … {high}",
        )
    return {"enum": list(range(int(low), int(high) + 1))}


def _string(given: dict[str, Any], place: str) -> dict[str, Any]:
    if "format" in given and given["format"] not in _FORMATS:
        raise _refused(
            place, f"format {shown(given['format'])}: known are {', '.join(sorted(_FORMATS))}"
        )
    if len({"pattern", "format"} & set(given)) + bool({"minLength", "maxLength"} & set(given)) > 1:
        raise _refused(
            place, "pattern, format and lengths exclude each other; say the length in the pattern"
        )
    if "pattern" in given:
        language = compiled(re.sub(r"^\^|(?<!\\)\$$", "", given["pattern"]))
        spoilt = [
            byte
            for byte in (*range(32), ord('"'), ord("\\"))
            if (language.delta[:, byte] >= 0).any()
        ]
        if spoilt:
            raise _refused(
                place,
                f"the pattern {shown(given['pattern'])} can write {chr(spoilt[-1])!r}, which JSON writes otherwise; "
                'say what may stand there without it, e.g. [^"\\\\]',
            )
    return given


def _array(given: dict[str, Any], place: str) -> dict[str, Any]:
    found = dict(given)
    if "prefixItems" in given:
        if given.get("items") is not False or {"minItems", "maxItems"} & set(given):
            raise _refused(place, 'prefixItems needs "items": false, and no counts')
        parts = given["prefixItems"]
        found["prefixItems"] = [
            _plain(part, f"{place}/prefixItems/{i}") for i, part in enumerate(parts)
        ]
        return found
    if "items" not in given:
        raise _refused(place, "an array needs items, which say what it holds")
    if given.get("minItems", 0) > given.get("maxItems", given.get("minItems", 0)):
        raise _refused(place, "minItems is above maxItems")
    found["items"] = _plain(given["items"], f"{place}/items")
    return found


def _object(given: dict[str, Any], place: str) -> dict[str, Any]:
    if "properties" not in given:
        raise _refused(place, "an object needs properties, which say what it holds")
    missing = set(given.get("required", ())) - set(given["properties"])
    if missing:
        raise _refused(
            place, f"required names {', '.join(sorted(missing))}, which properties do not say"
        )
    for name in given["properties"]:
        if json.dumps(name, ensure_ascii=False)[1:-1] != name:
            raise _refused(
                place, f"the property {shown(name)} needs escapes, which cannot be written"
            )
    found = {key: value for key, value in given.items() if key != "additionalProperties"}
    found["properties"] = {
        name: _plain(part, f"{place}/properties/{name}")
        for name, part in given["properties"].items()
    }
    return found


def _is(value: Any, kinds: str | Sequence[str]) -> bool:
    """Whether a JSON value has one of the types."""
    by_type = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "string": isinstance(value, str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    return any(by_type.get(kind, False) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _apart(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no value can satisfy two of the parts."""
    kinds = [part.get("type") for part in parts]
    if all("enum" in part for part in parts):
        return all(
            not any(
                a == b and isinstance(a, bool) == isinstance(b, bool)
                for a in one["enum"]
                for b in other["enum"]
            )
            for one, other in combinations(parts, 2)
        )
    known = all(isinstance(kind, str) for kind in kinds) and len(set(kinds)) == len(kinds)
    return known and not {"integer", "number"} <= set(kinds)
