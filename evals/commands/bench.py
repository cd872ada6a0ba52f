"""`dgemma bench`: the commands, one a table. Each writes OUT/NAME.json and draws OUT/bench.html anew."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgemma_core import RequestError
from dgemma_core.facts.machine import cores
from dgemma_evals.commands.gpu import gpu
from dgemma_evals.saving import write_json

if TYPE_CHECKING:
    from dgemma_evals.bench.processes import Setting

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed as ratios against public implementations, each in a process of its own.",
)

Out = Annotated[Path, typer.Option(help="Folder of the results, and of the random model.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or both, with a comma.")]
Allocator = Annotated[str, typer.Option(help="system, tcmalloc, or both: for all sides alike.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of every implementation.")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed rounds, after one to warm up.")]
Peers = Annotated[str, typer.Option(help="Implementations beside this project, with commas.")]

Backend = Annotated[str, typer.Option(help="What runs this project's models: torch or cpu; auto.")]

PUBLIC = "transformers,transformers (grouped experts),diffusers"


CORES = cores()


@bench_app.command()
def steps(
    out: Out = Path("bench"),
    dtype: Dtype = "float32,bfloat16",
    allocator: Allocator = "system,tcmalloc",
    threads: Threads = CORES,
    rounds: Rounds = 5,
    backend: Backend = "auto",
    peers: Peers = f"dgemma (soft_top_k=8),{PUBLIC}",
    count: Annotated[int, typer.Option(min=2, help="Fixed denoising steps a round.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    vocab: Annotated[int, typer.Option(min=64, help="Vocabulary of the random model.")] = 262_144,
) -> None:
    """A: seconds a denoising step of a random model with the released vocabulary."""
    from dgemma_evals.bench import interleaved, processes, random_model

    names = processes.check_peers(_split(peers))
    folder = random_model.random_checkpoint(out / f"shape-a-{vocab}", vocab=vocab)
    ids, canvas = random_model.random_ids(vocab, prompt, 1), random_model.random_ids(vocab, 256, 2)
    rows = []
    for setting in _settings(threads, rounds, backend, dtype, allocator):
        found = interleaved.steps(folder, names, setting, prompt=ids, canvas=canvas, count=count)
        facts = {"prompt": prompt, "canvas": 256, "steps": count, "vocabulary": vocab}
        rows.append(interleaved.row("A", setting, found, unit="s/step", **facts))
        _show(rows[-1])
        _save(out, "steps", rows)
    _page(out)


@bench_app.command()
def write(
    out: Out = Path("bench"),
    model: Annotated[str, typer.Option(help="nano, or a folder.")] = "nano",
    dtype: Dtype = "float32",
    allocator: Allocator = "tcmalloc",
    threads: Threads = CORES,
    rounds: Rounds = 5,
    backend: Backend = "auto",
    peers: Annotated[
        str,
        typer.Option(
            help="Implementations beside this project's diffusion, with commas; dgemma:ar and dgemma:spec are its"
            " other modes."
        ),
    ] = "transformers,transformers (grouped experts)",
    limit: Annotated[int, typer.Option(min=1, help="Problems of each family.")] = 4,
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit of a text.")] = 96,
) -> None:
    """B: kept tokens a second on real prompts, with natural ends, and the share that is solved."""
    from dgemma_core.files.finding import find_folder
    from dgemma_core.files.text import load_tokenizer
    from dgemma_core.nano.families import TASKS, examples, family
    from dgemma_evals.bench import interleaved, processes

    names = processes.check_peers(_split(peers))
    folder = find_folder(model)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise RequestError(f"{folder} has no tokenizer: real prompts need one")
    problems = [problem for name in TASKS for problem in examples(name, "validation", limit)]
    prompts = [list(tokenizer.chat_ids(problem.prompt)) for problem in problems]

    def solved(i: int, ids: list[int]) -> bool:
        problem = problems[i]
        return family(problem.family).solved(problem.entry, tokenizer.decode(ids))

    rows = []
    for setting in _settings(threads, rounds, backend, dtype, allocator):
        for batch in map(_number, _split(batches)):
            found = interleaved.writing(
                folder,
                names,
                setting,
                prompts=prompts,
                batch=batch,
                limit=max_new_tokens,
                judge=solved,
            )
            facts = {"model": model, "batch": batch, "problems": len(problems)}
            rows.append(interleaved.row("B", setting, found, unit="kept tokens/s", **facts))
            _show(rows[-1])
            _save(out, "write", rows)
    _page(out)


@bench_app.command()
def tokens(
    out: Out = Path("bench"),
    dtype: Dtype = "float32",
    allocator: Allocator = "tcmalloc",
    threads: Threads = CORES,
    rounds: Rounds = 5,
    backend: Backend = "auto",
    peers: Peers = "transformers,transformers (grouped experts)",
    count: Annotated[int, typer.Option(min=2, help="Tokens a round.")] = 32,
    vocab: Annotated[int, typer.Option(min=64, help="Vocabulary of the random model.")] = 262_144,
) -> None:
    """C: seconds a greedy autoregressive token, on nano and on the random model of `steps`."""
    from dgemma_core.files.finding import find_folder
    from dgemma_evals.bench import interleaved, processes, random_model
    from dgemma_evals.writers.export import export_autoregressive

    names = processes.check_peers(_split(peers))
    random = random_model.random_checkpoint(out / f"shape-a-{vocab}", vocab=vocab)
    nano = out / "nano"
    if not nano.exists():
        nano.symlink_to(find_folder("nano").resolve(), target_is_directory=True)
    export_autoregressive("nano", f"{nano}-autoregressive")
    rows = []
    for setting in _settings(threads, rounds, backend, dtype, allocator):
        for folder, name, size, length in (
            (nano, "nano", 1024, 40),
            (random, "shape A", vocab, 128),
        ):
            prompt = random_model.random_ids(size, length, 3)
            found = interleaved.tokens(folder, names, setting, prompt=prompt, count=count)
            rows.append(
                interleaved.row("C", setting, found, unit="s/token", model=name, tokens=count)
            )
            _show(rows[-1])
            _save(out, "tokens", rows)
    _page(out)


@bench_app.command()
def start(
    out: Out = Path("bench"),
    rounds: Rounds = 7,
) -> None:
    """E: how long imports take, and how soon nano has answered a first prompt, in fresh processes."""
    from dgemma_evals.bench import start as starting

    row = starting.measure(rounds)
    typer.echo(
        f"import torch {row['import torch']:.2f} s · import dgemma_core {row['import dgemma_core']:.2f} s "
        f"({row['ratio']:.2f}×) · first answer {row['first answer']:.2f} s"
    )
    _save(out, "start", [row])
    _page(out)


@bench_app.command()
def growth(
    out: Out = Path("bench"),
    dtype: Dtype = "float32",
    allocator: Allocator = "tcmalloc",
    threads: Threads = CORES,
    rounds: Rounds = 5,
    backend: Backend = "auto",
    peers: Peers = "transformers (grouped experts)",
    count: Annotated[int, typer.Option(min=2, help="Fixed denoising steps a round.")] = 4,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="An axis and its points, e.g. prefix=128,1024: those given, instead of all.",
        ),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What the other axes hold, e.g. canvas=256."),
    ] = None,
) -> None:
    """D: seconds a denoising step as prefix, canvas, batch, vocabulary or experts grow.

    Written point by point: a run that was killed goes on where it stopped.
    """
    from dgemma_evals.bench import growth as growing
    from dgemma_evals.bench import processes
    from dgemma_evals.machine import environment, machine

    names = processes.check_peers(_split(peers))
    axes = growing.parse_axes(axis or ())
    start = growing.parse_base(base or ())
    asked = _settings(threads, rounds, backend, dtype, allocator)
    facts = environment()
    more = {"base": asdict(start), "axes": axes, "machine": machine(facts)}
    killed = _unfinished(out / "growth.json")
    earlier = killed["rows"] if killed.get("machine") == more["machine"] else ()
    runs = growing.measure(
        out, names, asked, base=start, axes=axes, count=count, earlier=earlier, model={}
    )
    for i, (rows, left) in enumerate(runs):
        if i == 0 and rows:
            typer.echo(f"{len(rows)} points are there from a run that did not end")
        record = {"command": _command(), "environment": facts, "rows": rows, "left": left, **more}
        if i or not left:
            write_json(out / "growth.json", record)
    _page(out)


@bench_app.command()
def memory(
    out: Out = Path("bench"),
    dtype: Dtype = "float32,bfloat16",
    threads: Threads = CORES,
    backend: Backend = "auto",
    prefix: Annotated[int, typer.Option(min=2, help="Tokens of the prompt.")] = 32_768,
) -> None:
    """D: the memory that a long prompt takes, predicted as in `dgemma plan` and measured."""
    from dgemma_evals.bench import memory as long_prompt
    from dgemma_evals.bench import processes

    asked = list(processes.settings(processes.Setting(backend=backend), _split(dtype), ["system"]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in asked:
            rows.append(
                long_prompt.measure(
                    Path(folder) / "model",
                    prefix=prefix,
                    dtype=setting.dtype,
                    threads=threads,
                    backend=backend,
                )
            )
            typer.echo(long_prompt.sentence(rows[-1]))
            _save(out, "memory", rows)
    _page(out)


bench_app.command()(gpu)


@bench_app.command()
def page(out: Out = Path("bench")) -> None:
    """Draw OUT/bench.html from the results that are there."""
    from dgemma_evals.bench.page import write as write_page

    typer.echo(f"page: {write_page(out)}")


@bench_app.command()
def index(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="In this order; all in --out if none is named."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where index.html is written.")] = Path("results"),
) -> None:
    """Draw OUT/index.html: all comparisons and benches in one page, which opens with three sentences and a picture."""
    from dgemma_evals.commands.index import write as write_index

    typer.echo(f"page: {write_index(out, folders or ())}")


def _settings(
    threads: int, rounds: int, backend: str, dtypes: str, allocators: str
) -> list[Setting]:
    """All combinations of the dtypes and allocators that the options name."""
    from dgemma_evals.bench import processes

    base = processes.Setting(threads=threads, rounds=rounds, backend=backend)
    return list(processes.settings(base, _split(dtypes), _split(allocators)))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise RequestError(f"{text!r} is no batch size: give whole numbers from 1")
    return int(text)


def _show(row: dict[str, Any]) -> None:
    """One line an implementation."""
    setting = row["setting"]
    where = ", ".join(str(row[key]) for key in ("model", "batch") if key in row)
    typer.echo(f"{row['table']} {where} {setting['dtype']}, {setting['allocator']} allocator")
    for found in row["implementations"]:
        low, high = min(found["rounds"]), max(found["rounds"])
        typer.echo(
            f"  {found['name']:32s} {found['median']:10.4g} {row['unit']}  ({low:.4g} to {high:.4g})  "
            f"peak {found['peak_bytes'] / 1e9:.2f} GB"
        )
    if row["ratio_to_fastest_peer"] is not None:
        few = "" if row["enough_rounds"] else "  (too few rounds for a headline)"
        typer.echo(f"  {row['ratio_to_fastest_peer']:.2f}× the fastest peer{few}")
    if (row["cores_busy_with_others"] or 0) >= 0.1:
        typer.echo(
            f"  other processes kept up to {row['cores_busy_with_others']:.1f} cores busy: measure on an idle machine"
        )


def _save(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """The rows so far: what a killed run has measured is kept."""
    from dgemma_evals.machine import environment

    record = {"command": _command(), "environment": environment(), "rows": list(rows)}
    write_json(out / f"{name}.json", record)


def _command() -> str:
    return " ".join(["dgemma", *sys.argv[1:]])


def _unfinished(file: Path) -> dict[str, Any]:
    """The record of a run that was killed; {} where there is none."""
    if not file.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{file}: no JSON ({error}); remove it") from error
    return found if found.get("left") else {}


def _page(out: Path) -> None:
    from dgemma_evals.bench.page import write as write_page

    typer.echo(f"page: {write_page(out)}")
