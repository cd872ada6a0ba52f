"""A real JupyterLab, and a page in Chromium that drives it: for the tests of this folder and for the screenshots.

with serve(folder) as address:
    lab = Lab(browser, address, "01_first_canvas.ipynb")
    lab.run_cell(1)
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Error, Locator

PATIENCE = 90.0
"""Seconds that the server, a kernel or a run may take on a busy machine."""

QUIET = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
}
"""JupyterLab's settings: it asks nothing, and fetches nothing from elsewhere."""


def write_notebook(path: Path, cells: Sequence[str]) -> Path:
    """A notebook of code cells without outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    nbformat.write(notebook, path)
    return path


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """JupyterLab over `folder`, with settings and state of its own; yields its address, token included."""
    state = folder / ".jupyter"
    for name, values in QUIET.items():
        setting = state / "settings" / name
        setting.parent.mkdir(parents=True, exist_ok=True)
        setting.write_text(json.dumps(values), "utf-8")
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(state / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with (
        open(folder / ".server.log", "wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as server,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api/status?token={token}", server, Path(log.name))
            yield f"{address}/lab/tree/{{}}?token={token}&reset"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text('utf-8')[-2000:]}")


class Lab:
    """A notebook open in JupyterLab; `outside` and `errors` collect what a page must not do."""

    def __init__(self, browser: Browser, address: str, notebook: str, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 1000}, **options}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address.format(notebook))
        self._wait_for_kernel()

    def _asked(self, url: str) -> None:
        if not url.startswith(("data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1")):
            self.outside.append(url)

    def run_cell(self, index: int) -> Locator:
        """Runs cell number `index`, waits until the kernel has answered, and returns its outputs."""
        self.page.evaluate(
            """async (index) => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.deselectAll();
                notebook.activeCellIndex = index;
                await notebook.scrollToItem(index);
                await jupyterapp.commands.execute("notebook:run-cell");
            }""",
            index,
        )
        return self.output(index)

    def rerun(self, *indices: int) -> Locator:
        """Runs several cells in turn; the outputs of the last."""
        for index in indices:
            last = self.run_cell(index)
        return last

    def restart_kernel(self) -> None:
        """Restarts the notebook's kernel, and waits until it is there again."""
        self.page.evaluate(
            "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
        )
        self._wait_for_kernel()

    def shut_kernel_down(self) -> None:
        """Ends the notebook's kernel; no other one takes its place."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def save_and_open_again(self) -> None:
        """Saves the notebook, shuts its kernel down and loads the page anew."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.context.save()")
        self.shut_kernel_down()
        self.page.reload()
        self._wait_for_kernel()

    def _wait_for_kernel(self) -> None:
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.context?.isReady"
            " && window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def output(self, index: int) -> Locator:
        """The outputs of a cell."""
        return self.page.locator(
            f'.jp-Cell[data-windowed-list-index="{index}"] .jp-OutputArea'
        ).first

    def theme(self, name: str) -> None:
        """Switches to "JupyterLab Light" or "JupyterLab Dark"."""
        self.page.evaluate(
            "name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name
        )
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light",
            arg=str("Light" in name).lower(),
        )

    def close(self) -> None:
        """Shuts the kernel down and closes the page."""
        try:
            self.shut_kernel_down()
        except Error as error:
            self.errors.append(str(error))
        self.context.close()
