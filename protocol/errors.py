"""Errors say whose fault it is, where, and what was expected.

Every error that a user can cause is a ``UserError`` with the file and the key path; every
error that a peer process causes is a ``PeerError``; whatever is left is ours.
"""

from __future__ import annotations

from typing import Any


class EmulatorError(Exception):
    """Our own fault: the verdict of the run is void (exit status 4)."""


class UserError(Exception):
    """The user's input is wrong (exit status 2).

    ``where`` is a file, or a file with a key path or line number; ``problem`` says what is
    wrong there and ``expected`` what would have been right.
    """

    def __init__(self, where: str, problem: str, expected: str = "") -> None:
        self.where, self.problem, self.expected = where, problem, expected
        tail = f" (expected {expected})" if expected else ""
        super().__init__(f"{where}: {problem}{tail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes whole out of another process."""
        return type(self), (self.where, self.problem, self.expected)


class PluginError(Exception):
    """A plug-in went wrong while something ran (exit status 4): there is no verdict.

    The text names it, and its line if one is known.
    """


class PeerError(Exception):
    """Another process sent something that breaks the protocol; it is rejected and counted."""


class PeerLost(Exception):  # noqa: N818 - what happened, not whose fault
    """The node that was asked is dead (``PeerGone``): what was asked was not done, or only in part.

    Raised out of ``Port.call`` in the coroutine that waits there.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        super().__init__(f"{node} is dead")

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes whole out of another process."""
        return type(self), (self.node,)


class ReplayDivergence(Exception):  # noqa: N818 - the word users know
    """A recorded schedule no longer fits: which node, which delivery and which field."""

    def __init__(self, node: str, delivery: int, field: str, detail: str) -> None:
        self.node, self.delivery, self.field, self.detail = node, delivery, field, detail
        super().__init__(f"diverged at delivery {delivery} on {node}, field {field}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes whole out of another process."""
        return type(self), (self.node, self.delivery, self.field, self.detail)


class TimedOut(Exception):  # noqa: N818 - reads as what happened
    """A bounded wait ran out; it names what it waited for."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(f"waited {seconds:g} s for {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes whole out of another process."""
        return type(self), (self.what, self.seconds)
