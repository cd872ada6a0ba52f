"""Writers by the names that a command line gives them.

`nano`, a folder or hub name (diffusion), the same with `:ar` (token by token) or `:spec` (drafted, then verified),
`hf:NAME` (any causal model of transformers), `gguf:FILE` or `gguf:gemma3-270m` (likewise, from a GGUF file),
`http://HOST/v1#MODEL` (an OpenAI-compatible server).
"""

from __future__ import annotations

from typing import Any

from dgemma_core import RequestError
from dgemma_core.backends import AUTO
from dgemma_evals.writers.base import Writer
from dgemma_evals.writers.hf import HFWriter
from dgemma_evals.writers.options import FOREIGN, Options, split_mode
from dgemma_evals.writers.own import OwnWriter
from dgemma_evals.writers.server import ServerWriter


def writer(spec: str, *, chat: bool = True, **arguments: Any) -> Writer:
    """The writer that `spec` names. arguments: device and dtype; for our models also their `Options`.

    chat: a server gets prompts as chats, which it words by its own template; else as they are.

    Raises DgemmaError where there is none, or where it cannot be quantised, or run, as asked.
    """
    if not spec.startswith(FOREIGN):
        return own_writer(spec, **arguments)
    for name in ("quantize", "backend"):
        if arguments.get(name, AUTO) not in (None, AUTO):
            raise RequestError(
                f"{name} is of checkpoints that this project runs, which {spec} is not"
            )
    if spec.startswith(("http://", "https://")):
        return ServerWriter(spec, chat=chat)
    shared = {name: arguments[name] for name in ("device", "dtype") if name in arguments}
    if spec.startswith("hf:"):
        return HFWriter(spec.removeprefix("hf:"), name=spec, **shared)
    from dgemma_evals.writers.gguf import converted

    return HFWriter(str(converted(spec.removeprefix("gguf:"))), name=spec, **shared)


def own_writer(spec: str, **arguments: Any) -> OwnWriter:
    """A checkpoint of this project, in the mode that its end names (`split_mode`)."""
    backend = arguments.get("backend", AUTO)
    name = " ".join(
        filter(None, [spec, arguments.get("quantize"), backend if backend != AUTO else ""])
    )
    checkpoint, mode = split_mode(spec)
    options = Options.parse(mode, {"pretrained": checkpoint, **arguments})
    return OwnWriter(options, name=name)
