"""Where things are printed: results on stdout, all else on stderr."""

from __future__ import annotations

import sys
from typing import Final, TextIO

from rich.console import Console

from report import words

WIDTH: Final = 120
"""Columns of output that goes to no terminal."""


def stdout() -> Console:
    """Where results go; as wide as people read if it is no terminal."""
    return console(sys.stdout)


def stderr() -> Console:
    """Where all else goes."""
    return console(sys.stderr)


def console(file: TextIO) -> Console:
    """A console on a stream that may be no terminal."""
    return Console(file=file, width=None if file.isatty() else WIDTH)


def say(line: str) -> None:
    """A line about what is going on."""
    stderr().print(words.plain(line), markup=False, highlight=False, soft_wrap=True)
