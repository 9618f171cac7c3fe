"""A run that one can go through: forwards, backwards, and on to what might have happened instead.

Going back is playing again from the start: suspended coroutines cannot be copied, and forty
thousand deliveries take a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmurace.explorer.run.schedule_file import case_of_run, is_schedule_file, read_case
from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.play import How, Moment, as_played, play
from mmurace.explorer.step.events import Predicate
from mmurace.explorer.step.stacks import Stack, stacks_of
from mmurace.explorer.step.state import State, state_of
from mmurace.explorer.step.walk import Walk
from mmurace.nodes.driver import Driver
from mmurace.oracle.violation import Violation
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages.base import Message


@dataclass(frozen=True, slots=True)
class Otherwise:
    """What became of a run in which something else came first."""

    first: str
    before: str
    """The name of the delivery that was next."""
    violations: tuple[Violation, ...]


class Stepper:
    """A run, and a place in it: ``at`` deliveries have been made.

    Raises ``ReplayDivergence`` if the case does not fit.
    """

    def __init__(self, case: Case, target: Target | None = None) -> None:
        self.target = target
        self._earlier: list[tuple[Case, int]] = []
        self._take(case)

    def _take(self, case: Case) -> None:
        whole = Walk(case)
        while whole.forward():
            pass
        self.case = case
        self.moments: list[Moment] = whole.moments
        """Every delivery of the run, in order."""
        self.played = whole.end()
        self.broken = list(whole.broken)
        self.answers = _answers(self.moments)
        self._walk = Walk(case)

    # -- where one is ------------------------------------------------------------------------

    @property
    def at(self) -> int:
        """How many deliveries have been made."""
        return self._walk.made

    @property
    def last(self) -> Moment | None:
        """The delivery that was made last."""
        return self.moments[self.at - 1] if self.at else None

    @property
    def next(self) -> Moment | None:
        """The one that comes next."""
        return self.moments[self.at] if self.at < len(self.moments) else None

    @property
    def drivers(self) -> Mapping[str, Driver]:
        """The nodes as they are here.  They are for looking at."""
        return self._walk.drivers

    def stacks(self, node: str) -> list[Stack]:
        """Where the threads of a node stand here."""
        return stacks_of(self.drivers[node], self._walk.exchange.requests)

    def state(self) -> State:
        """What every node knows here."""
        return state_of(self.drivers, self.moments[: self.at])

    @property
    def violations(self) -> list[Violation]:
        """What has been broken so far; at the end, also what is judged only there."""
        if self.at == len(self.moments):
            return list(self.played.violations)
        return [violation for at, violation in self.broken if at <= self.at]

    def deliverable(self) -> list[str]:
        """Names of the deliveries that could come next."""
        return self._walk.deliverable()

    # -- moving ------------------------------------------------------------------------------

    def go(self, at: int) -> int:
        """Go to where ``at`` deliveries have been made, or to the nearest end; where that is."""
        at = max(0, min(at, len(self.moments)))
        if at < self.at:
            self._walk = Walk(self.case)
        while self.at < at and self._walk.forward():
            pass
        return self.at

    def find(self, wanted: Predicate, back: bool = False) -> int | None:
        """Where the next delivery that is wanted has just been made; None if there is none."""
        ahead = range(self.at, len(self.moments))
        behind = range(self.at - 2, -1, -1)
        for index in behind if back else ahead:
            if wanted(self.moments[index]):
                return index + 1
        return None

    # -- what if -----------------------------------------------------------------------------

    def what_if(self, name: str) -> Otherwise:
        """Let a later delivery come before the one that is next, and go on much as it was.

        What it needs to be sent at all comes before it.  We are then where it has just been made.
        Raises ``UserError`` if it needs the one that is next, or is not there.
        """
        following = self.next
        later = {moment.name: moment for moment in self.moments[self.at :]}
        if following is None or name not in later:
            problem = "does not come any more" if following else "comes after the end"
            raise UserError(name, problem, f"one of {', '.join(self.deliverable()) or 'none'}")
        first = [*self._needs(later[name], self.at), name]
        if following.name in first:
            raise UserError(name, f"comes of {following.name}, which is next", "another one")
        at, order = self.at, [moment.name for moment in self.moments]
        rest = [other for other in order[at:] if other not in first]
        other = replace(self.case, order=(*order[:at], *first, *rest))
        played = play(other, How(stop=False))
        self._earlier.append((self.case, at))
        self._take(as_played(other, played))
        self.go(at + len(first))
        return Otherwise(name, following.name, tuple(self.played.violations))

    def _needs(self, wanted: Moment, after: int) -> list[str]:
        """Names of the deliveries later than ``after`` without which one is not sent, in order."""
        numbers = {moment.n: moment for moment in self.moments[after:]}
        todo, needed = list(wanted.envelope.causes), set[int]()
        while todo:
            n = todo.pop()
            if n in numbers and n not in needed:
                needed.add(n)
                todo += numbers[n].envelope.causes
        return [numbers[n].name for n in sorted(needed)]

    def undo(self) -> bool:
        """Back to the run before the last ``what_if``, and to that place; False: there is none."""
        if not self._earlier:
            return False
        case, at = self._earlier.pop()
        self._take(case)
        self.go(at)
        return True


def _answers(moments: Sequence[Moment]) -> dict[str, tuple[int, Message]]:
    """Id of a request -> the delivery in which it was answered, and the answer."""
    return {
        sent.id[:-1]: (moment.n, sent.body)
        for moment in moments
        for sent in moment.handled.messages
        if sent.is_reply and isinstance(sent.body, Message)
    }


def stepper_of(source: Path) -> Stepper:
    """The stepper of a schedule file, or of a run's directory or ``schedule``.

    Raises ``UserError``, ``ReplayDivergence``, and ``PeerError`` if journals do not fit each other.
    """
    if is_schedule_file(source):
        return Stepper(*read_case(source))
    case, _ = case_of_run(source)
    return Stepper(case)
