"""The stepper line by line: works in a terminal, in a pipe and in a script alike."""

from __future__ import annotations

import sys
from typing import TextIO

from mmurace.report import formats
from mmurace.report.screen import write_out
from mmurace.report.stepping.session import Session

PROMPT = "(step) "


def converse(session: Session, commands: TextIO) -> None:
    """Read commands until ``quit`` or the end of the input; say what comes of each.

    On a terminal an empty line repeats the last command.
    """
    live = commands.isatty()
    say(session.do("help" if live else "list"))
    last = ""
    while not session.ended:
        line = _read(commands, live)
        if not line:
            return
        last = line.strip() or (last if live else "")
        if last and not live:
            write_out(f"{PROMPT}{formats.plain(last)}")
        say(session.do(last))


def _read(commands: TextIO, live: bool) -> str:
    if live:
        sys.stdout.write(PROMPT)
        sys.stdout.flush()
    return commands.readline()


def say(lines: list[str]) -> None:
    """Lines on stdout, without anything that a terminal would act on."""
    for line in lines:
        write_out(formats.plain(line))
