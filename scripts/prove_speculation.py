"""Proves at size that speculation writes autoregression's texts, or shows where rounding decided otherwise.

    python -m scripts.prove_speculation                            # 2,400 documents greedy, 504 sampled; both backends
    python -m scripts.prove_speculation --quantize int8 --out …    # how often texts differ where rounding is coarse

Autoregression writes each document alone. Speculation writes it in batches of each of `--batches`, and so does
autoregression, whose own texts may change with the batch where sums are rounded in another order. In float32 a text
that differs must part at a near-tie: there the logits of both runs lie within 1e-3 of each other, and both tokens are
what the rule takes from such logits. Anything else is a mistake, and the command fails. In other formats texts that
differ are counted, not judged. The file is written after each family; the same command goes on where it stopped, as
long as the weights are the same.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import dgemma_core as dg
from dgemma_core.draws import CounterDraws, Filters, RowKey, filtered, inverse_cdf
from dgemma_core.events import Event, FinishEvent, Mode, TokenEvent
from dgemma_core.files.finding import find_folder
from dgemma_core.generation.settings import settings_from
from dgemma_core.nano.families import TASKS, Example, examples
from dgemma_evals.hashes import fingerprint
from dgemma_evals.machine import environment
from dgemma_evals.page import markdown_table
from dgemma_evals.saving import resumed, write_json

MOST_NOISE = 1e-3
"""Logits of the two runs may lie so far apart."""
LEAST_NOISE = 1e-4
"""Rounding of this size is granted to every logit, and to a cumulative probability."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95},
}


@dataclass
class Text:
    """What became of a document, and of each token what it was predicted from."""

    tokens: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    """(D,) each."""
    seed: int = 0
    end: tuple[Any, ...] = ()
    """Kept ids, text, stop reason."""


def written(
    loaded: dg.Loaded, problems: Sequence[Example], mode: Mode, batch: int, limit: int, **options: Any
) -> list[Text]:  # fmt: skip
    """Every problem's text. A document's number is the seed of its draws."""
    texts = [Text(seed=number) for number in range(len(problems))]
    requests = (
        dg.Request(dg.prompt_ids(loaded, p.prompt), seed=i, max_new_tokens=limit, id=i)
        for i, p in enumerate(problems)
    )
    events: Iterator[Event] = settings_from(mode, **options).events(
        loaded, requests, batch_size=batch
    )
    for event in events:
        if isinstance(event, TokenEvent):
            text = texts[int(str(event.request))]
            text.tokens.append(event.token)
            text.hidden.append(event.state.hidden)
        elif isinstance(event, FinishEvent):
            texts[int(str(event.request))].end = (event.ids, event.text, event.stop_reason)
    return texts


# --- near-ties


def taken(logits: Tensor, temperature: float, top_p: float, uniform: float) -> set[int]:
    """Tokens that sampling by `uniform` takes from raw logits (V,), rounding granted to the cumulative mass."""
    found = set()
    for edge, moved in itertools.product((-LEAST_NOISE, 0.0, LEAST_NOISE), repeat=2):
        filters = Filters(None, min(1.0, max(top_p + edge, 1e-9)))
        kept = filtered((logits.double() / temperature).unsqueeze(0), filters).softmax(-1)
        number = torch.tensor([min(max(uniform + moved, 0.0), 1 - 2**-53)], dtype=torch.float64)
        found.add(int(inverse_cdf(kept, number)))
    return found


def parting(
    loaded: dg.Loaded, theirs: Text, ours: Text, *, temperature: float = 0.0, top_p: float = 1.0
) -> dict[str, Any]:
    """Where two texts part, and whether a near-tie explains it."""
    pairs = zip(theirs.tokens, ours.tokens, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        return {"at": min(len(theirs.tokens), len(ours.tokens)), "near_tie": False}
    their_logits, our_logits = (
        loaded.model.logits(text.hidden[at]).float() for text in (theirs, ours)
    )
    noise = float((their_logits - our_logits).abs().max())
    tokens = theirs.tokens[at], ours.tokens[at]
    found = {"at": at, "tokens": tokens, "logits_apart": noise}
    if temperature == 0:
        gap = float((their_logits[tokens[0]] - their_logits[tokens[1]]).abs())
        near = gap <= 2 * max(LEAST_NOISE, noise)
        found["gap"] = gap
    else:
        step = CounterDraws().step([RowKey(theirs.seed, 0)], [at], 1)
        uniform = float(step.uniform)
        near = tokens[0] in taken(their_logits, temperature, top_p, uniform) and tokens[1] in taken(
            our_logits, temperature, top_p, uniform
        )
        found["uniform"] = uniform
    return {**found, "near_tie": near and noise <= MOST_NOISE}


def compared(
    loaded: dg.Loaded, theirs: Sequence[Text], ours: Sequence[Text], options: Mapping[str, Any]
) -> dict[str, Any]:
    """How many texts are equal, and every one that is not."""
    different = [
        {"document": i, **parting(loaded, a, b, **options)}
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True))
        if a.end != b.end
    ]
    return {"documents": len(theirs), "different": different}


# --- the whole proof


def measured_part(
    loaded: dg.Loaded, problems: Sequence[Example], options: Mapping[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:  # fmt: skip
    """One family, one way to choose tokens, one backend: each writer against autoregression alone."""
    limit = arguments.max_new_tokens
    alone = written(loaded, problems, "autoregressive", 1, limit, **options)
    found = {}
    for mode, batch in itertools.product(("speculative", "autoregressive"), arguments.batches):
        if (mode, batch) != ("autoregressive", 1):
            texts = written(loaded, problems, mode, batch, limit, **options)
            found[f"{mode}, batch {batch}"] = compared(loaded, alone, texts, options)
    return found


def prove(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every part, written to the file as it is done."""
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    settings["weights"] = fingerprint(find_folder(arguments.model))
    record = resumed(
        arguments.out, {"settings": settings, "environment": environment(), "parts": {}}
    )
    counts = {"greedy": arguments.count, "sampled": arguments.sampled}
    parts = [
        part
        for part in itertools.product(arguments.backends, WAYS, arguments.families)
        if counts[part[1]] and "/".join(part) not in record["parts"]
    ]
    loaded: dict[str, dg.Loaded] = {}
    for part in tqdm(parts, desc="families", disable=None):
        backend, way, name = part
        if backend not in loaded:
            loaded = {
                backend: dg.load(
                    arguments.model, dtype=arguments.dtype, backend=backend, quantize=arguments.quantize
                )
            }  # fmt: skip
        problems = examples(name, arguments.split, counts[way])
        record["parts"]["/".join(part)] = measured_part(
            loaded[backend], problems, WAYS[way], arguments
        )
        write_json(arguments.out, record)
    return record


def exact(settings: Mapping[str, Any]) -> bool:
    """Whether texts that differ are judged: rounding is fine enough to show a near-tie."""
    return settings["dtype"] == "float32" and settings["quantize"] is None


def unexplained(record: Mapping[str, Any]) -> list[str]:
    """The texts that differ with no near-tie to show for it, by name."""
    return [
        f"{part}/{one['document']}: {writer}"
        for part, writers in record["parts"].items()
        for writer, found in writers.items()
        for one in found["different"]
        if not one["near_tie"]
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """A line for each backend, way to choose tokens, and writer."""
    totals: dict[tuple[str, str, str], list[int]] = {}
    for part, writers in record["parts"].items():
        backend, way, _ = part.split("/")
        for writer, found in writers.items():
            total = totals.setdefault((backend, way, writer), [0, 0, 0])
            total[0] += found["documents"]
            total[1] += len(found["different"])
            total[2] += sum(one["near_tie"] for one in found["different"])
    judged = exact(record["settings"])
    head = ["backend", "tokens are", "writer", "documents", "differ from autoregression alone"]
    rows = []
    for key, (documents, different, ties) in totals.items():
        share = f"{different} ({100 * different / documents:.2f} %)"
        rows.append([*key, str(documents), share, *[str(ties)] * judged])
    return markdown_table(head + ["of these near-ties"] * judged, rows)


def main() -> None:
    """Writes, compares, prints, and fails where a text differs for no shown reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="nano")
    add("--dtype", default="float32")
    add("--quantize", choices=("int8", "int4"))
    add("--backends", nargs="+", default=["cpu", "torch"])
    add("--batches", type=int, nargs="+", default=[1, 3, 8], help="texts at a time")
    add("--count", type=int, default=200, help="documents of a family, greedy; 0: none")
    add("--sampled", type=int, default=42, help="documents of a family, sampled; 0: none")
    add("--split", choices=("test", "validation"), default="validation")
    add("--max-new-tokens", type=int, default=192)
    add("--families", nargs="+", choices=TASKS, default=list(TASKS))
    add("--out", type=Path, default=Path("results/speculation/proof.json"))
    arguments = parser.parse_args()
    if min(arguments.batches) < 1 or min(arguments.count, arguments.sampled) < 0:
        parser.error("--batches must be at least 1, --count and --sampled at least 0")
    try:
        record = prove(arguments)
    except dg.DgemmaError as error:
        parser.error(str(error))
    print(markdown(record))
    mistakes = unexplained(record) if exact(record["settings"]) else []
    if mistakes:
        raise SystemExit("\n".join(["texts that no near-tie explains:", *mistakes]))


if __name__ == "__main__":
    main()
