"""A child process that runs fuzz cases, so that a crash or a hang is a failing test and no dead runner.

`Worker.run(kind, case)` sends one case to `cases.KINDS[kind]` in the child and waits for the outcome.
"""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from multiprocessing.connection import Connection
from typing import Any

from dgemma_core.errors import DgemmaError

SECONDS = 60.0
"""A case that takes longer hangs. Usual ones take milliseconds."""
MEMORY = 16 * 2**30
"""Bytes of address space of the child; most of it is what torch reserves."""


class Worker:
    """One child process, started with the first case and again after one that killed it."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, kind: str, case: Any) -> str:
        """The outcome: "answered", or the text of the one DgemmaError. Raises AssertionError otherwise."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((kind, case))
            if not self._pipe.poll(SECONDS):
                self.stop()
                raise AssertionError(f"{kind}: no end within {SECONDS:g} s: {case!r}")
            outcome, text = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.stop()
            raise AssertionError(f"{kind}: the process died ({code}): {case!r}") from None
        if outcome == "failed":
            raise AssertionError(f"{kind}: {case!r}\n{text}")
        return str(text)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
            self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    """The child: cases in, outcomes out, until the pipe closes."""
    from tests.fuzz import cases

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        try:
            kind, case = pipe.recv()
        except EOFError:
            return
        try:
            cases.KINDS[kind](case)
            outcome = ("passed", "answered")
        except DgemmaError as error:
            one_line = str(error).strip() and str(error).isprintable()
            outcome = ("passed" if one_line else "failed", str(error))
        except BaseException:
            outcome = ("failed", traceback.format_exc())
        pipe.send(outcome)
