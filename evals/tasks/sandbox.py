"""Runs a program that a model wrote: in a process of its own, with limits, and off the network.

Limits of time, memory and file size are the kernel's. The network is taken away twice: by a network
namespace of its own where the kernel grants one, and by an audit hook, which also refuses new
processes and ctypes. Meant against accidents; for programs that mean harm, use a container too.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile

from dgemma_core import DgemmaError

_GUARD = """
import ctypes, resource, sys
word, seconds, megabytes = sys.stdin.readline().split()
ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # user and network namespace
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
resource.setrlimit(resource.RLIMIT_AS, (int(megabytes) * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2)
refused = ("socket.", "subprocess.", "os.exec", "os.fork", "os.spawn", "os.posix_spawn",
           "os.system", "os.kill", "ctypes.")
def hook(event, arguments):
    if event.startswith(refused):
        raise RuntimeError(f"{event} is not allowed here")
code = compile(sys.stdin.read(), "answer", "exec")
sys.addaudithook(hook)
exec(code, {"__name__": "answer"})
sys.__stdout__.write("\\n" + word)
"""


def passes(program: str, *, seconds: int = 10, megabytes: int = 1024) -> bool:
    """True where the program runs to its end without an exception, within the limits.

    A program that ends its process itself has not passed. Raises DgemmaError where the system
    cannot set limits.
    """
    if sys.platform == "win32":
        raise DgemmaError("running written programs needs a system with resource limits: use Linux")
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(
                [sys.executable, "-I", "-c", _GUARD],
                input=f"{word} {seconds} {megabytes}\n{program}",
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds + 5,
                cwd=folder,
                env={},
            )
        except subprocess.TimeoutExpired:
            return False
    return ran.returncode == 0 and ran.stdout.endswith(f"\n{word}")
