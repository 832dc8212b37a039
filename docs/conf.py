"""The site: Sphinx with Markdown (MyST). Build it with ``sphinx-build -W docs build/site``, with the extra ``docs``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_site"), str(HERE.parent)]

import commands  # noqa: E402  # which the path above is for
import docstrings  # noqa: E402

import daskreg  # noqa: E402

project, author, release = "daskreg", "daskreg developers", daskreg.__version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design", "sphinx_copybutton"]
exclude_patterns = ["_site", "_build"]

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]

smartquotes = False  # options begin with two dashes
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
copybutton_prompt_text = "$ "

html_theme = "pydata_sphinx_theme"
html_title = f"daskreg {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "github_url": "https://github.com/daskreg/daskreg",
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "pygments_light_style": "tango",
}
html_sidebars = {page: [] for page in ("index", "tutorial", "method", "performance", "comparison")}  # which stand alone


def setup(app):
    """Write the page that is made of commands; read docstrings as they are written here."""
    commands.write(HERE / "reference" / "commands.md")
    app.connect("autodoc-process-docstring", docstrings.as_fields)
    app.connect("autodoc-process-signature", docstrings.without_values)
