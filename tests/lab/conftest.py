from __future__ import annotations

from tests.constraints.conftest import no_automata_of_the_user

__all__ = ["no_automata_of_the_user"]
