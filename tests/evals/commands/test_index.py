"""One page of all results: three sentences, a picture, and plotly.js once."""

from __future__ import annotations

import json

import pytest

from dgemma_core import DgemmaError, RequestError
from dgemma_evals.commands.index import write
from dgemma_evals.comparison.compare import compare
from dgemma_evals.comparison.plan import Plan
from dgemma_evals.comparison.report import write as write_report
from dgemma_evals.comparison.summary import by_task
from dgemma_evals.tasks.readable import readable
from tests.evals.comparison.test_compare import TASK, Fake


@pytest.fixture
def results(tmp_path):
    pair = [
        Fake("<fast>", lambda doc, seed: doc < 3, tokens=8, seconds=0.5, steps=4),
        Fake("slow", lambda doc, seed: True, tokens=8, seconds=2.0, deterministic=True),
    ]
    for name, batches in (("plain", ()), ("many", (1, 2))):
        plan = Plan(tasks=(TASK,), limit=4, seeds=1, batches=batches)
        write_report(compare(plan, pair, tmp_path / name, quiet=True), tmp_path / name)
    bench = {
        "command": "dgemma bench steps", "environment": {"cores": 2},
        "rows": [{
            "table": "A", "unit": "s/step", "ratio_to_fastest_peer": 2.5, "enough_rounds": False,
            "setting": {"dtype": "float32", "allocator": "system", "threads": 2},
            "implementations": [{
                "name": "dgemma", "median": 0.4, "rounds": [0.4, 0.5], "others": [0.3, None],
                "peak_bytes": 10**9, "logits_difference": 0.0, "extra": {},
            }],
        }],
    }  # fmt: skip
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "steps.json").write_text(json.dumps(bench))
    (tmp_path / "flips").mkdir()
    (tmp_path / "flips" / "flips.json").write_text(json.dumps({"answer": ["float32: 0 of 9"]}))
    (tmp_path / "other").mkdir()
    return tmp_path


@pytest.mark.slow
def test_one_page_of_all(results):
    page = write(results).read_text()
    assert page.count("<script>") == 2 and page.count("plotly.js v") == 1
    opening = page[page.index("<h1>") : page.index("<section")]
    assert opening.count("class='answer'") == 3 and opening.count("class='chart'") == 1
    assert "Of 4 documents &lt;fast&gt; solves 75.0 % and slow 100.0 %" in opening
    assert "it writes 4.00 times as many kept tokens a second" in opening
    assert "0.4 s, 2.50 times as fast as the fastest public implementation" in opening
    for name in ("plain", "many", "bench", "flips"):
        assert f"<section id='{name}'>" in page and f"href='#{name}'" in page
    assert "id='other'" not in page and "0 of 9" in page
    # Every chart has its figure, and no two have one name.
    for name in ("opening", "plain-accuracy", "many-front", "bench-steps"):
        assert page.count(f"id='{name}'") == 1 and f'"{name}":' in page
    assert "2.50× (of 2 rounds)" in page and "<td>0.3</td>" in page
    assert "<h3>Accuracy</h3>" in page and "<h2>plain</h2>" in page


@pytest.mark.slow
def test_the_headline_is_of_the_latest_bench_with_rounds_enough(results):
    few = json.loads((results / "bench" / "steps.json").read_text())
    for name, ratio, date, enough in (
        ("b-old", 3.5, "2026-01-01", True), ("c-new", 4.5, "2026-02-01", True), ("d-few", 5.5, "2026-03-01", False),
    ):  # fmt: skip
        row = {**few["rows"][0], "ratio_to_fastest_peer": ratio, "enough_rounds": enough}
        record = {**few, "environment": {"cores": 2, "date": date}, "rows": [row]}
        (results / name).mkdir()
        (results / name / "steps.json").write_text(json.dumps(record))
    assert "4.50 times as fast as the fastest public" in write(results).read_text()


@pytest.mark.slow
def test_folders_in_their_order(results):
    page = write(results, [results / "many", results / "flips"]).read_text()
    assert page.index("id='many'") < page.index("id='flips'") and "id='plain'" not in page
    with pytest.raises(RequestError, match="other holds no results"):
        write(results, [results / "other"])
    old = json.loads((results / "plain" / "results.json").read_text())
    del old["against"]
    (results / "plain" / "results.json").write_text(json.dumps(old))
    with pytest.raises(DgemmaError, match="of an older version"):
        write(results)
    with pytest.raises(RequestError, match="holds no results"):
        write(results / "other")


def test_forms_are_told_apart_from_verdicts():
    grid = "1 2\n3 4"
    for family, text, answer, wanted in (
        ("mini_sudoku", "4 3\n\n2 1", grid, True), ("mini_sudoku", "4 3\n2", grid, False),
        ("mini_sudoku", "4 x\n2 1", grid, False), ("rotate_matrix", "", grid, False),
        ("json", '{"a": 1}', "{}", True), ("json", '{"a": 1', "{}", False), ("json", "3", "{}", False),
        ("word_sum", "1 + 2 = 9", "", True), ("word_sum", "1 + 2", "", False),
        ("chain_sum", "1 + 2 = 9\n9 - 1 = 3", "", True), ("chain_sum", "nine", "", False),
        ("number_sorting", "[3, -1.5]", "", True), ("number_sorting", "3, 1", "", False),
        ("number_filtering", "['3', '1']", "", True), ("number_filtering", "['a']", "", False),
        ("word_sorting", "b, a", "", True), ("word_sorting", "b a", "", False),
        ("spell_backward", "CBA", "", True), ("spell_backward", "C B A", "", False),
        ("letter_counting", "0 1 = 1", "", True), ("letter_counting", "0 1 =", "", False),
    ):  # fmt: skip
        assert readable(family, text, answer) is wanted, (family, text)


def test_of_several_tasks_the_tasks_are_said() -> None:
    decided = {"p_holm": 0.001, "difference": {"estimate": 0.25}}
    open_ = {"p_holm": 0.5, "difference": {"estimate": -0.25}}
    said = by_task({"dgemma_nano_json": decided, "dgemma_nano_sums": open_}, "a", "b")
    assert said == (
        "Of 2 tasks, a is better on 1 (json +25.0 points) and worse on 0 than b; 1 is not told apart"
    )
    assert by_task({"dgemma_nano_json": decided}, "a", "b") == ""
