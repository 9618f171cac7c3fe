"""What a run on processes is made of, and how it came out: plain data that crosses processes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from mmurace.broker.faults import Chaos
from mmurace.broker.programs import Program
from mmurace.broker.schedules import Arrival, Schedule
from mmurace.nodes.disk import Disk, disk
from mmurace.protocol.envelope import BROKER
from mmurace.protocol.trace import Ending
from mmurace.protocol.wire import Choices

NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""A node's name is a part of a file's name, its journal's."""
ROUTER: Final = "router"
LAUNCHER: Final = "launcher"
"""The name under which the launcher says hello."""


def impossible_names(names: Iterable[str]) -> list[str]:
    """Those that no node can have: they make no file name, or mean somebody else."""
    taken = (BROKER, ROUTER, LAUNCHER)
    return [name for name in names if not NODE_NAME.fullmatch(name) or name in taken]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that determines a run.  All of it must be picklable.

    ``schedule`` says how messages are delivered:

    * ``Arrival``: as they come, many at once (real parallelism; not repeatable, but recorded);
    * ``Recorded``: every node gets its recorded deliveries with their recorded numbers, nodes
      run in parallel where releases allow (``Record.programs`` and ``Record.faults`` complete a
      replay);
    * any other: one delivery at a time, exactly as the simulator would.
    """

    directory: Path
    """The run's directory; it must exist and hold no journals."""
    nodes: tuple[str, ...]
    world: bytes
    """``nodes.packing.pack_world(world)``."""
    seed: int
    programs: tuple[Program, ...]
    operations_max: int | None = None
    """Feed no more operations than this, over all programs."""
    deliveries_max: int | None = None
    """End the run after so many deliveries."""
    chaos: Chaos | None = None
    schedule: Schedule = field(default_factory=Arrival)
    choices: dict[int, Choices] = field(default_factory=dict)
    """Choices that the handling of a delivery must take, by its number."""
    build: str = "mmurace.nodes.build:build"
    """``module:function`` that makes a node's driver from (name, world, seed)."""
    disk: Disk = field(default_factory=disk)
    """What every process of the run writes its files through."""


QUIESCENT = "quiescent"
"""Nothing can ever move again: all done, or deadlocked (``ending`` tells)."""
LIMIT = "limit"
"""``deliveries_max`` was reached."""
SCHEDULE_END = "schedule end"
"""The schedule had no more to deliver."""
ABORTED = "aborted"
"""The launcher ended it (Ctrl-C)."""
KILLED = "killed"
"""Chaos killed a node that the run cannot go on without; ``detail`` names it."""
DIVERGED = "diverged"
"""A recorded schedule no longer fits; ``detail`` names node, delivery and field."""
NODE_DIED = "node died"
ROUTER_DIED = "router died"
NOT_READY = "not ready"
"""A process did not say hello in time; ``detail`` names it."""
STUCK = "stuck"
"""A node did not answer a delivery in time; ``detail`` names both."""
UNRECORDED = "unrecorded"
"""A file of the run could not be written (the disk is full); ``detail`` names it."""
UNBALANCED = "unbalanced"
"""Messages are unaccounted for: our own fault."""

SOUND = frozenset({QUIESCENT, LIMIT, SCHEDULE_END, KILLED})
"""Statuses of a run that did not break (any other is exit status 4, or 130 for ``ABORTED``)."""


@runtime_checkable
class Reporting(Protocol):
    """A chaos that can say what it did."""

    def report(self) -> dict[str, Any]:
        """Plain values for the summary."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """How a run ended."""

    status: str
    ending: Ending
    counts: dict[str, int]
    """``Counts.as_dict`` and ``pending`` at the end."""
    rejected: dict[str, int] = {}
    """Frames that were rejected, by reason."""
    chaos: dict[str, Any] = {}
    """What the chaos rules did (``ChaosRules.report``)."""
    detail: str = ""

    @property
    def sound(self) -> bool:
        """Whether the run itself worked; says nothing about what it found."""
        return self.status in SOUND


def end_text(last: int, unhandled: int, outcome: Outcome | None) -> str:
    """Where the record of a run that was cut short ends, and why.

    ``last``: the last delivery that was handled; ``unhandled``: how many more are on file.
    """
    text = f"ends after delivery {last}"
    if unhandled:
        text += f", {unhandled} more were delivered and never handled"
    return f"{text}: {'the run was cut short' if outcome is None else outcome.status}"
