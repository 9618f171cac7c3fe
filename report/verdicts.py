"""Verdicts as the command line knows them: exit statuses, and ``--expect`` for scripts."""

from __future__ import annotations

from typing import Final

from mmurace.explorer.run import outcome as codes
from mmurace.protocol.errors import UserError

STATUSES: Final = {
    codes.HELD: "held",
    codes.VIOLATED: "violated",
    codes.INCONCLUSIVE: "inconclusive",
    codes.NO_PROGRESS: "no-progress",
}
JUDGING: Final = ("stress", "repro", "explore", "replay", "check")
"""Commands that come to one verdict."""
OPTION: Final = "--expect"


def taken_out(option: str, words: list[str], expected: str) -> tuple[list[str], list[str]]:
    """(what is left, the values of ``option``), which may stand anywhere.

    Raises ``UserError`` where it stands without one; ``expected`` says what was.
    """
    rest: list[str] = []
    values: list[str] = []
    given = iter(words)
    for word in given:
        name, equals, value = word.partition("=")
        if name != option:
            rest.append(word)
            continue
        values.append(value if equals else next(given, ""))
        if not values[-1]:
            raise UserError(option, "names nothing", expected)
    return rest, values


def without_expectation(words: list[str]) -> tuple[list[str], str]:
    """(what is left, the verdict that ``--expect`` names; empty: none).  Raises ``UserError``."""
    *first, last = STATUSES.values()
    known = f"{', '.join(first)} or {last}"
    rest, named = taken_out(OPTION, words, known)
    for verdict in named:
        if verdict not in STATUSES.values():
            raise UserError(OPTION, f"is {verdict!r}", known)
    return rest, named[-1] if named else ""


def check_judges(command: str, expected: str) -> None:
    """Raise ``UserError`` if a verdict is expected of a command that comes to none."""
    if expected and command not in JUDGING:
        raise UserError(OPTION, f"{command} comes to no verdict", f"one of {', '.join(JUDGING)}")


def status_of(status: int, expected: str) -> tuple[int, str]:
    """(the exit status for whoever expects a verdict, what is wrong).

    0 if it came out so, 1 if otherwise.  What is no verdict (wrong usage, a run that broke) keeps
    its own status.
    """
    came = STATUSES.get(status, "")
    if not expected or not came:
        return status, ""
    if came == expected:
        return codes.HELD, ""
    return codes.VIOLATED, f"expected {expected}, came out {came}"
