"""The race: modes of the same weights on one prompt, replayed on one clock from the times that were recorded.

    Race(record_race(loaded, "Sort ascending:\\n3,1,2"))      # play, scrub; no kernel needed
    Race({"48 steps": trace_a, "12 steps": trace_b})         # any runs of one prompt

A lane shows what was written when: tokens are *kept* once their canvas is committed (elsewhere one by one);
what is accepted on a canvas under way is shaded in the chart, the rest of the draft dotted in the text. Passes count
as in a trace: prefill, denoising steps and commits, or prefill and tokens; one of speculation may verify and draft.

Times are measured more than once, the modes in turn, so that a verdict does not hang on one moment of the machine. A
lane replays the run of median time; `metadata["measured"]` of its trace holds all times, and what else ran meanwhile.
"""

from __future__ import annotations

import html
import os
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError, RequestError, whole_number
from dgemma_core.events import Mode
from dgemma_core.facts.machine import BUSY, Watch
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.files.trace import Trace
from dgemma_core.generation import Prompt
from dgemma_core.generation.settings import MODES, settings_from
from dgemma_lab.frontend.page import write_page
from dgemma_lab.frontend.scripts import bundled, style
from dgemma_lab.frontend.still import Still
from dgemma_lab.frontend.text import readable, visible
from dgemma_lab.given import check_trace, listed
from dgemma_lab.session.plan import record

HIDDEN, DRAFT, STANDING = range(3)
LONG = 20.0  # seconds after which a race is not repeated a third time
SHEETS = ("frontend/base.css", "form/form.css", "race/race.css")


class Race(Still, anywidget.AnyWidget):
    """Replays traces of one prompt side by side. `traces`: name → Trace, or several that are named by their mode.

    Trait `seconds` is the clock, linkable; −1 stands for the end, which is shown first.
    """

    _esm = bundled("race/race.js")
    _css = style(*SHEETS)

    lanes = traitlets.List(traitlets.Dict()).tag(sync=True)
    seconds = traitlets.Float(-1.0).tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self, traces: Mapping[str, Trace] | Sequence[Trace], *, title: str | None = None
    ) -> None:
        given = traces.values() if isinstance(traces, Mapping) else traces
        for trace in listed("traces", given, "traces, or names with the trace of each"):
            check_trace(trace)
        named = dict(traces) if isinstance(traces, Mapping) else _named(traces)
        if not named:
            raise DgemmaError("a race needs at least one trace")
        prompts = {tuple(trace.prompt_ids.tolist()) for trace in named.values()}
        if len(prompts) > 1:
            raise DgemmaError("these traces answer different prompts: a race is run on one")
        self.traces = named
        if title is None:
            title = str(next(iter(named.values())).metadata.get("prompt", ""))
        lanes = [lane(name, trace) for name, trace in named.items()]
        super().__init__(lanes=lanes, title=title, note=_note(named.values()))

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """A standalone page with the same script; it works from a file with no network. Returns the path."""
        state = {"lanes": self.lanes, "seconds": -1.0, "title": self.title, "note": self.note}
        return write_page(path, "race/race.js", state, title=self.title or "Race", sheets=SHEETS)

    def __repr__(self) -> str:
        return f"Race({', '.join(self.traces)})"

    def still_html(self) -> str:
        return still(self.traces)


def record_race(
    loaded: Loaded,
    prompt: Prompt,
    *,
    modes: Sequence[Mode] | None = None,
    repeats: int = 5,
    **options: Any,
) -> dict[str, Trace]:
    """Runs a prompt in each of `modes`, None for all, and returns the traces by mode; each is warmed up first.

    The modes take turns `repeats` times, twice where that takes long; of each the run of median time is returned.

    options as for `session.plan`; a setting of some modes alone (steps, temperature, draft) goes to those, so that the
    same limits hold for all. Raises RequestError for one that none of `modes` has.
    """
    modes = tuple(MODES) if modes is None else listed("modes", modes, "names of modes")
    for mode in modes:
        settings_from(mode)  # an unknown one is refused
    repeats = whole_number("repeats", repeats, low=1)
    settings = {mode: {setting.name for setting in fields(kind)} for mode, kind in MODES.items()}
    homes = {
        name: [mode for mode in MODES if name in settings[mode]]
        for name in options
        if any(name in known for known in settings.values())
    }
    for name, having in homes.items():
        if not set(having) & set(modes):
            raise RequestError(
                f"{name} is of mode {having[0]!r}, which does not race: add it to modes"
            )
    ways: dict[str, dict[str, Any]] = {
        mode: {
            "mode": mode,
            **{n: value for n, value in options.items() if mode in homes.get(n, modes)},
        }
        for mode in modes
    }
    for given in ways.values():
        record(loaded, prompt, **{**given, "max_new_tokens": 2})
    watch, began = Watch(), time.monotonic()
    runs: dict[str, list[Trace]] = {name: [] for name in ways}
    for turn in range(repeats):
        order = list(ways.items())
        for name, given in order if turn % 2 == 0 else reversed(order):
            runs[name].append(record(loaded, prompt, **given))
        if turn and time.monotonic() - began > LONG:
            break
    others = watch.others()
    return {name: _median(found, others) for name, found in runs.items()}


def _median(runs: Sequence[Trace], others: float) -> Trace:
    """The run of median time, with the times of all."""
    seconds = [run.total_seconds for run in runs]
    run = sorted(runs, key=lambda run: run.total_seconds)[(len(runs) - 1) // 2]
    measured = {"seconds": seconds, "others": round(others, 3), "threads": torch.get_num_threads()}
    return replace(run, metadata={**run.metadata, "measured": measured})


def _note(traces: Iterable[Trace]) -> str:
    """What is to be known about the times: threads, and whether other programs were in the way."""
    found = [trace.metadata["measured"] for trace in traces if "measured" in trace.metadata]
    if not found:
        return ""
    threads, others = found[0]["threads"], max(one["others"] for one in found)
    note = f"Measured with {threads} thread{'s' * (threads > 1)}."
    if others > BUSY:
        note += f" Other programs used {others:.0%} of this machine meanwhile: measure again when it is at rest."
    return note


def _named(traces: Sequence[Trace]) -> dict[str, Trace]:
    names = [trace.mode for trace in traces]
    if len(set(names)) < len(names):
        names = [f"{name} {i + 1}" for i, name in enumerate(names)]
    return dict(zip(names, traces, strict=True))


def lane(name: str, trace: Trace) -> dict[str, Any]:
    """A trace as race.js reads it: json values, ids into a table of the texts that occur."""
    tokens, marks = _draft(trace)
    occurring, local = np.unique(np.concatenate([tokens, trace.ids]), return_inverse=True)
    eos = trace.eos_ids()
    causal = trace.token_by_token
    return {
        "name": name,
        "total": trace.total_seconds,
        "times": trace.metadata.get("measured", {}).get("seconds", [trace.total_seconds]),
        "start": trace.prompt_seconds,
        "passes": trace.passes,
        "canvases": trace.canvases,
        "free": int(causal),  # the first token of a run that writes tokens comes with the prefill
        "rounds": _rounds(trace),
        "seconds": trace.seconds.tolist(),
        "canvas": (trace.step if causal else trace.canvas).tolist(),
        "offsets": trace.offsets.tolist(),
        "ids": b64encode(local[: len(tokens)].astype("<u4").tobytes()).decode(),
        "marks": b64encode(marks.tobytes()).decode(),
        "kept": local[len(tokens) :].tolist(),
        "commits": _commits(trace),
        "texts": [
            "" if token in eos else _shown(trace.text(token)) for token in occurring.tolist()
        ],
    }


def _rounds(trace: Trace) -> list[dict[str, Any]]:
    """When passes of speculation ended, which write several tokens each; empty for another mode.

    A draft's first step rides with the pass before it, so a round takes a pass for each of its steps.
    """
    found = [(made.seconds, made.steps) for made in trace.rounds]
    if found:
        owner = trace.round_of()
        found += [(float(trace.seconds[i]), 1) for i in range(1, len(owner)) if owner[i] < 0]
    return [{"seconds": seconds, "passes": passes} for seconds, passes in sorted(found)]


def _draft(trace: Trace) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """(n,) tokens as a reader sees them after each pass, and their marks."""
    standing = trace.accepted | trace.pinned
    marks = np.where(standing, STANDING, DRAFT).astype(np.uint8)
    marks[trace.after_eos()] = HIDDEN
    return np.where(standing, trace.tokens_out, trace.argmax), marks


def _commits(trace: Trace) -> list[dict[str, Any]]:
    """When tokens became kept: seconds, canvas (where a pass is a token: token), and how many are kept from then on."""
    if trace.token_by_token:
        seconds = trace.seconds.tolist()
        return [
            {"seconds": seconds[i], "canvas": i, "kept": min(i + 1, len(trace.ids))}
            for i in range(len(seconds))
        ]
    kept = np.minimum(np.cumsum(trace.commit_kept), len(trace.ids)).tolist()
    return [
        {"seconds": float(seconds), "canvas": int(canvas), "kept": count}
        for seconds, canvas, count in zip(
            trace.commit_seconds, trace.commit_canvas, kept, strict=True
        )
    ]


def _shown(text: str) -> str:
    """A token's text in running text: control characters are named, line breaks stay."""
    return text if all(c.isprintable() or c in "\n\t" for c in text) else visible(text)


def still(traces: Mapping[str, Trace]) -> str:
    """The finish as HTML with inline styles only, for pages where no script runs."""
    longest = max(trace.total_seconds for trace in traces.values()) or 1.0
    rows = []
    note = f"<div>{html.escape(_note(traces.values()))}</div>"
    for name, trace in traces.items():
        part = 100 * trace.total_seconds / longest
        times = trace.metadata.get("measured", {}).get("seconds", [])
        spread = f" ({min(times):.3f} to {max(times):.3f} s)" if len(times) > 1 else ""
        text = readable(
            "".join(_shown(trace.text(t)) for t in trace.ids.tolist() if t not in trace.eos_ids())
        )
        rows.append(
            f'<div style="margin:6px 0"><b>{html.escape(name)}</b> · {trace.total_seconds:.3f} s{spread} · '
            f"{len(trace.ids)} tokens kept · {trace.passes} passes"
            f'<div style="width:{part:.1f}%;height:8px;background:#0072B2;border-radius:2px"></div>'
            f'<pre style="margin:4px 0;white-space:pre-wrap">{html.escape(text)}</pre></div>'
        )
    return f'<div style="max-width:960px;font:13px sans-serif">{"".join(rows)}{note}</div>'
