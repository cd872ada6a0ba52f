"""How busy the machine is beside a measurement."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from dgemma_core.facts import machine


def test_others_are_all_but_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 cores over 10 seconds all programs used 25 CPU seconds, this one 5: others had half of the machine."""
    every, own, clock = itertools.count(100, 25), itertools.count(3, 5), itertools.count(0, 10)
    monkeypatch.setattr(machine, "_all_seconds", lambda: float(next(every)))
    monkeypatch.setattr(machine, "_own_seconds", lambda: float(next(own)))
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.Watch().others() == pytest.approx(20 / 40)


def test_where_nothing_else_is_known_the_load_average_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, clock = itertools.count(0, 10), itertools.count(0, 10)
    monkeypatch.setattr(machine, "_all_seconds", lambda: None)
    monkeypatch.setattr(machine, "_own_seconds", lambda: float(next(own)))
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    assert machine.Watch().others() == pytest.approx((3 - 1) / 4)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.2, 0.0, 0.0))
    assert machine.Watch().others() == 0.0


def test_a_share_is_measured_here() -> None:
    watch = machine.Watch()
    sum(range(300_000))
    assert 0.0 <= watch.others() <= 1.0
