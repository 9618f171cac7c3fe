"""The manual page, in roff, from the same parser that takes the words (man-pages(7))."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from mmurace import __version__
from mmurace.report.arguments import STATUSES, Commands

HEAD = r"""
.SH NAME
mmurace \- an emulator of the Linux mmu_notifier world in which its races happen
.SH SYNOPSIS
.B mmurace
.RI [ options ]
.RI [ command
.RI [ arguments ]]
.SH DESCRIPTION
Kernel code of core mm and of its secondary MMUs runs as nodes that talk by messages.
A broker decides which message is delivered next, which is the interleaving, and an oracle says what
went wrong.
Without a command one race is shown, where it happens and where it was cured.
""".lstrip()
TAIL = r"""
.SH FILES
.TP
.I runs/
A directory for each run, with all that is needed to repeat it; runs/latest is the newest.
.TP
.I races/*.toml
Races of one's own, which pytest runs.
.SH SEE ALSO
.BR pytest (1),
.BR strace (1)
""".lstrip()


def manual(commands: Commands) -> str:
    """The whole page."""
    lines = [f'.TH MMURACE 1 "" "mmurace {__version__}" "User Commands"', HEAD.rstrip()]
    lines += [".SH OPTIONS", *_options(commands.parser)]
    lines.append(".SH COMMANDS")
    for name, parser in commands.made.items():
        lines += [f".SS {_escaped(name)}", _escaped(parser.description or ""), *_options(parser)]
    lines += [".SH EXIT STATUS", _escaped(STATUSES), TAIL.rstrip()]
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Arguments and options with their help."""
    for action in parser._get_positional_actions() + parser._get_optional_actions():
        if isinstance(action, argparse._SubParsersAction) or "--help" in action.option_strings:
            continue
        takes = "" if action.nargs == 0 else _metavar(action)
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in action.option_strings)
        text = f"{names} \\fI{_escaped(takes)}\\fR" if names and takes else names
        yield ".TP"
        yield text or f"\\fI{_escaped(takes)}\\fR"
        yield _escaped(action.help or "")


def _metavar(action: argparse.Action) -> str:
    given = action.metavar
    return given if isinstance(given, str) else action.dest.upper()


def _escaped(text: str) -> str:
    """Nothing in it is roff."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain
