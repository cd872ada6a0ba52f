"""From a constraint to its automaton over a checkpoint's tokens, and the automata that are kept.

Building takes a fraction of a second for nano, seconds for a vocabulary of 262,144. Automata are kept in memory, and as
arrays in the user's cache folder, by everything that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton
from dgemma_core.constraints.index import indexed
from dgemma_core.constraints.patterns import compiled
from dgemma_core.constraints.vocabulary import spelled
from dgemma_core.errors import RequestError

if TYPE_CHECKING:
    from dgemma_core.constraints.language import Constraint
    from dgemma_core.files.checkpoint import Loaded
    from dgemma_core.files.text import Tokenizer

FORMAT = 1
"""Raised when automata, or the way to them, change."""
_spelled: weakref.WeakKeyDictionary[Tokenizer, tuple[list[bytes], str]] = (
    weakref.WeakKeyDictionary()
)
_built: dict[str, TokenAutomaton] = {}
_MOST_BUILT = 64


def pattern_of(constraint: Constraint) -> str:
    """The regular expression of a constraint's language. Raises RequestError where the source is none."""
    if constraint.kind == "regex":
        return constraint.source
    if constraint.kind == "choices":
        return "|".join(map(_escaped, json.loads(constraint.source)))
    from dgemma_core.constraints.json_schema import schema_pattern

    return schema_pattern(json.loads(constraint.source), constraint.whitespace)


def _escaped(text: str) -> str:
    """A text as a regular expression that matches it alone."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&\-~])", r"\\\1", text)


def built(constraint: Constraint, loaded: Loaded) -> TokenAutomaton:
    """As `Constraint.compile`."""
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: a constraint needs one")
    pattern = pattern_of(constraint)
    size = loaded.model.config.text.vocab_size
    eos, pad = loaded.generation.eos_token_ids, loaded.generation.pad_token_id
    pad = eos[0] if pad is None else pad
    if loaded.tokenizer not in _spelled:
        tokens = spelled(loaded.tokenizer, size)
        digest = hashlib.sha256(
            b"".join(len(token).to_bytes(4, "little") + token for token in tokens)
        )
        _spelled[loaded.tokenizer] = tokens, digest.hexdigest()
    tokens, digest_of_tokens = _spelled[loaded.tokenizer]
    parts = json.dumps([FORMAT, pattern, digest_of_tokens, size, sorted(eos), pad])
    key = hashlib.sha256(parts.encode()).hexdigest()
    if key not in _built:
        if len(_built) >= _MOST_BUILT:
            _built.clear()
        _built[key] = kept(key, size, eos, pad) or _keep(
            key, indexed(compiled(pattern), tokens, eos=eos, pad=pad)
        )
    if not constraint.joint:
        return _built[key]
    return _built.setdefault(f"{key} joint", replace(_built[key], joint=True))


# --- on disk


def folder() -> Path:
    """Where automata are kept: $XDG_CACHE_HOME/dgemma/constraints, or ~/.cache/dgemma/constraints."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dgemma" / "constraints"


def kept(key: str, size: int, eos: Sequence[int], pad: int) -> TokenAutomaton | None:
    """The automaton of that key; None where there is none, or the file is not whole."""
    try:
        digest = (folder() / f"{key}.sha256").read_text()
        arrays = load((folder() / f"{key}.safetensors").read_bytes())
        classes, table, accepting = arrays["classes"], arrays["table"], arrays["accepting"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    if digest != _digest(arrays):
        return None
    states, count = table.shape
    whole = (
        classes.shape == (size,)
        and accepting.shape == (states,)
        and 0 <= int(classes.min()) <= int(classes.max()) < count
        and NOWHERE <= int(table.min()) <= int(table.max()) < states
    )
    if not whole:
        return None
    return TokenAutomaton(
        classes, table, accepting, int(arrays["start"][0]), tuple(sorted(set(eos))), pad
    )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _keep(key: str, automaton: TokenAutomaton) -> TokenAutomaton:
    """Writes the automaton aside and moves it into place whole; where that fails, it is made anew another time."""
    arrays = {
        "classes": automaton.classes,
        "table": automaton.table,
        "accepting": automaton.accepting,
        "start": np.array([automaton.start]),
    }
    with suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix="tmp", dir=folder()) as aside:
            for name, content in (
                ("safetensors", save(arrays)),
                ("sha256", _digest(arrays).encode()),
            ):
                (Path(aside) / name).write_bytes(content)
                os.replace(Path(aside) / name, folder() / f"{key}.{name}")
    return automaton
