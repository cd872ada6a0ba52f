"""The site is built without a warning, from what the repository holds, and needs no network to be read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from scripts.build_docs import LINK, from_notebook, terms

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Links, what is loaded, and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "scripts.build_docs", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.subprocess
def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert notebooks <= {path.stem for path in pages}
    assert {"index", "glossary", "api", "architecture", "read_a_trace"} <= {p.stem for p in pages}
    for path, page in pages.items():
        for target in (*page.links, *page.loaded):
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "mailto", "data", "javascript"):
                assert target not in page.loaded or parts.scheme == "data", (path, target)
                continue
            where = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert where.exists(), (path, target)
            if parts.fragment and where.suffix == ".html" and "_modules" not in where.parts:
                assert unquote(parts.fragment) in pages[where].anchors, (path, target)


def test_the_notebooks_say_what_they_are_for_and_lead_to_terms_of_the_glossary() -> None:
    known = terms()
    assert {"term-canvas", "term-kept-tokens", "term-re-melt"} <= set(known)
    link = LINK.fullmatch("[settled](../docs/site/glossary.md#term-settle)")
    assert link and from_notebook(link) == "{term}`settled <settle>`"
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        assert "After this notebook" in texts[0] and "minutes" in texts[0], path.name
        assert sum(text.count("<summary>Answer") for text in texts) == 2, path.name
        for text, target in LINK.findall("\n".join(texts)):
            assert "glossary.md#" not in target or target.partition("#")[2] in known, (path, text)


def test_what_answers_an_exercise_is_folded_in_jupyterlab_and_on_the_site() -> None:
    """Input and output of every code cell behind an "Answer", up to the next text."""
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        behind = False
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                behind = "<summary>Answer" in "".join(cell["source"])
            elif behind:
                hidden = {"outputs_hidden": True, "source_hidden": True}
                assert cell["metadata"].get("jupyter") == hidden, (path.name, cell["id"])
                assert "hide-cell" in cell["metadata"].get("tags", ()), (path.name, cell["id"])


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("package", ["dgemma_core", "dgemma_lab", "dgemma_evals"])
def test_the_api_page_has_every_public_name(site: Path, package: str) -> None:
    anchors = Page(site / "api.html").anchors
    described = {name.rpartition(".")[2] for name in anchors if name.startswith(package)}
    assert set(import_module(package).__all__) - {"Settings"} <= described


@pytest.mark.slow
@pytest.mark.subprocess
def test_what_the_guides_run_is_right(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of the guides, as a reader would paste it."""
    import dgemma_core as dg

    assert site.exists()
    monkeypatch.chdir(tmp_path)
    loaded = dg.load("nano")
    events: list[object] = []
    dg.generate(loaded, "Spell backward:\nSTEP", listen=events.append)
    dg.Trace.record(events, metadata={}).save("run.npz")
    guides = ROOT / "docs" / "site" / "guides"
    for guide in ("first_five_minutes", "commands", "speculate", "read_a_trace"):
        names: dict[str, object] = {}
        for code in re.findall(
            r"```python\n(.*?)```", (guides / f"{guide}.md").read_text(), re.DOTALL
        ):
            exec(code, names)


def test_the_readme_is_short_and_what_it_names_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 75
    named = LINK.findall(text) + [("", path) for path in re.findall(r'src(?:set)?="([^"]+)"', text)]
    assert len(named) > 10
    for _, path in named:
        assert (ROOT / path).exists(), path
    for path in re.findall(r'src(?:set)?="([^"]+\.gif)"', text):
        assert (ROOT / path).stat().st_size < 1_000_000


def test_the_readme_has_the_figures_of_the_results() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    against = json.loads((ROOT / "results/nano/results.json").read_text())["against"]
    accuracy = against["nano:ar"]["accuracy"]
    solved = [f"{100 * accuracy[side]:.1f} %" for side in ("first", "other")]
    points = [
        f"{100 * abs(accuracy['difference'][end]):.1f}" for end in ("estimate", "low", "high")
    ]
    assert f"nano solves {solved[0]} by diffusion and {solved[1]} token by token" in text
    assert "difference −{} points, 95 % interval −{} to −{}".format(*points) in text
    drafted = against["nano:spec"]["speed"]["tokens_per_second_ratio"]  # of diffusion to it
    times = [f"{1 / drafted[end]:.2f}" for end in ("estimate", "high", "low")]
    assert "{} times as many kept tokens a second as diffusion ({} to {};".format(*times) in text
    plain = against["nano:ar"]["speed"]["tokens_per_second_ratio"]
    assert (
        "({:.2f} times, {:.2f} to {:.2f})".format(*(plain[e] for e in ("estimate", "low", "high")))
        in text
    )
