"""What the importer of a log knows of one process: what is mapped, used, and called last."""

from __future__ import annotations

from mmurace.protocol.ranges import page_align
from mmurace.scenarios.address_space import ADDRESS_END, AreaMap, PageSet
from mmurace.scenarios.log_effects import Effect

Rights = tuple[bool, bool]


class Space:
    """The address space of one process as the calls of the log leave it."""

    def __init__(self, mm: str) -> None:
        self.mm = mm
        self.areas: AreaMap[Rights] = AreaMap()
        self.last: AreaMap[str] = AreaMap()
        """The last call on each range: its operation id."""
        self.used = PageSet()
        """Pages that somebody wrote and that are still mapped readable."""
        self.brk = 0
        self.last_brk = ""
        self.threads: list[str] = []
        """Programs of its threads."""

    def copy(self, mm: str, forked: str) -> Space:
        """What the child of a fork starts with; ``forked`` is the fork's operation id."""
        child = Space(mm)
        for start, end, rights in self.areas.overlapping(0, ADDRESS_END):
            child.areas.put(start, end, rights)
        for page in self.used.inside(0, ADDRESS_END):
            child.used.add(page)
        child.brk = self.brk
        child.all_after(forked)
        return child

    def all_after(self, operation: str) -> None:
        """Whatever is called from now on comes after ``operation``."""
        self.last.put(0, ADDRESS_END, operation)
        self.last_brk = operation

    def clear(self, operation: str) -> None:
        """Nothing is mapped any more (execve, exit)."""
        self.areas.remove(0, ADDRESS_END)
        self.used.remove(0, ADDRESS_END)
        self.brk = 0
        self.all_after(operation)

    def apply(self, effect: Effect, start: int, end: int) -> None:
        """What is mapped after a call."""
        if effect.kind == "brk":
            grows = bool(self.brk) and page_align(effect.end) > self.brk
            self.brk = page_align(effect.end)
            if grows:
                self.areas.put(start, end, (True, True))
                return
        if start == end:
            return
        if effect.kind == "mremap":
            self._move(effect, start, end)
            return
        readable = effect.kind == "mprotect" and effect.read
        if not readable:
            self.used.remove(start, end)
        if effect.kind in ("brk", "munmap"):
            self.areas.remove(start, end)
        elif effect.kind == "mmap":
            self.areas.put(start, end, (effect.read, effect.write))
        elif effect.kind == "mprotect":
            for part_start, part_end, _ in list(self.areas.overlapping(start, end)):
                self.areas.put(part_start, part_end, (effect.read, effect.write))

    def _move(self, effect: Effect, start: int, end: int) -> None:
        rights = self.areas.at(start) or (True, True)
        for from_, to in ((start, end), effect.to):
            self.areas.remove(from_, to)
            self.used.remove(from_, to)
        self.areas.put(*effect.to, rights)
