"""Stateful search: every state once, breadth-first.

A state is what every node holds (suspended coroutines included), what is pending, which operations
are done, and what the oracle can still judge (``oracle_state``); all of it compared by value, so
there are no collisions.

With ``eager`` on, a state is left only by deliveries of which it is enough to make one next
(``futures``); the rest of the orders is equivalent.  (Every delivery is of a message that was never
delivered before, so there are no cycles in which something could be put off for ever.)

With ``forms`` given, of states that are the same but for names one is searched.  Some of those that
are not are compared with it: what can come next must be the same, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from mmurace.explorer.exhaustive.node_tables import Move, Sent
from mmurace.explorer.exhaustive.oracle_table import OracleTable
from mmurace.explorer.exhaustive.persistent_sets import Futures, rename
from mmurace.explorer.exhaustive.symmetry import Canonical, Forms, Key
from mmurace.explorer.exhaustive.world_state import Config, Front, Model
from mmurace.oracle.violation import Violation

WALKS: Final = 64
"""Random executions in a row from which nothing was learned before a search begins."""

LITTLE: Final = 2
"""A pass that learned something goes on once it saw one in so many of the states of another."""

STOP_EVERY: Final = 8
"""States between two questions whether to stop."""

Seen = Key | Canonical
Table = dict[Seen, tuple[Key, int]]
"""States by what they have in common with all that are the same but for names: the first that was
met, and the permutation that shows it."""

CHECK_EVERY: Final = 16
"""Of states that are the same but for names so many are believed for one that is compared."""


class NotAlikeError(Exception):
    """States that were taken to be the same but for names have another future."""


class Step:
    """One delivery of a path; part of the tree of how states were first reached."""

    __slots__ = ("before", "message", "move")

    def __init__(self, before: Step | None, message: Sent, move: Move) -> None:
        self.before, self.message, self.move = before, message, move


Broken = tuple[Violation, ...]
Visit = Callable[[list[Step], Config, Broken], bool]
"""(way to a state, the state, what its last delivery broke): whether the search is over."""


class Stateful:
    """The search over one model."""

    def __init__(
        self,
        model: Model,
        oracle: OracleTable,
        visit: Visit,
        stop: Callable[[int], bool],
        eager: bool,
        forms: Forms | None = None,
    ) -> None:
        self.model, self.oracle, self.visit, self.stop = model, oracle, visit, stop
        self.eager = eager
        self.futures = Futures(model)
        self.forms = forms
        """If given, of states that are the same but for names one is searched."""
        self.seen: Table = {}
        """States that were reached by a delivery to which there was an alternative."""
        self.left: Table = {}
        """States that were left in more than one way, or ended."""
        self.levels: list[int] = []
        """Number of deliveries with an alternative -> states that were first reached by so many."""
        self._asked = self._merged = self._most = 0
        self._linked: set[tuple[Front, int, Front, int]] = set()
        """Fronts of states that are the same but for names, whose futures were linked."""
        self.deliveries = self.terminal = 0

    def run(self) -> bool:
        """Search until ``visit`` or ``stop`` says so; True if every state was visited.

        ``visit`` gets the way to each terminal state and to each delivery that breaks rules, and
        those.
        """
        if self.eager:
            self._look_around()
        while True:
            known = self.futures.grown
            self.seen, self.left, self.terminal = {}, {}, 0
            self.levels = []
            if not self._pass(known):
                return False
            self._most = max(self._most, len(self.seen))
            if self.futures.grown == known:
                return True

    def _look_around(self) -> None:
        """Learn most futures from random executions, so that few passes are begun in vain."""
        draws, vain = random.Random(0), 0
        while vain < WALKS and not self.stop(0):
            known = self.futures.grown
            nodes, front = self.model.first().nodes, self.model.first().front
            while front.heads:
                message = draws.choice(self.futures.ready(nodes, front))
                at = self.model.index[message.dst]
                moves = self.model.machines[at].moves_of(nodes[at], message)
                for move in moves:
                    self.futures.learn(at, message, move)
                move = draws.choice(moves)
                nodes = (*nodes[:at], move.target, *nodes[at + 1 :])
                front, _ = self.model.pass_on(front, message, move)
            vain = 0 if self.futures.grown > known else vain + 1

    def _pass(self, known: int) -> bool:
        first = self.model.first()
        level: list[tuple[Key, Step | None]] = [((first.nodes, first.front, 0), None)]
        while level and not self._in_vain(known):
            following: list[tuple[Key, Step | None]] = []
            for key, last in level:
                if self._over() or self._expand(key, last, following):
                    return False
            level = following
            self.levels.append(len(level))
        return True

    def _in_vain(self, known: int) -> bool:
        """Whether this pass must be begun again, and little was done that this would lose."""
        return self.futures.grown > known and len(self.seen) * LITTLE < self._most

    def _over(self) -> bool:
        """Ask now and then whether to stop: to look at a clock takes longer than a state."""
        self._asked += 1
        return self._asked % STOP_EVERY == 0 and self.stop(len(self.seen))

    def _expand(
        self, key: Key, last: Step | None, following: list[tuple[Key, Step | None]]
    ) -> bool:
        """Add what can come next and was not seen before; True if the search is over.

        With ``eager`` on, what alone can come next is done at once: such states are not kept.
        """
        todo = [(key, last)]
        while todo:
            key, last = todo.pop()
            ahead = self._ahead(key)
            alone = self.eager and len(ahead) == 1
            if not alone and self._known(self.left, key):
                continue
            if not ahead:
                self.terminal += 1
                if self.visit(path_of(last), Config(key[0], key[1]), ()):
                    return True
            for at, message, move in ahead:
                reached, broken = self._deliver(key, at, message, move)
                step = Step(last, message, move)
                if broken and self.visit(path_of(step), Config(reached[0], reached[1]), broken):
                    return True
                if alone:
                    todo.append((reached, step))
                elif not self._known(self.seen, reached):
                    following.append((reached, step))
        return False

    def _known(self, table: Table, key: Key) -> bool:
        """Whether it is in the table, or one that is the same but for names; it is from now on."""
        if self.forms is None:
            return table.setdefault(key, (key, 0))[0] is not key
        form, way = self.forms.least(key)
        first, first_way = table.setdefault(form, (key, way))
        if first is key:
            return False
        if first != key:
            self._same_future(key, way, first, first_way)
            self._merged += 1
            if self._merged % CHECK_EVERY == 1 and self._after(key) != self._after(first):
                raise NotAlikeError(f"{key[0]} and {first[0]} differ in more than names")
        return True

    def _after(self, key: Key) -> Counter[object]:
        """What can come next, names apart, and what that breaks."""
        assert self.forms is not None
        nodes, front, oracle = key
        found = Counter[object]()
        for message in front.heads:
            at = self.model.index[message.dst]
            for move in self.model.machines[at].moves_of(nodes[at], message):
                then, _ = self.model.pass_on(front, message, move)
                judged, broken = self.oracle.step(oracle, message, move)
                reached = (*nodes[:at], move.target, *nodes[at + 1 :])
                form = self.forms.canonical(reached, then, judged)
                found[form, tuple(violation.rule for violation in broken)] += 1
        return found

    def _same_future(self, key: Key, way: int, first: Key, first_way: int) -> None:
        """What is learned from one of two states that differ in names is known of the other."""
        assert self.forms is not None
        asleep = any(m.sleepers[n] for m, n in zip(self.model.machines, first[0], strict=True))
        pair = key[1], way, first[1], first_way
        if not asleep and pair in self._linked:
            return
        self._linked.add(pair)
        names, ids, messages = self.forms.match(key, way, first, first_way)
        for mine, other in messages:
            self.futures.alike(mine, other, names)
        for node, machine in enumerate(self.model.machines):
            for request in machine.sleepers[first[0][node]]:
                mine_too = ids.get(request) or rename(request, names)
                self.futures.alike(mine_too, request, names)

    def _ahead(self, key: Key) -> list[tuple[int, Sent, Move]]:
        """The deliveries that are tried from a state, with what they do."""
        nodes, front, _ = key
        index, machines = self.model.index, self.model.machines
        return [
            (index[message.dst], message, move)
            for message in self._chosen(nodes, front)
            for move in machines[index[message.dst]].moves_of(nodes[index[message.dst]], message)
        ]

    def _deliver(self, key: Key, at: int, message: Sent, move: Move) -> tuple[Key, Broken]:
        """The state after a delivery, and what that broke."""
        nodes, front, oracle = key
        self.deliveries += 1
        self.futures.learn(at, message, move)
        then, _ = self.model.pass_on(front, message, move)
        judged, broken = self.oracle.step(oracle, message, move)
        return ((*nodes[:at], move.target, *nodes[at + 1 :]), then, judged), broken

    def _chosen(self, nodes: tuple[int, ...], front: Front) -> Iterable[Sent]:
        if not self.eager or len(front.heads) == 1:
            return front.heads
        return self.futures.enough(nodes, front)


def path_of(last: Step | None) -> list[Step]:
    """The deliveries up to and including ``last``."""
    steps = []
    while last is not None:
        steps.append(last)
        last = last.before
    return steps[::-1]
