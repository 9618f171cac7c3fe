"""Stateful search: every state once, breadth-first.

A state is what every node holds (suspended coroutines included), what is pending, which operations
are done, and what the oracle can still judge (``oracle_state``); all of it compared by value, so
there are no collisions.  Not combined with partial-order reduction but for one thing: a delivery
that touches nothing but the coroutine which waits for it, records nothing and chooses nothing is
made at once, because it commutes with everything that anybody else can do, for good.  (Every
delivery is of a message that was never delivered before, so there are no cycles in which something
could be put off for ever.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explorer.dpor import other_ways
from explorer.machine import Move, Sent, Ways
from explorer.oracle_state import OracleTable
from explorer.world_state import Config, Model

Key = tuple[object, ...]


class Step:
    """One delivery of a path; part of the tree of how states were first reached."""

    __slots__ = ("before", "message", "move")

    def __init__(self, before: Step | None, message: Sent, move: Move) -> None:
        self.before, self.message, self.move = before, message, move


@dataclass(frozen=True, slots=True)
class Reached:
    """A state on the frontier, with the shortest way there."""

    config: Config
    oracle: int
    last: Step | None


class Stateful:
    """The search over one model."""

    def __init__(
        self,
        model: Model,
        oracle: OracleTable,
        visit: Callable[[list[Step], Config], bool],
        stop: Callable[[int], bool],
        eager: bool,
    ) -> None:
        self.model, self.oracle, self.visit, self.stop = model, oracle, visit, stop
        self.eager = eager
        self.seen: set[Key] = set()
        self.deliveries = self.terminal = self.depth = 0

    def run(self) -> bool:
        """Search until ``visit`` or ``stop`` says so; True if every state was visited.

        ``visit`` gets the way to each terminal state and to each delivery that breaks a rule.
        """
        level = [Reached(self.model.first(), 0, None)]
        while level:
            following: list[Reached] = []
            for reached in level:
                if self.stop(len(self.seen)) or self._expand(reached, following):
                    return False
            level = following
            self.depth += 1
        return True

    def _expand(self, reached: Reached, following: list[Reached]) -> bool:
        """Append what can come next and was not seen before; True if the search is over."""
        heads = reached.config.heads()
        if not heads:
            self.terminal += 1
            return self.visit(path_of(reached.last), reached.config)
        return any(self._try(reached, message, following) for message in self._chosen(reached))

    def _chosen(self, reached: Reached) -> list[Sent]:
        heads = reached.config.heads()
        if self.eager:
            for message in heads:
                if self.model.move(reached.config, message).private:
                    return [message]
        return heads

    def _try(self, reached: Reached, message: Sent, following: list[Reached]) -> bool:
        todo: list[Ways] = [()]
        while todo:
            ways = todo.pop()
            move = self.model.move(reached.config, message, ways)
            todo += other_ways(move, len(ways))
            if self._arrive(reached, message, move, following):
                return True
        return False

    def _arrive(
        self, reached: Reached, message: Sent, move: Move, following: list[Reached]
    ) -> bool:
        self.deliveries += 1
        config, _ = self.model.step(reached.config, message, move)
        oracle, broken = self.oracle.step(reached.oracle, message, move)
        key = (config.nodes, frozenset(config.queues.values()), config.done, oracle)
        last = Step(reached.last, message, move)
        if broken and self.visit(path_of(last), config):
            return True
        if key not in self.seen:
            self.seen.add(key)
            following.append(Reached(config, oracle, last))
        return False


def path_of(last: Step | None) -> list[Step]:
    """The deliveries up to and including ``last``."""
    steps = []
    while last is not None:
        steps.append(last)
        last = last.before
    return steps[::-1]
