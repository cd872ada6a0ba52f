"""The site's build (`make docs`): pages, executed notebooks and docstrings, with nothing fetched from a network.

The sources are put together in build/site first (scripts/build_docs.py), so that notebooks and the description of the
architecture stay where they are.
"""

project = "dgemma"
author = "the dgemma authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = (
    "off"  # outputs are those that the notebooks were committed with, and CI compares them
)
nb_merge_streams = True
exclude_patterns = ["**/.ipynb_checkpoints", "players"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["players.css"]
html_copy_source = False
html_title = "dgemma"
html_theme_options = {"source_directory": "docs/site/"}
# Canvases, races and charts are live (scripts/players.py); of other widgets a page shows the still beside them.
suppress_warnings = ["mystnb.unknown_mime_type"]
