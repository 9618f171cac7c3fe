"""The catalogue of races: one TOML file per race beside this module.

A race names its world, its programs, the kernels under which it is violated or holds, and the
chaos recipe that widens the window.  It holds no code and no verdict logic.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from broker.chaos import ChaosConfig, parse_rules
from broker.chaos_config import check_names
from broker.programs import Program
from nodes.kernel.variant import Kernel, preset
from nodes.world import World
from oracle.sometimes import Condition, conditions_from
from protocol.errors import UserError
from scenarios.operations import programs_from
from scenarios.spec import Expectation, RunSpec
from scenarios.tables import Table, TomlTable, array, convert, convert_each, read_toml
from scenarios.workloads import Script
from scenarios.worlds import world_from

DIRECTORY: Final = Path(__file__).parent
Text = Annotated[str, msgspec.Meta(min_length=1)]


class KernelTable(TomlTable, frozen=True):
    """``[[kernel]]``: a preset, switches set otherwise, and what the race does there."""

    name: Text
    release: str
    expect: Expectation
    arch: str = "x86"
    set: dict[str, Any] = {}
    """Switches that differ from the preset."""


class _RaceTable(TomlTable, frozen=True):
    """The keys of a race's file."""

    id: Text
    name: Text
    title: Text
    family: Text
    source: list[str]
    story: Text
    world: Table
    program: list[Any]
    kernel: list[Any]
    chaos: Table = {}
    sometimes: list[Table] = []


class KernelCase(msgspec.Struct, frozen=True):
    """One kernel of a race."""

    name: str
    kernel: Kernel
    expect: Expectation


class Race(msgspec.Struct, frozen=True):
    """One race, checked."""

    id: str
    name: str
    title: str
    family: str
    source: tuple[str, ...]
    """Commits, bugs and threads."""
    story: str
    """Markdown."""
    world: World
    """Under the first kernel; ``run`` puts in the one that is asked for."""
    programs: tuple[Program, ...]
    kernels: tuple[KernelCase, ...]
    chaos: ChaosConfig | None
    sometimes: tuple[Condition, ...]
    where: str
    """The file it came from."""

    def kernel_case(self, name: str = "") -> KernelCase:
        """The kernel of that name, or the first.  Raises ``UserError``."""
        if not name:
            return self.kernels[0]
        for case in self.kernels:
            if case.name == name:
                return case
        names = ", ".join(case.name for case in self.kernels)
        raise UserError("--kernel", f"{self.id} has no kernel {name!r}", f"one of {names}")

    def run(self, kernel: str = "", seed: int = 0) -> RunSpec:
        """All that is needed to run this race once under one of its kernels."""
        case = self.kernel_case(kernel)
        return RunSpec(
            name=f"{self.id}-{case.name}",
            world=msgspec.structs.replace(self.world, kernel=case.kernel),
            seed=seed,
            workload=Script(self.programs),
            chaos=self.chaos,
            expectation=case.expect,
            sometimes=self.sometimes,
        )


def load_race(path: Path, name: str = "") -> Race:
    """The race in a file, which errors call ``name``.

    Raises ``UserError``: file, key path, problem, what was expected.
    """
    where = name or str(path)
    table = convert(read_toml(path, where), _RaceTable, where)
    kernels = _kernels(table.kernel, f"{where}: kernel")
    world = world_from(table.world, kernels[0].kernel, f"{where}: world")
    programs = programs_from(table.program, world, f"{where}: program")
    return Race(
        id=table.id,
        name=table.name,
        title=table.title,
        family=table.family,
        source=tuple(table.source),
        story=table.story.strip(),
        world=world,
        programs=programs,
        kernels=kernels,
        chaos=_chaos(table.chaos, world, programs, f"{where}: chaos"),
        sometimes=conditions_from(table.sometimes, f"{where}: sometimes"),
        where=where,
    )


def _chaos(
    table: Table, world: World, programs: tuple[Program, ...], where: str
) -> ChaosConfig | None:
    """The recipe; its nodes and programs must be those of the race."""
    if not table:
        return None
    config = parse_rules(table, where)
    check_names(config, world.nodes(), (program.name for program in programs), where)
    return config


def _kernels(value: Any, where: str) -> tuple[KernelCase, ...]:
    cases: list[KernelCase] = []
    for index, table in enumerate(convert_each(value, KernelTable, where)):
        place = f"{where}[{index}]"
        kernel = preset(table.release, table.arch, table.set, place)
        if table.name in (case.name for case in cases):
            raise UserError(f"{place}.name", f"{table.name!r} is there twice", "different names")
        cases.append(KernelCase(table.name, kernel, table.expect))
    if not array(value, where):
        raise UserError(where, "is empty", "at least one kernel")
    return tuple(cases)


def load_all(directory: Path = DIRECTORY) -> dict[str, Race]:
    """Every race of a directory by id, in order of ids.  Raises ``UserError``."""
    races: dict[str, Race] = {}
    for path in sorted(directory.glob("*.toml")):
        race = load_race(path, path.name)
        if race.id in races:
            raise UserError(f"{race.where}: id", f"{race.id!r} is also in {races[race.id].where}")
        races[race.id] = race
    return dict(sorted(races.items()))


def find(wanted: str, races: Iterable[Race] | None = None) -> Race:
    """The race with that id or name, whatever the case.  Raises ``UserError``."""
    if races is None:
        return _named(wanted) or find(wanted, load_all().values())
    known = list(races)
    for race in known:
        if wanted.lower() in (race.id.lower(), race.name.lower()):
            return race
    raise UserError(
        "scenario", f"unknown scenario {wanted!r}", f"one of {', '.join(r.id for r in known)}"
    )


def _named(wanted: str) -> Race | None:
    """The race whose file is called <id>-<name>, without reading all the others."""
    for path in sorted(DIRECTORY.glob("*.toml")):
        if wanted.lower() in path.stem.partition("-")[::2]:
            race = load_race(path, path.name)
            if wanted.lower() in (race.id.lower(), race.name.lower()):
                return race
    return None
