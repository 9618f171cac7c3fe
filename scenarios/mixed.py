"""The ``mixed`` workload: every memory call, all agents, a small arena, for ever.

The arena is a row of slots.  A CPU program owns every n-th slot and maps, unmaps and protects
only those, but touches all of them; secondaries use all of them too and ask nobody.
So translations are held of nearly everything that is taken away, freed frames are reused at
once, and now and then an access finds nothing mapped, which is a legal outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mmurace.broker.programs import Program, Step
from mmurace.nodes.driver import draw
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Drawn
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.scenarios import rounds
from mmurace.scenarios.agents import Agent, agents, apart, names_of_accesses, private_pages
from mmurace.scenarios.arena import (
    EVICT_ONE_IN,
    FILE,
    FRAMES,
    GATHER_BATCH,
    HEAP_BASE,
    MORE_OFTEN,
    PRIVATE_MORE_OFTEN,
    Arena,
    Counts,
    Mix,
    MixedOptions,
    Weight,
    cpu_names,
)
from mmurace.scenarios.rounds import Meetings, Round
from mmurace.scenarios.tables import Table, convert

__all__ = ["Arena", "Counts", "Mix", "Mixed", "MixedOptions", "cpu_names"]


@dataclass(slots=True)
class _CpuState:
    """What a CPU program knows of its own slots."""

    rights: dict[int, str] = field(default_factory=dict)
    """Mapped slots -> ``rw`` or ``r``."""
    heap: int = 0
    """End of the heap in pages; -1: the heap's base is not set yet."""


@dataclass(frozen=True, slots=True)
class CpuSteps:
    """The endless steps of CPU program ``number``; every iteration gives the same ones."""

    arena: Arena
    number: int
    seed: int
    meetings: Meetings

    def __iter__(self) -> Iterator[Step]:
        options = self.arena.options
        state = _CpuState(heap=-1)
        yield from map(Step, self._prelude(state))
        index = 0
        while options.operations == 0 or index < options.operations:
            number, position = divmod(index, rounds.LENGTH)
            round_ = self.meetings.round(number)
            operation = self._in_round(state, round_, position, self._draw(index))
            yield self.meetings.step(f"cpu{self.number}", round_, position, operation)
            index += 1

    def _in_round(
        self, state: _CpuState, round_: Round, position: int, number: int
    ) -> ops.Operation:
        """What the round says; what it leaves open is drawn from the mix."""
        if round_.actor != self.number:
            if position == rounds.READY:
                return self._next(state, number)
            address, write = round_.beside(position, number)
            return ops.Touch(self.arena.mm, address, write, number >> 40 & 0xFFFF)
        act = round_.act(position)
        if isinstance(act, ops.Brk):
            state.heap = (act.address - HEAP_BASE) // PAGE_SIZE
        if isinstance(act, ops.Mremap):
            self._moved_to(state, act.new_address)
        return act or self._next(state, number)

    def _moved_to(self, state: _CpuState, address: int) -> None:
        for slot in self._owned():
            if self.arena.slot(slot) == address:
                state.rights[slot] = "rw"

    def _draw(self, index: int) -> int:
        return draw(self.seed, f"mixed/cpu{self.number}/{index}")

    def _owned(self) -> list[int]:
        """Its slots; the first is left alone between the rounds, which are about it."""
        options = self.arena.options
        return list(range(self.number, options.slots, options.cpus))

    def _prelude(self, state: _CpuState) -> Iterator[ops.Operation]:
        """Map the private pages (the first program) and one's own slots."""
        if self.number == 0:
            for page in self.arena.private:
                yield ops.Mmap(self.arena.mm, page, PAGE_SIZE, True, True)
            yield ops.Brk(self.arena.mm, HEAP_BASE)
            state.heap = 0
        for slot in self._owned():
            yield self._mmap(state, slot)
        state.rights.pop(self.number, None)

    def _next(self, state: _CpuState, number: int) -> ops.Operation:
        """One operation, by a drawn number; it also takes its details from that number."""
        mix = self.arena.options.mix
        owned = self._owned()[1:]
        detail = number >> 16
        unmapped = [slot for slot in owned if slot not in state.rights]
        if unmapped and number & 3:
            return self._mmap(state, unmapped[detail % len(unmapped)])
        mapped = list(state.rights)
        on_slots: list[tuple[int, Callable[[_CpuState, int, int], ops.Operation]]] = [
            (mix.munmap, self._munmap), (mix.mprotect, self._mprotect),
            (mix.dontneed, self._dontneed), (mix.mmap, self._map_over),
            (mix.madvise_free, self._free), (mix.mremap, self._mremap),
            (mix.file, self._map_file), (mix.change_prot_numa, self._numa),
            (mix.ksm_scan, self._ksm),
        ]  # fmt: skip
        others: list[tuple[int, Callable[[_CpuState, int], ops.Operation]]] = [
            (mix.migrate, self._migrate), (mix.brk, self._brk),
            (mix.kswapd, lambda _, detail: ops.Kswapd(1 + detail % 4)),
            (mix.shrink_active_list, lambda _, detail: ops.ShrinkActiveList(1 + detail % 4)),
            (mix.writeback, lambda *_: ops.Writeback(FILE)),
            (mix.clear_refs, lambda *_: ops.ClearRefs(self.arena.mm)),
            (mix.pinned_access, self._pinned_access), (mix.touch, self._touch),
        ]  # fmt: skip
        at = (number >> 8) % (sum(weight for weight, _ in (*on_slots, *others)) or 1)
        for weight, make in on_slots:
            if at < weight and mapped:
                return make(state, mapped[detail % len(mapped)], detail >> 8)
            at -= weight
        for weight, do in others:
            if 0 <= at < weight:
                return do(state, detail)
            at -= weight
        return self._touch(state, detail)

    def _span(self, slot: int, detail: int) -> tuple[int, int]:
        """(address, length) of a slot, or of a part of it one time in two."""
        pages = self.arena.options.pages
        start, end = (detail >> 1) % pages, pages
        if detail & 1:
            start = 0
        return self.arena.slot(slot) + start * PAGE_SIZE, (end - start) * PAGE_SIZE

    def _mmap(self, state: _CpuState, slot: int) -> ops.Operation:
        state.rights[slot] = "rw"
        length = self.arena.options.pages * PAGE_SIZE
        return ops.Mmap(self.arena.mm, self.arena.slot(slot), length, True, True)

    def _map_over(self, state: _CpuState, slot: int, _: int) -> ops.Operation:
        return self._mmap(state, slot)

    def _map_file(self, state: _CpuState, slot: int, detail: int) -> ops.Operation:
        state.rights[slot] = "rw"
        length = self.arena.options.pages * PAGE_SIZE
        offset, shared = detail % 2 * PAGE_SIZE, detail % 3 > 0
        return ops.Mmap(
            self.arena.mm, self.arena.slot(slot), length, True, True, FILE, offset, shared
        )  # fmt: skip

    def _munmap(self, state: _CpuState, slot: int, _: int) -> ops.Operation:
        del state.rights[slot]
        length = self.arena.options.pages * PAGE_SIZE
        return ops.Munmap(self.arena.mm, self.arena.slot(slot), length)

    def _mprotect(self, state: _CpuState, slot: int, detail: int) -> ops.Operation:
        """Down and up in turn; a part of a slot may stay behind, which is legal."""
        write = state.rights[slot] == "r"
        state.rights[slot] = "rw" if write else "r"
        address, length = self._span(slot, detail)
        return ops.Mprotect(self.arena.mm, address, length, True, write)

    def _dontneed(self, _: _CpuState, slot: int, detail: int) -> ops.Operation:
        return ops.MadviseDontneed(self.arena.mm, *self._span(slot, detail))

    def _free(self, _: _CpuState, slot: int, detail: int) -> ops.Operation:
        return ops.MadviseFree(self.arena.mm, *self._span(slot, detail))

    def _numa(self, _: _CpuState, slot: int, detail: int) -> ops.Operation:
        return ops.ChangeProtNuma(self.arena.mm, *self._span(slot, detail))

    def _ksm(self, _: _CpuState, slot: int, __: int) -> ops.Operation:
        return ops.KsmScan(self.arena.mm, *self.arena.span(slot))

    def _mremap(self, state: _CpuState, slot: int, detail: int) -> ops.Operation:
        """Onto another slot of this program, if it has any; what is mapped there goes."""
        others = [other for other in self._owned()[1:] if other != slot] or [slot]
        to = others[detail % len(others)]
        state.rights[to] = state.rights.pop(slot)
        length = self.arena.options.pages * PAGE_SIZE
        old, new = self.arena.slot(slot), self.arena.slot(to)
        return ops.Mremap(self.arena.mm, old, length, new, length)

    def _migrate(self, _: _CpuState, detail: int) -> ops.Operation:
        """Some page, or one time in four a private page."""
        arena = self.arena
        page = arena.somewhere(detail >> 2) & ~(PAGE_SIZE - 1)
        if arena.private and detail % 4 == 0:
            page = arena.private[(detail >> 2) % len(arena.private)]
        return ops.MigratePages(arena.mm, page, PAGE_SIZE)

    def _pinned_access(self, _: _CpuState, detail: int) -> ops.Operation:
        address, write = self.arena.somewhere(detail >> 4), detail % 3 > 0
        return ops.PinnedAccess(self.arena.mm, address, write, detail & 0xFFFF)

    def _brk(self, state: _CpuState, detail: int) -> ops.Operation:
        if state.heap < 0:
            return self._touch(state, detail)
        state.heap = detail % (self.arena.options.heap + 1)
        return ops.Brk(self.arena.mm, HEAP_BASE + state.heap * PAGE_SIZE)

    def _touch(self, state: _CpuState, detail: int) -> ops.Operation:
        """A page of the arena, or of the heap where this program has one."""
        write, detail = detail % 3 > 0, detail >> 2
        if state.heap > 0 and detail % 5 == 0:
            address = HEAP_BASE + (detail >> 4) % state.heap * PAGE_SIZE
        else:
            address = self.arena.somewhere(detail >> 4)
        return ops.Touch(self.arena.mm, address, write, detail & 0xFFFF)


@dataclass(frozen=True, slots=True)
class SecondarySteps:
    """The endless steps of a secondary's node."""

    arena: Arena
    agent: Agent
    seed: int
    meetings: Meetings

    @property
    def name(self) -> str:
        """The node."""
        return self.agent.name

    def __iter__(self) -> Iterator[Step]:
        index = 0
        operations = self.arena.options.operations
        while operations == 0 or index < operations:
            number = draw(self.seed, f"mixed/{self.name}/{index}")
            at, position = divmod(index, self.meetings.order.length[self.name])
            round_ = self.meetings.round(at)
            operation = self._operation(round_, position, number)
            after = self.meetings.after(self.name, round_, position)
            yield Step(operation, (*self.after(index), *after))
            index += 1

    def after(self, index: int) -> tuple[str, ...]:
        """What a step comes after: the first access waits until the slots are mapped."""
        if index:
            return ()
        programs = range(self.meetings.actors)
        return tuple(f"cpu{number}/{self.meetings.prelude(number) - 1}" for number in programs)

    def _operation(self, round_: Round, position: int, number: int) -> ops.Operation:
        address, write = round_.beside(position, number)
        if position == rounds.READY:
            address, write = self.arena.somewhere(number >> 20), number % 3 > 0
        value, anywhere = (number >> 2) & 0xFFFF, position == rounds.READY
        drawn = Drawn(self.arena.mm, address, write, value, round_.page, anywhere, number)
        return self.agent.draw(drawn)


@dataclass(frozen=True, slots=True)
class Mixed:
    """The workload: options, and everything else follows."""

    options: MixedOptions = field(default_factory=MixedOptions)
    kind: str = "mixed"

    def world(self, kernel: Kernel) -> World:
        """A world for it: four levels of 512 entries and few frames."""
        options = self.options
        return World(
            kernel=kernel,
            cpus=cpu_names(options.cpus),
            parts=Arena(options).parts(kernel),
            levels=4,
            entries=512,
            frames=FRAMES + 2 * (options.slots * options.pages + options.heap),
            gather_batch=GATHER_BATCH,
            evict_one_in=EVICT_ONE_IN,
        )

    def programs(self, world: World, seed: int) -> tuple[Program, ...]:
        """One program per CPU, and per node of a secondary that can be asked for an access."""
        arena = Arena(self.options, world.mms[0], private_pages(world))
        devices, processors = agents(world, self.options.accesses)
        meetings = Meetings(
            arena, seed, self.acts(arena), tuple(a.name for a in processors),
            tuple(a.name for a in devices),
        )  # fmt: skip
        cpus = [
            Program(
                name, name, CpuSteps(arena, number, seed, meetings), frozenset(), meetings.order
            )
            for number, name in enumerate(world.cpus)
        ]
        steps = [SecondarySteps(arena, agent, seed, meetings) for agent in (*devices, *processors)]
        return (
            *cpus,
            *(Program(s.name, s.name, s, frozenset(s.after(0)), meetings.order) for s in steps),
        )

    def acts(self, arena: Arena) -> tuple[str, ...]:
        """What is done in rounds, in turn; more often whose windows are the shortest."""
        kinds = sorted(self.kinds())
        more = dict(MORE_OFTEN)
        if arena.private and self.options.mix.migrate:
            more[rounds.PRIVATE_MOVED] = PRIVATE_MORE_OFTEN
            kinds.append(rounds.PRIVATE_MOVED)
        kinds.sort(key=lambda kind: -more.get(kind, 0))
        turns = 1 + max(more.values())
        return tuple(kind for turn in range(turns) for kind in kinds if turn <= more.get(kind, 0))

    def kinds(self) -> frozenset[str]:
        """The kinds of operations of its CPU programs."""
        mix = self.options.mix
        drawn = {
            ops.Touch: mix.touch, ops.Munmap: mix.munmap, ops.Mprotect: mix.mprotect,
            ops.MadviseDontneed: mix.dontneed, ops.Mmap: mix.mmap + mix.file, ops.Brk: mix.brk,
            ops.MigratePages: mix.migrate, ops.MadviseFree: mix.madvise_free,
            ops.Mremap: mix.mremap, ops.Kswapd: mix.kswapd, ops.Writeback: mix.writeback,
            ops.ClearRefs: mix.clear_refs,
        }  # fmt: skip
        return frozenset(kind.__name__ for kind, weight in drawn.items() if weight)

    def to_table(self, directory: Path) -> Table:  # noqa: ARG002
        """The ``[workload]`` table."""
        table: Table = msgspec.to_builtins(self.options)
        return {key: value for key, value in table.items() if value != {}}

    @classmethod
    def from_table(cls, table: Table, where: str) -> Mixed:
        """The workload of a ``[workload]`` table.  Raises ``UserError``."""
        options = convert(_with_accesses(table, where), MixedOptions, where)
        if not sum(msgspec.structs.astuple(options.mix)):
            raise UserError(f"{where}.mix", "has no weight above 0", "at least one")
        return cls(options)

    def save_files(self, directory: Path) -> Mixed:  # noqa: ARG002
        """It reads nothing."""
        return self


def _with_accesses(table: Table, where: str) -> Table:
    """The table with the weights of secondaries' accesses apart: ``mix`` has them with the rest."""
    mix = table.get("mix")
    if not isinstance(mix, dict):
        return table
    rest, own = apart(mix, names_of_accesses())
    weights = {name: convert(own[name], Weight, f"{where}.mix.{name}") for name in own}
    return table | {"mix": rest} | ({"accesses": weights} if weights else {})
