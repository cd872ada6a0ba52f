"""Live runs: the model writes in a thread while its canvas fills, and the notebook stays free.

    session = Session(dg.load("nano"))
    run = session.run("Spell backward:\\nSTEP")     # returns at once; as a cell's last line it shows the canvas
    run.trace                                      # waits for the end; raises here what went wrong there
    run.stop()                                     # takes effect within one pass, as the Stop button does

Nothing here decodes: a run drains the event stream of `dgemma_core` into a trace, a canvas and a state cache.
`record` does the same without a screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dgemma_core.errors import DgemmaError
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import Prompt
from dgemma_core.generation.settings import ModeSettings
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.form.boxes import Stack
from dgemma_lab.form.form import Form, button
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
        seen = self.observe if observe == "session" else observe
        if settings.mode != "diffusion" and seen is not None:
            seen = Observe(top_k=seen.top_k)
        return self.launch(settings, request, box=box, prompt=prompt, observe=seen, canvas=canvas)

    def launch(
        self, settings: ModeSettings, request: Request, *, box: Any = None, **options: Any
    ) -> Run:
        """Starts a run of a request that is ready; `options` are those of `Run`."""
        self.stop(box)
        run = Run(self.loaded, settings, request, states=self.states, **options)
        before, self._last = self._last, run
        self._current[box] = run
        return run.start(after=before)

    def stop(self, box: Any = None) -> None:
        """Stops the run of `box` that is writing or waiting, if there is one."""
        if box in self._current:
            self._current[box].stop()

    def ask(self, prompt: str = "", **options: Any) -> Asking:
        """A box for one's own prompt with a canvas under it; `options` hold for all its runs."""
        return Asking(self, prompt, options)


class Asking(Stack):
    """A prompt box over a canvas. Enter runs; a run that is still writing is replaced. `current` is the last run."""

    def __init__(self, session: Session, prompt: str, options: Mapping[str, Any]) -> None:
        self.session, self.options = session, dict(options)
        self.current: Run | None = None
        self.canvas = Canvas()
        self.form = Form(
            [
                {
                    "name": "prompt",
                    "kind": "area",
                    "label": "Prompt (Enter runs, Shift+Enter breaks the line)",
                },
                button("run", main=True),
                {
                    "name": "seed",
                    "kind": "int",
                    "label": "seed",
                    "help": "The same seed writes the same text.",
                },
            ],
            {"prompt": prompt, "seed": self.options.pop("seed", 0)},
        )
        self.form.on_press(lambda _: self.run())
        super().__init__(children=(self.form, self.canvas))

    def settle(self) -> None:
        if self.current is not None:
            self.current.wait()

    def run(self) -> Run | None:
        """What the button does; what is wrong with the request is said under the box."""
        try:
            self.current = self.session.run(
                self.form.values["prompt"],
                seed=self.form.values["seed"] or 0,
                canvas=self.canvas,
                box=self,
                **self.options,
            )
        except DgemmaError as error:
            self.form.say(str(error), alert=True)
            return None
        self.form.say("")
        self.current.on_finish(lambda _: self.refresh_still())
        return self.current
