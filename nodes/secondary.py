"""Secondaries: whoever caches an mm's translations and is told by ``mmu_notifier``.

A secondary is declared once, in a file of its own: the nodes that it is made of, what they cache,
its ``mmu_notifier_ops``, the work that it does on processors, its row in a world file.  Everything
else (core mm, codec, oracle, scenarios, search, reports) asks the registry here and knows no name.
Built in are those of ``nodes/secondaries``; a plug-in adds its own in the same way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import msgspec

from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.messages.base import Message, Request
from mmurace.protocol.messages.program import Operation

if TYPE_CHECKING:
    from mmurace.nodes.beside import Beside, Private
    from mmurace.nodes.ground import Ground
    from mmurace.nodes.kernel.context import Processor
    from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
    from mmurace.nodes.kernel.variant import Kernel
    from mmurace.nodes.kernel.vm_fault import VmFault
    from mmurace.nodes.memory import Memory
    from mmurace.nodes.node import Node
    from mmurace.nodes.world import World

Callback = Callable[["Processor", str, str, int, int], Awaitable[bool | None]]
"""(processor, subscriber's node, mm, start, end); False: it would have had to sleep."""
Invalidate = Callable[["Processor", str, "MmuNotifierRange", int], Awaitable[bool]]
"""(processor, subscriber's node, range, the sequence of this invalidation) -> whether it was done,
which it may refuse only where it must not sleep."""
Work = Callable[["Processor", Any], Awaitable[Message]]
"""What a worker thread of a processor does about a request: (processor, request) -> reply."""
MigrateToRam = Callable[["Processor", str, "VmFault"], Awaitable[int]]
"""(processor, the device's node, the fault) -> 0, -EAGAIN if the page stays, or another -errno."""
SystemCall = Callable[["Processor", Any], Awaitable[int]]
"""An operation on a processor: (processor, operation) -> its result, or -errno."""


Positive = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""What TOML promises to hold, and a message to carry."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A kind of cached translation."""

    name: str
    table: Literal["shared", "shadow"]
    """It is filled from the mm's own page table, or from a table of the secondary's own."""
    source: str = ""
    """The cache from whose entries it is filled, if not from page-table entries."""
    by_guest_address: bool = False
    """Its addresses are the secondary's own (guest-physical ones), not those of an mm."""
    tags_reused: bool = False
    """Its tags are numbers that are given out again, not names."""
    latched: bool = False
    """A value of it counts as usable once its holder begins to use it, not when it is written."""
    dropped_on: str = ""
    """The request (``RequestPosted``) that makes its holder drop a latched value."""
    read_only: bool = False
    """It says where a page is, and gives no right to store."""
    refused: str = ""
    """The reason (of a ``FaultRetry``) for which an install is refused."""
    filled_by: str = ""
    """The kernel function, or what hardware does, by which an entry gets in; for reports."""
    held_in: str = ""
    """Where its holder has an entry, for reports: ``a shadow entry``; empty: in its ``name``."""
    shows: str = ""
    """What a new entry is called there, a template over ``frame``; empty: as any entry."""
    upper: bool = False
    """It holds upper entries of page tables, not translations."""
    dropped_by: tuple[type[Message], ...] = ()
    """Messages that tell its holder to drop entries."""
    heard: tuple[type[Message], ...] = ()
    """Broadcasts that do, where its holder hears them (``Part.told``)."""
    drops: Callable[[Any], bool] = lambda _message: True
    """Whether such a message is about this cache."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is to be done: an operation at a node, after others of the same death."""

    node: str
    operation: Operation
    after: tuple[str, ...] = ()
    """Nodes whose own tasks come first."""
    of: str = ""
    """The node that it is about, if that is another one than the one that dies."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a node dies."""

    tasks: tuple[Task, ...]
    at_once: bool = False
    """It is gone before the tasks; otherwise with the last of its own."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a workload has drawn for an access."""

    mm: str
    address: int
    """A byte address of ``mm``."""
    write: bool
    value: int
    """What is written."""
    page: int
    """The page that all agents are on at the moment; most of the time ``address`` is in it."""
    anywhere: bool
    """The access may as well be somewhere else."""
    number: int
    """For what else there is to draw."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One secondary of a world: a row under its key.  Subclasses add fields.

    ``MMS`` and ``CPUS`` name the fields that refer to the world's mms and cpus.
    """

    MMS: ClassVar[tuple[str, ...]] = ()
    CPUS: ClassVar[tuple[str, ...]] = ()

    name: str

    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes, its own first."""
        return (self.name,)

    def processors(self) -> tuple[str, ...]:
        """Those of them that run host threads."""
        return ()

    def subscribed(self, kernel: Kernel) -> tuple[str, ...]:  # noqa: ARG002
        """mms whose notifier list it is on from the start."""
        return ()

    def ranges(self) -> Iterable[tuple[str, int, int, int]]:
        """What its own addresses stand for: (mm, own address, host address, bytes)."""
        return ()

    def moved(self, down: int) -> Part:  # noqa: ARG002
        """The same with every host address that it names so many bytes lower."""
        return self

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """Who has which cache: cache -> nodes; what this row lacks is not there."""
        return {cache.name: (self.name,) for cache in of(self).caches if not cache.upper}

    def told(self, kernel: Kernel) -> bool:  # noqa: ARG002
        """Whether it hears only what its driver tells it, and no broadcast of the processors."""
        return True

    def waits_for_mmap_lock(self, cache: str, kernel: Kernel) -> bool:  # noqa: ARG002
        """Whether who fills that cache of it takes mmap_lock before it loads anything."""
        return False

    def host_page(self, address: int) -> tuple[str, int] | None:
        """What one of its own addresses stands for: (mm, host address)."""
        for mm, own, host, size in self.ranges():
            if own <= address < own + size:
                return mm, host + (address - own)
        return None

    def death(self, node: str, world: World) -> Death | None:  # noqa: ARG002
        """How one of its nodes dies; None: nothing goes on without it."""
        return None

    def begun_by(self, operation: Operation) -> bool:  # noqa: ARG002
        """Whether an operation creates it, so that nothing may use it before."""
        return False

    def there_from_the_start(self) -> bool:
        """Whether it is there without an operation that creates it."""
        return True

    def ended_by(self, operation: Operation) -> bool:  # noqa: ARG002
        """Whether an operation destroys it, so that nothing may use it then or later."""
        return False

    def needed_by(self, node: str, operation: Operation) -> bool:  # noqa: ARG002
        """Whether an operation of a node holds a reference to it."""
        return False

    def let_go_by(self, operation: Operation) -> bool:  # noqa: ARG002
        """Whether the node that was asked for an operation needs it no more afterwards."""
        return False

    def misused_by(
        self,
        node: str,  # noqa: ARG002
        operation: Operation,  # noqa: ARG002
    ) -> tuple[str, str, str] | None:
        """(key, problem, what was expected) if an operation of its node means nothing in it."""
        return None

    def smaller(self, used: Collection[str]) -> Iterator[Part | None]:
        """The same with a node less that no program uses; None: without it."""
        if not any(name in used for name in self.nodes()):
            yield None

    def problems(self, world: World) -> Iterator[tuple[str, str, str]]:  # noqa: ARG002
        """(key, problem, what was expected) of a row that cannot be."""
        yield from ()


@dataclass(frozen=True, slots=True, eq=False)
class Secondary:
    """The declaration."""

    name: str
    """What its driver is called on a notifier list."""
    key: str
    """Its key in world files."""
    part: type[Part]
    """A row there."""
    node_class: Callable[[Any, str], type[Node]]
    """(row, name of one of its nodes) -> the class of that node."""
    caches: tuple[Cache, ...]
    ops: Callable[[Kernel], Mapping[str, Callback]]
    """Its ``struct mmu_notifier_ops`` in a kernel.  One whose start may fail has, beside it, an
    ``invalidate_range_start_nonblock``, which says whether it was done, and has no end."""
    interval: Invalidate | None = None
    """Its ``struct mmu_interval_notifier_ops``: it has intervals, of all of an mm from the start,
    and is on no notifier list; with ``ops`` as well it is on lists, and has intervals when it
    needs them."""
    tags: Callable[[World], Mapping[str, str]] = lambda _world: {}
    """Tags of its translations that are no names of mms, at the start: tag -> mm."""
    passes_over: Callable[[Kernel, MmuNotifierEvent], bool] = lambda _kernel, _event: False
    """Events that its callbacks return from at once."""
    memory: type[Memory] | None = None
    """What its driver keeps in the host's memory, with the messages that reach it."""
    exit_files: Callable[[Processor, str, Any], Awaitable[None]] | None = None
    """What becomes of a row when a process closes its files: (processor, mm, row)."""
    own_bracket: bool = False
    """It records its own bracket (``Invalidation``): when it may install again is what that says,
    and not when the core calls ``invalidate_range_end``."""
    released_at_exit: bool = False
    """``mmu_notifier_release`` calls its ``release`` and takes it off the list; others stay on it,
    as if the next process of that name had bound them again."""
    work: Mapping[type[Request[Any]], Work] = field(default_factory=dict)
    """Requests that a worker thread of a processor serves."""
    migrate_to_ram: MigrateToRam | None = None
    """Its ``struct dev_pagemap_ops``: a processor has met one of its device-private entries."""
    calls: Mapping[type[Operation], SystemCall] = field(default_factory=dict)
    """Operations of its driver that a processor can be asked for."""
    idle: frozenset[str] = frozenset()
    """Of its operations, those that take no entry of an mm away and free no frame."""
    copying: frozenset[str] = frozenset()
    """Of its operations on processors, those that copy frames."""
    points: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Coverage points of its own, each with the operations without which it is never passed."""
    accesses: Mapping[type[Operation], Callable[[Any], tuple[str, ...]]] = field(
        default_factory=dict
    )
    """Operations of its own nodes: (row) -> the nodes that can be asked for them."""
    drawn: Mapping[type[Operation], Callable[[Any, Drawn], Operation]] = field(default_factory=dict)
    """Of those, the ones that workloads draw: (row, what was drawn) -> the operation, which may be
    one of another kind if that is what such an access is."""
    rights: str = ""
    """What the draws are called by which a log has its accesses write; one that takes the place of
    another on another machine draws as that does.  Empty: as the node."""
    private: Private | None = None
    """A page that it has for itself, where a workload makes its own world."""
    beside: type[Beside] | None = None
    """Its options where a workload makes its own world, which say its rows; None: see ``made``."""
    made: Callable[[str, str, str], Part] | None = None
    """(name, mm, cpu) -> a row, the short form: how many there are is the one option, ``key``, and
    of windows that they are inside none is demanded.  None: no workload has any."""
    named_by: Mapping[str, Callable[[Any], tuple[str, ...]]] = field(default_factory=dict)
    """Fields of operations that name it, or a node of it: (row) -> the names that fit."""
    row: Callable[[Ground, int], Any] | None = None
    """A row for a small world, the n-th (from 0) of its kind; None: drawn by the kinds of its
    fields, which are names of mms and CPUs, and yes or no."""
    given: Mapping[type[Operation], Callable[[Ground, Any], Mapping[str, Any] | None]] = field(
        default_factory=dict
    )
    """Fields of its operations whose kind does not tell what they can be: (ground, row) -> values;
    None: no program can ask this row for it."""
    machines: tuple[str, ...] = ("x86", "arm64", "ppc")
    """Architectures that have it."""
    place: int = 10
    """Where its nodes stand among those of a world: lower numbers first."""

    def on_lists(self, kernel: Kernel) -> bool:
        """Whether it registers notifiers of a whole mm."""
        return self.interval is None or bool(self.ops(kernel))

    def ends(self, kernel: Kernel) -> bool:
        """Whether it hears ``invalidate_range_end``."""
        return "invalidate_range_end" in self.ops(kernel)

    def parts(self, world: World) -> tuple[Any, ...]:
        """Its rows in a world."""
        return tuple(part for part in world.parts if type(part) is self.part)


_SECONDARIES: Final[dict[str, Secondary]] = {}


def register(secondary: Secondary) -> Secondary:
    """Make it known.  Raises ``EmulatorError`` if its name, its key or a cache is taken."""
    twice = [cache.name for cache in secondary.caches if cache.name in caches()]
    keys = {other.key for other in _SECONDARIES.values()}
    for what, taken in (
        (f"secondary {secondary.name!r}", secondary.name in _SECONDARIES),
        (f"key {secondary.key!r}", secondary.key in keys),
        (f"cache {next(iter(twice), '')!r}", bool(twice)),
    ):
        if taken:
            raise EmulatorError(f"{what} is registered twice")
    _SECONDARIES[secondary.name] = secondary
    for asked in (secondaries, by_node_order, caches):
        asked.cache_clear()
    return secondary


@cache
def secondaries() -> tuple[Secondary, ...]:
    """All that are known, in the order in which they were registered."""
    return tuple(_SECONDARIES.values())


@cache
def by_node_order() -> tuple[Secondary, ...]:
    """All that are known, in the order in which a world has their nodes."""
    return tuple(sorted(_SECONDARIES.values(), key=lambda secondary: secondary.place))


@cache
def caches() -> Mapping[str, Cache]:
    """What all of them cache, by name."""
    ordered = by_node_order()
    return {cache.name: cache for secondary in ordered for cache in secondary.caches}


def named(name: str) -> Secondary:
    """The one whose driver is called so."""
    return _SECONDARIES[name]


def of(part: Part) -> Secondary:
    """The one that a row belongs to."""
    return _of_class(type(part))


@cache
def _of_class(part: type[Part]) -> Secondary:
    return next(s for s in _SECONDARIES.values() if s.part is part)
