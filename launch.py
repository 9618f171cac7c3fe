"""The command line of the mmu_notifier emulator.  It parses, calls and prints.

Exit status: 0 held; 1 violated; 2 bad usage or input; 3 inconclusive; 4 the run itself broke;
5 no progress after healing; 130 interrupted.

A command imports what it runs, so that ``list`` does not wait for the search engine.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # the imports take a while, and a signal may come meanwhile
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, lambda *_: os._exit(130))

    def cannot_start(kind: type[BaseException], error: BaseException, _: object) -> None:
        """An import failed, for want of memory perhaps: that is not the status of a violation."""
        print(f"launch.py: cannot start: {kind.__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(4)

    sys.excepthook = cannot_start

import traceback
from collections.abc import Callable
from typing import Any, Final

from mmurace.explorer.run import outcome as codes
from mmurace.nodes import plugins
from mmurace.nodes.plugin_watchdog import last_word
from mmurace.protocol.errors import UserError
from mmurace.report import formats, machine, verdicts
from mmurace.report.arguments import PROGRAM, parse
from mmurace.report.commands import (
    catalogue,
    hunt,
    measured,
    races,
    saved,
    shell,
    step,
    stress,
    tour,
)
from mmurace.report.interrupts import Interrupted, interruptible
from mmurace.report.screen import open_closed_streams, settle, write_line
from mmurace.report.shortage import shortage

TOUR: Final = "tour"
"""What is done if nothing is asked for."""
COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "stress": stress.stress, "list": catalogue.list_races, "show": catalogue.show,
    "kernels": catalogue.kernels, "repro": races.repro, "explore": races.explore,
    "matrix": races.matrix, "hunt": hunt.hunt, "conform": measured.conform,
    "replay": saved.replay, "minimize": saved.minimize, "explain": saved.explain,
    "report": saved.report,
    "check": saved.check, "step": step.step, "schema": shell.schema, "completion": shell.completion,
    TOUR: tour.show_tour,
}  # fmt: skip
"""They take by name what ``report/arguments.py`` gives."""


# ---- errors ------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status.  Every error is one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        last_word(lambda said: complain(said, codes.USAGE, given))
        words, expected = verdicts.without_expectation(given or [TOUR])
        options = parsed(words)
        last_word(lambda said: complain(said, codes.BROKEN, given))
        return codes.HELD if options is None else run(options, expected)
    except UserError as error:
        return complain(str(error), codes.USAGE, given)
    except Interrupted as error:
        return complain(f"interrupted{error}", codes.INTERRUPTED, given)
    except BaseException as error:
        if plugins.is_interrupt(error):
            return complain("interrupted", codes.INTERRUPTED, given)
        return broke(error, given)


def run(options: dict[str, Any], expected: str) -> int:
    """Run one command; the exit status, which is 0 if a verdict was expected and came out."""
    command = options.pop("command")
    verdicts.check_judges(command, expected)
    status, problem = verdicts.status_of(COMMANDS[command](**options), expected)
    if problem:
        write_line(f"{PROGRAM}: {problem}", sys.stderr)
    return status


def broke(error: BaseException, given: list[str]) -> int:
    """Say what broke, and which plug-in if it is one; the exit status.  Raises what is no error."""
    if "--debug" in given:
        traceback.print_exception(error)
    if blamed := plugins.said_of(error):  # whatever it is: a plug-in may have called sys.exit
        return complain(blamed, codes.BROKEN if plugins.ran(error) else codes.USAGE, given)
    if not isinstance(error, Exception):
        raise error
    problem = shortage(error) or f"{type(error).__name__}: {error}"
    return complain(problem, codes.BROKEN, given)


def parsed(given: list[str]) -> dict[str, Any] | None:
    """What was asked for; None if that was help, which has been printed.  Raises ``UserError``."""
    try:
        return parse(given)
    except SystemExit:
        return None


def complain(problem: str, status: int, given: list[str]) -> int:
    """One line on stderr, and one object on stdout if that was asked for; the exit status."""
    line = formats.plain(problem)
    write_line(f"{PROGRAM}: {line}", sys.stderr)
    if "--json" in given:
        write_line(machine.as_json({"exit_code": status, "error": line}), sys.stdout)
    return status


if __name__ == "__main__":
    sys.excepthook = sys.__excepthook__
    open_closed_streams()
    status = interruptible(main)
    settle()
    plugins.leave(status)
    sys.exit(status)
