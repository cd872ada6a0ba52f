"""Runs a program that a model wrote: in a process of its own, with limits, and as isolated as the system allows.

Notable:
- limits of time, memory, file size and number of processes are the kernel's; what the program prints is dropped;
- namespaces take away the network and other processes; with the program's first process all that it started end;
- Landlock leaves one empty folder to write in; an audit hook refuses new processes, sockets and ctypes a second time;
- that the program came to its end is said by a word that enters the process afterwards only.

What the system does not grant is told once (`missing`). A program that reads its own process's open files could still
forge the word: for programs that mean harm, use a container or a virtual machine too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile

from dgemma_core import DgemmaError

_log = logging.getLogger(__name__)
_told: set[str] = set()
_MOST = 4096
"""Bytes that are read of the guard's report."""

_GUARD = """
import ctypes, os, resource, struct, sys
report, seconds, megabytes, size = map(int, sys.argv[1:])
libc, missing = ctypes.CDLL(None, use_errno=True), []
libc.prctl(38, 1, 0, 0, 0)  # no new privileges
if libc.unshare(0x10000000 | 0x40000000 | 0x20000000):  # user, network and process namespace
    missing += ["network", "processes"]
else:
    child = os.fork()  # the first process of its namespace: with it, all others end
    if child:
        os._exit(os.waitpid(child, 0)[1] != 0)
    libc.prctl(1, 9, 0, 0, 0)  # it ends with its parent
version = libc.syscall(444, None, 0, 1)  # Landlock
if version < 1:
    missing.append("files")
else:
    writes = 0b1_1111_1111_0010 | (version > 1) << 13 | (version > 2) << 14
    scope = 0b11 if version > 5 else 0
    rules = struct.pack("QQQ", writes, 0, scope)[: 24 if version > 5 else 8]
    ruleset = libc.syscall(444, rules, len(rules), 0)
    for path, access in ((os.getcwd(), writes), ("/dev/null", 0b10)):
        folder = os.open(path, os.O_PATH)
        libc.syscall(445, ruleset, 1, struct.pack("=Qi", access, folder), 0)
        os.close(folder)
    if libc.syscall(446, ruleset, 0):
        missing.append("files")
    os.close(ruleset)
for limit, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes * 2**20),
                     (resource.RLIMIT_FSIZE, 2**20), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
os.write(report, (" ".join(missing) + "\\n").encode())
inlet = os.dup(0)
os.dup2(os.open("/dev/null", os.O_RDONLY), 0)

def read(count):
    parts = b""
    while len(parts) < count:
        part = os.read(inlet, count - len(parts))
        if not part:
            break
        parts += part
    return parts

def guarded():
    refused = ("socket.", "subprocess.", "os.exec", "os.fork", "os.spawn", "os.posix_spawn",
               "os.system", "os.kill", "ctypes.")
    def hook(event, arguments):
        if event.startswith(refused):
            raise RuntimeError(f"{event} is not allowed here")
    return hook

code = compile(read(size).decode(), "answer", "exec")
sys.addaudithook(guarded())
write, exit = os.write, os._exit
exec(code, {"__name__": "answer"})
write(report, read(32))
exit(0)
"""


def passes(program: str, *, seconds: int = 10, megabytes: int = 1024) -> bool:
    """True where the program runs to its end without an exception, within the limits.

    A program that ends its process itself has not passed. Raises DgemmaError where the system cannot set limits.
    """
    if sys.platform != "linux":
        raise DgemmaError("running written programs needs Linux's limits and namespaces: use Linux")
    word, text = secrets.token_hex(16).encode(), program.encode(errors="replace")
    outlet, report = os.pipe()
    numbers = map(str, (report, seconds, megabytes, len(text)))
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _GUARD, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(report,),
            cwd=folder,
            env={},
            start_new_session=True,
        )
        os.close(report)
        ended = False
        try:
            process.communicate(text + word, timeout=seconds + 5)
            ended = process.returncode == 0
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.set_blocking(outlet, False)
            with contextlib.suppress(BlockingIOError):
                said = os.read(outlet, _MOST)
            os.close(outlet)
    missing, _, rest = said.partition(b"\n")
    _tell(missing.decode(errors="replace").split())
    return ended and rest == word


def _tell(missing: list[str]) -> None:
    """Says once what is not isolated."""
    for what in missing:
        if what not in _told:
            _told.add(what)
            _log.warning(
                "written programs run without isolation of: %s (the system grants none)", what
            )
