"""The command `dgemma`: which commands there are, and how each ends.

Notable:
- the exit code is 0; 2 after one line on stderr for what is the input's fault; 130 after Ctrl-C; 141 where the reader
  of a pipe has left;
- commands of other packages come in through the entry-point group `dgemma.commands` (name → `typer.Typer`), loaded
  when asked for: the core imports none of them;
- the modules of the commands import torch inside their functions, so that `dgemma --help` is quick.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from dgemma_core.command.constraint import constraint_app
from dgemma_core.command.decide import decide
from dgemma_core.command.info import info, plan
from dgemma_core.command.lines import complain
from dgemma_core.command.trace import trace_app
from dgemma_core.command.train import train
from dgemma_core.command.tune import merge, tune
from dgemma_core.command.write import chat, generate
from dgemma_core.errors import DgemmaError

PLUGINS = "dgemma.commands"
INTERRUPTED, READER_LEFT = 130, 141
"""Exit codes, as shells count them: 128 and the number of the signal (SIGINT, SIGPIPE)."""


class Commands(TyperGroup):
    """The built-in commands, then those that installed packages add."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        return [*super().list_commands(ctx), *sorted(_plugins().names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None where there is none."""
        if cmd_name in self.commands or cmd_name not in _plugins().names:
            return super().get_command(ctx, cmd_name)
        command = _load_plugin(_plugins()[cmd_name])
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Runs the command and writes out what it printed."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            raise typer.Exit(READER_LEFT) from None
        return result

    def main(self, *args: Any, **more: Any) -> Any:
        """Runs a command line and exits."""
        try:
            code = super().main(*args, **{**more, "standalone_mode": False}) or 0
        except typer.TyperException as error:
            code = complain(error.format_message())
        except (DgemmaError, OSError) as error:
            code = complain(str(error))
        except MemoryError:
            code = complain("out of memory: shorten the prompt, or load a smaller dtype")
        if code == INTERRUPTED:
            complain("stopped by Ctrl-C")
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # a full disk, which the command has reported
            _discard_output()
        sys.exit(code)


def _discard_output() -> None:
    """Sends what cannot be written to stdout nowhere, so that Python does not try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plugins() -> EntryPoints:
    return entry_points(group=PLUGINS)


def _load_plugin(plugin: EntryPoint) -> Any:
    """The plugin's command; where it does not load, one that says so."""
    try:
        return typer.main.get_command(plugin.load())
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = DgemmaError(f"{plugin.name} ({plugin.value}) does not load: {error}")
    stand_in = typer.Typer()
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @stand_in.command(help=str(reason), context_settings=anything)
    def fail() -> None:
        raise reason

    return typer.main.get_command(stand_in)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(chat)
app.command()(decide)
app.command()(info)
app.command()(plan)
app.add_typer(trace_app, name="trace")
app.add_typer(constraint_app, name="constraint")
app.command()(train)
app.command()(tune)
app.command()(merge)


@app.callback(invoke_without_command=True)
def start(ctx: typer.Context) -> None:
    """DiffusionGemma: text out of noise, canvas by canvas."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # text that the terminal's encoding lacks is written as escapes
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()


if __name__ == "__main__":
    main()
