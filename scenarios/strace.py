"""The workload of an strace log: a real program's memory calls, with secondaries beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from mmurace.broker.programs import Program
from mmurace.nodes.beside import Site
from mmurace.nodes.files import read_file, write_whole
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.world import World
from mmurace.oracle.sometimes import Condition, window_conditions, workload_conditions
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.scenarios.agents import parts_beside
from mmurace.scenarios.log_effects import Account, bounds, effects_of
from mmurace.scenarios.log_parties import DEVICE, TouchOptions
from mmurace.scenarios.log_programs import LogPrograms
from mmurace.scenarios.strace_log import read_log
from mmurace.scenarios.tables import Table, TomlTable, convert

FRAMES: Final = 4096
"""Frames of the pool: twice what the shipped logs keep in use at once, so that freed frames are
reused and nothing is reclaimed."""
SAVED_AS: Final = "workload.strace"
LOG_EXPECTED: Final = "an strace log"


class _LogTable(TomlTable, frozen=True):
    """``[workload]`` of kind ``strace``."""

    log: str
    crc32: str = ""
    """Of the log; empty: it may be another one by now."""
    options: TouchOptions = TouchOptions()


@dataclass(frozen=True, slots=True)
class StraceLog:
    """A log file and how much its memory is used."""

    path: Path
    options: TouchOptions = field(default_factory=TouchOptions)
    kind: str = "strace"

    def account(self) -> Account:
        """What becomes of every line.  Raises ``UserError``: file:line."""
        return effects_of(read_log(self.path))[1]

    def world(self, kernel: Kernel) -> World:
        """The world that the log runs in: 2 CPUs, an mm per process, and as many of each secondary
        as there usually are.

        These are the first process's; their memory is the part of the address space that the log
        uses, and a page that one has for itself lies beyond.
        """
        effects, account = effects_of(read_log(self.path))
        low, high = bounds(effects, account)
        processes = 1 + max(
            (max(e.process, e.other * (e.kind == "fork")) for e in effects), default=0
        )
        private = high + PAGE_SIZE
        site = Site(kernel, "mm0", "cpu1", (low, high), private, device=DEVICE)
        return World(
            kernel=kernel,
            mms=tuple(f"mm{number}" for number in range(processes)),
            parts=parts_beside({}, site),
            levels=4,
            entries=512,
            frames=FRAMES,
        )

    def programs(self, world: World, seed: int) -> tuple[Program, ...]:
        """The programs of the log's threads and of the secondaries.  Raises ``UserError``."""
        return self._build(world, seed).programs()

    def conditions(self, world: World, seed: int) -> tuple[Condition, ...]:
        """What a run of it must have done to count; less is asked of a log that has less.

        Of calls that are rare in it no window is asked for, nor of what a guest holds.

        A guest loses its entries to every zap, so three in five of the ranges that the secondaries
        are made to hold is what can be asked.
        """
        build = self._build(world, seed)
        ranges, frames = min(100, build.holds * 3 // 5), min(10, build.holds // 8)
        done = workload_conditions(world, ranges, frames)
        return (*done, *window_conditions(build.kinds(), world, build.asked()))

    def _build(self, world: World, seed: int) -> LogPrograms:
        effects, account = effects_of(read_log(self.path))
        build = LogPrograms(world, seed, self.options)
        if effects and effects[0].kind != "execve":
            build.prelude(effects[0].thread, account.prelude)
        for effect in effects:
            build.add(effect)
        return build

    def to_table(self, directory: Path) -> Table:
        """The ``[workload]`` table; the log relative to ``directory`` if it is in there."""
        path = self.path.resolve()
        inside = path.is_relative_to(directory.resolve())
        log = path.relative_to(directory.resolve()) if inside else path
        check = {"crc32": checksum(path)} if inside and path.is_file() else {}
        return {"log": str(log), **check, "options": msgspec.to_builtins(self.options)}

    @classmethod
    def from_table(cls, table: Table, where: str, directory: Path) -> StraceLog:
        """The workload of a ``[workload]`` table.  Raises ``UserError``."""
        checked = convert(table, _LogTable, where)
        path = directory / checked.log
        if checked.crc32 and checksum(path) != checked.crc32:
            problem = f"does not fit its checksum, which is {checksum(path)}"
            raise UserError(str(path), problem, f"{checked.crc32}, the log that was run")
        return cls(path, checked.options)

    def save_files(self, directory: Path) -> StraceLog:
        """Copy the log beside ``run.toml``; the workload that reads the copy.

        Raises ``UserError`` if it cannot be read, ``OSError`` if the copy cannot be written.
        """
        target = directory / SAVED_AS
        if not (target.exists() and target.samefile(self.path)):
            write_whole(target, read_file(self.path, LOG_EXPECTED))
        return replace(self, path=target)


def checksum(path: Path) -> str:
    """The CRC-32 of a file.  Raises ``UserError`` if it cannot be read."""
    return f"{crc32(read_file(path, LOG_EXPECTED)):08x}"
