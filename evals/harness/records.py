"""One line of JSON for each answered request, written the moment it is known.

A run that was killed reads them and goes on: nothing is computed twice, nothing is lost. A file is
for one model, dtype and set of settings (a hash of them stands in its name), and one process; all
files of that hash in the folder are read, so that a run may go on with another number of processes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgemma_core import DgemmaError
from dgemma_evals.writers.counting import Counts

SCHEMA = 1
_log = logging.getLogger(__name__)

Record = dict[str, Any]
"""key: what identifies the request; answer: what the model returned; and what it cost."""


@contextmanager
def sole_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock on a folder of results. Raises DgemmaError where another run holds it, or the folder cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise DgemmaError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DgemmaError(
                f"{folder}: another run writes there; wait for its end, or choose another --out"
            ) from error
        yield


class Records:
    """The records of one run: `get` what is known, `add` what is new.

    folder: made if need be. identity: the hash of model and settings. settings: written at the
    file's head, for people. rank, of: this process among all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: str,
        settings: Mapping[str, Any],
        *,
        rank: int = 0,
        of: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.identity = identity
        self.path = self.folder / f"records-{identity}-{rank}of{of}.jsonl"
        self._known: dict[str, Record] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._end = _repair(self.path)
        except OSError as error:
            raise DgemmaError(f"{self.folder}: cannot hold records ({error.strerror})") from error
        self.reload()
        self.resumed = len(self._known)
        if not self._end:
            self._append({"schema": SCHEMA, "identity": identity, "settings": dict(settings)})

    def reload(self) -> None:
        """Reads the files of all processes again."""
        for path in sorted(self.folder.glob(f"records-{self.identity}-*of*.jsonl")):
            self._known |= {record["key"]: record for record in read(path)}

    def get(self, key: str) -> Record | None:
        """The record of a request, None if it has not been answered yet."""
        return self._known.get(key)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def add(self, *records: Record) -> None:
        """Writes records through to the disk. Raises DgemmaError where that fails."""
        self._append(*records)
        self._known |= {record["key"]: record for record in records}

    def _append(self, *values: Any) -> None:
        line = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, self._end)  # no half line stays
            raise DgemmaError(
                f"{self.path}: cannot be written ({error.strerror}); make room and run the same"
                f" command again, the {len(self._known)} answers so far are kept"
            ) from error
        self._end += len(line)


def _repair(path: Path) -> int:
    """Cuts off a last line that a kill left unfinished. Returns the file's length in bytes."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        _log.warning("%s: cut off a last line that was not finished", path)
        os.truncate(path, whole)
    return whole


def _check(record: Record) -> None:
    """Raises where a line is no answered request: a text has its counts, a likelihood its numbers."""
    record["key"]
    match record["answer"]:
        case str():
            Counts.from_json(record["counts"])
        case [float(), bool()] | float():
            pass
        case _:
            raise ValueError("no answer")


def read(path: str | os.PathLike[str]) -> list[Record]:
    """The records of one file, without its head; an unfinished last line is left out.

    Raises DgemmaError, naming the line, where one is damaged or the file is of a newer schema.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if number == 1:
                if record["schema"] != SCHEMA:
                    raise DgemmaError(
                        f"{path}: records of schema {record['schema']}, this version reads {SCHEMA}"
                    )
                continue
            _check(record)
        except (ValueError, TypeError, KeyError, DgemmaError) as error:
            if isinstance(error, DgemmaError) and number == 1:
                raise
            advice = (
                "delete the file" if number == 1 else "delete that line, it is then computed anew"
            )
            raise DgemmaError(f"{path}: line {number} is damaged; {advice}") from error
        records.append(record)
    return records
