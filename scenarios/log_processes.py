"""Which process each call of a log belongs to, and which file each mapping is of.

A log has no paths: mappings of files that begin at offset 0 and are equally long are taken to be
of one file, whatever the process, as the same library is in all of them.  A fixed mapping of a
descriptor that was mapped before is of the same file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmurace.scenarios.strace_log import Call, Log, integer

CLONES = frozenset({"clone", "clone3", "fork", "vfork"})


def starts_child(call: Call) -> bool:
    """Whether the call started a thread or a process."""
    return call.name in CLONES and bool(call.result) and not call.failed


def is_thread(call: Call) -> bool:
    """Whether what a clone started shares the mm for good."""
    flags = ",".join(call.args)
    return "CLONE_VM" in flags and "CLONE_VFORK" not in flags


def borrows(call: Call) -> bool:
    """Whether what was started shares the mm until it executes another program (vfork)."""
    return call.name == "vfork" or "CLONE_VFORK" in ",".join(call.args)


@dataclass(slots=True)
class Processes:
    """Threads by process; processes are numbered from 0, the first of the log."""

    of: dict[int, int] = field(default_factory=dict)
    """Thread -> process."""
    borrowers: dict[int, int] = field(default_factory=dict)
    """A thread in the mm of another -> the thread that waits for it (vfork)."""
    count: int = 0
    _files: dict[tuple[int, str], str] = field(default_factory=dict)

    def new(self, pid: int) -> int:
        """A new process with its first thread."""
        self.of[pid] = self.count
        self.count += 1
        return self.of[pid]

    def process(self, pid: int) -> int | None:
        """The process of a thread; the first thread of the log founds the first process."""
        return self.new(pid) if not self.count else self.of.get(pid)

    def started(self, call: Call) -> int:
        """The process of what a clone started."""
        child, parent = call.result or 0, self.of[call.pid]
        if is_thread(call) or borrows(call):
            self.of[child] = parent
            if borrows(call):
                self.borrowers[child] = call.pid
            return parent
        return self.new(child)

    def executed(self, call: Call) -> tuple[int, int]:
        """The process that runs another program now, and the thread that waited for that, or 0."""
        waited = self.borrowers.pop(call.pid, 0)
        return (self.new(call.pid) if waited else self.of[call.pid]), waited

    def file_of(self, call: Call, length: int, log: Log) -> tuple[str, int, bool]:
        """(file or empty, offset, shared) of an mmap."""
        flags = set(call.args[3].split("|"))
        shared = bool(flags & {"MAP_SHARED", "MAP_SHARED_VALIDATE"})
        if "MAP_ANONYMOUS" in flags:
            return (f"shm-{call.order}", 0, True) if shared else ("", 0, False)
        if len(call.args) < 6:
            return f"bytes-{length}", 0, shared
        offset = integer(call, 5, log.where)
        key = (self.of[call.pid], call.args[4])
        if "MAP_FIXED" not in flags or key not in self._files:
            self._files[key] = f"bytes-{length}"
        return self._files[key], offset, shared
