"""`dgemma bench growth`: points on axes, equal logits at each, refusals recorded, runs that go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dgemma_core import RequestError
from dgemma_evals.bench import growth as bench_growth
from dgemma_evals.bench import growth_page as bench_growth_page
from dgemma_evals.bench import page as bench_page
from dgemma_evals.bench.growth import AXES, Shape, measure, parse_axes, parse_base, shapes
from dgemma_evals.bench.processes import Setting
from dgemma_evals.commands.bench import bench_app

TINY = {"width": 64, "layers": 2, "expert_width": 32}
BASE = Shape(prefix=6, canvas=8, vocabulary=128, experts=4)
SETTING = Setting(threads=1, rounds=2)
NAMES = ("dgemma", "transformers (grouped experts)")


def drained(out: Path, **changes: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {
        "base": BASE, "axes": {"prefix": (6, 9)}, "count": 2, "earlier": (), "model": TINY, **changes
    }  # fmt: skip
    *_, (rows, left) = measure(out, given.pop("names", NAMES), [SETTING], **given)
    assert left == 0
    return rows


def record(rows: list[dict[str, Any]], axes: Any, left: int = 0) -> dict[str, Any]:
    return {
        "command": "dgemma bench growth", "environment": {"cores": 1}, "rows": rows,
        "left": left, "base": vars(BASE), "axes": axes,
    }  # fmt: skip


@pytest.mark.slow
def test_every_axis_is_proven_and_timed(tmp_path: Path) -> None:
    """Real processes, which load another model for each canvas, vocabulary and number of experts."""
    axes = {"prefix": (6, 9), "canvas": (8, 16), "batch": (1, 2), "vocabulary": (128, 256),
            "experts": (4, 8)}  # fmt: skip
    rows = drained(tmp_path, axes=axes)
    assert len(rows) == 6  # the base is one point of all five axes
    for row in rows:
        assert [one["name"] for one in row["implementations"]] == list(NAMES)
        for one in row["implementations"]:
            assert len(one["rounds"]) == 2 and min(one["rounds"]) > 0
            assert one["logits_difference"] < 1e-4
        own, peer = row["implementations"]
        assert row["ratio_to_fastest_peer"] == pytest.approx(peer["median"] / own["median"])
    assert not (tmp_path / "growth-model").exists()
    (tmp_path / "growth.json").write_text(json.dumps(record(rows, axes)))
    page = bench_page.write(tmp_path).read_text()
    for axis in axes:
        assert f"id='growth-float32-system-{axis}'" in page
    assert "All points" in page and "not finished" not in page


class Fake:
    """A worker that answers by its script: {(name, shape's prefix): why it fails}."""

    failing: dict[tuple[str, int], str]
    started: list[str]

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self.started.append(name)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "steps":
            length = len(arguments["prompts"][0])
            if (self.name, length) in self.failing:
                raise RequestError(self.failing[self.name, length])
            seconds = length * (1.0 if self.name == "dgemma" else 3.0)
            return {"result": [seconds] * 2, "others": 0.1}
        return {}

    def load(self, folder: Path, setting: Setting) -> None: ...

    def logits(self, prompt: list[int], canvas: list[int]) -> tuple[Any, Any]:
        other = self.name != "dgemma" and len(prompt) == 99
        return np.array([[1.0, 2.0, 4.0 - 3 * other]]), {"backend": "torch"}

    def close(self) -> None: ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Fake]]:
    Fake.failing, Fake.started = {}, []
    monkeypatch.setattr(bench_growth, "Worker", Fake)
    yield Fake


def test_a_point_that_cannot_be_run_is_said_so(fake: type[Fake], tmp_path: Path) -> None:
    peer = NAMES[1]
    fake.failing = {(peer, 9): "it ended: out of memory <7>", ("dgemma", 12): "too large"}
    axes = {"prefix": (6, 9, 12, 99)}
    rows = {row["shape"]["prefix"]: row for row in drained(tmp_path, axes=axes)}
    assert rows[9]["implementations"][1] == {"name": peer, "failed": "it ended: out of memory <7>"}
    assert rows[9]["implementations"][0]["median"] == 9 and rows[9]["ratio_to_fastest_peer"] is None
    assert rows[12]["implementations"][0] == {"name": "dgemma", "failed": "too large"}
    assert rows[12]["implementations"][1]["median"] == 36
    assert "gives other logits than dgemma" in rows[99]["implementations"][1]["failed"]
    assert "median" in rows[99]["implementations"][0] and rows[6]["ratio_to_fastest_peer"] == 3
    # A worker that failed is started anew, only for the next point.
    assert fake.started == ["dgemma", peer, peer, "dgemma"]
    parts, figures = bench_growth_page.sections(record(list(rows.values()), axes, left=2))
    page = "".join(parts)
    assert "out of memory &lt;7&gt;" in page and "2 points are missing" in page
    (figure,) = figures.values()
    (cross,) = [part for part in figure.data if part.name == f"{peer}: cannot run"]
    assert list(cross.x) == [9, 99] and "out of memory" in cross.customdata[0]


def test_nothing_is_compared_with_nothing(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(self: Fake, prompt: list[int], canvas: list[int]) -> Any:
        raise RequestError("no memory")

    monkeypatch.setattr(fake, "logits", dead)
    (row,) = drained(tmp_path, axes={"prefix": (6,)})
    assert [one["failed"] for one in row["implementations"]] == [
        "no memory", "dgemma failed: nothing to prove equal logits against"
    ]  # fmt: skip


def test_a_run_that_was_killed_goes_on(fake: type[Fake], tmp_path: Path) -> None:
    fake.failing = {(NAMES[1], 12): "gone"}
    axes = {"prefix": (6, 9, 12, 15)}
    given: Any = {"base": BASE, "axes": axes, "count": 2, "model": TINY}
    runs = measure(tmp_path, NAMES, [SETTING], earlier=(), **given)
    assert [next(runs)[1] for _ in range(4)] == [4, 3, 2, 1]
    rows, _ = json.loads(json.dumps(next(runs))), runs.close()
    killed = rows[0][:3]
    for row in killed:
        row["mark"] = True
    fake.failing = {}
    again = drained(tmp_path, axes=axes, earlier=killed)
    # The point that failed is tried once more.
    assert [row["shape"]["prefix"] for row in again if "mark" in row] == [6, 9]
    assert len(again) == 4 and all("median" in row["implementations"][1] for row in again)
    for other in ({"count": 3}, {"names": ("dgemma",)}, {"model": {**TINY, "width": 32}}):
        assert not any("mark" in row for row in drained(tmp_path, axes=axes, earlier=killed, **other))  # fmt: skip


@pytest.mark.slow
def test_the_command_goes_on_and_a_complete_file_is_measured_anew(
    fake: type[Fake], tmp_path: Path
) -> None:
    asked = ["growth", "--out", str(tmp_path), "--allocator", "system", "--rounds", "2",
             "--base", "vocabulary=64", "--base", "experts=4", "--base", "prefix=5",
             "--axis", "prefix=5,7"]  # fmt: skip

    def run() -> tuple[str, dict[str, Any]]:
        done = CliRunner().invoke(bench_app, asked, catch_exceptions=False)
        return done.stdout, json.loads((tmp_path / "growth.json").read_text())

    said, found = run()
    assert found["left"] == 0 and len(found["rows"]) == 2 and "did not end" not in said
    assert found["base"]["vocabulary"] == 64 and found["environment"]["cores"] >= 1
    assert "did not end" not in run()[0]
    killed = {**found, "left": 1, "rows": found["rows"][:1]}
    (tmp_path / "growth.json").write_text(json.dumps(killed))
    assert "1 points are there" in run()[0]
    (tmp_path / "growth.json").write_text(json.dumps({**killed, "machine": "another"}))
    assert "are there" not in run()[0]
    (tmp_path / "growth.json").write_text("{")
    with pytest.raises(RequestError, match=r"growth\.json: no JSON"):
        run()


def test_points() -> None:
    base = Shape()
    assert all(vars(base)[axis] in values for axis, values in AXES.items())
    points = shapes(base, AXES)
    assert len(points) == len(set(points)) == sum(map(len, AXES.values())) - 4
    on = [vars(p) for p in points if bench_growth.on_axis({"shape": vars(p)}, vars(base), "canvas")]
    assert sorted(p["canvas"] for p in on) == sorted(AXES["canvas"])
    assert parse_axes(["canvas=64,16,16"]) == {"canvas": [16, 64]} and parse_axes([]) is AXES
    assert parse_base(["canvas=256", "batch=2"]) == replace(base, canvas=256, batch=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour=3", "names are prefix, canvas, batch, vocabulary, experts"),
        ("canvas", "expected NAME=VALUE"),
        ("canvas=", "expected NAME=VALUE"),
        ("canvas=0", "whole numbers from 1"),
        ("experts=2", "whole numbers from 4"),
        ("batch=1.5", "whole numbers from 1"),
    ],
)
def test_bad_points_are_one_clear_line(text: str, says: str) -> None:
    for parse, option in ((parse_axes, "--axis"), (parse_base, "--base")):
        with pytest.raises(RequestError, match=says) as caught:
            parse([text])
        assert str(caught.value).startswith(option) and "\n" not in str(caught.value)
