"""Draws traces and live runs in JupyterLab: widgets, and charts of what happened at each denoising step.

    import dgemma_core as dg
    from dgemma_lab import Session
    Session(dg.load("nano")).run("Sort ascending:\\n3,1,2")

Everything public is here by name; modules are imported when a name of theirs is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgemma_lab.budget.budget import Budget as Budget
    from dgemma_lab.canvas.canvas import Canvas as Canvas
    from dgemma_lab.canvas.canvas import Steer as Steer
    from dgemma_lab.charts.board import attention_board as attention_board
    from dgemma_lab.charts.drafts import predicted_speculation as predicted_speculation
    from dgemma_lab.charts.inside import attention as attention
    from dgemma_lab.charts.inside import expert_load as expert_load
    from dgemma_lab.charts.inside import experts_touched as experts_touched
    from dgemma_lab.charts.inside import self_conditioning as self_conditioning
    from dgemma_lab.charts.noising import noising as noising
    from dgemma_lab.charts.order import convergence as convergence
    from dgemma_lab.charts.order import order_by_kind as order_by_kind
    from dgemma_lab.charts.order import remelts as remelts
    from dgemma_lab.charts.order import settling as settling
    from dgemma_lab.charts.roofline import break_even as break_even
    from dgemma_lab.charts.roofline import measure as measure
    from dgemma_lab.charts.roofline import roofline as roofline
    from dgemma_lab.playground.playground import Playground as Playground
    from dgemma_lab.race.race import Race as Race
    from dgemma_lab.race.race import record_race as record_race
    from dgemma_lab.session.plan import record as record
    from dgemma_lab.session.plan import token_ids as token_ids
    from dgemma_lab.session.run import Run as Run
    from dgemma_lab.session.session import Session as Session
    from dgemma_lab.steering.edits import hold as hold
    from dgemma_lab.steering.steering import Steering as Steering

_HOMES = {
    "budget.budget": ("Budget",),
    "canvas.canvas": ("Canvas", "Steer"),
    "charts.board": ("attention_board",),
    "charts.drafts": ("predicted_speculation",),
    "charts.inside": ("attention", "expert_load", "experts_touched", "self_conditioning"),
    "charts.noising": ("noising",),
    "charts.order": ("convergence", "order_by_kind", "remelts", "settling"),
    "charts.roofline": ("break_even", "measure", "roofline"),
    "playground.playground": ("Playground",),
    "race.race": ("Race", "record_race"),
    "session.plan": ("record", "token_ids"),
    "session.run": ("Run",),
    "session.session": ("Session",),
    "steering.edits": ("hold",),
    "steering.steering": ("Steering",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports the module of a public name at its first use, so that `import dgemma_lab` is cheap."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
