"""Writers by the names that a command line gives them.

`nano`, a folder or hub name (diffusion), the same with `:ar` (token by token) or `:spec` (drafted, then verified),
`hf:NAME` (any causal model of transformers), `gguf:FILE` or `gguf:gemma3-270m` (likewise, from a GGUF file),
`http://HOST/v1#MODEL` (an OpenAI-compatible server). Behind a comma may stand arguments, NAME=VALUE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgemma_core import RequestError
from dgemma_evals.writers.base import Writer
from dgemma_evals.writers.hf import HFWriter
from dgemma_evals.writers.options import FOREIGN, Options, split_mode
from dgemma_evals.writers.own import OwnWriter
from dgemma_evals.writers.server import ServerWriter


@dataclass(frozen=True)
class Spec:
    """A side as a command line names it: `nano:ar,quantize=int4`, `http://HOST/v1#MODEL,temperature=0.8`.

    arguments: of this project's models their `Options`, of servers what is sent in the body besides.
    """

    text: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def own(self) -> bool:
        """This project runs it."""
        return not self.name.startswith(FOREIGN)

    @property
    def server(self) -> bool:
        """It is asked over the network."""
        return self.name.startswith(("http://", "https://"))

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Raises RequestError for an argument that this kind of side cannot have."""
        name, *parts = _ARGUMENT.split(text)
        arguments: dict[str, Any] = {}
        for part in parts:
            key, _, value = part.partition("=")
            arguments[key] = value
        spec = cls(text, name, arguments)
        if not name:
            raise RequestError(
                f"{text!r} names no model: e.g. nano, nano:ar, hf:NAME, http://HOST/v1"
            )
        if arguments and not spec.own and not spec.server:
            raise RequestError(f"{text}: {name} takes no arguments")
        for key in arguments:
            if spec.own and key in _NOT_HERE:
                raise RequestError(
                    f"{text}: {key} has no effect on what is written here: leave it out"
                )
        if spec.own:
            checkpoint, mode = split_mode(name)
            Options.parse(mode, {"pretrained": checkpoint, **_plain(arguments)})
        return spec


_ARGUMENT = re.compile(r",(?=[A-Za-z_]\w*=)")
_NOT_HERE = (
    "pretrained",
    "batch_size",
    "max_batch_size",
    "records",
    "likelihood",
    "likelihood_samples",
)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`quantize=none` says: not as the others, but plainly."""
    return {k: v for k, v in arguments.items() if not (k == "quantize" and v == "none")}


def writer(
    spec: str | Spec, *, chat: bool = True, extra: Mapping[str, Any] | None = None, **shared: Any
) -> Writer:
    """The writer that `spec` names. shared: arguments of all of this project's models, of `hf:` and `gguf:` device and
    dtype; the spec's own go first. extra: what all servers are sent.

    chat: a server gets prompts as chats, which it words by its own template; else as they are.

    Raises DgemmaError where there is none, or where it cannot run as asked.
    """
    spec = Spec.parse(spec) if isinstance(spec, str) else spec
    if spec.own:
        return own_writer(spec.name, label=spec.text, **_plain({**shared, **spec.arguments}))
    if spec.server:
        body = {key: _value(value) for key, value in {**(extra or {}), **spec.arguments}.items()}
        return ServerWriter(spec.name, chat=chat, extra=body)
    plain = {name: shared[name] for name in ("device", "dtype") if name in shared}
    if spec.name.startswith("hf:"):
        return HFWriter(spec.name.removeprefix("hf:"), name=spec.text, **plain)
    from dgemma_evals.writers.gguf import converted

    return HFWriter(str(converted(spec.name.removeprefix("gguf:"))), name=spec.text, **plain)


def _value(text: Any) -> Any:
    """A value of a request's body: JSON where it is some, else the text."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def own_writer(spec: str, *, label: str | None = None, **arguments: Any) -> OwnWriter:
    """A checkpoint of this project, in the mode that its end names (`split_mode`)."""
    checkpoint, mode = split_mode(spec)
    options = Options.parse(mode, {"pretrained": checkpoint, **arguments})
    return OwnWriter(options, name=label or spec)
