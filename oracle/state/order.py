"""Happens-before: one vector clock per delivery.

The clock of a node is the number of its last delivery.  ``row[i]`` is the newest delivery at node
``i`` that happens before (or is) the delivery that the row belongs to, so "a happens before b" is
one comparison.  Delivery numbers are one linear extension of this order and say no more than it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mmurace.broker.programs import Rounds
from mmurace.protocol.errors import EmulatorError

Row = tuple[int, ...]


class Order:
    """Rows of deliveries, kept until the caller says that nothing can refer to them.

    A message may wait for long (a hold), so a delivery's row is needed until every message that
    its handling released was delivered, which only the broker knows: ``forget_before``.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self.index = {name: at for at, name in enumerate(nodes)}
        self.last: list[Row] = [(0,) * len(nodes) for _ in nodes]
        """The row of each node's last delivery."""
        self.awaited: frozenset[str] | None = None
        """Operations whose ends others may come after; None: those of all."""
        self.rounds: Rounds | None = None
        """More of these, of which only the last of each program are named."""
        self._rows: dict[int, Row] = {}
        self._kept: dict[int, Row] = {}
        self._last: dict[str, int] = {}
        """Program -> the end of its last operation, which the next one comes after."""
        self._recent: dict[str, deque[int]] = {}
        """Program -> its last ends that others may come after in rounds."""
        self._over: list[int] = []
        """Ends that no operation to come names, but a repetition that is on its way may."""

    def deliver(self, n: int, index: int, causes: Sequence[int]) -> Row:
        """The row of delivery ``n`` to node ``index``.

        Raises ``EmulatorError`` if a cause is not known: steps out of order, or forgotten.
        """
        before = self.last[index]
        row: list[int] | None = None
        rows = self._rows
        for cause in causes:
            other = rows.get(cause) or self._kept.get(cause)
            if other is None:
                raise EmulatorError(f"delivery {n}: its cause {cause} is not in the trace")
            if row is None:
                if other[index] == before[index]:  # who knows of that knows all that it knew
                    row = [*other]
                    continue
                row = [*before]
            for at, known in enumerate(other):  # several times faster than map(max, ...)
                if known > row[at]:
                    row[at] = known
        row = [*before] if row is None else row
        row[index] = n
        self.last[index] = rows[n] = found = tuple(row)
        return found

    def keep(self, n: int, operation: str) -> None:
        """Delivery ``n`` ended ``operation``: others that are fed later may come after it."""
        self._kept[n] = self._rows[n]
        if self.awaited is None:
            return
        program = operation.rpartition("/")[0]
        before = self._last.pop(program, None)
        if before is not None:
            self._over.append(before)
        if operation in self.awaited:
            return
        if self.rounds is None or operation not in self.rounds:
            self._last[program] = n
            return
        recent = self._recent.setdefault(program, deque())
        recent.append(n)
        if len(recent) > self.rounds.kept:
            self._over.append(recent.popleft())

    def forget_before(self, n: int) -> None:
        """Promise that no delivery to come has a cause below ``n``, but for ends of operations."""
        for number in self._over:
            if number < n:
                self._kept.pop(number, None)
        self._over = [number for number in self._over if number >= n]
        gone = []
        for number in self._rows:
            if number >= n:
                break
            gone.append(number)
        for number in gone:
            del self._rows[number]
