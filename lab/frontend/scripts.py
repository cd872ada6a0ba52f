"""The widgets' JavaScript: modules that import each other where they lie, one text where they are used.

A notebook and an exported page get a module as a single text, in which no import can be followed.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

LAB = Path(__file__).parents[1]
_IMPORT = re.compile(r'^import \{[^}]*\} from "(\.{1,2}/[\w./]+)";\n', re.MULTILINE)


def bundled(name: str) -> str:
    """The module `name`, a path from lab/, with the modules that it imports written out in place, each once."""
    seen: set[str] = set()

    def text(of: str) -> str:
        if of in seen:
            return ""
        seen.add(of)
        folder = posixpath.dirname(of)
        source = (LAB / of).read_text("utf-8")
        return _IMPORT.sub(
            lambda found: text(posixpath.normpath(posixpath.join(folder, found[1]))), source
        )

    return text(name)


def style(*names: str) -> str:
    """Style sheets, by their paths from lab/, one after the other."""
    return "\n".join((LAB / name).read_text("utf-8") for name in names)
