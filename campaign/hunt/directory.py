"""The directory of a hunt: what it was asked, what it has done, what it has found.

    hunt.toml                     what it was asked; written whole
    programs                      a line for each program that is done, appended
    findings/NAME.toml            a race's file, and
    findings/NAME.schedule.toml   the schedule that shows it; written whole, and before the line

Killed at any moment, it is whole up to its last whole line, and goes on from there: programs
without a line are tried again, and what they show is written over what was written already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from mmurace.campaign.hunt.finding import Finding
from mmurace.campaign.hunt.hunt import Options, Record
from mmurace.explorer.run.schedule_file import SUFFIX
from mmurace.nodes import plugins
from mmurace.nodes.disk import disk
from mmurace.nodes.files import read_file, read_sealed, sealed, write_all, write_whole
from mmurace.nodes.kernel.variant import Kernel
from mmurace.protocol.errors import UserError
from mmurace.scenarios.switches import kernel_of, kernel_to
from mmurace.scenarios.tables import Table, TomlTable, convert, parse_toml, toml_text

ASKED: Final = "hunt.toml"
DONE: Final = "programs"
FINDINGS: Final = "findings"
SCHEMA: Final = 1


class _AskedTable(TomlTable, frozen=True):
    """The keys of ``hunt.toml``."""

    schema: int
    seed: int
    schedules: int
    kernel: Table
    against: Table = {}
    plugin: list[plugins.Plugin] = []


@dataclass(frozen=True, slots=True)
class Directory:
    """One hunt's."""

    path: Path

    # -- what it was asked ---------------------------------------------------------------------

    def begin(self, kernel: Kernel, options: Options) -> None:
        """Write down what is asked.  Raises ``OSError`` with the path."""
        (self.path / FINDINGS).mkdir(exist_ok=True)
        against = options.against
        table: Table = {
            "schema": SCHEMA, "seed": options.seed, "schedules": options.schedules,
            "plugin": [msgspec.to_builtins(plugin) for plugin in plugins.loaded()] or None,
            "kernel": kernel_to(kernel),
            "against": None if against is None else kernel_to(against),
        }  # fmt: skip
        text = toml_text({key: value for key, value in table.items() if value is not None})
        write_whole(self.path / ASKED, sealed(text).encode())

    def asked(self, options: Options) -> tuple[Kernel, Options]:
        """What was asked; only bounds and jobs are new.  Raises ``UserError``."""
        file = self.path / ASKED
        where = str(file)
        if not file.is_file():
            raise UserError(str(self.path), f"is no hunt: it has no {ASKED}", "a hunt's directory")
        table = convert(parse_toml(read_sealed(file), where), _AskedTable, where)
        if table.schema != SCHEMA:
            raise UserError(f"{where}: schema", f"is {table.schema}", str(SCHEMA))
        _check_plugins(table.plugin, where)
        against = kernel_of(table.against, f"{where}: against") if table.against else None
        kept = replace(options, seed=table.seed, schedules=table.schedules, against=against)
        return kernel_of(table.kernel, f"{where}: kernel"), kept

    # -- what it has done ----------------------------------------------------------------------

    def before(self) -> Iterator[Record]:
        """The programs that are done, in order; what is torn is cut off."""
        file = self.path / DONE
        data = read_file(file) if file.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_whole(file, whole)
        for number, line in enumerate(whole.splitlines()):
            yield self._read(line, number)

    def _read(self, line: bytes, number: int) -> Record:
        where = f"{self.path / DONE}:{number + 1}"
        try:
            record = msgspec.json.decode(line, type=Record)
        except msgspec.ValidationError as error:
            raise UserError(where, str(error), "a line of a hunt") from None
        except msgspec.DecodeError as error:
            raise UserError(where, f"is damaged: {error}", "a line of a hunt") from None
        if record.index != number:
            raise UserError(where, f"is program {record.index}", f"program {number}")
        return record

    def add(self, record: Record) -> None:
        """One more program.  Raises ``OSError`` with the path."""
        for finding in record.findings:
            for path, text in self.files(finding).items():
                write_whole(path, text.encode())
        file = disk().open(self.path / DONE, os.O_CREAT | os.O_APPEND)
        try:
            write_all(file, msgspec.json.encode(record) + b"\n")
        finally:
            disk().close(file)

    def files(self, finding: Finding) -> dict[Path, str]:
        """The files of a finding, the race's last: where that is, the others are."""
        folder = self.path / FINDINGS
        return {
            folder / f"{finding.name}{SUFFIX}": finding.schedule,
            self.race_of(finding): finding.race,
        }

    def race_of(self, finding: Finding) -> Path:
        """The race's file."""
        return self.path / FINDINGS / f"{finding.name}.toml"


def _check_plugins(wanted: list[plugins.Plugin], where: str) -> None:
    there = {plugin.name: plugin.sha256 for plugin in plugins.loaded()}
    for at, plugin in enumerate(wanted):
        if there.get(plugin.name) != plugin.sha256:
            raise UserError(
                f"{where}: plugin[{at}]", f"hunts with the plug-in {plugin.name!r} as it was",
                f"--plugin {plugin.path}",
            )  # fmt: skip
