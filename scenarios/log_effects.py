"""What the calls of a log do to the address space, and what becomes of every line.

Executed are brk, mmap, munmap, mprotect, mremap, madvise(MADV_DONTNEED and MADV_FREE), fork, execve
and exit_group of all processes and their threads.  Everything else is counted by name under the
reason why it is not; lines executed and lines counted add up to the lines of the log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.ranges import page_align, page_of
from mmurace.scenarios.address_space import ADDRESS_END, AreaMap
from mmurace.scenarios.log_processes import Processes, borrows, starts_child
from mmurace.scenarios.strace_log import Call, Log, integer, rights

NOT_BUILT: Final = "not built yet"
NO_EFFECT: Final = "no memory effect"
FAILED: Final = "failed"
OTHER_PROCESS: Final = "another process"
NEVER_RETURNED: Final = "never returned"
SECOND_HALF: Final = "second half of an unfinished call"

_NOT_BUILT: Final = frozenset({
    "mbind", "msync", "mlock", "mlock2", "munlock", "mlockall", "munlockall", "remap_file_pages",
    "shmat", "shmdt", "process_madvise", "move_pages", "migrate_pages", "set_mempolicy",
    "pkey_mprotect", "userfaultfd", "mseal", "madvise",
})  # fmt: skip
_EXECUTED: Final = frozenset({"brk", "mmap", "munmap", "mprotect", "mremap"})
_ADVICE: Final = {"MADV_DONTNEED": "dontneed", "MADV_FREE": "free"}
_NEXT_PROGRAM: Final = frozenset({"execve", "execveat"})

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Effect:
    """One executed call: ``start`` and ``end`` in bytes, page-aligned; for brk, 0 and the end."""

    kind: str
    """``brk``, ``mmap``, ``munmap``, ``mprotect``, ``mremap``, ``dontneed``, ``free``, ``fork``,
    ``execve``, ``exit``, or ``clone`` (no operation)."""
    thread: int
    start: int
    end: int
    line: int
    read: bool = False
    write: bool = False
    child: int = 0
    """For ``clone`` and ``fork``: the thread that was started."""
    process: int = 0
    """In which process; for ``execve`` the one that runs the new program."""
    other: int = 0
    """For ``fork`` the new process; for ``execve`` the thread that waited for it (vfork), or 0."""
    file: str = ""
    offset: int = 0
    shared: bool = False
    to: Range = (0, 0)
    """For ``mremap``: the new range."""
    image: tuple[Range, ...] = ()
    """For ``execve``: ranges that the program protects but never maps; mapped at first."""


@dataclass(slots=True)
class Account:
    """What became of every line of a log."""

    lines: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    """Lines whose call runs, by call name."""
    set_aside: dict[str, Counter[str]] = field(default_factory=dict)
    """Lines that do not run: reason -> call name -> lines."""
    file_mappings: int = 0
    """Of the executed mmaps, those of files."""
    image: list[Range] = field(default_factory=list)
    """Ranges that a program protects but the log never maps: its image; mapped at first."""
    prelude: list[Range] = field(default_factory=list)
    """Those of them that are there before the log begins."""

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
    account, processes = Account(lines=log.lines), Processes()
    effects: list[Effect] = []
    for call in log.calls:
        if call.lines == 2:
            account.put(SECOND_HALF, call.name)
        process = processes.process(call.pid)
        if process is None:
            account.put(OTHER_PROCESS, call.name)
        else:
            effects += _effect(call, log, account, processes, process)
    for pid, name in log.events:
        account.put(NO_EFFECT if pid in processes.of else OTHER_PROCESS, name)
    for pid, name in log.never_returned:
        account.put(NEVER_RETURNED if pid in processes.of else OTHER_PROCESS, name)
    return _with_images(effects, account), account


def _effect(
    call: Call, log: Log, account: Account, processes: Processes, process: int
) -> list[Effect]:
    """The call's effect; nothing after counting it if it does not run."""
    if starts_child(call):
        return [_started(call, account, processes, process)]
    reason, name = _why_not(call)
    if not reason and name == "exit_group" and call.pid in processes.borrowers:
        reason, name = NO_EFFECT, f"{name} (in a borrowed mm)"
    if reason:
        account.put(reason, name)
        return []
    account.executed[name] += 1
    if name in _NEXT_PROGRAM:
        process, waited = processes.executed(call)
        return [Effect("execve", call.pid, 0, 0, call.order, process=process, other=waited)]
    if name == "exit_group":
        return [Effect("exit", call.pid, 0, 0, call.order, process=process)]
    effect = replace(_memory_effect(call, log.where), process=process)
    if effect.kind == "mmap":
        file, offset, shared = processes.file_of(call, effect.end - effect.start, log)
        account.file_mappings += bool(file)
        effect = replace(effect, file=file, offset=offset, shared=shared)
    return [effect]


def _started(call: Call, account: Account, processes: Processes, process: int) -> Effect:
    """A clone: a thread, a process that borrows the mm, or one with a copy of it."""
    child = call.result or 0
    other = processes.started(call)
    if other != process:
        account.executed[call.name] += 1
        return Effect("fork", call.pid, 0, 0, call.order, child=child, process=process, other=other)
    why = "borrows the mm" if borrows(call) else "thread"
    account.put(NO_EFFECT, f"{call.name} ({why})")
    return Effect("clone", call.pid, 0, 0, call.order, child=child, process=process)


def _why_not(call: Call) -> tuple[str, str]:
    """(reason or empty, name to count it under)."""
    advice = call.args[2] if call.name == "madvise" and len(call.args) > 2 else ""
    name = f"madvise({advice})" if advice else call.name
    if call.failed:
        return FAILED, name
    if call.name in _NEXT_PROGRAM or call.name == "exit_group":
        return "", name
    if call.name in _EXECUTED or advice in _ADVICE:
        return (NEVER_RETURNED, name) if call.result is None else ("", name)
    return (NOT_BUILT if call.name in _NOT_BUILT else NO_EFFECT), name


def _memory_effect(call: Call, where: str) -> Effect:
    result = call.result or 0
    line = call.order
    if call.name == "brk":
        _check_end(call, result, where)
        return Effect("brk", call.pid, integer(call, 0, where), result, line)
    start = result if call.name == "mmap" else integer(call, 0, where)
    end = start + page_align(integer(call, 1, where))
    if start != page_of(start) or end <= start:
        raise UserError(f"{where}:{call.end}", f"{call.name} of [{start:#x}, {end:#x})",
                        "a page-aligned range that is not empty")  # fmt: skip
    _check_end(call, end, where)
    if call.name == "mmap":
        if len(call.args) < 4:
            raise UserError(f"{where}:{call.end}", "mmap has too few arguments", "six")
        return Effect("mmap", call.pid, start, end, line, *rights(call, 2, where))
    if call.name == "mprotect":
        return Effect("mprotect", call.pid, start, end, line, *rights(call, 2, where))
    if call.name == "mremap":
        to = (result, result + page_align(integer(call, 2, where)))
        _check_end(call, to[1], where)
        return Effect("mremap", call.pid, start, end, line, to=to)
    kind = "munmap" if call.name == "munmap" else _ADVICE[call.args[2]]
    return Effect(kind, call.pid, start, end, line)


def _check_end(call: Call, end: int, where: str) -> None:
    if not 0 <= end <= ADDRESS_END:
        raise UserError(
            f"{where}:{call.end}", f"{call.name} up to {end:#x}", f"at most {ADDRESS_END:#x}"
        )


@dataclass(slots=True)
class _Known:
    """What the log has mapped in a process."""

    areas: AreaMap[bool] = field(default_factory=AreaMap)
    heap: int = 0
    program: int = -1
    """Index of the ``execve`` that began its program; -1: none in the log."""

    def copy(self) -> _Known:
        areas: AreaMap[bool] = AreaMap()
        for start, end, value in self.areas.overlapping(0, ADDRESS_END):
            areas.put(start, end, value)
        return _Known(areas, self.heap, self.program)


def _with_images(effects: list[Effect], account: Account) -> list[Effect]:
    """Find ranges that mprotect finds mapped although nothing in the log mapped them."""
    known: dict[int, _Known] = {}
    images: dict[int, list[Range]] = {}
    for index, effect in enumerate(effects):
        mine = known.setdefault(effect.process, _Known())
        if effect.kind == "fork":
            known[effect.other] = mine.copy()
        elif effect.kind == "execve":
            known[effect.process] = _Known(program=index)
        else:
            images.setdefault(mine.program, []).extend(_learn(mine, effect))
    account.prelude = images.pop(-1, [])
    account.image = account.prelude + [r for ranges in images.values() for r in ranges]
    for index, ranges in images.items():
        effects[index] = replace(effects[index], image=tuple(ranges))
    return effects


def _learn(known: _Known, effect: Effect) -> list[Range]:
    """Note what a call maps; what it must have found mapped."""
    if effect.kind == "brk":
        end = page_align(effect.end)
        if known.heap and end > known.heap:
            known.areas.put(known.heap, end, True)
        known.heap = max(known.heap, end)
    elif effect.kind == "mmap":
        known.areas.put(effect.start, effect.end, True)
    elif effect.kind == "mremap":
        known.areas.put(*effect.to, True)
    elif effect.kind == "mprotect":
        holes = known.areas.holes(effect.start, effect.end)
        for start, end in holes:
            known.areas.put(start, end, True)
        return holes
    return []


def bounds(effects: list[Effect], account: Account) -> Range:
    """The part of the address space that the first process uses: [lowest, highest) in bytes."""
    mine = [e for e in effects if e.process == 0]
    spans = [(e.start, e.end) for e in mine if e.end > e.start and e.kind != "brk"]
    spans += [(e.end - PAGE_SIZE, page_align(e.end)) for e in mine if e.kind == "brk"]
    spans += [e.to for e in mine if e.kind == "mremap"]
    spans += account.prelude + [r for e in mine for r in e.image]
    if not spans:
        return PAGE_SIZE, 2 * PAGE_SIZE
    return page_of(min(s for s, _ in spans)), max(e for _, e in spans)
