"""Measures nano on everything that it was taught: the tables of its model card, by one command.

    python -m scripts.measure_nano [--model nano] [--count 500] [--seeds 3] [--out docs/nano/measured.json]

Subjects are those that the model was taught: families in their own wording, and kinds of English requests, half of
these about what was never asked about in training and half in wordings that were never trained. Every subject is
written by diffusion with the checkpoint's own sampler settings (seeds averaged), by greedy autoregression and by
speculative decoding, and judged by its verifier; families also in the wording that is kept from training. A family's
documents, prompts, seeds and verdicts are those of `dgemma compare`: both give the same accuracies. What has been
measured is kept in the file, so that a stopped run goes on. `--against` says how far both modes lie from an earlier
file's, problem by problem.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import dgemma_core as dg
from dgemma_core.facts.machine import cores
from dgemma_core.files.finding import find_folder
from dgemma_core.files.trace import Trace
from dgemma_core.nano import families
from dgemma_core.nano.chains import CHAINS
from dgemma_core.nano.english import kinds
from dgemma_core.nano.english.lexicon import BOYS, GIRLS
from dgemma_core.nano.english.unknown import is_honest
from dgemma_core.nano.problems import known
from dgemma_core.nano.recipes import named_recipe
from dgemma_core.nano.wordings import reworded
from dgemma_evals.comparison.answers import answer_all
from dgemma_evals.comparison.questions import load_tasks, quiet_harness
from dgemma_evals.comparison.stats import mean_difference, paired_bootstrap
from dgemma_evals.saving import resumed, write_json
from dgemma_evals.writers.named import own_writer
from dgemma_evals.writers.own import OwnWriter
from dgemma_lab.charts.order import orders, remelt_counts

TRACED, TIMED, TOLD = 40, 10, 100
"""Problems of a subject whose traces are read, that are written alone for their time, and stories that are compared."""
HONEST = "english_unknown"
"""The subject of requests that nano cannot serve; its verifier wants the right reason, too."""
TRAINED = 100_000
"""Examples of the training stream that replies are looked for in."""


@dataclass(frozen=True)
class Asked:
    """One request, a right reply, and the verdict on any other."""

    prompt: dg.generation.Prompt
    reply: str
    accepts: Callable[[str], bool]
    wording: str
    """Which wordings it is asked in: "own", "slots" or "wordings" (never trained)."""


def of_family(name: str, split: str, count: int) -> list[Asked]:
    """A family's first problems, and a fifth as many of them in the wording that is kept from training."""
    family = families.family(name)
    problems = families.examples(name, split, count)  # type: ignore[arg-type]

    def asked(problem: families.Example, prompt: str, wording: str) -> Asked:
        judge = lambda text: family.solved(problem.entry, text)  # noqa: E731
        return Asked(prompt, problem.answer, judge, wording)

    own = [asked(problem, problem.prompt, "own") for problem in problems]
    return own + [
        asked(problem, reworded(problem, Random(problem.seed), "held_out"), "wordings")
        for problem in problems[: count // 5]
    ]


def of_kind(name: str, split: str, count: int) -> list[Asked]:
    """A kind's first requests: in a test half about unseen things, half in unseen wordings."""
    splits = ("test_slots", "test_wordings") if split == "test" else ("validation",)
    found = []
    for part in splits:
        for example in kinds.examples(name, part, count // len(splits)):  # type: ignore[arg-type]
            judge = lambda text, example=example: kinds.accepts(example, text)  # noqa: E731
            wording = "wordings" if part == "test_wordings" else "slots"
            found.append(Asked(example.messages, example.reply, judge, wording))
    return found


SUBJECTS: dict[str, Callable[[str, int], list[Asked]]] = {
    **{name: lambda split, count, name=name: of_family(name, split, count) for name in families.TASKS},
    **{
        f"english_{name}": lambda split, count, name=name: of_kind(name, split, count)
        for name in kinds.NAMES
    },
}  # fmt: skip


def taught(model: str) -> list[str]:
    """The subjects that a checkpoint says it was trained for; all where it does not say."""
    given = known(find_folder(model))
    names = {*given.families, *(f"english_{name}" for name in given.kinds)}
    return [name for name in SUBJECTS if name in names] or list(SUBJECTS)


def written(
    writer: OwnWriter,
    name: str,
    asked: Sequence[Asked],
    mode: str,
    arguments: argparse.Namespace,
    seed: int,
) -> list[dict[str, Any]]:
    """What each request's text came to. A family's own documents are asked, written and judged as a comparison does."""
    rows = []
    own = [each for each in asked if each.wording == "own"]
    if own:
        tasks = load_tasks([f"dgemma_nano_{name}"], limit=len(own), more={"split": arguments.split})
        found = answer_all(
            writer, tasks, limit=len(own), seed=seed, max_new_tokens=arguments.max_new_tokens
        )
        for answer in found:
            counts = answer.written.counts
            row = {"solved": answer.score >= 1, "text": answer.written.text, "kept": counts.kept_tokens,
                   "steps": counts.denoising_steps or 0, "canvases": len(counts.steps_per_canvas),
                   "passes": counts.passes}  # fmt: skip
            rows.append(row)
    rest = asked[len(own) :]
    texts = dg.generate(
        writer.loaded, [each.prompt for each in rest], mode=mode, seed=1000 * seed,
        batch_size=arguments.batch, max_new_tokens=arguments.max_new_tokens,
    )  # fmt: skip
    for each, text in zip(rest, texts, strict=True):
        row = {"solved": bool(each.accepts(text.text)), "text": text.text, "kept": text.kept_tokens,
               "steps": text.denoising_steps, "canvases": text.canvases, "passes": text.passes}  # fmt: skip
        rows.append(row)
    return rows


def milliseconds(
    loaded: dg.Loaded, asked: Sequence[Asked], modes: Sequence[str], limit: int
) -> dict[str, dict[str, float]]:
    """Of each mode the median milliseconds of a whole text and the kept tokens a second, one text at a time; the modes
    take turns at every request."""
    spent: dict[str, list[tuple[float, int]]] = {mode: [] for mode in modes}
    for i, each in enumerate(asked):
        for mode in (*modes[i % len(modes) :], *modes[: i % len(modes)]):
            start = time.perf_counter()
            (text,) = dg.generate(loaded, [each.prompt], mode=mode, max_new_tokens=limit)
            spent[mode].append((time.perf_counter() - start, text.kept_tokens))
    return {
        mode: {
            "milliseconds": 1000 * statistics.median(seconds for seconds, _ in found),
            "tokens_per_second": sum(kept for _, kept in found) / sum(s for s, _ in found),
        }
        for mode, found in spent.items()
    }


def alive(loaded: dg.Loaded, asked: Sequence[Asked], limit: int) -> dict[str, float]:
    """Kendall's τ of settling step and position (EOS tail dropped) and re-melts, means over canvases and texts."""
    taus, melts = [], []
    for i, each in enumerate(asked):
        events: list[Any] = []
        dg.generate(loaded, [each.prompt], seed=i, max_new_tokens=limit, listen=events.append)
        end = {"eos_token_ids": list(loaded.model.config.eos_token_ids)}
        trace = Trace.record(events, metadata=end)
        taus += [order.tau for order in orders(trace)]
        melts.append(int(remelt_counts(trace)[0].sum()))
    ordered = [tau for tau in taus if not math.isnan(tau)]
    return {
        "tau": float(np.mean(ordered)) if ordered else float("nan"),
        "canvases_with_an_order": len(ordered),
        "remelts": float(np.mean(melts)),
        "texts_with_remelts": float(np.mean([melt > 0 for melt in melts])),
    }


@torch.no_grad()
def bits_per_byte(loaded: dg.Loaded, asked: Sequence[Asked]) -> float:
    """The exact causal likelihood of the right replies and their ends, over the replies' bytes."""
    assert loaded.tokenizer is not None
    end, nats, size = loaded.model.config.eos_token_ids[-1], 0.0, 0
    for each in asked:
        prompt = dg.prompt_ids(loaded, each.prompt)
        reply = [*loaded.tokenizer.encode(each.reply), end]
        hidden = loaded.model.encode([[*prompt, *reply]]).hidden[0, len(prompt) - 1 : -1]
        logits = loaded.model.logits(hidden)
        nats += float(
            torch.nn.functional.cross_entropy(logits, torch.tensor(reply), reduction="sum")
        )
        size += len(each.reply.encode())
    return nats / math.log(2) / size


def measured(
    writers: dict[str, OwnWriter], name: str, asked: Sequence[Asked], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The figures of one subject."""
    limit, loaded = arguments.max_new_tokens, writers["diffusion"].loaded

    def texts(mode: str, seed: int) -> list[dict[str, Any]]:
        return written(writers[mode], name, asked, mode, arguments, seed)

    runs = [texts("diffusion", seed) for seed in range(arguments.seeds)]
    causal, drafted = texts("autoregressive", 0), texts("speculative", 0)
    # A model that does not know a wording fills canvases with nothing: passes are told of what heads the subject.
    headed = sum(each.wording == "own" for each in asked) or len(asked)
    every = [text for run in runs for text in run[:headed]]
    by_mode = {
        "diffusion": every,
        "autoregressive": causal[:headed],
        "speculative": drafted[:headed],
    }
    own = [statistics.mean(run[i]["solved"] for run in runs) for i in range(len(asked))]
    there = [float(text["solved"]) for text in causal]
    row: dict[str, Any] = {
        "documents": len(asked),
        "by_wording": {
            wording: {
                "documents": len(members),
                "diffusion": statistics.mean(own[i] for i in members),
                "autoregressive": statistics.mean(there[i] for i in members),
            }
            for wording in dict.fromkeys(each.wording for each in asked)
            if (members := [i for i, each in enumerate(asked) if each.wording == wording])
        },
        "drafted_texts_differ": sum(a["text"] != b["text"] for a, b in zip(drafted, causal, strict=True)),
        "solved": own,
        "solved_autoregressively": there,
        "steps_per_canvas": sum(t["steps"] for t in every) / sum(t["canvases"] for t in every),
        "canvases": statistics.mean(text["canvases"] for text in every),
        "kept": statistics.mean(text["kept"] for text in every),
        "tokens_per_pass": {
            mode: sum(t["kept"] for t in texts) / sum(t["passes"] for t in texts)
            for mode, texts in by_mode.items()
        },
        "alone": milliseconds(loaded, asked[:TIMED], tuple(by_mode), limit),
        "bits_per_byte": bits_per_byte(loaded, asked[:headed]),
        **alive(loaded, asked[:TRACED], limit),
    }  # fmt: skip
    unseen = [i for i, each in enumerate(asked) if each.wording == "slots"]
    row["different_behind_the_first_line"] = {
        mode: len({texts[i]["text"].partition("\n")[2].strip().lower() for i in unseen})
        for mode, texts in (("diffusion", runs[0]), ("autoregressive", causal))
    }
    if name == HONEST:
        row["honest_for_any_reason"] = {
            "diffusion": _honest([text for run in runs for text in run]),
            "autoregressive": _honest(causal),
        }
    row["texts"] = [text["text"] for text in runs[0]] if asked[0].wording == "slots" else []
    return row


def _honest(texts: Sequence[dict[str, Any]]) -> float:
    """Share of texts that say they cannot and name two things that they can, whichever reason they give."""
    return statistics.mean(is_honest(text["text"].strip()) for text in texts)


NAMES = re.compile(rf"\b({'|'.join(map(re.escape, (*GIRLS, *BOYS)))})\b")


def taught_replies(model: str) -> set[str]:
    """Replies of the training stream, as the grammar draws them and as the model's last run had them."""
    stages = named_recipe(CHAINS[model].legs[-1].recipe).stages if model in CHAINS else ()
    canonical = stages[-1].canonical if stages else {}
    found: set[str] = set()
    for i in tqdm(range(TRAINED), desc="training stream"):
        example = kinds.training_example(i)
        found |= {example.reply, kinds.canonical(example, canonical).reply}
    return found


def originality(rows: dict[str, Any], trained: set[str]) -> dict[str, float]:
    """Of the first stories how many differ by more than names, and the share of all English replies that are among
    the `trained` ones."""
    stories = [NAMES.sub("·", text) for text in rows["english_story"]["texts"][:TOLD]]
    copied = {
        name: [text in trained for text in row["texts"]] for name, row in rows.items() if row["texts"]
    }  # fmt: skip
    long = [
        found
        for name in ("story", "poem", "describe")
        for found in copied.get(f"english_{name}", [])
    ]
    every = [found for each in copied.values() for found in each]
    return {
        "distinct_stories": len(set(stories)),
        "stories": len(stories),
        "copied": statistics.mean(every),
        "copied_stories_poems_descriptions": statistics.mean(long) if long else 0.0,
    }


@functools.cache
def writers_of(model: str, dtype: str, quantize: str | None, batch: int) -> dict[str, OwnWriter]:
    """Of each mode a writer, once a process."""
    quiet_harness()
    given = {"dtype": dtype, "quantize": quantize, "batch_size": batch}
    return {
        mode: own_writer(f"{model}{suffix}", **given)
        for mode, suffix in (("diffusion", ""), ("autoregressive", ":ar"), ("speculative", ":spec"))
    }


def measured_subject(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one subject, in whichever process."""
    writers = writers_of(arguments.model, arguments.dtype, arguments.quantize, arguments.batch)
    asked = SUBJECTS[name](arguments.split, arguments.count)
    return measured(writers, name, asked, arguments)


def side_by_side(
    names: Sequence[str], arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each subject's figures, as they are ready."""
    if arguments.processes == 1:
        yield from ((name, measured_subject(name, arguments)) for name in names)
        return
    threads = max(1, cores() // arguments.processes)
    pool = ProcessPoolExecutor(
        arguments.processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    )
    with pool:
        running = {pool.submit(measured_subject, name, arguments): name for name in names}
        for done in as_completed(running):
            yield running[done], done.result()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All subjects; the file is written after each, and its rows stand in the order of the subjects."""
    same = {name: getattr(arguments, name)
            for name in ("model", "dtype", "quantize", "split", "count", "seeds", "max_new_tokens")}  # fmt: skip
    record = resumed(arguments.out, {"settings": same, "subjects": {}})
    rows: dict[str, Any] = record["subjects"]
    subjects = arguments.subjects or taught(arguments.model)
    left = [name for name in subjects if name not in rows]
    for name, row in tqdm(side_by_side(left, arguments), total=len(left), desc="subjects"):
        rows[name] = row
        record["subjects"] = rows = {each: rows[each] for each in SUBJECTS if each in rows}
        write_json(arguments.out, record)
    if "english_story" in rows and "originality" not in record:
        record["originality"] = originality(rows, taught_replies(arguments.model))
        write_json(arguments.out, record)
    return record


def accuracy(row: dict[str, Any], mode: str) -> float:
    """Of the wordings that a subject is headed by: its own, or both halves of the English test."""
    parts = row["by_wording"]
    if "own" in parts:
        return float(parts["own"][mode])
    total = sum(part["documents"] for part in parts.values())
    return float(sum(part[mode] * part["documents"] for part in parts.values()) / total)


def markdown(rows: dict[str, Any], english: bool) -> str:
    """A table of the model card: the families', or the kinds'."""
    head = ("kind" if english else "family", "diffusion", "autoregressive", "in new wordings", "steps a canvas",
            "tokens a pass: diffusion", "speculative", "kept tokens", "tokens/s", "autoregressive", "speculative",
            "bits a byte", "τ", "re-melts a text")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    members = {name: row for name, row in rows.items() if name.startswith("english_") == english}
    for name, row in members.items():
        new = row["by_wording"].get("wordings")
        speed = row["alone"]
        cells = (
            name.removeprefix("english_"),
            *(f"{100 * accuracy(row, mode):.1f} %" for mode in ("diffusion", "autoregressive")),
            "" if new is None else f"{100 * new['diffusion']:.0f} / {100 * new['autoregressive']:.0f} %",
            f"{row['steps_per_canvas']:.1f}",
            *(f"{row['tokens_per_pass'][mode]:.1f}" for mode in ("diffusion", "speculative")),
            f"{row['kept']:.0f}",
            *(f"{speed[mode]['tokens_per_second']:.0f}" for mode in ("diffusion", "autoregressive", "speculative")),
            f"{row['bits_per_byte']:.2f}",
            "none" if math.isnan(row["tau"]) else f"{row['tau']:+.2f}",
            f"{row['remelts']:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    if members:
        means = [
            statistics.mean(accuracy(row, mode) for row in members.values())
            for mode in ("diffusion", "autoregressive")
        ]
        steps = statistics.mean(row["steps_per_canvas"] for row in members.values())
        lines.append(
            f"| mean | {100 * means[0]:.1f} % | {100 * means[1]:.1f} % | | {steps:.1f} {'| ' * 9}|"
        )
    return "\n".join(lines)


def change(rows: dict[str, Any], others: dict[str, Any]) -> str:
    """Points of accuracy more than the other measurement's, both of the same problems, and steps a canvas."""
    shared = [name for name in rows if name in others]
    said = []
    for mode, key in (("diffusion", "solved"), ("autoregressive", "solved_autoregressively")):
        pairs = [
            (name, float(there), float(here))
            for name in shared
            for there, here in zip(others[name][key], rows[name][key], strict=False)
        ]
        strata, there, here = zip(*pairs, strict=True)
        found = paired_bootstrap([here, there], mean_difference, strata=strata)
        points = [100 * number for number in (found.estimate, found.low, found.high)]
        said.append("{}: {:+.1f} points (95 % interval {:+.1f} to {:+.1f})".format(mode, *points))
    before, after = (
        statistics.mean(each[name]["steps_per_canvas"] for name in shared)
        for each in (others, rows)
    )
    return "\n".join([*said, f"steps a canvas: {before:.1f} → {after:.1f}"])


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument(
        "--subjects", nargs="+", choices=list(SUBJECTS), help="all that the model was taught"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="that measure subjects side by side"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/nano/measured.json"))
    parser.add_argument("--against", type=Path, help="an earlier --out, of the same problems")
    arguments = parser.parse_args(given)
    record = measure(arguments)
    print(markdown(record["subjects"], english=False), "\n")
    print(markdown(record["subjects"], english=True))
    if "originality" in record:
        print("\n" + json.dumps(record["originality"], indent=1))
    if arguments.against:
        earlier = json.loads(arguments.against.read_text())
        print("\n" + change(record["subjects"], earlier.get("subjects", earlier.get("families"))))


if __name__ == "__main__":
    main()
