"""A case, played to the letter and one delivery at a time."""

from __future__ import annotations

from collections.abc import Sequence

from mmurace.explorer.shrink.case import Case
from mmurace.explorer.shrink.play import How, Played, Player
from mmurace.oracle.violation import Violation


class Walk(Player):
    """A case, played to the letter and one delivery at a time."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, How(strict=True, stop=False, keep=True))
        self.broken: list[tuple[int, Violation]] = []
        """(deliveries made by then, what was broken), in order."""
        self.quiescent = False
        self.exchange.start()

    @property
    def made(self) -> int:
        """How many deliveries were made."""
        return len(self.order)

    def forward(self) -> bool:
        """Make the next delivery; False if there is none."""
        self._reap()
        heads = self.exchange.heads
        while not heads:
            if not self.exchange.unstick():
                self.quiescent = True
                return False
        index = self._pick(heads)
        if index >= 0:
            self.step(index)
        return index >= 0

    def _judge(self, violations: Sequence[Violation]) -> None:
        self.broken += [(self.made, violation) for violation in violations]

    def end(self) -> Played:
        """What the whole of it was: rules that are judged at the end, too."""
        return self._result(self.quiescent)

    def deliverable(self) -> list[str]:
        """Names of what could be delivered next, in order."""
        return sorted(self.names.of(envelope) for envelope in self.exchange.heads)
