"""The prompt box: one's own prompt or an example of a kind, the canvas under it, and the verdict on what was written.

The examples are problems that the model was never trained on; which kinds there are says the model's folder
(`dgemma_core.nano.problems`). Each example's verifier judges the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dgemma_core.errors import DgemmaError, check_kind, whole_number
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import Prompt
from dgemma_core.nano.problems import Problem, known_to
from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.form.boxes import Stack
from dgemma_lab.form.constraint import constraint_fields, constraint_from, constraint_values
from dgemma_lab.form.form import Field, Form, button
from dgemma_lab.session.run import Run

EXAMPLE = "example:"
SHOWN = 5
"""Kinds of English, and of puzzles, that have a button of their own; the others stand in a menu."""


class Starts(Protocol):
    """What a box needs of a session."""

    loaded: Loaded

    def run(self, prompt: Prompt, *, canvas: Canvas, box: Any, **options: Any) -> Run: ...


class Asking(Stack):
    """A prompt box over a canvas. Enter runs; a run that is still writing is replaced. `current` is the last run.

    `try_example(name)` is what an example's button does. `verdict` is the verifier's on the last run: None while there
    is none, or nobody decides.
    """

    def __init__(self, session: Starts, prompt: str, options: Mapping[str, Any]) -> None:
        check_kind("prompt", prompt, str, "a text")
        self.session, self.options = session, dict(options)
        self.current: Run | None = None
        self.verdict: bool | None = None
        self.known = known_to(session.loaded)
        self._marks: dict[str, bool] = {}  # name of an example's kind → the last verdict
        self._tried: dict[str, int] = {}
        self._problem: Problem | None = None
        self.canvas = Canvas(heading=False)
        values = {
            "prompt": prompt, "seed": whole_number("seed", self.options.pop("seed", 0)), "more": "",
            **constraint_values(self.options.pop("constraint", None)),
        }  # fmt: skip
        self.form = Form(self._fields(), values)
        self.form.on_press(self._press)
        super().__init__(children=(self.form, self.canvas))

    def _fields(self) -> list[Field]:
        prompt = {
            "name": "prompt", "kind": "area", "label": "Prompt (Enter runs, Shift+Enter breaks the line)",
        }  # fmt: skip
        seed = {
            "name": "seed",
            "kind": "int",
            "label": "seed",
            "inline": True,
            "help": "The same seed writes the same text.",
        }
        return [prompt, button("run", main=True), seed, *self._examples(), *constraint_fields()]

    def _examples(self) -> list[Field]:
        """Buttons of the first kinds, and a menu of all others."""
        labels = self.known.labels()
        names = list(labels)
        cut = len(self.known.kinds)
        first = [*names[:cut][:SHOWN], *names[cut:][:SHOWN]]
        made: list[Field] = [
            button(
                EXAMPLE + name, labels[name], mark=self._marks.get(name), light=True,
                help="An unseen example, and its verifier's verdict on the answer.",
            )
            for name in first
        ]  # fmt: skip
        others = [name for name in names if name not in first]
        if others:
            signs: dict[bool | None, str] = {True: " ✓", False: " ✗"}
            options = [{"value": "", "label": "more examples …"}]
            for name in others:
                label = labels[name] + signs.get(self._marks.get(name), "")
                options.append({"value": name, "label": label})
            made.append({"name": "more", "kind": "choice", "label": "", "aria": "More examples",
                         "options": options, "press": True})  # fmt: skip
        return made

    def _press(self, name: str) -> None:
        if name == "more":
            self.try_example(self.form.values["more"])
        elif name.startswith(EXAMPLE):
            self.try_example(name.removeprefix(EXAMPLE))
        else:
            self.run()

    def try_example(self, name: str) -> Run | None:
        """Puts the next unseen example of a kind (a name of `known.labels()`) into the box, and runs it."""
        if not isinstance(name, str) or name not in self.known.labels():
            return None
        number = self._tried.get(name, 0)
        self._tried[name] = number + 1
        self._problem = self.known.problem(name, number)
        self.form.values = {**self.form.values, "prompt": self._problem.prompt, "more": ""}
        return self.run()

    def settle(self) -> None:
        if self.current is not None:
            self.current.wait()

    def run(self) -> Run | None:
        """What the button does; what is wrong with the request is said under the box."""
        prompt = self.form.values["prompt"]
        problem = self._problem
        if problem is None or problem.prompt != prompt:
            problem = self._problem = None
        asked: Prompt = (
            prompt if problem is None or len(problem.messages) == 1 else problem.messages
        )
        self.verdict = None
        try:
            self.current = self.session.run(
                asked,
                seed=self.form.values["seed"] or 0,
                constraint=constraint_from(self.form.values),
                canvas=self.canvas,
                box=self,
                **self.options,
            )
        except DgemmaError as error:
            self.form.say(str(error), alert=True)
            return None
        before = problem.messages[:-1] if problem is not None else ()
        said = " / ".join(message["content"] for message in before)
        self.form.say(f"said before: {said}" if said else "")
        self.current.on_finish(lambda run: self._ended(run, problem, prompt))
        return self.current

    def _ended(self, run: Run, problem: Problem | None, prompt: str) -> None:
        if run is self.current and not run.failed:
            self._judge(run, problem, prompt)
        self.refresh_still()

    def _judge(self, run: Run, problem: Problem | None, prompt: str) -> None:
        """Says what the verifier makes of the answer, or that the prompt is outside what the model knows."""
        reply = run.result().text if run.written else ""
        if problem is None:
            told = self.known.warning(self.session.loaded.name, prompt, reply)
            if told:
                self.form.say(told)
            return
        if problem.accepts is None or not run.written:
            return
        self.verdict = problem.accepts(reply)
        self._marks[problem.name] = self.verdict
        verdict = (
            "✓ The verifier accepts this answer."
            if self.verdict
            else "✗ The verifier rejects this answer."
        )
        with self.form.hold_sync():
            self.form.fields = self._fields()
            self.form.say(verdict + (f" {self.form.message}" if self.form.message else ""))
