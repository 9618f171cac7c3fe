"""What the generated pages read from structs: notes on fields, and docstrings as Markdown."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_notes(cls: type) -> dict[str, str]:
    """The string literals below the fields of a class, which say what a field means."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    notes = {}
    for before, here in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(here, ast.Expr)
            and isinstance(here.value, ast.Constant)
        ):
            notes[before.target.id] = " ".join(plain(str(here.value.value)).split())
    return notes


def plain(text: str) -> str:
    """reStructuredText literals as Markdown ones."""
    return text.replace("``", "`")
