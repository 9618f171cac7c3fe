"""What the calls of a log do to the address space, and what becomes of every line.

Executed are brk, mmap, munmap, mprotect and madvise(MADV_DONTNEED) of the first process and its
threads.  Everything else is counted by name under the reason why it is not; lines executed and
lines counted add up to the lines of the log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import UserError
from protocol.limits import PAGE_SIZE
from protocol.ranges import page_align, page_of
from scenarios.address_space import AreaMap
from scenarios.strace_log import Call, Log, integer, rights

NOT_BUILT: Final = "not built yet"
NO_EFFECT: Final = "no memory effect"
FAILED: Final = "failed"
OTHER_PROCESS: Final = "another process"
NEVER_RETURNED: Final = "never returned"
SECOND_HALF: Final = "second half of an unfinished call"

_NOT_BUILT: Final = frozenset({
    "execve", "execveat", "exit_group", "fork", "vfork", "clone", "clone3", "mremap", "mbind",
    "msync", "mlock", "mlock2", "munlock", "mlockall", "munlockall", "remap_file_pages", "shmat",
    "shmdt", "process_madvise", "move_pages", "migrate_pages", "set_mempolicy", "pkey_mprotect",
    "userfaultfd", "mseal", "madvise",
})  # fmt: skip
_CLONES: Final = frozenset({"clone", "clone3", "fork", "vfork"})


@dataclass(frozen=True, slots=True)
class Effect:
    """One executed call: ``start`` and ``end`` in bytes, page-aligned; for brk, 0 and the end."""

    kind: str
    """``brk``, ``mmap``, ``munmap``, ``mprotect``, ``dontneed``, or ``clone`` (no operation)."""
    thread: int
    start: int
    end: int
    line: int
    read: bool = False
    write: bool = False
    child: int = 0
    """For ``clone``: the thread that was started."""


@dataclass(slots=True)
class Account:
    """What became of every line of a log."""

    lines: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    """Lines whose call runs, by call name."""
    set_aside: dict[str, Counter[str]] = field(default_factory=dict)
    """Lines that do not run: reason -> call name -> lines."""
    file_mappings: int = 0
    """Of the executed mmaps, those of files: they run as anonymous private ones."""
    image: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that the program protects but the log never maps: its image; mapped at first."""

    def put(self, reason: str, name: str, lines: int = 1) -> None:
        """Count lines that do not run."""
        self.set_aside.setdefault(reason, Counter())[name] += lines

    @property
    def accounted(self) -> int:
        """Lines executed and lines counted: equals ``lines``."""
        aside = sum(sum(names.values()) for names in self.set_aside.values())
        return sum(self.executed.values()) + aside

    def rows(self) -> list[tuple[str, str, int]]:
        """(what became of it, call name, lines), in a fixed order, for people."""
        rows = [("executed", name, count) for name, count in sorted(self.executed.items())]
        for reason, names in sorted(self.set_aside.items()):
            rows += [(reason, name, count) for name, count in sorted(names.items())]
        return rows


def effects_of(log: Log) -> tuple[list[Effect], Account]:
    """The calls that run, in order, and the account of all lines.  Raises ``UserError``."""
    account = Account(lines=log.lines)
    mine = _threads(log)
    effects: list[Effect] = []
    for pid, name in log.events:
        account.put(NO_EFFECT if pid in mine else OTHER_PROCESS, name)
    for pid, name in log.never_returned:
        account.put(NEVER_RETURNED if pid in mine else OTHER_PROCESS, name)
    for call in log.calls:
        if call.lines == 2:
            account.put(SECOND_HALF, call.name)
        effect = _effect(call, log, account) if call.pid in mine else None
        if effect is not None:
            effects.append(effect)
        elif call.pid not in mine:
            account.put(OTHER_PROCESS, call.name)
    account.image = _image(effects)
    return effects, account


def _threads(log: Log) -> frozenset[int]:
    """The threads of the first process; a child that does not share the mm is another one."""
    first = min(log.calls, key=lambda call: call.start).pid
    others: set[int] = set()
    parent = {c.result: c for c in log.calls if c.name in _CLONES and c.result and not c.failed}
    for pid in {call.pid for call in log.calls} | {pid for pid, _ in log.events}:
        at, seen = pid, {0}
        while at in parent and at not in seen:
            seen.add(at)
            if not _shares_mm(parent[at]):
                others.add(pid)
            at = parent[at].pid
    pids = {c.pid for c in log.calls} | {pid for pid, _ in (*log.events, *log.never_returned)}
    return frozenset(pids - others) | {first}


def _shares_mm(call: Call) -> bool:
    flags = ",".join(call.args)
    return "CLONE_VM" in flags and "CLONE_VFORK" not in flags


def _effect(call: Call, log: Log, account: Account) -> Effect | None:
    """The call's effect; None after counting it if it does not run."""
    if call.name in _CLONES and call.result and not call.failed and _shares_mm(call):
        account.put(NO_EFFECT, f"{call.name} (thread)")
        return Effect("clone", call.pid, 0, 0, call.order, child=call.result)
    reason, name = _why_not(call)
    if reason:
        account.put(reason, name)
        return None
    effect = _memory_effect(call, log.where)
    account.executed[name] += 1
    account.file_mappings += call.name == "mmap" and "MAP_ANONYMOUS" not in call.args[3]
    return effect


def _why_not(call: Call) -> tuple[str, str]:
    """(reason or empty, name to count it under)."""
    advice = call.args[2] if call.name == "madvise" and len(call.args) > 2 else ""
    name = f"madvise({advice})" if advice else call.name
    if call.failed:
        return FAILED, name
    if call.name in ("brk", "mmap", "munmap", "mprotect") or advice == "MADV_DONTNEED":
        return (NEVER_RETURNED, name) if call.result is None else ("", name)
    return (NOT_BUILT if call.name in _NOT_BUILT else NO_EFFECT), name


def _memory_effect(call: Call, where: str) -> Effect:
    result = call.result or 0
    line = call.order
    if call.name == "brk":
        return Effect("brk", call.pid, integer(call, 0, where), result, line)
    start = result if call.name == "mmap" else integer(call, 0, where)
    end = start + page_align(integer(call, 1, where))
    if start != page_of(start) or end <= start:
        raise UserError(f"{where}:{call.end}", f"{call.name} of [{start:#x}, {end:#x})",
                        "a page-aligned range that is not empty")  # fmt: skip
    if call.name == "mmap":
        if len(call.args) < 4:
            raise UserError(f"{where}:{call.end}", "mmap has too few arguments", "six")
        return Effect("mmap", call.pid, start, end, line, *rights(call, 2, where))
    if call.name == "mprotect":
        return Effect("mprotect", call.pid, start, end, line, *rights(call, 2, where))
    return Effect("munmap" if call.name == "munmap" else "dontneed", call.pid, start, end, line)


def _image(effects: list[Effect]) -> list[tuple[int, int]]:
    """Ranges that mprotect found mapped although nothing in the log mapped them."""
    known: AreaMap[bool] = AreaMap()
    image: list[tuple[int, int]] = []
    heap = 0
    for effect in effects:
        if effect.kind == "brk":
            if heap and effect.end > heap:
                known.put(heap, page_align(effect.end), True)
            heap = max(heap, page_align(effect.end))
        elif effect.kind == "mmap":
            known.put(effect.start, effect.end, True)
        elif effect.kind == "mprotect":
            for start, end in known.holes(effect.start, effect.end):
                known.put(start, end, True)
                image.append((start, end))
    return image


def bounds(effects: list[Effect], account: Account) -> tuple[int, int]:
    """The part of the address space that the log uses: [lowest, highest) in bytes."""
    spans = [(e.start, e.end) for e in effects if e.kind not in ("clone", "brk")]
    spans += [(e.end - PAGE_SIZE, page_align(e.end)) for e in effects if e.kind == "brk"]
    spans += account.image
    if not spans:
        return PAGE_SIZE, 2 * PAGE_SIZE
    return page_of(min(s for s, _ in spans)), max(e for _, e in spans)
