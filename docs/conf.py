"""Sphinx's settings for these pages as a site (``make site``).

Each page is Markdown and reads as well without.
"""

from __future__ import annotations

import re
from typing import Any

project = "mmurace"
author = "The mmurace authors"
html_title = "mmurace"
html_theme = "furo"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
# Diagrams stay text, and what a page shows of a file may be cut short.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(?:README|CONTRIBUTING)\.md\)")


def without_links_outside(_app: Any, _page: str, source: list[str]) -> None:
    """Pages above this folder are none of the site: what leads to them becomes text."""
    source[0] = OUTSIDE.sub(r"\1", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", without_links_outside)
