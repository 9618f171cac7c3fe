"""The catalogue of races: one TOML file per race beside this module.

A race names its world, its programs, the kernels under which it is violated or holds, and the
chaos recipe that widens the window.  It holds no code and no verdict logic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from mmurace.broker.chaos import ChaosConfig, parse_rules
from mmurace.broker.chaos_config import check_names
from mmurace.broker.programs import Program
from mmurace.nodes.kernel.variant import MACHINES, Kernel
from mmurace.nodes.kernel.variant.preset import drivers_of
from mmurace.nodes.world import World
from mmurace.oracle.rules.o_s8_page_tables import PWC
from mmurace.oracle.rules.table import chosen_rules
from mmurace.oracle.sometimes import Condition, conditions_from, known_caches
from mmurace.protocol.errors import UserError
from mmurace.protocol.names import meant, perhaps
from mmurace.scenarios.conditions import Possible
from mmurace.scenarios.operations import programs_from
from mmurace.scenarios.spec import Expectation, RunSpec
from mmurace.scenarios.switches import kernel_from
from mmurace.scenarios.tables import Table, TomlTable, array, convert, convert_each, read_toml
from mmurace.scenarios.workloads import Script
from mmurace.scenarios.worlds import world_from

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
    drivers: list[str] = []
    """Driver profiles other than the usual ones."""
    patches: list[str] = []
    """Patches of plug-ins."""


class ScopeTable(TomlTable, frozen=True):
    """The keys of ``[[scope]]``: what an exhaustive search of some of the kernels runs."""

    program: list[Any]
    sometimes: list[Table]
    kernels: list[str] = []
    """Names of the kernels that it is for; none: all that no scope before it is for."""
    world: Table = {}
    """If it needs another world than the race."""
    name: str = ""
    """Searched only if it is asked for by this name."""


class RaceTable(TomlTable, frozen=True):
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
    scope: list[Any] = []


class Scope(msgspec.Struct, frozen=True):
    """A race with no more than it needs, so that every execution can be searched.

    Every actor is there and runs its whole operation once, all at the same time.
    """

    kernels: tuple[str, ...]
    world: World
    programs: tuple[Program, ...]
    sometimes: tuple[Condition, ...]
    name: str = ""

    def covers(self, kernel: str, name: str) -> bool:
        """Whether it is for a kernel of that name, and is what was asked for."""
        return name == self.name and (not self.kernels or kernel in self.kernels)


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
    scopes: tuple[Scope, ...] = ()

    def in_catalogue(self) -> bool:
        """Whether its id is enough to find it; a file of one's own has a path with a ``/``."""
        return "/" not in self.where

    def kernel_case(self, name: str = "") -> KernelCase:
        """The kernel of that name, or the only one that begins so; the first if none is named.

        Raises ``UserError``.
        """
        if not name:
            return self.kernels[0]
        named = {case.name: case for case in self.kernels}
        found = meant(name, named)
        if len(found) == 1:
            return named[found[0]]
        problem = f"{self.id} has {'several kernels' if found else 'no kernel'} {name!r}"
        raise UserError("--kernel", problem, f"one of {', '.join(found or named)}")

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

    def run_in_scope(self, kernel: str = "", seed: int = 0, scope: str = "") -> RunSpec:
        """The same for an exhaustive search: in the kernel's scope if it has one, no chaos.

        ``scope`` is the name of another one.  Raises ``UserError`` if the kernel has none of it.
        """
        name, spec = self.kernel_case(kernel).name, replace(self.run(kernel, seed), chaos=None)
        for one in self.scopes:
            if one.covers(name, scope):
                world = msgspec.structs.replace(one.world, kernel=spec.world.kernel)
                workload = Script(one.programs)
                return replace(spec, world=world, workload=workload, sometimes=one.sometimes)
        if scope:
            known = [one.name for one in self.scopes if one.covers(name, one.name) and one.name]
            problem = f"{self.id} has no scope {scope!r} for {name}"
            raise UserError("--scope", problem, ", ".join(known) or "none")
        return spec


def load_race(path: Path, name: str = "") -> Race:
    """The race in a file, which errors call ``name``.

    Raises ``UserError``: file, key path, problem, what was expected.
    """
    where = name or str(path)
    return race_from(read_toml(path, where), where)


def race_from(top: Table, where: str) -> Race:
    """The race of a table like that of a file, which errors call ``where``.

    Raises ``UserError``: file, key path, problem, what was expected.
    """
    table = convert(top, RaceTable, where)
    kernels = _kernels(table.kernel, f"{where}: kernel")
    world = _world(table.world, kernels, f"{where}: world")
    programs = programs_from(table.program, world, f"{where}: program")
    _check_expectations(kernels, world, f"{where}: kernel")
    of = [(case.name, case.kernel) for case in kernels]
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
        sometimes=_conditions(
            table.sometimes, Possible(world, programs, of), f"{where}: sometimes"
        ),
        where=where,
        scopes=_scopes(table.scope, world, kernels, f"{where}: scope"),
    )


def _world(table: Table, kernels: Sequence[KernelCase], where: str) -> World:
    """The world under the first kernel, if there can be such a world under every one."""
    worlds = [world_from(table, case.kernel, where) for case in kernels]
    return worlds[0]


def _scopes(
    value: Any, world: World, kernels: tuple[KernelCase, ...], where: str
) -> tuple[Scope, ...]:
    scopes: list[Scope] = []
    known = [case.name for case in kernels]
    for index, table in enumerate(convert_each(value, ScopeTable, where)):
        place = f"{where}[{index}]"
        for name in table.kernels:
            if name not in known:
                raise UserError(f"{place}.kernels", f"no kernel {name!r}", ", ".join(known))
        of = [case for case in kernels if not table.kernels or case.name in table.kernels]
        own = _world(table.world, of, f"{place}.world") if table.world else world
        programs = programs_from(table.program, own, f"{place}.program")
        possible = Possible(own, programs, [(case.name, case.kernel) for case in of])
        conditions = _conditions(table.sometimes, possible, f"{place}.sometimes")
        scopes.append(Scope(tuple(table.kernels), own, programs, conditions, table.name))
    return tuple(scopes)


def _chaos(
    table: Table, world: World, programs: tuple[Program, ...], where: str
) -> ChaosConfig | None:
    """The recipe; its nodes and programs must be those of the race."""
    if not table:
        return None
    config = parse_rules(table, where)
    check_names(config, world.nodes(), (program.name for program in programs), where)
    return config


def _conditions(value: list[Table], possible: Possible, where: str) -> tuple[Condition, ...]:
    """The conditions; one that no run could ever miss or meet is refused."""
    world = possible.world
    conditions = conditions_from(value, where)
    for index, condition in enumerate(conditions):
        place = f"{where}[{index}]"
        for key in ("agent", "node"):
            _check_known(getattr(condition, key, ""), world.nodes(), f"{place}.{key}")
        at_least = getattr(condition, "at_least", 1)
        if at_least < 1:
            raise UserError(f"{place}.at_least", f"is {at_least}", "1 or more")
    possible.check(conditions, where)
    return conditions


def _check_expectations(cases: tuple[KernelCase, ...], world: World, where: str) -> None:
    """What is expected is something that can be found in this world."""
    for index, case in enumerate(cases):
        expect, place = case.expect, f"{where}[{index}].expect"
        chosen_rules(frozenset(filter(None, [expect.rule])), f"{place}.rule")
        _check_known(expect.agent, world.nodes(), f"{place}.agent")
        _check_known(expect.cache, (*known_caches(), PWC), f"{place}.cache")
        _check_known(expect.mm, world.mms, f"{place}.mm")


def _check_known(name: str, known: tuple[str, ...], where: str) -> None:
    if name and name not in known:
        raise UserError(where, f"unknown name {name!r}", f"one of {', '.join(known)}")


def _kernels(value: Any, where: str) -> tuple[KernelCase, ...]:
    cases: list[KernelCase] = []
    for index, table in enumerate(convert_each(value, KernelTable, where)):
        place = f"{where}[{index}]"
        if table.drivers and table.arch in MACHINES:
            drivers_of(table.arch, table.drivers, f"{place}.drivers")
        kernel = kernel_from(
            table.release, table.arch, table.set, place, "set", table.drivers, table.patches
        )
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
    """The race with that id or name, the only one that begins so, or the one in that file.

    The case does not matter.  Raises ``UserError`` with what may have been meant.
    """
    if races is None and wanted.endswith(".toml"):
        return load_race(Path(wanted), wanted if "/" in wanted else f"./{wanted}")
    if races is None:
        return _named(wanted) or find(wanted, load_all().values())
    known = {name: race for race in races for name in (race.id, race.name)}
    found = {known[name].id: known[name] for name in meant(wanted, known)}
    if len(found) == 1:
        return next(iter(found.values()))
    problem = f"{'more than one' if found else 'unknown'} scenario {wanted!r}"
    ids = ", ".join(dict.fromkeys(race.id for race in known.values()))
    otherwise = f"one of {ids}, or a file that ends with .toml"
    raise UserError("scenario", problem, perhaps(wanted, known, otherwise))


def _named(wanted: str) -> Race | None:
    """The race whose file is called <id>-<name>, without reading all the others."""
    for path in sorted(DIRECTORY.glob("*.toml")):
        if wanted.lower() in path.stem.partition("-")[::2]:
            race = load_race(path, path.name)
            if wanted.lower() in (race.id.lower(), race.name.lower()):
                return race
    return None


def id_in_run_name(name: str) -> str:
    """The id of the race that a run of this name (``E01-v5.7``) is of; empty if of none there."""
    word = name.partition("-")[0]
    there = any(DIRECTORY.glob(f"{word.lower()}-*.toml")) if word.isalnum() else False
    return word if there else ""
