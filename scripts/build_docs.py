"""Builds the site (`make docs`): puts its sources together in build/site and runs Sphinx on them, offline.

    python -m scripts.build_docs [--out build/docs]

Where a notebook shows a canvas, a race or a chart, its page has a live one (scripts/players.py).

A warning is an error. Links between pages, anchors and pictures are checked; links into the repository become the
names of its files, since the site is read without it, and links to a term of the glossary lead there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from scripts.players import enlivened

ROOT = Path(__file__).parents[1]
COPIED = {"docs/architecture.md": "architecture.md", "docs/architecture.svg": "architecture.svg",
          "evals/README.md": "measuring.md"}  # fmt: skip
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
GLOSSARY = ROOT / "docs" / "site" / "glossary.md"


def assemble(source: Path) -> None:
    """Fills the folder with everything that the site consists of."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "site", source)
    for origin, name in COPIED.items():
        if name.endswith(".md"):
            text = (ROOT / origin).read_text(encoding="utf-8")
            (source / name).write_text(LINK.sub(inside, text), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / origin, source / name)
    plotly = files("plotly") / "package_data" / "plotly.min.js"
    (source / "_static" / plotly.name).write_bytes(plotly.read_bytes())
    (source / "notebooks").mkdir()
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        page = json.loads(notebook.read_text(encoding="utf-8"))
        page["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        for cell in page["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = LINK.sub(from_notebook, "".join(cell["source"]))
        players = source / "players" / f"{notebook.stem}.json"
        if players.exists():
            enlivened(page, json.loads(players.read_text(encoding="utf-8")))
        (source / "notebooks" / notebook.name).write_text(json.dumps(page), encoding="utf-8")


def terms() -> dict[str, str]:
    """The terms of the glossary by the anchors that Sphinx gives them."""
    found = re.findall(r"^(?! |:::|#)(\S.*)$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"term-{term.replace(' ', '-')}": term for term in found}


def from_notebook(link: re.Match[str]) -> str:
    """A link of a notebook, whose page lies one folder deeper. KeyError for a term that the glossary has not."""
    text, target = link.groups()
    path, _, anchor = target.partition("#")
    if Path(path).name == GLOSSARY.name:
        return f"{{term}}`{text} <{terms()[anchor]}>`" if anchor else f"[{text}](../glossary.md)"
    page = inside(link)
    deeper = page.endswith(tuple(f"]({name})" for name in COPIED.values()))
    return page.replace("](", "](../") if deeper else page


def inside(link: re.Match[str]) -> str:
    """A link to a page of the site stays one; a link to another file becomes the file's name."""
    text, target = link.groups()
    if target.endswith(".ipynb"):
        return link.group()
    pages = {Path(origin).name: name for origin, name in COPIED.items()}
    name = pages.get(Path(target).name)
    return (
        f"[{text}]({name})"
        if name and "README" not in target
        else f"{text} (`{Path(target).name}`)"
    )


def main() -> None:
    """Builds, and ends as Sphinx does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    arguments = parser.parse_args()
    source = ROOT / "build" / "site"
    assemble(source)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q",
               str(source), str(arguments.out)]  # fmt: skip
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
