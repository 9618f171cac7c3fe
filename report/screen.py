"""Where things are printed: results on stdout, all else on stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Final, TextIO

from rich.console import Console

from mmurace.report import formats

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
    """A result on stdout, at once.  Raises ``OSError``: a result that could not be put is none.

    A reader who has seen enough (``| head -1``) is no error, and does not change what was found.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        mute(sys.stdout)


def write_line(line: str, stream: TextIO) -> None:
    """Write a line if that can be; if not, nothing more is written there, and that is no error."""
    try:
        print(line, file=stream, flush=True)
    except OSError:
        mute(stream)


def mute(stream: IO[str]) -> None:
    """Lead a stream to nowhere, with what it still holds: nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def settle() -> None:
    """Write out what is still held; where nobody reads it any more, forget it.

    Else the interpreter tries at its end, and complains, and has an exit status of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            mute(stream)


def stdout() -> Console:
    """Where results go; as wide as people read if it is no terminal."""
    return console(sys.stdout)


def stderr() -> Console:
    """Where all else goes."""
    return console(sys.stderr)


class _Patient(Console):
    """One that goes on when its reader goes away: rich would end the program, as if it were told.

    What was found is found, and the exit status says so.
    """

    def on_broken_pipe(self) -> None:
        """Nobody reads: nothing more is written."""
        self.quiet = True
        mute(self.file)


def console(file: TextIO) -> Console:
    """A console on a stream that may be no terminal; ``COLUMNS`` has its say wherever it goes."""
    told = os.environ.get("COLUMNS", "").isdigit()
    return _Patient(file=file, width=None if file.isatty() or told else WIDTH)


def say(line: str) -> None:
    """A line about what is going on."""
    write_line(formats.plain(line), sys.stderr)


def put(console: Console, text: str, style: str = "") -> None:
    """A text as it is: nothing in it is markup, and no line is broken."""
    console.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
