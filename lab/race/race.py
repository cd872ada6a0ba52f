"""The race: modes of the same weights on one prompt, replayed on one clock from the times that were recorded.

    Race(record_race(loaded, "Sort ascending:\\n3,1,2"))      # play, scrub; no kernel needed
    Race({"48 steps": trace_a, "12 steps": trace_b})         # any runs of one prompt

A lane shows what was written when: tokens are *kept* once their canvas is committed (elsewhere one by one);
what is accepted on a canvas under way is shaded in the chart, the rest of the draft dotted in the text. Passes count
as in a trace: prefill, denoising steps and commits, or prefill and tokens, or prefill, drafts and verifications.
"""

from __future__ import annotations

import html
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.events import Mode
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.files.trace import Trace
from dgemma_core.generation import Prompt
from dgemma_core.generation.settings import MODES
from dgemma_lab.frontend.page import write_page
from dgemma_lab.frontend.scripts import bundled, style
from dgemma_lab.frontend.still import Still
from dgemma_lab.frontend.text import readable, visible
from dgemma_lab.session.plan import record

HIDDEN, DRAFT, STANDING = range(3)
SHEETS = ("frontend/base.css", "form/form.css", "race/race.css")


class Race(Still, anywidget.AnyWidget):
    """Replays traces of one prompt side by side. `traces`: name → Trace, or several that are named by their mode.

    Trait `seconds` is the clock, linkable; −1 stands for the end, which is shown first.
    """

    _esm = bundled("race/race.js")
    _css = style(*SHEETS)

    lanes = traitlets.List(traitlets.Dict()).tag(sync=True)
    seconds = traitlets.Float(-1.0).tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self, traces: Mapping[str, Trace] | Sequence[Trace], *, title: str | None = None
    ) -> None:
        named = dict(traces) if isinstance(traces, Mapping) else _named(traces)
        if not named:
            raise DgemmaError("a race needs at least one trace")
        prompts = {tuple(trace.prompt_ids.tolist()) for trace in named.values()}
        if len(prompts) > 1:
            raise DgemmaError("these traces answer different prompts: a race is run on one")
        self.traces = named
        if title is None:
            title = str(next(iter(named.values())).metadata.get("prompt", ""))
        super().__init__(lanes=[lane(name, trace) for name, trace in named.items()], title=title)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """A standalone page with the same script; it works from a file with no network. Returns the path."""
        state = {"lanes": self.lanes, "seconds": -1.0, "title": self.title}
        return write_page(path, "race/race.js", state, title=self.title or "Race", sheets=SHEETS)

    def __repr__(self) -> str:
        return f"Race({', '.join(self.traces)})"

    def still_html(self) -> str:
        return still(self.traces)


def record_race(
    loaded: Loaded,
    prompt: Prompt,
    *,
    modes: Sequence[Mode] = ("diffusion", "autoregressive"),
    **options: Any,
) -> dict[str, Trace]:
    """Runs a prompt in each of `modes` and returns the traces by mode; each is warmed up first.

    options as for `session.plan`; a setting of some modes alone (steps, temperature, draft) goes to those, so that the
    same limits hold for all. Raises RequestError for one that none of `modes` has.
    """
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
    return {name: record(loaded, prompt, **given) for name, given in ways.items()}


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
        "start": trace.prompt_seconds,
        "passes": trace.passes,
        "canvases": trace.canvases,
        "free": int(causal),  # the first token of a run that writes tokens comes with the prefill
        "rounds": [
            {"seconds": made.seconds, "passes": made.steps + 1} for made in trace.rounds
        ],  # of speculation: its passes write several tokens
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
    for name, trace in traces.items():
        part = 100 * trace.total_seconds / longest
        text = readable(
            "".join(_shown(trace.text(t)) for t in trace.ids.tolist() if t not in trace.eos_ids())
        )
        rows.append(
            f'<div style="margin:6px 0"><b>{html.escape(name)}</b> · {trace.total_seconds:.3f} s · '
            f"{len(trace.ids)} tokens kept · {trace.passes} passes"
            f'<div style="width:{part:.1f}%;height:8px;background:#0072B2;border-radius:2px"></div>'
            f'<pre style="margin:4px 0;white-space:pre-wrap">{html.escape(text)}</pre></div>'
        )
    return f'<div style="max-width:960px;font:13px sans-serif">{"".join(rows)}</div>'
