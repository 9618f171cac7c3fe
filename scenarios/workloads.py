"""Workloads: where the programs of a run come from.

A workload is plain data, can be written to ``run.toml`` and gives the same programs for the same
world and seed, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmurace.broker.programs import Program
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.scenarios.mixed import Mixed
from mmurace.scenarios.operations import programs_from, programs_to
from mmurace.scenarios.strace import StraceLog
from mmurace.scenarios.tables import Table, TomlTable, convert


class Workload(Protocol):
    """Where a run's programs come from."""

    @property
    def kind(self) -> str:
        """The name of this kind of workload in ``run.toml``."""

    def programs(self, world: World, seed: int) -> tuple[Program, ...]:
        """The programs, picklable.  Raises ``UserError`` if its file is wrong."""

    def to_table(self, directory: Path) -> Table:
        """The ``[workload]`` table, without ``kind``; files relative to ``directory``."""

    def save_files(self, directory: Path) -> Workload:
        """Copy what this reads into ``directory``; the workload that reads the copy."""


@dataclass(frozen=True, slots=True)
class Script:
    """Programs that are written down, operation by operation."""

    script: tuple[Program, ...]
    kind: str = "script"

    def programs(self, world: World, seed: int) -> tuple[Program, ...]:  # noqa: ARG002
        """As written."""
        return self.script

    def to_table(self, directory: Path) -> Table:  # noqa: ARG002
        """The programs as ``[[workload.program]]``."""
        return {"program": programs_to(self.script)}

    def save_files(self, directory: Path) -> Script:  # noqa: ARG002
        """A script reads nothing."""
        return self


class _ScriptTable(TomlTable, frozen=True):
    """``[workload]`` of kind ``script``."""

    program: list[Any]


def workload_from(table: Table, world: World, where: str, directory: Path) -> Workload:
    """The workload of a ``[workload]`` table; files are relative to ``directory``."""
    rest = {key: value for key, value in table.items() if key != "kind"}
    kind = table.get("kind")
    if kind == "script":
        script = convert(rest, _ScriptTable, where)
        return Script(programs_from(script.program, world, f"{where}.program"))
    if kind == "mixed":
        return Mixed.from_table(rest, where)
    if kind == "strace":
        return StraceLog.from_table(rest, where, directory)
    raise UserError(f"{where}.kind", f"is {kind!r}", "one of script, mixed, strace")
