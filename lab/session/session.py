"""Live runs: the model writes in a thread while its canvas fills, and the notebook stays free.

    session = Session(dg.load("nano"))
    run = session.run("Spell backward:\\nSTEP")     # returns at once; as a cell's last line it shows the canvas
    run.trace                                      # waits for the end; raises here what went wrong there
    run.stop()                                     # takes effect within one pass, as the Stop button does

Nothing here decodes: a run drains the event stream of `dgemma_core` into a trace, a canvas and a state cache.
`record` does the same without a screen.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

from dgemma_core.errors import RequestError, shown
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.generation import Prompt
from dgemma_core.generation.settings import ModeSettings, check_observe
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.session.asking import Asking
from dgemma_lab.session.plan import plan
from dgemma_lab.session.run import Run
from dgemma_lab.session.states import MEBIBYTE, StateCache


class Session:
    """A model whose live runs take turns. `keep_bytes` bounds the states kept for branching, of all its runs.

    A run that comes from where an earlier one came from (`session.run`, or one box or tree) stops and replaces it;
    runs of different boxes wait for each other, so that a notebook may be run from top to bottom.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        observe: Observe | None = Observe(top_k=5),  # noqa: B008
        keep_bytes: int = 256 * MEBIBYTE,
    ) -> None:
        check_loaded(loaded)
        check_observe(observe)
        self.loaded = loaded
        self.observe = observe
        self.states = StateCache(keep_bytes)
        self._last: Run | None = None
        self._current: dict[Any, Run] = {}

    def __repr__(self) -> str:
        return f"Session({self.loaded.name} on {self.loaded.model.backend.name})"

    @property
    def current(self) -> Run | None:
        """The last run of `session.run`."""
        return self._current.get(None)

    def run(
        self,
        prompt: Prompt,
        *,
        canvas: Canvas | None = None,
        observe: Observe | Literal["session"] | None = "session",
        box: Any = None,
        **options: Any,
    ) -> Run:
        """Starts a run and returns at once; `options` are those of `plan`, and bad ones are refused here.

        Replaces the run before it from the same `box` (a widget; None for runs from cells). canvas: where to show it,
        a new one by default.
        """
        settings, request = plan(self.loaded, prompt, **options)
        seen = self.observe if isinstance(observe, str) and observe == "session" else observe
        check_observe(seen)
        if settings.mode != "diffusion" and seen is not None:
            seen = Observe(top_k=seen.top_k)
        return self.launch(settings, request, box=box, prompt=prompt, observe=seen, canvas=canvas)

    def launch(
        self, settings: ModeSettings, request: Request, *, box: Any = None, **options: Any
    ) -> Run:
        """Starts a run of a request that is ready; `options` are those of `Run`."""
        run = Run(self.loaded, settings, request, states=self.states, **options)
        self.stop(box)
        before, self._last = self._last, run
        self._current[box] = run
        return run.start(after=before)

    def stop(self, box: Any = None) -> None:
        """Stops the run of `box` that is writing or waiting, if there is one."""
        if not isinstance(box, Hashable):
            raise RequestError(f"box must be a widget or a name, got {shown(box)}")
        if box in self._current:
            self._current[box].stop()

    def ask(self, prompt: str = "", **options: Any) -> Asking:
        """A box for one's own prompt with a canvas under it, and examples; `options` hold for all its runs."""
        return Asking(self, prompt, options)
