"""The playground: one prompt and one seed, two or three ways to decode it, side by side and scrubbed together.

    Playground(session, "Sort ascending:\\n3,1,2")     # change a control, press Run

The controls are made from the samplers' own fields, so that a new setting needs nothing here.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from dgemma_core.errors import DgemmaError, RequestError, check_kind, whole_number
from dgemma_core.files.trace import Trace
from dgemma_core.nano.problems import known_to
from dgemma_core.samplers import SAMPLERS, StopRule, sampler_from
from dgemma_lab.canvas.canvas import REPLAYED, Canvas
from dgemma_lab.canvas.compare import difference
from dgemma_lab.form.boxes import Columns, Stack
from dgemma_lab.form.constraint import constraint_fields, constraint_from, constraint_values
from dgemma_lab.form.form import Field, Form, button
from dgemma_lab.given import listed, waiting_time
from dgemma_lab.playground.transport import Transport
from dgemma_lab.session.run import Run
from dgemma_lab.session.session import Session

CAUSAL, DRAFTED = "autoregressive", "speculative"
LETTERS = "ABC"


def controls() -> tuple[list[Field], dict[str, Any]]:
    """The fields of one way to decode, and their defaults: a rule, and under each rule its own settings.

    Names are `rule`, `<rule>.<setting>`, `steps`, `stop`, `stop.<setting>`, and of the other modes
    `autoregressive.temperature`, `speculative.temperature`, `speculative.draft_positions` and
    `speculative.draft_steps`. All but `rule` and `steps` are folded away at first.
    """
    rules = [*SAMPLERS, CAUSAL, DRAFTED]
    made: list[Field] = [
        {"name": "rule", "kind": "choice", "label": "rule",
         "options": [{"value": rule, "label": rule.replace("_", " ")} for rule in rules]}
    ]  # fmt: skip
    values: dict[str, Any] = {"rule": rules[0]}
    denoising = {"rule": list(SAMPLERS)}
    for rule, kind in SAMPLERS.items():
        _settings(made, values, kind, rule, {"rule": [rule]})
    made.append({"name": "steps", "kind": "int", "label": "steps", "when": denoising,
                 "help": "The most passes that a canvas may take."})  # fmt: skip
    made.append({"name": "stop", "kind": "flag", "advanced": True, "label": "stop early", "when": denoising,
                 "help": "End a canvas when its argmax rests and its mean entropy is low."})  # fmt: skip
    values.update(steps=48, stop=True)
    _settings(made, values, StopRule, "stop", {**denoising, "stop": [True]})
    for mode in (CAUSAL, DRAFTED):
        name = f"{mode}.temperature"
        made.append({"name": name, "kind": "float", "label": "temperature", "advanced": True,
                     "when": {"rule": [mode]}})  # fmt: skip
        values[name] = 0.0
    for setting, words in (
        ("draft_positions", "Positions that each round drafts; empty: as many as pay."),
        ("draft_steps", "Denoising steps of a draft."),
    ):
        name = f"{DRAFTED}.{setting}"
        made.append({"name": name, "kind": "int", "label": setting.replace("_", " "), "help": words,
                     "placeholder": "adaptive" if setting == "draft_positions" else None,
                     "advanced": True, "when": {"rule": [DRAFTED]}})  # fmt: skip
        values[name] = None if setting == "draft_positions" else 1
    return made, values


def _settings(
    made: list[Field], values: dict[str, Any], kind: type, group: str, when: Mapping[str, list[Any]]
) -> None:
    """A control for each field of a dataclass."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        types_of = get_args(hints[item.name]) or (hints[item.name],)
        optional = types.NoneType in types_of
        made.append(
            {
                "name": f"{group}.{item.name}",
                "kind": "int" if int in types_of else "float",
                "label": item.name.replace("_", " "),
                "when": dict(when),
                "placeholder": "none" if optional else None,
                "advanced": True,
            }
        )
        values[f"{group}.{item.name}"] = None if item.default is MISSING else item.default


def options_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the controls say, as options of `session.plan`. Raises RequestError for a setting that has no meaning."""
    rule = values["rule"]
    if rule == CAUSAL:
        return {"mode": CAUSAL, "temperature": _needed(values, f"{CAUSAL}.temperature")}
    if rule == DRAFTED:
        return {"mode": DRAFTED, **_group(values, DRAFTED)}
    stop = StopRule(**_group(values, "stop")) if values["stop"] else None
    return {
        "sampler": sampler_from(rule, **_group(values, rule)),
        "steps": _needed(values, "steps"),
        "stop_rule": stop,
    }


def _group(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    prefix = f"{group}."
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def _needed(values: Mapping[str, Any], name: str) -> Any:
    if values[name] is None:
        raise RequestError(f"{name.split('.')[-1]} is empty: give a number")
    return values[name]


DEFAULT: Sequence[Mapping[str, Any]] = (
    {"steps": 8}, {"rule": "block_refinement", "steps": 8}, {"rule": DRAFTED},
)  # fmt: skip


def default_prompt(session: Session) -> str:
    """An unseen problem on which the rules differ, of what the model was trained for; "" where it does not say."""
    found = known_to(session.loaded)
    for name in ("story", "word_sorting", *found.labels()):
        if name in found.labels():
            return found.problem(name, 1).prompt
    return ""


class Column:
    """One way to decode: its controls, its canvas, and its last run."""

    def __init__(self, letter: str, values: Mapping[str, Any] | None = None) -> None:
        made, defaults = controls()
        self.letter = letter
        check_kind("a column", values, Mapping | None, "a mapping: values of controls by name")
        unknown = [name for name in values or {} if name not in defaults]
        if unknown:
            raise RequestError(
                f"the playground has no control {unknown[0]!r}: it has {', '.join(defaults)}"
            )
        self.form = Form(made, {**defaults, **(values or {})})
        self.canvas = Canvas(title=letter, transport=False)
        self.run: Run | None = None


class Playground(Stack):
    """Two or three columns of controls and canvases under one prompt and one seed.

    columns: what each starts with, as values of `controls`, e.g. [{}, {"rule": "block_refinement", "steps": 16}].
    prompt: None takes an unseen problem. `run()` is what the button does; `traces` are the last run of each column that
    has one.
    """

    def __init__(
        self,
        session: Session,
        prompt: str | None = None,
        *,
        columns: Sequence[Mapping[str, Any]] = DEFAULT,
        seed: int = 0,
        max_new_tokens: int | None = None,
    ) -> None:
        check_kind("session", session, Session, "a Session")
        check_kind("prompt", prompt, str | None, "a text, or None for an unseen problem")
        columns = listed("columns", columns, "values of controls, a mapping a column")
        if not 1 <= len(columns) <= len(LETTERS):
            raise DgemmaError(f"a playground has 1 to {len(LETTERS)} columns, not {len(columns)}")
        self.session = session
        self.columns = [
            Column(letter, values) for letter, values in zip(LETTERS, columns, strict=False)
        ]
        limit = session.loaded.generation.max_new_tokens
        if max_new_tokens is not None:
            limit = whole_number("max_new_tokens", max_new_tokens, low=1)
        self.form = Form(
            [
                {
                    "name": "prompt",
                    "kind": "area",
                    "label": "Prompt (Enter runs, Shift+Enter breaks the line)",
                },
                button("run", "Run all", main=True),
                button("stop"),
                {"name": "seed", "kind": "int", "label": "seed", "inline": True},
                {"name": "limit", "kind": "int", "label": "most new tokens", "inline": True},
                *constraint_fields(),
            ],
            {
                "prompt": default_prompt(session) if prompt is None else prompt,
                "seed": whole_number("seed", seed),
                "limit": limit,
                **constraint_values(),
            },
        )
        self.form.disabled = ["stop"]
        self.transport = Transport()
        self._turn = 0
        self._idle = threading.Event()
        self._idle.set()
        self._waiting: list[tuple[Column, dict[str, Any]]] = []
        self.form.on_press(self._press)
        for column in self.columns:
            column.form.on_press(lambda _: self.run())  # Enter in one of its fields
        rows = (
            Columns(children=[column.form for column in self.columns]),
            self.transport,
            Columns(children=[column.canvas for column in self.columns]),
        )
        super().__init__(children=(self.form, *rows))

    def run(self) -> None:
        """Runs the columns one after the other, each into its canvas, and returns at once."""
        said = self.form.values
        try:
            constraint = constraint_from(said)
        except DgemmaError as error:
            self.form.say(str(error), alert=True)
            return
        waiting = []
        for column in self.columns:
            column.form.say("")
            try:
                options = options_from(column.form.values)
            except DgemmaError as error:
                column.form.say(str(error), alert=True)
                return
            options |= {"seed": said["seed"] or 0, "max_new_tokens": said["limit"]}
            options |= {"constraint": constraint}
            waiting.append((column, options))
        self.transport.untie()
        self._turn += 1
        self._waiting = waiting
        self._idle.clear()
        self.form.disabled = []
        self._next(self._turn)

    def stop(self) -> None:
        """Stops the column that is writing; those after it do not begin."""
        self._waiting = []
        self.session.stop(self)

    def wait(self, timeout: float | None = None) -> Playground:
        """Waits until every column is over. DgemmaError after `timeout` seconds."""
        timeout = waiting_time(timeout)
        if not self._idle.wait(timeout):
            raise DgemmaError(
                f"the columns are not over after {timeout} s: wait longer, or stop them"
            )
        return self

    def _press(self, name: str) -> None:
        if name == "run":
            self.run()
        else:
            self.stop()

    def _next(self, turn: int) -> None:
        """Starts the next column; ties the scrubbers together once all are over."""
        if not self._waiting:
            self._compare()
            longest = max((trace.total_seconds for trace in self.traces.values()), default=0.0)
            self.transport.tie([c.canvas for c in self.columns], play=longest < REPLAYED)
            self._rest("; ".join(self._comparisons()))
            return
        column, options = self._waiting.pop(0)
        self.form.say(f"column {column.letter} is writing …")
        column.canvas.title = f"{column.letter} · {column.form.values['rule'].replace('_', ' ')}"
        try:
            run = self.session.run(
                self.form.values["prompt"], canvas=column.canvas, box=self, **options
            )
        except DgemmaError as error:
            self._rest(str(error), alert=True)
            return
        column.run = run
        run.on_finish(lambda _: self._ended(column, run, turn))

    def _ended(self, column: Column, run: Run, turn: int) -> None:
        if turn != self._turn:
            return  # the button was pressed again
        self._next(turn)

    def _rest(self, message: str, *, alert: bool = False) -> None:
        self._waiting = []
        self.form.disabled = ["stop"]
        self.form.say(message, alert=alert)
        self.refresh_still()
        self._idle.set()

    def _compare(self) -> None:
        """Marks in the columns behind A what is not as in A."""
        traces = self.traces
        for column in self.columns[1:]:
            if "A" in traces and column.letter in traces:
                column.canvas.compare(traces["A"], "A")

    def _comparisons(self) -> list[str]:
        traces = self.traces
        return [
            f"A and {letter}: {difference(traces['A'], trace)}"
            for letter, trace in traces.items()
            if letter != "A" and "A" in traces
        ]

    @property
    def traces(self) -> dict[str, Trace]:
        """Column → trace, of the columns whose last run is over without an error."""
        return {
            column.letter: column.run.trace
            for column in self.columns
            if column.run is not None and not column.run.running and not column.run.failed
        }

    def settle(self) -> None:
        self.wait()

    def __repr__(self) -> str:
        return f"Playground({', '.join(column.letter for column in self.columns)})"
