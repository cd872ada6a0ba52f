"""JSON Schemas drawn from all that a constraint can hold to."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_ äé.*", min_size=1, max_size=5)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1000, 1000), st.sampled_from([0.5, -1.25, 1e20, 1e-7]),
    st.text(max_size=5), st.lists(st.integers(0, 9), max_size=2), st.just({"k": [True]}),
)  # fmt: skip


def _string(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(["free", "length", "pattern", "format"]))
    if kind == "length":
        low, more = draw(st.integers(0, 3)), draw(st.integers(0, 4))
        bounds = {"minLength": low, "maxLength": low + more}
        keep = draw(st.sampled_from([("minLength",), ("maxLength",), ("minLength", "maxLength")]))
        return {"type": "string", **{key: bounds[key] for key in keep}}
    if kind == "pattern":
        patterns = ["^[a-z]{2,4}$", "[A-Z]+x?", r"\d{2}-\d", "^(ab|abc)*$", '[^"\\\\\x00-\x1f]?q']
        return {"type": "string", "pattern": draw(st.sampled_from(patterns))}
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(["date", "uuid", "date-time"]))}
    return {"type": "string"}


@st.composite
def leaves(draw: Any) -> dict[str, Any]:
    """A schema without parts."""
    kind = draw(st.sampled_from(["type", "integer", "string", "enum", "const", "types"]))
    if kind == "integer":
        low, more = draw(st.integers(-20, 20)), draw(st.integers(0, 30))
        low_key = draw(st.sampled_from(["minimum", "exclusiveMinimum"]))
        return {"type": "integer", low_key: low, "maximum": low + more + 1}
    if kind == "string":
        return _string(draw)
    if kind == "enum":
        return {"enum": draw(st.lists(VALUES, min_size=1, max_size=3))}
    if kind == "const":
        return {"const": draw(VALUES)}
    if kind == "types":
        kinds = ["null", "boolean", "integer", "string"]
        return {"type": draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True))}
    return {"type": draw(st.sampled_from(["null", "boolean", "integer", "number"]))}


def _larger(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def built(draw: Any) -> dict[str, Any]:
        kind = draw(
            st.sampled_from(["object", "object", "array", "tuple", "anyOf", "oneOf", "title"])
        )
        if kind == "object":
            properties = draw(st.dictionaries(NAMES, parts, max_size=3))
            required = [name for name in properties if draw(st.booleans())]
            closed = {"additionalProperties": False} if draw(st.booleans()) else {}
            return {"type": "object", "properties": properties, "required": required, **closed}
        if kind == "array":
            low, more = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            bounds = {"minItems": low, "maxItems": low + more}
            keep = draw(
                st.sampled_from([(), ("minItems",), ("maxItems",), ("minItems", "maxItems")])
            )
            return {"type": "array", "items": draw(parts), **{key: bounds[key] for key in keep}}
        if kind == "tuple":
            found = draw(st.lists(parts, min_size=1, max_size=2))
            return {"type": "array", "prefixItems": found, "items": False}
        if kind == "oneOf":
            return {
                "oneOf": [{"type": "null"}, {"type": "boolean"}, {"type": "string", "maxLength": 2}]
            }
        if kind == "anyOf":
            return {"anyOf": draw(st.lists(parts, min_size=1, max_size=2))}
        return {"title": "t", "description": "d", **draw(parts)}

    return built()


@st.composite
def schemas(draw: Any) -> dict[str, Any]:
    """A schema, sometimes with a definition that it refers to, once recursive."""
    whole = draw(st.recursive(leaves(), _larger, max_leaves=5))
    kind = draw(st.sampled_from(["plain", "plain", "plain", "definition", "recursive"]))
    if kind == "definition":
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {"part": whole},
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/part"}, "b": {"$ref": "#/$defs/part"}},
            "required": ["a"],
        }
    if kind == "recursive":
        node = {
            "type": "object",
            "properties": {"v": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
        }
        return {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    return whole
