"""A hub on this machine: one repository of files, served as the Hugging Face hub serves them."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMIT = "1" * 40


class Hub(http.server.ThreadingHTTPServer):
    """`sent` counts the bytes of each file that went out."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.folder = name, folder
        self.sent: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        hub = self.server
        files = sorted(hub.folder.iterdir())
        if path.startswith(f"/api/models/{hub.name}/tree/"):
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _tag(f)}
                       for f in files]  # fmt: skip
            return self._json(entries)
        if re.fullmatch(rf"/api/models/{hub.name}(/revision/\w+)?", path):
            siblings = [{"rfilename": f.name} for f in files]
            return self._json({"id": hub.name, "sha": COMMIT, "siblings": siblings})
        found = re.fullmatch(rf"/{hub.name}/resolve/\w+/([\w.-]+)", path)
        file = hub.folder / found[1] if found else None
        if file is None or not file.exists():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        part = content
        if asked:
            part = content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_tag(file)}"')
        self.send_header("Content-Length", str(len(part)))
        if asked:
            last = int(asked[1]) + len(part) - 1
            self.send_header("Content-Range", f"bytes {asked[1]}-{last}/{len(content)}")
        self.end_headers()
        if body:
            hub.sent[file.name] = hub.sent.get(file.name, 0) + len(part)
            self.wfile.write(part)

    def _json(self, content: Any) -> None:
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def _tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving(name: str, folder: Path) -> Iterator[Hub]:
    """The hub with one repository, the files of a folder."""
    hub = Hub(name, folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
