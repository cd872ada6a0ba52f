"""Oracles of the drawn cases, each built once for all backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import DiffusionGemmaForBlockDiffusion

from tests.oracle.build import Drawn, diffusion_oracle, save
from tests.oracle.passes import Passes, Tokens, oracle_passes


@dataclass(frozen=True)
class OracleCase:
    """A drawn model, its checkpoint, and the numbers of its passes."""

    drawn: Drawn
    oracle: DiffusionGemmaForBlockDiffusion
    folder: Path
    tokens: Tokens
    passes: Passes


OracleCases = Callable[[Drawn], OracleCase]


@pytest.fixture(scope="session")
def oracle_case(tmp_path_factory: pytest.TempPathFactory) -> OracleCases:
    """Drawn case → the case."""
    known: dict[str, OracleCase] = {}

    def of(drawn: Drawn) -> OracleCase:
        if repr(drawn) not in known:
            oracle, tokens = diffusion_oracle(drawn), Tokens.of(drawn)
            folder = save(oracle, tmp_path_factory.mktemp(f"case{drawn.seed}"))
            passes = oracle_passes(oracle, drawn, tokens)
            known[repr(drawn)] = OracleCase(drawn, oracle, folder, tokens, passes)
        return known[repr(drawn)]

    return of
