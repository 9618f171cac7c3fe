"""Kills: whom chaos kills and when, and what the kernel does about it.

How a node dies, its secondary says (``Part.death``): it is gone at once, as a device that is taken
out by surprise, or after what the kernel does about it, as a thread that is sent SIGKILL.  Memory
and a processor cannot be done without, nor can a node of which its secondary says nothing
(docs/chaos.md says why): its death is the end of the run.

Windows are counted in deliveries.  Whether somebody dies in a window, who, and at which delivery
of it are draws by (seed, rule, number of the window).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from mmurace.broker.chaos_config import Rule, globs
from mmurace.broker.gates import DRAW_END, NEVER
from mmurace.broker.programs import Program, Step
from mmurace.nodes.driver import draw
from mmurace.nodes.secondary import Death, Task
from mmurace.nodes.world import World

Note = Callable[[str, int, str], None]
"""(``kill`` or ``killed``, deliveries made, node)."""

PREFIX: Final = "kill-"
"""The program of a node's death is named after the node."""


def death_of(node: str, world: World) -> Death | None:
    """How a node dies; None: the run ends with it."""
    part = world.part_of(node)
    return part.death(node, world) if part is not None else None


def tasks(node: str, world: World, begun: Collection[str]) -> list[Program]:
    """What is to be done about the death of ``node``, if those in ``begun`` are dying already."""
    death = death_of(node, world)
    return [_program(task, node) for task in death.tasks if task.of not in begun] if death else []


def _program(task: Task, node: str) -> Program:
    after = tuple(map(last_operation, task.after))
    return Program(PREFIX + (task.of or node), task.node, (Step(task.operation, after),))


def last_operation(node: str) -> str:
    """The operation after which a node that does not die at once is gone."""
    return f"{PREFIX}{node}/0"


class _Killer:
    """One rule ``kill_node`` at work."""

    def __init__(self, rule: Rule, seed: int, nodes: Iterable[str]) -> None:
        self.rule, self.seed = rule, seed
        patterns = globs(rule.match.dst)
        self.nodes = [n for n in nodes if any(fnmatchcase(n, pattern) for pattern in patterns)]
        self.kills = 0
        self._window = -1
        self.at = NEVER
        """The delivery after which somebody dies next."""
        self._next_window()

    def take(self, begun: Collection[str]) -> str:
        """Who dies now (empty: nobody is left); looks ahead to the next window."""
        left = [node for node in self.nodes if node not in begun]
        victim = left[self._draw("who") % len(left)] if left else ""
        self.kills += bool(left)
        self._next_window()
        return victim

    def _next_window(self) -> None:
        """The next window in which somebody dies."""
        when, rule = self.rule.when, self.rule
        below = int(rule.probability * DRAW_END)
        hits_max = len(self.nodes) if when.hits_max is None else when.hits_max
        self.at = NEVER
        while self.at == NEVER and below and self.kills < min(hits_max, len(self.nodes)):
            self._window += 1
            if self._window and when.every is None:
                return
            if below >= DRAW_END or self._draw("whether") < below:
                first = when.from_delivery + self._window * (when.every or 0)
                self.at = first + self._draw("at") % self._length()

    def _length(self) -> int:
        when = self.rule.when
        return 1 if when.until_delivery is None else when.until_delivery - when.from_delivery

    def _draw(self, what: str) -> int:
        return draw(self.seed, f"chaos/{self.rule.name}/{self._window}/{what}")


class Kills:
    """All rules ``kill_node`` of a configuration; what ``Deaths`` asks.  Without a world: none."""

    def __init__(self, rules: Iterable[Rule], seed: int, world: World | None) -> None:
        self.world = world
        self.killers = [_Killer(rule, seed, world.nodes() if world else ()) for rule in rules]
        self.note: Note | None = None
        """Told when a death begins, and when the node is gone."""
        self._soonest()

    def begin(self, number: int, begun: Collection[str]) -> Sequence[str]:
        """Who begins to die after delivery ``number``."""
        if number < self._next:
            return ()
        victims: list[str] = []
        for killer in self.killers:
            while killer.at <= number:
                victim = killer.take([*begun, *victims])
                victims += [victim] * bool(victim)
        self._soonest()
        return victims

    def gone(self, number: int, ready: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 - see KillSource
        """Who of those that have done all they had to do is gone after delivery ``number``."""
        return ready

    def heal(self) -> None:
        """Nobody else dies."""
        for killer in self.killers:
            killer.at = NEVER
        self._soonest()

    def _soonest(self) -> None:
        self._next = min((killer.at for killer in self.killers), default=NEVER)


class RecordedKills:
    """The deaths of a recorded run, at the recorded numbers."""

    def __init__(
        self, begun: Iterable[tuple[int, str]], gone: Iterable[tuple[int, str]], world: World
    ) -> None:
        """(Number, node) of each death's beginning and of its end, in their order."""
        self.world = world
        self.note: Note | None = None
        self._begun, self._gone = list(begun), list(gone)

    def begin(self, number: int, begun: Collection[str]) -> Sequence[str]:  # noqa: ARG002 - see KillSource
        """Who began to die by delivery ``number``."""
        return _due(self._begun, number)

    def gone(self, number: int, ready: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 - see KillSource
        """Who was gone by delivery ``number``."""
        return _due(self._gone, number)

    def heal(self) -> None:
        """The record has everything."""


def _due(entries: list[tuple[int, str]], number: int) -> list[str]:
    """The nodes up to ``number``, taken off the list."""
    due = []
    while entries and entries[0][0] <= number:
        due.append(entries.pop(0)[1])
    return due
