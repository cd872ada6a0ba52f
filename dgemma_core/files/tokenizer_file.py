"""Reads a checkpoint's tokenizer.json, tokenizer_config.json and chat template, which others wrote.

tokenizer.json goes to the `tokenizers` library, which stops the whole process where a file asks for
too much memory, and panics on others. So the file is checked first, without what would change a
prompt silently: truncation, padding and random merges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import CheckpointError, DgemmaError
from dgemma_core.files.reading import plain, read_json, read_text, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER_LIMIT, TEMPLATE_LIMIT = 512 * 2**20, 2**20
"""Bytes of tokenizer.json and of a chat template, at most."""
_MOST_GROWTH = 2**12
"""Characters that normalizers may make of one."""


def read_tokenizer(path: Path) -> Backend:
    """The tokenizer in a tokenizer.json, without truncation, padding and BPE dropout.

    Raises CheckpointError for a file that is damaged or that the library cannot run safely.
    """
    from tokenizers import Tokenizer as Backend

    content = read_json(path, TOKENIZER_LIMIT)
    if not isinstance(content, dict) or not isinstance(model := content.get("model"), dict):
        raise CheckpointError(f"{path}: expected a tokenizer with a model; fetch it anew")
    content["truncation"] = content["padding"] = None
    if model.get("dropout"):
        model["dropout"] = None
    _check_parts(path, content)
    with library_errors(CheckpointError, f"{path}: not a tokenizer", "fetch it anew"):
        return Backend.from_str(json.dumps(content))


def read_token_names(path: Path) -> tuple[dict[str, str], Any]:
    """tokenizer_config.json: its tokens by role ('bos_token': '<bos>', …), and its chat template or None.

    A missing file holds neither. Raises CheckpointError for a damaged one.
    """
    if not path.exists():
        return {}, None
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{path}: a JSON object is expected, found {type(settings).__name__}; fetch it anew"
        )
    named: dict[str, str] = {}
    for role, value in settings.items():
        if not role.endswith("_token") or value is None or isinstance(value, bool):
            continue  # e.g. "add_bos_token": true
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise CheckpointError(
                f"{path}: {shown(role)}: expected a token's text, found {shown(value)}; fetch it anew"
            )
        named[role] = text
    return named, settings.get("chat_template")


def read_template(folder: Path, configured: Any) -> str | None:
    """The chat template: of chat_template.jinja, else what tokenizer_config.json has configured.

    Raises CheckpointError for one that is no text, or longer than `TEMPLATE_LIMIT`.
    """
    file = folder / "chat_template.jinja"
    if file.exists():
        return read_text(file, TEMPLATE_LIMIT)
    source = f"{folder / 'tokenizer_config.json'}: chat_template"
    if isinstance(configured, list):  # several, by name
        entries = [entry for entry in configured if isinstance(entry, dict)]
        if len(entries) < len(configured):
            raise CheckpointError(f"{source}: expected templates by name; fetch it anew")
        configured = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    if configured is not None and not isinstance(configured, str):
        raise CheckpointError(
            f"{source}: expected a text, found {shown(configured)}; fetch it anew"
        )
    if configured is not None and len(configured) > TEMPLATE_LIMIT:
        raise CheckpointError(f"{source}: expected at most {TEMPLATE_LIMIT} characters")
    return configured


@contextmanager
def library_errors(kind: type[DgemmaError], what: str, advice: str) -> Iterator[None]:
    """Turns exceptions of the tokenizers library, its panics included, into one DgemmaError.

    A panic of Rust code is no Exception, so that nobody takes it for an ordinary one.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = plain(" ".join(str(error).split())[:160])  # it may quote the file
        raise kind(f"{what} ({reason}); {advice}") from error


def _check_parts(path: Path, content: Mapping[str, Any]) -> None:
    """Refuses what makes the library panic or take memory without bound."""
    model = content["model"]
    prefix = model.get("continuing_subword_prefix")
    if prefix and model.get("type") in (None, "BPE"):
        merges = model.get("merges")
        seconds = [_second(merge) for merge in merges] if isinstance(merges, list) else [None]
        if not isinstance(prefix, str) or any(
            second is None or not second.startswith(prefix) for second in seconds
        ):
            raise CheckpointError(
                f"{path}: model.continuing_subword_prefix: expected a text with which the second part"
                f" of every merge begins, found {shown(prefix)}; fetch it anew"
            )
    growth = 1
    for part in _parts(content.get("post_processor")):
        pieces = [
            part[name] for name in ("single", "pair") if isinstance(part.get(name), list | str)
        ]
        growth *= max([1, *map(len, pieces)])
        if growth > _MOST_GROWTH:
            raise CheckpointError(
                f"{path}: post_processor: makes more than {_MOST_GROWTH} parts of a text; fetch it anew"
            )
    for section in ("normalizer", "decoder"):
        growth = 1
        for part in _parts(content.get(section)):
            if part.get("type") == "Precompiled":
                raise CheckpointError(
                    f"{path}: {section}: precompiled_charsmap cannot be checked, so it is not run;"
                    " save the tokenizer without it"
                )
            text = part.get("content", "")
            growth *= max(1, len(text)) if isinstance(text, str) else 1
            if growth > _MOST_GROWTH:
                raise CheckpointError(
                    f"{path}: {section}: replaces one character by more than {_MOST_GROWTH};"
                    " fetch it anew"
                )


def _second(merge: Any) -> str | None:
    """The second part of a BPE merge: "a b" or ["a", "b"]; None for anything else."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    whole = isinstance(parts, list) and len(parts) == 2 and isinstance(parts[1], str)
    return parts[1] if whole else None


def _parts(section: Any) -> Iterator[Mapping[str, Any]]:
    """All objects within a section of the file, sequences included."""
    waiting = [section]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
