"""Random weights under drawn schemas: every text parses, validates and keeps to its limit."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from dgemma_core import Constraint, RequestError
from dgemma_core.constraints.examples import examined
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import generate
from tests.constraints.schemas import schemas
from tests.core import tiny

WAYS: dict[str, dict[str, Any]] = {
    "diffusion": {"steps": 3},
    "autoregressive": {"temperature": 1.0},
    "speculative": {"temperature": 1.0, "draft": "fixed"},
}
QUICK = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate],
}


@pytest.fixture(scope="module")
def random_weights() -> Loaded:
    return tiny.loaded()


def written(loaded: Loaded, schema: dict[str, Any], seed: int, more: int) -> None:
    constraint = Constraint.json_schema(schema)
    automaton = constraint.compile(loaded)
    assume(automaton.states < 3000)
    limit = int(automaton.tokens_to_end[automaton.start]) + more
    mode = sorted(WAYS)[seed % 3]
    (generation,) = generate(
        loaded, [7, 8, 9], mode=mode, seed=seed, max_new_tokens=max(1, limit), constraint=constraint, **WAYS[mode]
    )  # fmt: skip
    assert generation.kept_tokens <= max(1, limit)
    value = json.loads(generation.text)
    jsonschema.Draft202012Validator(schema).validate(value)


@settings(max_examples=50, **QUICK)
@given(schema=schemas(), seed=st.integers(0, 2**32), more=st.integers(0, 20))
@pytest.mark.slow
def test_texts_of_random_weights_are_valid(
    random_weights: Loaded, schema: dict[str, Any], seed: int, more: int
) -> None:
    written(random_weights, schema, seed, more)


@settings(max_examples=1000, **QUICK)
@given(schema=schemas(), seed=st.integers(0, 2**32), more=st.integers(0, 20))
@pytest.mark.thousand
def test_texts_of_random_weights_are_valid_a_thousand_times(
    random_weights: Loaded, schema: dict[str, Any], seed: int, more: int
) -> None:
    written(random_weights, schema, seed, more)


@st.composite
def with_values(draw: Any) -> tuple[dict[str, Any], Any]:
    schema = draw(schemas().filter(lambda found: "$defs" not in found))
    return schema, draw(value_of(schema))


LETTERS = st.text("aB é{}[]:,#'", max_size=12)


def value_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows; nothing for a pattern and a format."""
    if "const" in schema or "enum" in schema:
        return st.sampled_from([schema["const"]] if "const" in schema else schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return st.one_of(*map(value_of, schema[key]))
    kind = schema["type"]
    if isinstance(kind, list):
        return st.one_of(*(value_of({**schema, "type": one}) for one in kind))
    if kind == "integer":
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1001) + 1)
        return st.integers(low, schema.get("maximum", 1000))
    if kind == "string":
        if {"pattern", "format"} & set(schema):
            return st.nothing()
        low, high = schema.get("minLength", 0), schema.get("maxLength", 12)
        return LETTERS.map(lambda text: text.ljust(low, "x")[:high])
    if kind == "array":
        if "prefixItems" in schema:
            return st.tuples(*map(value_of, schema["prefixItems"])).map(list)
        low, high = schema.get("minItems", 0), schema.get("maxItems", 4)
        return st.lists(value_of(schema["items"]), min_size=low, max_size=high)
    if kind == "object":
        needed = {name: value_of(schema["properties"][name]) for name in schema["required"]}
        others = {
            name: value_of(part)
            for name, part in schema["properties"].items()
            if name not in needed
        }
        order = list(schema["properties"])
        return st.fixed_dictionaries(needed, optional=others).map(
            lambda found: {name: found[name] for name in order if name in found}
        )
    return {
        "null": st.none(), "boolean": st.booleans(), "number": st.sampled_from([0, -3, 2.5, 1e-07])
    }[kind]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=40, **QUICK)
@given(case=with_values())
def test_valid_values_are_in_the_language(case: tuple[dict[str, Any], Any]) -> None:
    """As JSON is commonly written, with the schema's own properties, in its order."""
    schema, value = case
    text = json.dumps(value, ensure_ascii=False)
    assume("\\u" not in text and not any(0x7F <= ord(letter) <= 0x9F for letter in text))
    jsonschema.Draft202012Validator(schema).validate(value)
    (verdict,) = examined(Constraint.json_schema(schema), [text])
    assert verdict.accepted, (schema, text, verdict.reason)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems cannot be held to"),
        ({"type": "integer", "minimum": 3}, "both bounds"),
        ({"not": {"type": "null"}}, "says no type"),
        ({"type": "object"}, "needs properties"),
        ({"type": "object", "properties": {"a": {"type": "quux"}}}, "#/properties/a: unknown type"),
        ({"type": "string", "pattern": ".*"}, "JSON writes otherwise"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may overlap"),
        ({"$ref": "https://example.org/x"}, "definitions in the schema itself"),
        ({"type": "object", "properties": {'a"b': {"type": "null"}}}, "needs escapes"),
        (True, "expected an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_refused_by_name(schema: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        examined(Constraint.json_schema(json.dumps(schema)), ["x"])
    assert "\n" not in str(caught.value)
