"""Cases: a run as something that can be cut down and played again, differently or not at all.

A case names every delivery by what caused it, in the words of the protocol:
``cpu0/4.PtlLock@memory:2~`` is the reply (``~``) to the third (``:2``) ``PtlLock`` that operation
``cpu0/4`` sent to ``memory``.  Such names do not move when messages of other kinds come or go, so
a schedule survives changes of the code, of the kernel and of the world that do not concern it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Final

from mmurace.broker.deaths import KillSource
from mmurace.broker.faults import Fault, FaultKind
from mmurace.broker.kills import Kills
from mmurace.broker.programs import Program
from mmurace.explorer.shrink.deaths import Death, programs_of
from mmurace.nodes.build import node_class
from mmurace.nodes.world import World
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import REPLY_MARK, Envelope, operation_of
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script

COPY_MARK: Final = "#"
_OPERATION: Final = re.compile(r"[^.~#]+")


@dataclass(frozen=True, slots=True)
class Case:
    """A run to play again.

    ``order`` is a wish: what to deliver in which order, by name.  Choices and faults that are
    not listed are not taken: the hardware rests, no message is lost or repeated, nobody dies.
    """

    spec: RunSpec
    """Its workload is a ``Script``, its chaos is in ``faults`` and ``order``."""
    order: tuple[str, ...] = ()
    choices: Mapping[str, int] = field(default_factory=dict)
    """Identity of a choice (``Names.choice``) -> the way taken."""
    faults: Mapping[tuple[str, int], FaultKind] = field(default_factory=dict)
    """(name of a message, how often it was sent before) -> what became of it."""
    deaths: tuple[Death, ...] = ()

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs, operation by operation."""
        return self.spec.programs()

    @property
    def aftermath(self) -> tuple[Program, ...]:
        """What the kernel does about the deaths."""
        return programs_of(self.deaths, self.spec.world)

    def operations(self) -> list[str]:
        """Every operation, ``program/index``."""
        return [f"{p.name}/{at}" for p in self.programs for at, _ in enumerate(p.steps)]

    def kinds(self) -> dict[str, str]:
        """Operation -> the class name of its message; what is done about deaths included."""
        return {
            f"{p.name}/{at}": type(step.operation).__name__
            for p in (*self.programs, *self.aftermath)
            for at, step in enumerate(p.steps)
        }


def scripted(spec: RunSpec, counts: Mapping[str, int] | None = None) -> RunSpec:
    """The same run with its programs written out, so that they can be cut.

    ``counts``: how many operations of each program were fed; without it programs must end.
    """
    programs = tuple(
        replace(p, steps=tuple(islice(p.steps, None if counts is None else counts.get(p.name, 0))))
        for p in spec.programs()
    )
    kept = tuple(p for p in programs if p.steps)
    return replace(spec, workload=Script(kept), chaos=None, operations_max=None)


# ---- names -------------------------------------------------------------------------------------


class Names:
    """Gives messages their names, in the order in which they are sent."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._sent: dict[tuple[str, str, str], int] = {}
        self._on_their_way: dict[str, str] = {}
        """Names of first copies, by id: asked for again and again while they wait."""

    def see(self, messages: Iterable[Envelope]) -> None:
        """Messages were sent by one handling."""
        for envelope in messages:
            id_ = envelope.id
            if id_ in self._names or id_.endswith(REPLY_MARK):
                continue
            key = (envelope.path, envelope.kind, envelope.dst)
            count = self._sent.get(key, 0)
            self._sent[key] = count + 1
            nth = f":{count}" if count else ""
            self._names[id_] = f"{self.by_id(envelope.path)}.{envelope.kind}@{envelope.dst}{nth}"

    def by_id(self, id_: str) -> str:
        """The name of a message that was sent; operations are called by their id."""
        if id_.endswith(REPLY_MARK):
            return self.by_id(id_[:-1]) + REPLY_MARK
        return self._names.get(id_, id_)

    def of(self, envelope: Envelope) -> str:
        """The name of a message on its way; repetitions are numbered."""
        id_ = envelope.id
        name = self._on_their_way.get(id_)
        if name is None:
            name = self._on_their_way[id_] = self.by_id(id_)
        return f"{name}{COPY_MARK}{envelope.copy}" if envelope.copy else name

    def choice(self, path: str, nth: int, choice: str) -> str:
        """The identity of a choice that the handling of ``path`` makes."""
        return f"{self.by_id(path)}/{nth}/{choice}"


def operation_in(name: str) -> str:
    """``cpu0/4`` of a name."""
    found = _OPERATION.match(name)
    return found.group() if found else name


def thread_of(name: str) -> str:
    """The program that a delivery works for."""
    return operation_in(name).rpartition("/")[0]


def switches(order: Iterable[str]) -> int:
    """How often a schedule goes from one thread's messages to another's."""
    threads = [thread_of(name) for name in order]
    return sum(a != b for a, b in pairwise(threads))


class NamedFaults:
    """The faults of a case: what must exist twice, what must be lost.  A ``Chaos``."""

    def __init__(
        self,
        names: Names,
        kinds: Mapping[tuple[str, int], FaultKind],
        kills: KillSource | None = None,
    ) -> None:
        self._names, self._kinds = names, kinds
        self.kills: KillSource = kills or Kills((), 0, None)
        self._seen: dict[str, int] = {}

    def key(self, envelope: Envelope) -> tuple[str, int]:
        """Name and number of this sending."""
        name = self._names.by_id(envelope.id)
        count = self._seen.get(name, 0)
        self._seen[name] = count + 1
        return name, count

    def fault(self, envelope: Envelope) -> Fault | None:
        """The fault of this very sending."""
        if not self._kinds:
            return None
        kind = self._kinds.get(self.key(envelope))
        return None if kind is None else Fault(kind, 0, "recorded")

    def delivered(self, envelope: Envelope) -> tuple[Envelope, ...]:  # noqa: ARG002 - see Chaos
        """Nothing is ever held."""
        return ()

    def hold(self, envelope: Envelope, rule: str) -> None:
        """Never called: no fault here is a hold."""

    def give_up(self) -> tuple[Envelope, ...]:
        """Nothing is ever held."""
        return ()

    def heal(self) -> tuple[Envelope, ...]:
        """Nothing is ever held."""
        return ()


# ---- targets -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What "the same violation" means: not the same addresses, but the same bug.

    The rule, the role of the agent, the kind of cache, and the kind of operation that took the
    translation away.  Without the last, a minimiser drifts from one bug to another.
    """

    rule: str
    role: str
    cache: str
    operation: str

    def text(self) -> str:
        """``S1 by a cpu (tlb) over Munmap``."""
        cache = f" ({self.cache})" if self.cache else ""
        over = f" over {self.operation}" if self.operation else ""
        return f"{self.rule} by {self.role}{cache}{over}"


def target_of(violation: Violation, world: World, kinds: Mapping[str, str]) -> Target:
    """The target that a violation is; ``kinds`` as ``Case.kinds`` has them."""
    event = violation.changed or next(iter(violation.racing), None)
    operation = kinds.get(operation_of(event.id), "") if event else ""
    return Target(violation.rule, role_of(violation.agent, world), violation.cache, operation)


def role_of(node: str, world: World) -> str:
    """``cpu`` for ``cpu3``; what is no node plays itself."""
    try:
        return node_class(node, world).__name__.lower()
    except KeyError:
        return node


def chosen_violation(spec: RunSpec, violations: Iterable[Violation]) -> Violation | None:
    """The one that the scenario expects if it is there, else the first."""
    found = list(violations)
    wanted = spec.expectation.expected() if spec.expectation else None
    meant = [v for v in found if wanted is not None and wanted.matches(v)]
    return next(iter((*meant, *found)), None)


Ticker = Callable[[str], None]
"""Told now and then what is being done."""
