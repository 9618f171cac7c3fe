"""From the effects of a log to programs: threads, and secondaries that use the same memory.

The log gives one order of all calls; every ``after`` points back in that order, so no two
programs can wait for each other.  Calls of different threads are ordered only where their ranges
overlap.  Between the calls, pages that are live at that point are used:

- the thread itself touches pages of its mappings,
- the devices and guests that secondaries bring use them through these (``log_parties``),
- a share of the calls that take something away *wait* until all of those have used a page of
  theirs, so that every secondary holds a live entry when the invalidation comes, and a second
  access is let loose at the same time as the call,
- ``kcompactd`` migrates pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mmurace.broker.programs import Program, Step
from mmurace.nodes.driver import draw
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.ranges import page_align
from mmurace.scenarios.address_space import ADDRESS_END, nth_page
from mmurace.scenarios.agents import private_pages
from mmurace.scenarios.log_effects import Effect
from mmurace.scenarios.log_parties import Page, Party, TouchOptions, parties
from mmurace.scenarios.log_space import Space
from mmurace.scenarios.rounds import PRIVATE_MOVED

DAEMON: Final = "kcompactd"
COMPANY_MAX: Final = 24
"""So many calls of each kind have everybody beside them."""
COMPANY_ASKED: Final = 20
"""A kind of call that had it so often has had somebody in its window."""
ACCESSES_BESIDE: Final = 24
"""Of each party: so many that they are not over before the call comes to its flush."""


class LogPrograms:
    """Builds the programs of one log.  All draws are by (seed, line, what)."""

    def __init__(self, world: World, seed: int, options: TouchOptions) -> None:
        self.world, self.seed, self.options = world, seed, options
        self.spaces = {0: Space(world.mms[0])}
        self.space = self.spaces[0]
        """That of the call at hand."""
        self.parties = parties(world, options)
        self.steps: dict[str, list[Step]] = {}
        self.nodes = {DAEMON: world.cpus[0]}
        """Program -> its CPU."""
        self.caller = DAEMON
        """The program of the call at hand."""
        self.company: dict[str, int] = {}
        """Kind of operation -> how many had everybody beside them."""
        self.holds = 0
        """Invalidations before which the secondaries were made to hold a page."""
        self.finds = ""
        """The last call that is to find such an entry."""
        self.names: dict[int, str] = {}
        self.waits_for: dict[int, str] = {}
        """A thread -> an operation of another one that its next call comes after."""

    # -- putting steps in ----------------------------------------------------------------------

    def _emit(self, program: str, operation: ops.Operation, after: Iterable[str] = ()) -> str:
        """Append a step; what belongs to the same program needs no waiting.  Its id."""
        steps = self.steps.setdefault(program, [])
        own = program + "/"
        wanted = sorted({name for name in after if name and not name.startswith(own)})
        steps.append(Step(operation, tuple(wanted)))
        return f"{program}/{len(steps) - 1}"

    def _draw(self, line: int, what: str) -> int:
        return draw(self.seed, f"strace/{line}/{what}")

    def _happens(self, line: int, what: str, percent: int) -> bool:
        return self._draw(line, what + "?") % 100 < percent

    def _last_calls(self, start: int, end: int) -> list[str]:
        return [name for _, _, name in self.space.last.overlapping(start, end)]

    def _thread(self, pid: int) -> str:
        """The program of a thread; CPUs are dealt out in turn."""
        if pid not in self.names:
            name = f"thread{len(self.names)}"
            self.nodes[name] = self.world.cpus[len(self.names) % len(self.world.cpus)]
            self.names[pid] = name
        if self.names[pid] not in self.space.threads:
            self.space.threads.append(self.names[pid])
        return self.names[pid]

    # -- the log -------------------------------------------------------------------------------

    def prelude(self, pid: int, image: Iterable[tuple[int, int]]) -> None:
        """What is there before the log begins: the program's image, pages of secondaries."""
        thread = self._thread(pid)
        for start, end in image:
            self._map(thread, start, end, True, True)
        self._map_private(thread)

    def _map_private(self, thread: str) -> None:
        for page in private_pages(self.world):
            mmap = self._emit(thread, ops.Mmap(self.space.mm, page, PAGE_SIZE, True, True))
            self.space.last.put(page, page + PAGE_SIZE, mmap)

    def _map(self, thread: str, start: int, end: int, read: bool, write: bool) -> None:
        operation = ops.Mmap(self.space.mm, start, end - start, read, write)
        done = self._emit(thread, operation, self._last_calls(start, end))
        self.space.last.put(start, end, done)
        self.space.areas.put(start, end, (read, write))
        self.space.used.remove(start, end)

    def add(self, effect: Effect) -> None:
        """One call of the log, and the touches around it."""
        if effect.process not in self.spaces:
            self.spaces[effect.process] = Space(self.world.mms[effect.process])
        self.space = self.spaces[effect.process]
        thread = self._thread(effect.thread)
        if effect.kind == "clone":
            self.waits_for[effect.child] = self._latest(thread)
            return
        first = self.waits_for.pop(effect.thread, "")
        if effect.kind in ("fork", "execve", "exit"):
            self._whole(thread, effect, first)
            return
        start, end = self._range(effect)
        holds = self._hold(effect, start, end)
        self._call(thread, effect, start, end, [first, *holds])
        if holds:
            self.finds = self._latest(thread)
        self._use(thread, effect.line, start, end)

    def _whole(self, thread: str, effect: Effect, first: str) -> None:
        """A call on the whole mm: after all that its threads did, before all that they will do."""
        waits = [first, *map(self._latest, self.space.threads)]
        waits += self._hold(effect, 0, ADDRESS_END)
        mm = self.space.mm
        if effect.kind == "fork":
            child = self.world.mms[effect.other]
            done = self._emit(thread, ops.Fork(mm, child), waits)
            self.spaces[effect.other] = self.space.copy(child, done)
            self.waits_for[effect.child] = done
            self.space.all_after(done)
            return
        execs = effect.kind == "execve"
        done = self._emit(thread, ops.Execve(mm) if execs else ops.Exit(mm), waits)
        self.space.clear(done)
        if effect.other:
            self.waits_for[effect.other] = done
        for start, end in effect.image:
            self._map(thread, start, end, True, True)
        if execs and effect.process == 0:
            self._map_private(thread)

    def _latest(self, program: str) -> str:
        steps = self.steps.get(program)
        return f"{program}/{len(steps) - 1}" if steps else ""

    def _range(self, effect: Effect) -> tuple[int, int]:
        """What the call maps, unmaps or changes."""
        if effect.kind != "brk":
            return effect.start, effect.end
        new = page_align(effect.end)
        return (
            (min(self.space.brk, new), max(self.space.brk, new)) if self.space.brk else (new, new)
        )

    def _call(self, thread: str, effect: Effect, start: int, end: int, waits: list[str]) -> None:
        waits += self._last_calls(start, end) if start < end else []
        waits += self._last_calls(*effect.to) if effect.kind == "mremap" else []
        if effect.kind == "brk":
            waits.append(self.space.last_brk)
        done = self._emit(thread, self._operation(effect, start, end), waits)
        if start < end:
            self.space.last.put(start, end, done)
        if effect.kind == "mremap":
            self.space.last.put(*effect.to, done)
        if effect.kind == "brk":
            self.space.last_brk = done
        self.space.apply(effect, start, end)

    def _operation(self, effect: Effect, start: int, end: int) -> ops.Operation:
        length = end - start
        if effect.kind == "brk":
            # The first one says where the heap begins; asking changes nothing.
            asks = self.space.brk and not effect.start
            return ops.Brk(self.space.mm, 0 if asks else page_align(effect.end))
        if effect.kind == "mmap":
            return ops.Mmap(
                self.space.mm, start, length, effect.read, effect.write, effect.file,
                effect.offset, effect.shared,
            )  # fmt: skip
        if effect.kind == "mremap":
            to, to_end = effect.to
            return ops.Mremap(self.space.mm, start, length, to, to_end - to)
        if effect.kind == "mprotect":
            return ops.Mprotect(self.space.mm, start, length, effect.read, effect.write)
        if effect.kind == "munmap":
            return ops.Munmap(self.space.mm, start, length)
        if effect.kind == "free":
            return ops.MadviseFree(self.space.mm, start, length)
        return ops.MadviseDontneed(self.space.mm, start, length)

    # -- touches -------------------------------------------------------------------------------

    def _takes_away(self, effect: Effect, start: int, end: int) -> bool:
        """Whether the call can take a right away that a cached entry may hold."""
        if effect.kind == "brk":
            return bool(self.space.brk) and page_align(effect.end) < self.space.brk
        if effect.kind == "mprotect":
            return any(
                (read and not effect.read) or (write and not effect.write)
                for _, _, (read, write) in self.space.areas.overlapping(start, end)
            )
        return start < end

    def _hold(self, effect: Effect, start: int, end: int) -> list[str]:
        """Let the secondaries fill entries that the call will invalidate: what to wait for."""
        self.caller = self._thread(effect.thread)
        line = effect.line
        if effect.process or not self._takes_away(effect, start, end):
            return []
        page = self._live_page(start, end, self._draw(line, "page"))
        if page is None or not self._happens(line, "held", self.options.held):
            return []
        self.holds += 1
        waits = self._all_use(page, line, "hold")
        whole = effect.kind in ("fork", "execve", "exit")
        operation = None if whole else self._operation(effect, start, end)
        if self._in_company(type(operation).__name__ if operation else effect.kind.title()):
            waits = self._company(page, line, waits)
        elif self.parties and self._happens(line, "race", self.options.race):
            racer = self.parties[self._draw(line, "racer") % len(self.parties)]
            self._access(racer, page, line, "race")
        return waits

    def _in_company(self, kind: str) -> bool:
        """Whether a call of this kind is one of those beside which everybody stays."""
        had = self.company.get(kind, 0)
        if not self.options.race or had >= COMPANY_MAX:
            return False
        self.company[kind] = had + 1
        return True

    def _company(self, page: int, line: int, holds: list[str]) -> list[str]:
        """All use the page again and again beside a call that comes after what this gives.

        A processor holds it, too; the rest begins once everybody does, as the call.
        """
        holds = [*holds, self._beside(page, line, "hold", [])]
        for number in range(ACCESSES_BESIDE):
            what, after = f"beside{number}", [] if number else holds
            self._beside(page, line, what, after)
            self._all_use(page, line, what, after)
        return holds

    def _beside(self, page: int, line: int, what: str, after: list[str]) -> str:
        write = self._writes(page, line, what)
        self._note_use(page, write)
        operation = ops.Touch(self.space.mm, page + 8 * (line % 64), write, line)
        return self._emit(self._bystander(), operation, [*self._before(page, what), *after])

    def _bystander(self) -> str:
        """A thread that the log does not have, on another CPU than who makes the call."""
        busy = self.nodes.get(self.caller, "")
        node = next((cpu for cpu in reversed(self.world.cpus) if cpu != busy), busy)
        name = f"beside-{node}"
        self.nodes[name] = node
        return name

    def _live_page(self, start: int, end: int, number: int) -> int | None:
        """A page of [start, end) that may be read; a used one where there is one."""
        used = self.space.used.inside(start, end)
        if used:
            return used[number % len(used)]
        parts = [(s, e) for s, e, (read, _) in self.space.areas.overlapping(start, end) if read]
        if not parts:
            return None
        return nth_page(*parts[number % len(parts)], number >> 8)

    def _writes(self, page: int, line: int, what: str) -> bool:
        """Whether this access writes: three in four, where the page may be written."""
        rights = self.space.areas.at(page)
        return rights is not None and rights[1] and self._draw(line, what + "/write") % 4 > 0

    def _use(self, thread: str, line: int, start: int, end: int) -> None:
        """What happens after a call: touches of live pages, and now and then a migration."""
        options = self.options
        if self._happens(line, "touch", options.touch):
            page = self._some_page(start, end, self._draw(line, "touch"))
            if page is not None:
                self._touch(thread, page, line)
        if self.space is not self.spaces[0]:
            return  # the secondaries are the first process's
        for party in self.parties:
            page = self.space.used.pick(self._draw(line, party.turns))
            if page is not None and self._happens(line, party.turns, party.percent):
                self._access(party, page, line, party.turns)
            if party.private and self._happens(line, party.private.name, party.private.percent):
                self._access_private(party, party.private, line)
        if self._happens(line, "migrate", options.migrate):
            self._migrate(line)

    def _some_page(self, start: int, end: int, number: int) -> int | None:
        """A live page of the range that was just changed, else any used page."""
        page = self._live_page(start, end, number) if start < end else None
        return page if page is not None else self.space.used.pick(number)

    def _touch(self, thread: str, page: int, line: int) -> None:
        write = self._writes(page, line, "touch")
        operation = ops.Touch(self.space.mm, page + 8 * (line % 64), write, line)
        self._emit(thread, operation, self._last_calls(page, page + PAGE_SIZE))
        self._note_use(page, write)

    def _note_use(self, page: int, write: bool) -> None:
        if write and all(party.shares(page) for party in self.parties):
            self.space.used.add(page)

    def _all_use(self, page: int, line: int, what: str, after: Iterable[str] = ()) -> list[str]:
        return [self._access(party, page, line, what, after) for party in self.parties]

    def _access(
        self, party: Party, page: int, line: int, what: str, after: Iterable[str] = ()
    ) -> str:
        """An access of a page by who can; others use the page that they have for themselves."""
        if not party.shares(page):
            return self._access_private(party, party.private, line, after) if party.private else ""
        write = self._writes(page, line, f"{party.rights}/{what}")
        self._note_use(page, write)
        number = self._draw(line, f"{party.name}/{what}/kind")
        operation = party.access(self.space.mm, page + 8 * (line % 64), page, write, line, number)
        return self._emit(party.name, operation, [*self._before(page, what), *after])

    def _access_private(
        self, party: Party, page: Page, line: int, after: Iterable[str] = ()
    ) -> str:
        address, write = page.address, self._draw(line, f"{page.name}/write") % 2 == 0
        number = self._draw(line, f"{party.name}/{page.name}/kind")
        operation = party.access(self.space.mm, address, address, write, line, number)
        waits = [*self._last_calls(address, address + PAGE_SIZE), *after]
        return self._emit(party.name, operation, waits)

    def _before(self, page: int, what: str) -> list[str]:
        """What an access of a secondary comes after.

        A migration may flush all that a secondary holds of the mm (a guest on every machine does,
        and devices on x86 from v6.6), so none may be under way when what a call is to find is put
        there.
        """
        after = self._last_calls(page, page + PAGE_SIZE)
        if what in ("hold", "migrate"):
            after.append(self._latest(DAEMON))
        return after

    def _moved_privately(self, line: int, nothing_else: bool) -> int | None:
        """A page of a secondary's own to migrate: one time in four, or if there is nothing else."""
        for page in (party.private for party in self.parties if party.private):
            if nothing_else or self._draw(line, f"migrate/{page.name}") % 4 == 0:
                return page.address
        return None

    def _migrate(self, line: int) -> None:
        """A used page that all secondaries hold, or one that a secondary has for itself."""
        self.caller = DAEMON
        page = self.space.used.pick(self._draw(line, "migrate"))
        private = self._moved_privately(line, page is None)
        if private is not None:
            page, waits, kind = private, [], PRIVATE_MOVED
        elif page is not None:
            self.holds += 1
            waits, kind = self._all_use(page, line, "migrate"), "MigratePages"
        else:
            return
        if self._in_company(kind):
            waits = self._company(page, line, waits)
        waits += self._last_calls(page, page + PAGE_SIZE)
        if self._draw(line, "alone") % 2:
            waits.append(self.finds)
        self._emit(DAEMON, ops.MigratePages(self.space.mm, page, PAGE_SIZE), waits)

    # -- done ----------------------------------------------------------------------------------

    def kinds(self) -> frozenset[str]:
        """The kinds of operations that there are."""
        steps = (step for program in self.steps.values() for step in program)
        return frozenset(type(step.operation).__name__ for step in steps)

    def asked(self) -> frozenset[str]:
        """Those that had everybody beside them often enough to ask that it was in their window."""
        return frozenset(kind for kind, had in self.company.items() if had >= COMPANY_ASKED)

    def programs(self) -> tuple[Program, ...]:
        """All programs, in a fixed order."""
        nodes = self.nodes | {party.name: party.name for party in self.parties}
        return tuple(
            Program(name, nodes[name], tuple(steps)) for name, steps in sorted(self.steps.items())
        )
