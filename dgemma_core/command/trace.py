"""`dgemma trace`: recorded runs in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgemma_core.command.lines import count, escaped

if TYPE_CHECKING:
    from dgemma_core.files.trace import Trace

trace_app = typer.Typer(help="Look at recorded runs.")


@trace_app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="As `dgemma generate --trace` writes it.")],
) -> None:
    """Show a recorded run: its settings, a line for each pass, and the text with its confidence."""
    from rich.console import Console

    from dgemma_core.command.terminal import draw_tokens, legend
    from dgemma_core.files.trace import Trace

    trace = Trace.load(file)
    console = Console(highlight=False)
    for line in _trace_lines(trace):
        print(escaped(line))
    answered = [(commit.ids[: commit.kept], commit.probability) for commit in trace.commits]
    if trace.token_by_token:
        answered = [(trace.tokens_out, trace.sample_probability)]
    for ids, probabilities in answered:
        chances = probabilities[: len(ids)].tolist()
        console.print(draw_tokens(ids.tolist(), chances, trace.text, trace.eos_ids()))
    if console.is_terminal:
        console.print(legend())


def _trace_lines(trace: Trace) -> Iterator[str]:
    """Settings, a table of the passes, what it all cost."""
    from dgemma_core.command.terminal import draw_round, visible
    from dgemma_core.files.trace import KINDS

    settings = {"mode": trace.mode, **trace.metadata, "seed": trace.seed}
    for name, value in settings.items():
        if value is not None:
            yield f"{name:<14} {json.dumps(value, ensure_ascii=False)}"
    yield f"{'prompt':<14} {visible(''.join(map(trace.text, trace.prompt_ids.tolist())))}"
    seconds = [trace.prompt_seconds, *trace.seconds.tolist()]
    if trace.token_by_token:
        yield " token  probability  entropy       ms  text"
    else:
        yield "canvas  step  kind     temperature  accepted  re-melted  entropy       ms"
        accepted, entropy = trace.accepted_count(), trace.mean_entropy()
        remelted = trace.remelted()
    for r in range(len(trace)):
        start, stop = trace.offsets[r], trace.offsets[r + 1]
        took = 1000 * (seconds[r + 1] - seconds[r])
        if trace.token_by_token:
            probability, piece = trace.probability[start], visible(trace.text(trace.argmax[start]))
            yield (
                f"{trace.step[r] + 1:>6}  {probability:>11.3f}  {trace.entropy[start]:>7.3f}"
                f"  {took:>7.1f}  {piece}"
            )
        else:
            melted = int(remelted[start:stop].sum())
            yield (
                f"{trace.canvas[r] + 1:>6}  {trace.step[r] + 1:>4}  {KINDS[trace.kind[r]]:<7}"
                f"  {trace.temperature[r]:>11.3f}  {accepted[r]:>8}  {melted:>9}"
                f"  {entropy[r]:>7.3f}  {took:>7.1f}"
            )
    if trace.rounds:
        yield " round  token  drafted  verified  accepted  text"
    for i, made in enumerate(trace.rounds, 1):
        drawn = draw_round(made, trace.text, trace.eos_ids()).plain.replace("\n", "")
        yield (
            f"{i:>6}  {made.start + 1:>5}  {len(made.tokens) - 1:>7}  {made.verified - 1:>8}"
            f"  {made.accepted:>8}  {visible(trace.text(made.tokens[0]))}{drawn}"
        )
    held = count(trace.canvases, "canvas", "canvases")
    if trace.mode == "speculative":
        held = count(trace.canvases, "round")
    yield (
        f"{count(len(trace.ids), 'token')}, {count(trace.denoising_steps, 'step')},"
        f" {count(trace.passes, 'pass', 'passes')}, {held},"
        f" {trace.total_seconds:.2f} s, ended by {trace.stop_reason}"
    )
