"""The page as a file: the markup, the style, the script and the data in one."""

from __future__ import annotations

from html import escape
from importlib.resources import files

import msgspec

from mmurace.report.page.model import Page


def html_of(page: Page) -> str:
    """One file; all text is escaped, and the data cannot end its script."""
    data = msgspec.json.encode(page).decode().replace("<", "\\u003c")
    return (
        part("page.html")
        .replace("@title@", escape(page.title))
        .replace("@kernel@", escape(page.kernel))
        .replace("@rule@", escape(page.rule))
        .replace("@sentence@", escape(page.sentence))
        .replace("@look_at@", escape(page.look_at))
        .replace("@size@", escape(page.size))
        .replace("@closing@", escape(page.closing))
        .replace("@reasons@", "\n".join(_paragraph(reason) for reason in page.reasons))
        .replace("@before@", _before(page.before))
        .replace("@commands@", escape("\n".join(page.commands)))
        .replace("@as_text@", escape(page.as_text))
        .replace("@style@", part("page.css"))
        .replace("@script@", part("page.js"))
        .replace("@data@", data)
    )


def part(name: str) -> str:
    """One of the files that pages are made of."""
    return (files("mmurace.report.page") / name).read_text(encoding="utf-8")


def _paragraph(reason: list[str]) -> str:
    first, *items = reason
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<p>{escape(first)}</p>" + (f"<ul>{listed}</ul>" if listed else "")


def _before(before: list[str]) -> str:
    return f"<p>Before: {escape(', '.join(before))}.</p>" if before else ""
