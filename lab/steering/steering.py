"""Steering a run: pin, replace or blank tokens, branch from any step, and compare what comes of it.

    Steering(session, "Sort ascending:\\n3,1,2")

A canvas, the tree of its runs, and a second canvas to compare with. What the edits mean stands in edits.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dgemma_core.errors import DgemmaError, RequestError, check_kind
from dgemma_core.generation import Prompt
from dgemma_core.generation.settings import settings_from
from dgemma_lab.canvas.canvas import Steer
from dgemma_lab.canvas.compare import difference, linked
from dgemma_lab.form.boxes import Columns, Stack
from dgemma_lab.form.form import Form
from dgemma_lab.frontend.text import readable, visible
from dgemma_lab.session.plan import check_constraint
from dgemma_lab.session.run import Run
from dgemma_lab.session.session import Session
from dgemma_lab.steering.branches import branch, steered
from dgemma_lab.steering.edits import Edit, described


@dataclass
class Node:
    """A run in the tree, and in words what sets it apart from its parent."""

    run: Run
    words: str

    @property
    def depth(self) -> int:
        depth, run = 0, self.run
        while run.parent is not None:
            depth, run = depth + 1, run.parent
        return depth


class Steering(Stack):
    """A run to steer: its canvas, the tree of what was branched from it, and a second canvas to compare with.

        Steering(session, "Sort ascending:\\n3,1,2")      # options as for Session.run
        steering.apply(edit)                              # what the buttons do; returns the new run

    `nodes` are the runs in the order in which they were made; the first is the root.
    """

    def __init__(self, session: Session, prompt: Prompt, **options: Any) -> None:
        check_kind("session", session, Session, "a Session")
        self.session = session
        self.nodes: list[Node] = []
        self._links: list[Any] = []
        self._lock = threading.RLock()
        self.form = Form()
        self.form.observe(lambda _: self._arrange(), "values")
        self.columns = Columns()
        super().__init__(children=(self.form, self.columns))
        self._grow(session.run(prompt, box=self, **options), "as it came")

    # growing

    @property
    def run(self) -> Run:
        """The run in view."""
        return self._chosen("node").run

    def apply(self, edit: Edit) -> Run:
        """Branches from the run in view; the new run comes into view and starts at once.

        Raises RequestError, and changes nothing, where the edit leaves no text of the run's constraint.
        """
        check_kind("edit", edit, Edit, "an edit, e.g. hold(trace, frame, position, tokens, pins)")
        parent = self.run
        request, opening = branch(parent, edit)
        words = described(edit, parent.pins_at(edit.frame), parent.text_of)
        try:
            check_constraint(parent.loaded, request)
        except RequestError as error:
            raise RequestError(f"{words}: {error}. Nothing has changed.") from error
        settings = parent.settings
        if edit.sampler is not None:
            settings = settings_from(settings.mode, **{**vars(settings), "sampler": edit.sampler})
        run = self.session.launch(
            settings,
            request,
            box=self,
            prompt=parent.prompt,
            observe=parent.observe,
            parent=parent,
            opening=opening,
        )
        self._grow(run, words)
        return run

    def _grow(self, run: Run, words: str) -> None:
        run.canvas.on_steer(lambda steer: self._steer(run, steer))
        with self._lock:
            self.nodes.append(Node(run, words))
            self._draw(chosen=len(self.nodes) - 1)
        run.on_finish(lambda _: self._ended())

    def _steer(self, run: Run, steer: Steer) -> None:
        """What a canvas's buttons ask for. The comparison's canvas steers too: its run then comes into view."""
        try:
            self.form.values = {
                **self.form.values,
                "node": str([node.run for node in self.nodes].index(run)),
            }
            made = self.apply(steered(run, steer, seed=self._next_seed()))
            if steer.position is not None:
                made.canvas.take_focus(steer.position)
        except DgemmaError as error:
            self.form.say(str(error), alert=True)

    def _next_seed(self) -> int:
        return 1 + max(node.run.request.seed for node in self.nodes)

    def _ended(self) -> None:
        self._draw()
        self.refresh_still()

    # showing

    def _chosen(self, name: str) -> Node:
        return self.nodes[int(self.form.values[name])]

    def _draw(self, chosen: int | None = None) -> None:
        with self._lock:
            values = dict(self.form.values)
            if chosen is not None:
                values["node"] = str(chosen)
            order = [
                node for root in self.nodes if root.run.parent is None for node in self._under(root)
            ]
            options = [
                {
                    "value": str(self.nodes.index(node)),
                    "label": node.words,
                    "note": _outcome(node.run),
                    "indent": node.depth,
                }
                for node in order
            ]
            others = [{"value": "", "label": "nothing"}] + [
                {"value": option["value"], "label": option["label"]} for option in options
            ]
            values.setdefault("other", "")
            changed = chosen is not None or "other" not in self.form.values
            with self.form.hold_sync():
                self.form.fields = [
                    {"name": "node", "kind": "list", "label": "Runs", "options": options},
                    {"name": "other", "kind": "choice", "label": "compare with", "options": others},
                ]
                if changed:  # what a reader has chosen meanwhile is not written over
                    self.form.values = values
            self._arrange()

    def _under(self, node: Node) -> Iterator[Node]:
        yield node
        for child in self.nodes:
            if child.run.parent is node.run:
                yield from self._under(child)

    def _arrange(self) -> None:
        """The chosen canvas below the tree; one to compare with beside it, scrubbed together."""
        if not self.nodes or "node" not in self.form.values:
            return
        with self._lock:
            one = self._chosen("node").run
            two = self._chosen("other").run if self.form.values.get("other") else None
            runs = [one] if two in (None, one) else [one, two]
            below = tuple(run.canvas for run in runs)
            if self.columns.children != below:
                for link in self._links:
                    link.unlink()
                self.columns.children = below
                self._links = linked(*(run.canvas for run in runs))
            ended = len(runs) == 2 and not any(run.running or run.failed for run in runs)
            for run, other in ((runs[0], runs[-1]), (runs[-1], runs[0])):
                if ended:
                    run.canvas.compare(other.trace, "the run beside it")
                elif not run.running:
                    run.canvas.compare(None)
            self.form.say(difference(*(run.trace for run in runs)) if ended else "")

    def settle(self) -> None:
        for node in self.nodes:
            node.run.wait()

    def __repr__(self) -> str:
        return f"Steering({len(self.nodes)} runs)"


def _outcome(run: Run) -> str:
    if run.running:
        return "writing …"
    if run.failed:
        return "failed"
    trace = run.trace
    text = readable(
        "".join(trace.text(token) for token in trace.ids.tolist() if token not in trace.eos_ids())
    )
    return f"{visible(text, 48)} · {trace.passes} passes"
