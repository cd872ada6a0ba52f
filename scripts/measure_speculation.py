"""Measures speculative decoding on nano's families, beside the two modes of the same weights that it is made of.

    python -m scripts.measure_speculation --draft adaptive --draft fixed:positions=16 --draft fixed:positions=16,steps=2
    python -m scripts.measure_speculation --candidates     # which rule should be the default: all of CANDIDATES at once

Texts first: whether the drafted text equals greedy autoregression's, tokens a pass (all passes counted), accepted
tokens a round, how many positions of a text's first draft hold the causal mode's own token, and the share of documents
that only one of diffusion and the causal mode solves. Then times: all modes write the same problems in turn, each
`--repeats` times, `--batches` at a time; kept tokens a second of wall time and of process time, medians over the
repeats. Everything is written to `--out` and printed as Markdown tables, with the rule that is fastest on this machine.
The file is written after each family and batch size; the same command goes on where it stopped, with the same weights.
Problems are of the validation seeds unless `--split test`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import dgemma_core as dg
from dgemma_core.events import DraftEvent, Event
from dgemma_core.files.finding import find_folder
from dgemma_core.generation.drafting import DRAFT_RULES
from dgemma_core.nano.families import TASKS, Example, examples, family
from dgemma_core.samplers import describe
from dgemma_core.speculation import DraftRule
from dgemma_evals.hashes import fingerprint
from dgemma_evals.machine import environment
from dgemma_evals.page import markdown_table
from dgemma_evals.saving import resumed, write_json
from dgemma_evals.writers.counting import acceptance

CANDIDATES = (
    "adaptive", "adaptive:ahead=0", "adaptive:ahead=0.8", "adaptive:first=16", "adaptive:first=24",
    "adaptive:least=12", "adaptive:margin=10", "adaptive:least_probability=0.2",
    "adaptive:first=32,least=16", "adaptive:steps=2",
    "paying", "paying:pass_tokens=32", "paying:pass_tokens=64",
    "fixed:positions=8", "fixed:positions=16", "fixed:positions=16,ahead=0.5", "fixed:positions=24", "fixed",
)  # fmt: skip
"""Draft rules among which the default is chosen, the present one first; `fixed` drafts a whole canvas."""
WAYS: dict[str, dict[str, Any]] = {
    "diffusion": {"mode": "diffusion"},
    "autoregressive": {"mode": "autoregressive"},
}
"""The modes that every draft rule is measured against."""


def parse_rule(text: str) -> DraftRule:
    """`fixed:positions=16,steps=2` as a rule. Raises RequestError for an unknown rule, option or value."""
    name, _, options = text.partition(":")
    if name not in DRAFT_RULES:
        raise dg.RequestError(f"--draft {text}: choose one of {', '.join(DRAFT_RULES)}")
    given: dict[str, Any] = {}
    for pair in filter(None, options.split(",")):
        option, equals, value = pair.partition("=")
        try:
            given[option] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals:
            raise dg.RequestError(f"--draft {text}: expected OPTION=NUMBER, got {pair}")
    try:
        return DRAFT_RULES[name](**given)
    except TypeError as error:
        known = ", ".join(option.name for option in fields(DRAFT_RULES[name]))
        raise dg.RequestError(f"--draft {text}: {name} has {known}") from error


# --- texts


def written(
    loaded: dg.Loaded, problems: Sequence[Example], arguments: argparse.Namespace, **options: Any
) -> tuple[list[dict[str, Any]], dict[int, list[DraftEvent]]]:
    """What each problem's text came to, and the rounds of each."""
    rounds: dict[int, list[DraftEvent]] = {i: [] for i in range(len(problems))}

    def listen(event: Event) -> None:
        if isinstance(event, DraftEvent):
            rounds[int(str(event.request))].append(event)

    texts = dg.generate(
        loaded, [p.prompt for p in problems], seed=arguments.seed, batch_size=arguments.batch,
        max_new_tokens=arguments.max_new_tokens, listen=listen, **options,
    )  # fmt: skip
    found = [
        {
            "solved": bool(family(p.family).solved(p.entry, text.text)),
            "ids": list(text.ids),
            "kept": text.kept_tokens,
            "passes": text.passes,
            "accepted": list(text.accepted),
        }
        for p, text in zip(problems, texts, strict=True)
    ]
    return found, rounds


def agreement(draft: DraftEvent, ids: Sequence[int]) -> tuple[int, int]:
    """How many drafted positions hold the token of the causal mode's text `ids`, and of how many that the text has.

    The first position is left out: the causal mode chose it before the draft.
    """
    pairs = list(zip(draft.tokens[1:], ids[draft.start + 1 :], strict=False))
    return sum(drafted == chosen for drafted, chosen in pairs), len(pairs)


def per_pass(texts: Sequence[Mapping[str, Any]]) -> float:
    """Kept tokens for each pass of any kind."""
    return sum(text["kept"] for text in texts) / sum(text["passes"] for text in texts)


def measure_family(
    loaded: dg.Loaded,
    problems: Sequence[Example],
    rules: Mapping[str, DraftRule],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One family's texts in both modes and by every draft rule."""
    (diffused, _), (causal, _) = (
        written(loaded, problems, arguments, **options) for options in WAYS.values()
    )
    verdicts = [(a["solved"], b["solved"]) for a, b in zip(diffused, causal, strict=True)]
    found: dict[str, Any] = {
        "documents": len(problems),
        "diffusion": {"solved": sum(a for a, _ in verdicts), "tokens_per_pass": per_pass(diffused)},
        "autoregressive": {
            "solved": sum(b for _, b in verdicts),
            "tokens_per_pass": per_pass(causal),
        },
        "only_diffusion_solves": sum(a and not b for a, b in verdicts),
        "only_the_causal_mode_solves": sum(b and not a for a, b in verdicts),
        "drafts": {},
    }
    for name, rule in rules.items():
        texts, rounds = written(loaded, problems, arguments, mode="speculative", draft=rule)
        first = [
            agreement(made[0], text["ids"])
            for made, text in zip(rounds.values(), causal, strict=True)
            if made
        ]
        same = [a["ids"] == b["ids"] for a, b in zip(texts, causal, strict=True)]
        accepted = [count for text in texts for count in text["accepted"]]
        found["drafts"][name] = {
            "equal_texts": sum(same),
            "different": [problems[i].seed for i, equal in enumerate(same) if not equal],
            "solved": sum(text["solved"] for text in texts),
            "kept": sum(text["kept"] for text in texts),
            "passes": sum(text["passes"] for text in texts),
            "tokens_per_pass": per_pass(texts),
            "first_draft_agrees": [sum(n for n, _ in first), sum(of for _, of in first)],
            **(acceptance(accepted) if accepted else {"rounds": 0}),
        }
    return found


# --- times


def chunks(problems: Mapping[str, Sequence[Example]], size: int) -> Iterator[list[str]]:
    """Prompts of one family at a time, `size` together; a family's rest is a chunk, too."""
    for of_family in problems.values():
        for start in range(0, len(of_family), size):
            yield [problem.prompt for problem in of_family[start : start + size]]


def measure_speed(
    loaded: dg.Loaded,
    problems: Mapping[str, Sequence[Example]],
    ways: Mapping[str, Mapping[str, Any]],
    batch: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Kept tokens a second of each way, a figure a repeat; the ways take turns at every chunk of problems."""
    parts = list(chunks(problems, batch))
    totals = {name: [[0, 0.0, 0.0] for _ in range(arguments.repeats)] for name in ways}

    def write(part: Sequence[str], options: Mapping[str, Any]) -> int:
        texts = dg.generate(
            loaded, part, seed=arguments.seed, batch_size=batch,
            max_new_tokens=arguments.max_new_tokens, **options,
        )  # fmt: skip
        return sum(text.kept_tokens for text in texts)

    for options in ways.values():
        write(parts[0], options)  # warms up
    work = len(parts) * len(ways) * arguments.repeats
    with tqdm(total=work, desc=f"times, batch {batch}", disable=None) as bar:
        for repeat in range(arguments.repeats):
            for place, part in enumerate(parts):
                turn = (repeat + place) % len(ways)
                names = list(ways)
                for name in names[turn:] + names[:turn]:
                    wall, process = time.perf_counter(), time.process_time()
                    kept = write(part, ways[name])
                    total = totals[name][repeat]
                    total[0] += kept
                    total[1] += time.perf_counter() - wall
                    total[2] += time.process_time() - process
                    bar.update()
    return {
        "batch": batch,
        "texts_a_repeat": sum(map(len, parts)),
        "ways": {
            name: {
                "kept_tokens": [kept for kept, _, _ in runs],
                "wall_seconds": [wall for _, wall, _ in runs],
                "process_seconds": [process for _, _, process in runs],
                "tokens_per_second": statistics.median(kept / wall for kept, wall, _ in runs),
                "tokens_per_process_second": statistics.median(kept / cpu for kept, _, cpu in runs),
            }
            for name, runs in totals.items()
        },
    }


def ratios(speed: Mapping[str, Any], name: str, other: str, clock: str) -> list[float]:
    """A way's kept tokens a second over another's, repeat by repeat; clock: wall or process."""

    def rates(way: str) -> list[float]:
        found = speed["ways"][way]
        pairs = zip(found["kept_tokens"], found[f"{clock}_seconds"], strict=True)
        return [kept / seconds for kept, seconds in pairs]

    return [a / b for a, b in zip(rates(name), rates(other), strict=True)]


def ratio(speed: Mapping[str, Any], name: str, other: str, clock: str) -> float:
    """The median of `ratios`."""
    return statistics.median(ratios(speed, name, other, clock))


def best(speed: Mapping[str, Any], rules: Sequence[str]) -> str:
    """Which draft rule keeps most tokens a second of process time, and in how many repeats the next one is behind."""
    order = sorted(
        rules, key=lambda name: ratio(speed, name, "autoregressive", "process"), reverse=True
    )
    gain = ratio(speed, order[0], "autoregressive", "process")
    said = (
        f"Batch {speed['batch']}: {order[0]} is best, {gain:.2f} × autoregression by process time"
    )
    if len(order) == 1:
        return f"{said}."
    ahead = ratios(speed, order[0], order[1], "process")
    won = sum(one > 1 for one in ahead)
    return (
        f"{said}; {order[1]} is next, and behind in {won} of {len(ahead)} repeats "
        f"({min(ahead):.2f} to {max(ahead):.2f} ×)."
    )


# --- tables


def markdown(record: Mapping[str, Any]) -> str:
    """The draft rules over all families, and every family under the first rule."""
    families, rules = record["families"], list(record["draft_rules"])
    heads = [
        "draft",
        "texts equal",
        "tokens a pass",
        "accepted a round: mean (median, ninth decile)",
    ]
    for speed in record["speed"]:
        batch = speed["batch"]
        heads += [f"× autoregression, batch {batch}: wall (process)", f"× diffusion, batch {batch}"]
    rows = []
    for name in rules:
        found = [row["drafts"][name] for row in families.values()]
        rounds = sorted(
            int(count)
            for row in found
            for count, often in row.get("accepted_histogram", {}).items()
            for _ in range(often)
        )
        accepted = "–"
        if rounds:
            tenth = rounds[int(0.9 * (len(rounds) - 1))]
            accepted = f"{statistics.mean(rounds):.1f} ({statistics.median(rounds):g}, {tenth})"
        documents = sum(row["documents"] for row in families.values())
        tokens = sum(row["kept"] for row in found) / sum(row["passes"] for row in found)
        cells = [
            name,
            f"{sum(row['equal_texts'] for row in found)} of {documents}",
            f"{tokens:.2f}",
            accepted,
        ]
        for speed in record["speed"]:
            cells += [
                f"{ratio(speed, name, other, 'wall'):.2f} ({ratio(speed, name, other, 'process'):.2f})"
                for other in ("autoregressive", "diffusion")
            ]
        rows.append(cells)
    first = rules[0]
    head = (
        "family", "documents", "diffusion", "causal", "only diffusion", "only causal",
        "first draft agrees", "accepted a round", "tokens a pass", "diffusion's",
    )  # fmt: skip
    lines = []
    for name, row in families.items():
        draft, count = row["drafts"][first], row["documents"]
        agreed, of = draft["first_draft_agrees"]
        shares = [
            row["diffusion"]["solved"], row["autoregressive"]["solved"],
            row["only_diffusion_solves"], row["only_the_causal_mode_solves"],
        ]  # fmt: skip
        lines.append(
            [
                name, str(count), *(f"{100 * share / count:.1f} %" for share in shares),
                f"{100 * agreed / of:.0f} %" if of else "–",
                f"{draft['accepted_per_round']:.1f}" if draft["rounds"] else "–",
                f"{draft['tokens_per_pass']:.2f}",
                f"{row['diffusion']['tokens_per_pass']:.2f}",
            ]
        )  # fmt: skip
    found = "".join(f"{best(speed, rules)}\n" for speed in record["speed"])
    return (
        f"{markdown_table(heads, rows)}\n\n{found}\nUnder {first}:\n\n{markdown_table(head, lines)}"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Texts of all families, then times; the file is written after each family and each batch size."""
    rules = {text: parse_rule(text) for text in arguments.draft}
    loaded = dg.load(arguments.model, dtype=arguments.dtype, backend=arguments.backend)
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    settings |= {
        "backend": loaded.model.backend.name,
        "weights": fingerprint(find_folder(arguments.model)),
    }
    fresh: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "settings": settings,
        "environment": environment(),
        "draft_rules": {name: describe(rule) for name, rule in rules.items()},  # type: ignore[arg-type]
        "families": {},
        "speed": [],
    }
    record = resumed(arguments.out, fresh)
    problems = {
        name: examples(name, arguments.split, arguments.count) for name in arguments.families
    }
    missing = {n: some for n, some in problems.items() if n not in record["families"]}
    for name, of_family in tqdm(missing.items(), desc="texts", disable=None):
        record["families"][name] = measure_family(loaded, of_family, rules, arguments)
        write_json(arguments.out, record)
    ways = {**WAYS, **{n: {"mode": "speculative", "draft": rule} for n, rule in rules.items()}}
    timed = {name: of_family[: arguments.timed] for name, of_family in problems.items()}
    done = {speed["batch"] for speed in record["speed"]}
    for batch in [b for b in arguments.batches if b not in done] if arguments.timed else ():
        record["speed"].append(measure_speed(loaded, timed, ways, batch, arguments))
        write_json(arguments.out, record)
    return record


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="nano")
    add("--dtype", default="float32")
    add("--backend", default="auto")
    add(
        "--draft",
        action="append",
        metavar="RULE",
        help="fixed or adaptive (the default), as above; may be repeated",
    )
    add("--candidates", action="store_true", help="also all rules among which to choose a default")
    add("--split", choices=("test", "validation"), default="validation")
    add("--count", type=int, default=200, help="documents of a family")
    add("--timed", type=int, default=10, help="documents of a family that are timed; 0: none")
    add("--repeats", type=int, default=3, help="timed runs over those documents")
    add("--batch", type=int, default=8, help="texts at a time where nothing is timed")
    add("--batches", type=int, nargs="+", default=[1, 8], help="texts at a time in timed runs")
    add("--seed", type=int, default=0)
    add("--max-new-tokens", type=int, default=192)
    add("--families", nargs="+", choices=TASKS, default=list(TASKS))
    add("--out", type=Path, default=Path("results/speculation/measured.json"))
    arguments = parser.parse_args()
    given = [*(arguments.draft or ()), *(CANDIDATES if arguments.candidates else ())]
    arguments.draft = list(dict.fromkeys(given)) or ["adaptive"]
    for name in ("count", "repeats", "batch", *(["timed"] if arguments.timed else [])):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    try:
        print(markdown(measure(arguments)))
    except dg.DgemmaError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
