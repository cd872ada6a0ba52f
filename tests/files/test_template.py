"""Chat templates within bounds: what chats need renders, what never ends or grows is one error."""

# ruff: noqa: E501 (templates are data)

from __future__ import annotations

import json
import time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.files import template as module
from dgemma_core.files.template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": " Be short. "},
    {"role": "user", "content": "a, b"},
    {"role": "assistant", "content": "b", "tool_calls": [{"name": "f", "args": {"x": [1, 2.5]}}]},
]
VARIABLES = {"messages": MESSAGES, "bos_token": "<bos>", "add_generation_prompt": True}

# What chat templates do, rendered as jinja2 itself renders it.
USUAL = [
    "{{ bos_token }}{% for m in messages %}{{ m.role ~ ': ' ~ m['content'] | trim }}\n{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}",
    "{% for m in messages %}{{ loop.first }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro show(m, d=1) %}<{{ m.role }}{{ d }}>{% endmacro %}{% for m in messages %}{{ show(m, d=2) }}{% endfor %}",
    "{{ messages[1].content.split(', ') | join('-') }}{{ ', '.join(['x', 'y']) }}{{ 'aXb'.replace('X', '--') }}",
    "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{% set x %}in {{ bos_token }}{% endset %}{{ x | upper }}{{ (1, 2) }}{{ {'a': [1]}.items() | list }}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{% for k, v in [(1, 2)] %}{{ k + v }}{% endfor %}",
    "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in [] %}{% else %}none{% endfor %}{{ missing }}{{ missing is defined }}{{ 'a' in 'abc' }}{{ 7 // 2 ** 1 % 5 }}",
    "{% call(x) wrap() %}{{ x }}{% endcall %}{% macro wrap() %}[{{ caller('in') }}]{% endmacro %}",
    "{% filter upper %}abc{% endfilter %}{{ 'x' * 3 + 'y' }}{{ [1] + [2] }}{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent(2, true) }}",
    "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
    "{{ messages[0].content[1:4] }}{{ messages[-1]['role'] }}{{ 'a' if bos_token else 'b' }}{{ 'x'.startswith('x') }}",
]


@pytest.mark.parametrize("source", USUAL)
def test_what_chats_need_renders_as_jinja_renders_it(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    if source.startswith("{% call"):  # a macro is known from where it stands on
        first, second = source.split("{% endcall %}")
        source = second + first + "{% endcall %}"
    expected = plain.from_string(source).render(VARIABLES)
    template = ChatTemplate(source)
    assert template.render(VARIABLES) == template.render(VARIABLES) == expected


def test_json_is_written_as_transformers_writes_it() -> None:
    value = {"é": [1, {"x": None}], "a": "<b>"}
    for indent in (None, 2):
        found = ChatTemplate(f"{{{{ value | tojson(indent={indent}) }}}}").render({"value": value})
        assert found == json.dumps(value, ensure_ascii=False, indent=indent)


ENDLESS = {
    "a long text": "{{ 'a' * 10**9 }}",
    "a long text, the other way": "{{ 10**9 * 'a' }}",
    "a long list": "{{ [0] * 10**9 }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "constant text in loops": "{% set x %}{% for a in range(9999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "output in loops": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "too long a range": "{% for a in range(10**12) %}{% endfor %}",
    "doubled by ~": "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "doubled by +": "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled by a block": "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set x %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = x %}{% endfor %}",
    "doubled by join": "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = [n.x, n.x] | join(n.x) %}{% endfor %}",
    "doubled by a method": "{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "a billion laughs": "{% set n = namespace(x=[1]) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "laughs in a mapping": "{% set n = namespace(x={}) %}{% for a in range(99) %}{% set n.x = {1: n.x, 2: n.x} %}{% endfor %}",
    "laughs by dict()": "{% set n = namespace(x=1) %}{% for a in range(99) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
    "macros without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that branch": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "a large power": "{{ 10 ** (10 ** 10) }}",
    "a large product": "{% set n = namespace(x=9) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "padding by a method": "{{ 'a'.ljust(10**9) }}",
    "padding by a format": "{{ '{:>1000000000}'.format('a') }}",
    "padding by %": "{{ '%1000000000d' % 1 }}",
    "padding by a filter": "{{ 'a' | center(10**9) }}",
    "bytes of a number": "{{ (1).to_bytes(10**9, 'big') }}",
    "a replaced text": "{% set x = 'a' * 10**6 %}{{ x.replace('a', x) }}{{ x | replace('a', x) }}",
    "a division": "{{ 1 / 0 }}",
    "a sum of kinds": "{{ 1 + 'a' }}",
    "a call of nothing": "{{ nothing() }}",
    "another file": "{% include 'x' %}",
    "a parent": "{% extends 'x' %}",
    "internals": "{{ ''.__class__.__mro__ }}",
    "internals of a function": "{{ raise_exception.__globals__.x }}",
    "an attribute of an int": "{{ (1).real.__class__.x }}",
    "a refusal": "{{ raise_exception('only\n\x1b[2J this') }}",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_or_fails_is_one_error(case: str) -> None:
    begun = time.perf_counter()
    with pytest.raises((RequestError, CheckpointError)) as caught:
        result = ChatTemplate(ENDLESS[case]).render(VARIABLES)
        raise AssertionError(f"rendered {result[:80]!r}")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("the ")
    assert time.perf_counter() - begun < 60


def test_indents_are_bounded() -> None:
    rendered = ChatTemplate("{{ 'a\nb' | indent(10**9) }}{{ [1] | tojson(indent=10**9) }}").render(
        {}
    )
    assert len(rendered) < 100


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SECONDS", 0.0)
    with pytest.raises(RequestError, match="does not come to an end"):
        ChatTemplate("{{ 1 + 1 }}").render({})


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{", "{{ " + "(" * 5000, "{{ x | nosuch }}", "{% for x in %}"]
)
def test_what_is_no_template_is_said(source: str) -> None:
    with pytest.raises(CheckpointError, match="chat template is damaged") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)
