"""Tuning in a fresh process, whose peak memory is what `dgemma plan --tune` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma_evals.bench.tuning_memory import SHAPES, measure


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", SHAPES)
def test_tuning_takes_what_was_predicted(name: str, tmp_path: Path) -> None:
    row = measure(tmp_path / "model", *SHAPES[name])
    assert row["within"], f"{row['predicted']:,} predicted, {row['measured']:,} measured"
    assert abs(row["error"]) <= 0.1
