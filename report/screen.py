"""Where things are printed: results on stdout, all else on stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console

from mmurace.report import words

WIDTH: Final = 120
"""Columns of output that goes to no terminal."""


def open_closed_streams() -> None:
    """Lead streams that were closed before the start to nowhere.

    Else the first files that are opened, journals perhaps, get their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def write_out(text: str) -> None:
    """A result on stdout, at once.  Raises ``OSError``: a result that nobody got is none."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write_line(line: str, stream: TextIO) -> None:
    """Write a line if that can be; if not, nothing more is written there, and that is no error."""
    try:
        print(line, file=stream, flush=True)
    except OSError:
        mute(stream)


def mute(stream: TextIO) -> None:
    """Lead a stream to nowhere, with what it still holds: nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    write_line(words.plain(line), sys.stderr)


def put(console: Console, text: str, style: str = "") -> None:
    """A text as it is: nothing in it is markup, and no line is broken."""
    console.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
