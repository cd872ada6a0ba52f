"""A widget as a standalone page, without a kernel."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgemma_lab.frontend.scripts import bundled, style
from dgemma_lab.given import written


def write_page(
    path: str | os.PathLike[str],
    script: str,
    state: Mapping[str, Any],
    *,
    title: str,
    sheets: Sequence[str],
    intro: str = "",
) -> Path:
    """A page of the widget `script` (a path from lab/) over `state` (json values). It needs no network.

    The widget shows its title itself; the page has it as its name, and as a heading for those who listen. The page's
    script can reach the widget's model by the script's name. intro: a paragraph under the widget.
    """
    name = Path(script).stem
    data = json.dumps(state, ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(title)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ margin: 16px auto; max-width: 1180px; padding: 0 12px; background: Canvas; color: CanvasText; }}
.intro {{ font: 15px/1.5 system-ui, sans-serif; max-width: 44em; margin: 16px 4px; }}
h1 {{ position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }}
{style(*sheets)}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div id="{name}"></div>
{f'<p class="intro">{html.escape(intro)}</p>' if intro else ""}
</main>
<script type="application/json" id="state">{data}</script>
<script type="module">
{bundled(script)}
const state = JSON.parse(document.getElementById("state").textContent);
globalThis["{name}"] = mount(state, document.getElementById("{name}"));
</script>
</body>
</html>
"""
    return written(path, lambda file: file.write_text(page, "utf-8"))
