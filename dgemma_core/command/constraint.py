"""`dgemma constraint`: tests a constraint before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgemma_core.command import options
from dgemma_core.command.lines import complain, count, escaped
from dgemma_core.errors import RequestError

constraint_app = typer.Typer(help="Test a constraint before it is used.", no_args_is_help=True)
REJECTED = 1
"""Exit code where an example is rejected."""


@constraint_app.command()
def check(
    examples: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Right answers, one a line; .jsonl: one JSON text a line."
        ),
    ],
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    choices: options.Choices = None,
    model: options.Model = "nano",
    max_new_tokens: options.MaxNewTokens = None,
) -> None:
    """Tell which examples a constraint rejects, and where; exit code 1 if any. A grammar must hold every right answer.

    In a .jsonl file a line that is a JSON text in quotes is that text, so that an example may have several lines.
    """
    from dgemma_core.constraints.examples import examined
    from dgemma_core.constraints.language import read_constraint
    from dgemma_core.files.checkpoint import load

    constraint = read_constraint(regex, json_schema, choices)
    if constraint is None:
        raise RequestError("name a constraint: --regex, --json-schema or --choices")
    texts = _read(examples)
    loaded = load(model)
    limit = max_new_tokens or loaded.generation.max_new_tokens
    verdicts = examined(constraint, texts, loaded)
    bad = 0
    for line, verdict in enumerate(verdicts, start=1):
        reason = "" if verdict.accepted and verdict.spelled else verdict.reason
        if verdict.tokens is not None and verdict.tokens > limit:
            reason = f"takes {verdict.tokens} tokens, more than the limit of {limit}"
        if reason:
            bad += 1
            print(f"{line}: {escaped(reason)}")
    automaton = constraint.compile(loaded)
    print(
        f"{len(texts) - bad} of {count(len(texts), 'example')} accepted; {automaton.states} states, "
        f"{count(automaton.class_count, 'class', 'classes')} of tokens, at least "
        f"{count(int(automaton.tokens_to_end[automaton.start]), 'token')} and the end"
    )
    if bad:
        raise typer.Exit(complain_of(bad))


def complain_of(bad: int) -> int:
    """One line on stderr; returns the exit code."""
    complain(
        f"{count(bad, 'example')} rejected: widen the constraint, for one without every right answer costs accuracy"
    )
    return REJECTED


def _read(file: Path) -> list[str]:
    import json

    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read ({error})") from error
    if not lines:
        raise RequestError(f"{file}: no examples in it")
    if file.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{file}: line {number} is no JSON ({error})") from error
        texts.append(value if isinstance(value, str) else line)
    return texts
