"""Rules L1 (a fault makes progress) and L3 (nothing waits for ever)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mmurace.nodes.secondary import Part, secondaries
from mmurace.nodes.world import World
from mmurace.oracle.rules.s10_brackets import Bracket
from mmurace.oracle.state.live import State
from mmurace.oracle.state.locks import lock_kinds
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import REPLY_MARK, operation_of
from mmurace.protocol.limits import FAULT_RETRIES_MAX
from mmurace.protocol.pte import describe, permits
from mmurace.protocol.ranges import page_of
from mmurace.protocol.records import FaultRetry
from mmurace.protocol.trace import Ending

RETRIES_MAX = FAULT_RETRIES_MAX // 2


class FaultProgress:
    """L1: no agent repeats an access that the entry permits while nothing changes."""

    def __init__(
        self, world: World, index: Mapping[str, int], state: State, found: list[Violation]
    ) -> None:
        self.state, self.found, self.index = state, found, index
        self.guests = {
            part.name: part
            for one in secondaries()
            if any(cache.by_guest_address for cache in one.caches)
            for part in one.parts(world)
        }
        """Who names pages by addresses of its own."""
        self.silent = {
            cache.refused for one in secondaries() if not one.own_bracket for cache in one.caches
            if cache.table == "shadow" and cache.refused
        }  # fmt: skip
        """Reasons that are a device's own affair: it counts invalidations, and shows nobody."""
        self.stuck: Final[dict[str, dict[tuple[str, int], tuple[tuple[int, ...], int]]]] = {}
        """Operation in flight -> what it retries -> what it saw, and how often."""

    def retried(
        self, record: FaultRetry, op: str, event: Event, row: Row, brackets: Mapping[str, Bracket]
    ) -> None:
        """Count retries that saw the same entry, which permits the access, and no bracket.

        What an agent could see is what happens before its retry, whatever the numbers say.
        """
        guest = self.guests.get(record.tag)
        place = _host_page(guest, record)
        if record.why in self.silent:
            return
        seen = self._seen(place, record.write, guest, row, brackets)
        stuck, key = self.stuck.setdefault(op, {}), (record.tag, page_of(record.address))
        before, count = stuck.get(key, ((), 0))
        count = 0 if seen is None else (count + 1 if seen == before else 1)
        stuck[key] = (seen or (), count)
        if count == RETRIES_MAX + 1 and place is not None:
            self._report(record, place, op, event)

    def _seen(
        self, place: tuple[str, int] | None, write: bool, guest: Part | None, row: Row,
        brackets: Mapping[str, Bracket],
    ) -> tuple[int, ...] | None:  # fmt: skip
        """What the retry depends on, or None if it may rightly be refused."""
        page = self.state.pages.get(place) if place is not None else None
        memory = row[self.index["memory"]]
        if page is None or not page.left_alone(memory) or page.flush_owed(memory):
            return None
        kept = page.pte_at(memory)
        if kept is None or not permits(kept[1], write):
            return None
        bracket = brackets.get(guest.name) if guest is not None else None
        if guest is None or bracket is None:
            return (kept[0],)
        moved = bracket.seen(row[self.index[guest.name]])
        return None if moved is None or moved[1] else (kept[0], moved[0])

    def _report(self, record: FaultRetry, place: tuple[str, int], op: str, event: Event) -> None:
        page = self.state.pages[place]
        self.found.append(
            Violation(
                "L1", event.node, mm=place[0], address=place[1], pte=describe(page.pte),
                owed=op, racing=(event,),
                detail=f"{op} was refused {RETRIES_MAX + 1} times ({record.why}) although the "
                "entry permits the access and nothing changes",
            )
        )  # fmt: skip


def _host_page(guest: Part | None, record: FaultRetry) -> tuple[str, int] | None:
    """Where the entry of a retried access is: (mm, address)."""
    if guest is None:
        return record.tag, page_of(record.address)
    return guest.host_page(page_of(record.address))


# ---- L3 --------------------------------------------------------------------------------------

Waiting = tuple[str, str, str, str]
"""(id, kind, who asked, who should answer)."""


class Deadlocks:
    """L3: at the end nothing waits; otherwise who waits for whom, by lock kind."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.locks = lock_kinds().moved
        self.held: Final[dict[str, list[tuple[str, str]]]] = {}
        """Operation in flight -> (lock kind, node of the lock), in the order taken."""

    def lock(self, kind: str, op_id: str, src: str, dst: str) -> None:
        """A delivery of a kind in ``locks`` for an operation."""
        lock, taken = self.locks[kind]
        held = self.held.setdefault(op_id, [])
        if taken:
            held.append((lock, src))
        elif (lock, dst) in held:
            held.remove((lock, dst))

    def finish(self, ending: Ending) -> None:
        """Nothing can move any more: report what waits, as a cycle if there is one."""
        if not ending.waiting:
            if not ending.complete:
                self._report(ending, "programs did not finish although nothing is in flight", ())
            return
        chains = _chains(ending.waiting)
        cycle = self._cycle(chains)
        if cycle:
            told = " -> ".join(self._told(op, chains[op]) for op in (*cycle, cycle[0]))
            self._report(ending, f"deadlock: {told}", [w for op in cycle for w in chains[op][-1:]])
        else:
            told = "; ".join(self._told(op, chain) for op, chain in chains.items())
            self._report(ending, f"waiting for ever: {told}", [c[-1] for c in chains.values()])

    def _told(self, op: str, chain: list[Waiting]) -> str:
        kinds = " > ".join(f"{kind} at {dst}" for _, kind, _, dst in chain)
        held = ", ".join(f"{lock} of {node}" for lock, node in self.held.get(op, ()))
        return f"{op} waits for {kinds}" + (f" holding {held}" if held else "")

    def _cycle(self, chains: Mapping[str, list[Waiting]]) -> list[str]:
        """Operations that wait for one another, the first one found; empty if there is none."""
        edges = {op: self._waits_for(op, chains) for op in chains}
        done: set[str] = set()
        for start in chains:
            path = _find_cycle(start, edges, done, [])
            if path:
                return path
        return []

    def _waits_for(self, op: str, chains: Mapping[str, list[Waiting]]) -> list[str]:
        """Operations that hold the lock that ``op`` waits for, or keep its receiver busy."""
        found: list[str] = []
        for _, kind, _, dst in _leaves(chains[op]):
            lock, _ = self.locks.get(kind + REPLY_MARK, ("", False))
            for other, chain in chains.items():
                holds = (lock, dst) in self.held.get(other, ())
                busy = not lock and any(w[2] == dst for w in chain)
                if other != op and (holds or busy):
                    found.append(other)
        return found

    def _report(self, ending: Ending, detail: str, waits: Iterable[Waiting]) -> None:
        racing = tuple(
            Event(f"{k} never answered", ending.deliveries, d, i) for i, k, _, d in waits
        )
        agent = racing[0].node if racing else ""
        self.found.append(Violation("L3", agent, detail, racing=racing))


def _chains(waiting: Iterable[Waiting]) -> dict[str, list[Waiting]]:
    """Unanswered requests by operation, outermost first."""
    chains: dict[str, list[Waiting]] = {}
    for wait in sorted(waiting, key=lambda w: (w[0].count("."), w[0])):
        chains.setdefault(operation_of(wait[0]), []).append(wait)
    return chains


def _leaves(chain: list[Waiting]) -> list[Waiting]:
    """Those that wait for no request of their own."""
    return [w for w in chain if not any(other[0].startswith(w[0] + ".") for other in chain)]


def _find_cycle(
    op: str, edges: Mapping[str, list[str]], done: set[str], path: list[str]
) -> list[str]:
    if op in path:
        return path[path.index(op) :]
    if op in done:
        return []
    done.add(op)
    for other in edges[op]:
        found = _find_cycle(other, edges, done, [*path, op])
        if found:
            return found
    return []
