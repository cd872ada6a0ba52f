"""`dgemma decide`: an answer's template with slots, and the probability of each choice."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgemma_core.command import options
from dgemma_core.command.lines import count, escaped, standard_input, text_option
from dgemma_core.errors import RequestError, shown

if TYPE_CHECKING:
    from dgemma_core.generation import Decision

MARK = re.compile(r"(?<!\\),")


def decide(
    prompt: options.Prompt,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            "-t",
            metavar="TEXT",
            help="The answer, with slots {name}; \\{name} is that text itself.",
            callback=text_option,
        ),
    ] = None,
    template_file: Annotated[
        Path | None,
        typer.Option("--template-file", metavar="FILE", help="A file that holds the template."),
    ] = None,
    slot: Annotated[
        list[str] | None,
        typer.Option(
            "--slot",
            metavar="NAME=A,B,…",
            help="A slot's choices; \\, is a comma in one of them. May be repeated.",
            callback=text_option,
        ),
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Denoising steps of the canvas.")] = 1,
    top: Annotated[
        int, typer.Option(min=1, help="How many joint assignments to list, the likeliest first.")
    ] = 1,
    causal: Annotated[
        int,
        typer.Option(
            min=0,
            help="Compute the exact causal likelihood of all assignments where they are so many at most, else of the "
            "listed ones; 0: of none.",
        ),
    ] = 64,
    model: options.Model = "nano",
    seed: options.Seed = 0,
    system: options.System = None,
    raw: options.Raw = False,
    as_json: options.AsJson = False,
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    device: options.Device = "auto",
    backend: options.BackendName = "auto",
    adapter: options.Adapter = None,
) -> None:
    """Choose among texts in the slots of an answer, each choice with its probability, by one or a few denoising steps.

    Beside it stands what the exact causal likelihood of the same weights says of the same choices.
    """
    text = _template(template, template_file)
    slots = _slots(slot or ())
    asked = standard_input() if prompt == "-" else prompt

    from dgemma_core.generation import decide as decided

    loaded = options.Source(model, dtype, quantize, device, backend, adapter).load()
    found = decided(
        loaded, text, slots, prompt=asked, passes=passes, top=top, seed=seed, system=system, raw=raw,
        causal=causal,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"model": loaded.name, **asdict(found)}, ensure_ascii=False))
    else:
        _print(found)


def _template(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        raise RequestError("give the template as --template TEXT or as --template-file FILE")
    if file is None:
        assert text is not None
        return text
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: the template cannot be read ({error})") from error


def _slots(given: Sequence[str]) -> dict[str, list[str]]:
    """NAME=A,B,… texts as names and choices."""
    found: dict[str, list[str]] = {}
    for each in given:
        name, mark, choices = each.partition("=")
        name = name.strip()
        if not mark or not name:
            raise RequestError(f"--slot {shown(each)}: write it as name=a,b,c")
        if name in found:
            raise RequestError(f"--slot {name} is there twice: give all its choices in one")
        if not choices:
            raise RequestError(f"--slot {name}: no choices; write it as {name}=a,b,c")
        found[name] = [choice.replace("\\,", ",") for choice in MARK.split(choices)]
    return found


def _print(found: Decision) -> None:
    """The likeliest text, then each slot's choices, the likeliest first."""
    print(escaped(found.top[0].text, keep="\n"))
    for name, shares in found.slots.items():
        beside = None if found.causal is None else found.causal[name]
        print(f"\n{escaped(name)}")
        width = max(len(escaped(choice)) for choice in shares)
        for choice, share in sorted(shares.items(), key=lambda pair: -pair[1]):
            exact = "" if beside is None else f"   causal {beside[choice]:6.1%}"
            print(f"  {escaped(choice):<{width}}  {share:6.1%}{exact}")
    if len(found.top) > 1:
        print("\njointly")
        for each in found.top:
            exact = (
                "" if each.causal_logprob is None else f"   causal log p {each.causal_logprob:.2f}"
            )
            print(f"  {each.probability:6.1%}  {escaped(each.text)}{exact}")
    print(f"\n{count(found.assignments, 'assignment')}, {count(found.denoising_steps, 'step')}")
