"""Renders a checkpoint's chat template, which others wrote: in jinja2's sandbox, and within bounds.

The sandbox keeps a template from Python's internals. `Bounded` also keeps it from running or growing
without end: loops, calls and operators are counted, values are measured before they grow, and only
filters and methods that chat templates use are known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from dgemma_core.errors import CheckpointError, RequestError

MOST_SIZE, MOST_STEPS, MOST_SECONDS = 2**22, 300_000, 10.0
"""Characters and items of a value and of the whole output; counted steps and seconds of a rendering."""

_FILTERS = frozenset(
    "abs capitalize count d default dictsort e escape first float forceescape groupby int items last"
    " length list lower map max min reject rejectattr reverse safe select selectattr sort string"
    " title trim unique upper wordcount".split()
)
_TEXT_METHODS = frozenset(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit"
    " isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip partition"
    " removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines"
    " startswith strip swapcase title upper".split()
)
_GLOBALS = ("range", "dict", "namespace")
_MOST_BITS, _MOST_INDENT = 4096, 16


class ChatTemplate:
    """A compiled template. Raises CheckpointError where it is no template."""

    def __init__(self, source: str) -> None:
        self._environment = Bounded()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # jinja's own, and Python's for what is nested too deeply
            raise CheckpointError(
                f"the checkpoint's chat template is damaged: {_line(error)}"
            ) from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables. Raises RequestError where the template refuses or fails."""
        self._environment.start()
        try:
            return self._template.render(variables)
        except TemplateError as error:
            raise RequestError(f"the chat template refuses this chat: {_line(error)}") from error
        except Exception as error:  # whatever a template's own code can raise, e.g. in {{ 1 / 0 }}
            raise RequestError(
                f"the chat template fails on this chat: {type(error).__name__}: {_line(error)};"
                " correct the template, or give the prompt raw"
            ) from error


class Bounded(ImmutableSandboxedEnvironment):
    """A sandbox that ends every rendering with a text or a TemplateError; see the module."""

    intercepted_binops = frozenset(["//", "%", "+", "*", "-", "/", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=self._put_out
        )
        kept = {name: self._measured(f) for name, f in self.filters.items() if name in _FILTERS}
        self.filters = {
            **kept,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "tojson": self._to_json,
            "_concatenated": self._join,
            "_each": self._each,
            "_sized": self._sized,
            "_text": pass_context(_same),  # so that it is not computed at compile time
        }
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        self.globals["raise_exception"] = _raise_exception
        self.start()

    def start(self) -> None:
        """Resets the counters, before each rendering."""
        self._steps, self._written, self._begun = 0, 0, time.monotonic()

    # --- counting and measuring

    def _count(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS or time.monotonic() - self._begun > MOST_SECONDS:
            raise TemplateError("it does not come to an end")

    def _allow(self, size: int) -> None:
        """Called before a value of that size is made. Large values count as several steps."""
        if size > MOST_SIZE:
            raise TemplateError(f"it makes a text or list of more than {MOST_SIZE} parts")
        self._count(1 + size // 256)

    def _size(self, value: Any) -> int:
        """Characters and items of a value with all that it contains; shared parts count each time."""
        waiting, size = [value], 0
        while waiting:
            part = waiting.pop()
            size += 1 + (len(part) if isinstance(part, str) else 0)
            if isinstance(part, Mapping):
                waiting.extend(part.keys())
                waiting.extend(part.values())
            elif isinstance(part, list | tuple | set | frozenset):
                waiting.extend(part)
            elif isinstance(part, int) and part.bit_length() > _MOST_BITS:
                raise TemplateError("it makes a number of thousands of digits")
            if size + len(waiting) > MOST_SIZE:
                break
        self._allow(size + len(waiting))
        return size

    def _sized(self, value: Any) -> Any:
        """The value, once it is known to be small."""
        self._size(value)
        return value

    def _each(self, values: Any) -> Iterator[Any]:
        """The values of a loop, counted."""
        for value in values:
            self._count()
            yield value

    def _put_out(self, value: Any) -> Any:
        """Called with everything that is put out, into the result or a block that is set."""
        self._written += self._size(value)
        self._allow(self._written)
        return value

    def _measured(self, function: Any) -> Any:
        """A filter whose result is measured; a lazy one becomes a list."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            self._count()
            found = function(*arguments, **options)
            return self._sized(list(self._each(found)) if isinstance(found, Iterator) else found)

        return call

    # --- what can grow: measured before it does

    def _join(self, values: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
        listed = list(self._each(values))
        if attribute is not None:
            listed = [self.getitem(value, attribute) for value in listed]
        parts, between = [str(self._sized(value)) for value in listed], str(d)
        self._allow(sum(map(len, parts)) + len(between) * len(parts))
        return between.join(parts)

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(text), str(old), str(new)
        self._allow(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _indent(self, text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        margin = width if isinstance(width, str) else " " * min(int(width), _MOST_INDENT)
        lines = str(text).split("\n")
        self._allow(len(str(text)) + len(lines) * len(margin))
        indented = [margin + line if line or blank else line for line in lines]
        return "\n".join([indented[0] if first else lines[0], *indented[1:]])

    def _to_json(self, value: Any, indent: Any = None, ensure_ascii: Any = False) -> str:
        margin = None if indent is None else min(int(indent), _MOST_INDENT)
        encoder = json.JSONEncoder(ensure_ascii=bool(ensure_ascii), indent=margin)
        parts, size = [], 0
        for part in encoder.iterencode(self._sized(value)):
            size += len(part)
            if size > MOST_SIZE:
                break
            parts.append(part)
        self._allow(size)
        return "".join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One operator. A template's literals are not computed at compile time, so all come here."""
        self._count()
        sizes = [len(side) if hasattr(side, "__len__") else 0 for side in (left, right)]
        if operator == "*" and any(sizes):
            times = right if sizes[0] else left
            self._allow(max(sizes) * times if isinstance(times, int) else 0)
        elif operator == "+":
            self._allow(sum(sizes))
        elif operator == "%" and isinstance(left, str | bytes):
            raise TemplateError("it formats by %, which is not known here")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._allow(MOST_SIZE + 1 if left.bit_length() * abs(right) > _MOST_BITS else 1)
        return self._sized(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *arguments: Any, **options: Any) -> Any:
        """One call, of a macro, a global or a method."""
        self._count()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        given = {key: value for key, value in options.items() if not key.startswith("_")}
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *arguments, **given)
        if isinstance(owner, str) and name == "join":
            return self._join(*arguments, **{**given, "d": owner})
        return self._sized(super().call(context, obj, *arguments, **options))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of texts are those of a list; numbers, bytes and types have none."""
        if callable(value):
            if isinstance(obj, str) and attr not in _TEXT_METHODS:
                return False
            if isinstance(obj, int | float | complex | bytes | bytearray | range | type):
                return False
        return super().is_safe_attribute(obj, attr, value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        _Rewriter().visit(parsed)
        return parsed


class _Rewriter(NodeTransformer):
    """Sends a template's loops, literals, texts and joined texts through the filters that bound them."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, "_each")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "_sized")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "_sized")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "_sized") if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return _filtered(nodes.Const(node.data, lineno=node.lineno), "_text")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    found = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    return found.set_environment(node.environment) if node.environment else found  # type: ignore[return-value]


def _same(context: Context, value: Any) -> Any:
    return value


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message)[:500])


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
