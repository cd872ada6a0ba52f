"""The widgets' JavaScript: modules that import each other where they lie, one text where they are used.

A notebook and an exported page get a module as a single text, in which no import can be followed.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.MULTILINE)


def bundled(name: str) -> str:
    """The module `name` of this folder, the modules that it imports written out in place, each once."""
    seen: set[str] = set()

    def text(of: str) -> str:
        if of in seen:
            return ""
        seen.add(of)
        return _IMPORT.sub(lambda found: text(found[1]), (HERE / of).read_text("utf-8"))

    return text(name)


def style(*names: str) -> str:
    """Style sheets of this folder, one after the other."""
    return "\n".join((HERE / name).read_text("utf-8") for name in names)
