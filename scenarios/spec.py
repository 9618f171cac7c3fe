"""``RunSpec``: all that is needed to run once, and its file ``run.toml``.

A run directory is self-contained: what a workload reads (a log) is copied beside ``run.toml``
and named there relative to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import msgspec

from mmurace.broker.chaos import ChaosConfig, parse_rules
from mmurace.broker.programs import Program
from mmurace.nodes import plugins
from mmurace.nodes.files import sealed, write_whole
from mmurace.nodes.secondary import Number
from mmurace.nodes.world import World
from mmurace.oracle.sometimes import Condition, conditions_from
from mmurace.oracle.verdict import Expected
from mmurace.protocol.errors import UserError
from mmurace.scenarios import versions
from mmurace.scenarios.switches import kernel_of, kernel_to
from mmurace.scenarios.tables import (
    Table,
    TomlTable,
    convert,
    parse_toml,
    read_toml,
    sub_table,
    toml_text,
)
from mmurace.scenarios.workloads import Workload, workload_from
from mmurace.scenarios.worlds import world_from, world_to

SCHEMA: Final = 1
RUN_FILE: Final = "run.toml"


class Expectation(TomlTable, frozen=True):
    """What a scenario says of one kernel.

    For ``violated``, among the violations is one by ``rule`` of ``agent``; where given, in
    ``cache`` and on the page ``address`` of ``mm``.
    """

    verdict: Literal["held", "violated"]
    rule: str = ""
    agent: str = ""
    cache: str = ""
    mm: str = ""
    address: int = -1
    """Byte address of the page; -1: any."""
    description: str = ""

    def expected(self) -> Expected | None:
        """The breach that must be among the violations; None if it must hold."""
        if self.verdict == "held":
            return None
        return Expected(self.rule, self.agent, self.cache, self.mm, self.address)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run."""

    name: str
    world: World
    seed: int
    workload: Workload
    chaos: ChaosConfig | None = None
    operations_max: int | None = None
    """Operations fed before feeding stops; None: all."""
    expectation: Expectation | None = None
    sometimes: tuple[Condition, ...] = ()
    """What shows that the window was entered."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of what it ran on (``versions.current``); informative."""

    def programs(self) -> tuple[Program, ...]:
        """The programs to feed."""
        return self.workload.programs(self.world, self.seed)

    def with_seed(self, seed: int) -> RunSpec:
        """The same run under another seed."""
        return replace(self, seed=seed)

    def patched(self, patch: str) -> RunSpec:
        """The same run on the kernel with a plug-in's patch, of which nobody says what to expect.

        Empty: the same run.  Raises ``UserError`` if no plug-in has declared it.
        """
        if not patch:
            return self
        plugins.check_patch(patch)
        old = self.world.kernel
        kernel = msgspec.structs.replace(old, patches=(*old.patches, patch))
        world = msgspec.structs.replace(self.world, kernel=kernel)
        return replace(self, name=f"{self.name}-{patch}", world=world, expectation=None)

    def to_toml(self, directory: Path) -> str:
        """The text of ``run.toml``; files are named relative to ``directory``."""
        world = {"kernel": kernel_to(self.world.kernel)} | world_to(self.world)
        table: Table = {
            "schema": SCHEMA,
            "name": self.name,
            "seed": self.seed,
            "operations_max": self.operations_max,
            "versions": dict(self.versions) or None,
            "plugin": [msgspec.to_builtins(plugin) for plugin in plugins.loaded()] or None,
            "expectation": _without_defaults(self.expectation) if self.expectation else None,
            "sometimes": [_without_defaults(c) for c in self.sometimes] or None,
            "chaos": msgspec.to_builtins(self.chaos) if self.chaos else None,
            "world": world,
            "workload": {"kind": self.workload.kind} | self.workload.to_table(directory),
        }
        return toml_text({key: value for key, value in table.items() if value is not None})

    def save(self, directory: Path) -> RunSpec:
        """Write ``run.toml`` and what it names, each whole; the spec that reads the copies.

        Raises ``OSError`` with the path (disk full).
        """
        workload = self.workload.save_files(directory)
        copied = replace(self, workload=workload, versions=versions.current())
        write_whole(directory / RUN_FILE, sealed(copied.to_toml(directory)).encode())
        return copied

    @classmethod
    def load(cls, directory: Path) -> RunSpec:
        """The spec in a run directory.  Raises ``UserError`` with the file and key path."""
        path = directory / RUN_FILE
        return cls.from_table(read_toml(path), str(path), directory)

    @classmethod
    def from_toml(cls, text: str, where: str, directory: Path) -> RunSpec:
        """The spec of a text; files are named relative to ``directory``."""
        return cls.from_table(parse_toml(text, where), where, directory)

    @classmethod
    def from_table(cls, table: Table, where: str, directory: Path) -> RunSpec:
        """The spec of a ``run.toml`` table.  Raises ``UserError``."""
        run = convert(table, _RunTable, where)
        if run.schema != SCHEMA:
            raise UserError(f"{where}: schema", f"is {run.schema}", str(SCHEMA))
        _check_plugins(run.plugin, where)
        world_table = dict(run.world)
        kernel_table = sub_table(world_table.pop("kernel", None), f"{where}: world.kernel")
        kernel = kernel_of(kernel_table, f"{where}: world.kernel")
        world = world_from(world_table, kernel, f"{where}: world")
        return cls(
            name=run.name,
            world=world,
            seed=run.seed,
            workload=workload_from(run.workload, world, f"{where}: workload", directory),
            chaos=parse_rules(run.chaos, f"{where}: chaos") if run.chaos else None,
            operations_max=run.operations_max,
            expectation=run.expectation,
            sometimes=conditions_from(run.sometimes, f"{where}: sometimes"),
            versions=run.versions,
        )


def _check_plugins(wanted: list[plugins.Plugin], where: str) -> None:
    """Those that a run was made with are there, under another name perhaps."""
    there = {key for plugin in plugins.loaded() for key in (plugin.name, plugin.sha256)}
    for at, plugin in enumerate(wanted):
        if plugin.name not in there and plugin.sha256 not in there:
            gone = "" if Path(plugin.path).is_file() else ", or where it is now: that is gone"
            raise UserError(
                f"{where}: plugin[{at}]",
                f"made with the plug-in {plugin.name!r}, sha256 {plugin.sha256[:12]}",
                f"--plugin {plugin.path}{gone}",
            )  # fmt: skip


class _RunTable(TomlTable, frozen=True):
    """The keys of ``run.toml``."""

    schema: int
    name: str
    seed: Number
    world: Table
    workload: Table
    chaos: Table = {}
    operations_max: Number | None = None
    expectation: Expectation | None = None
    sometimes: list[Table] = []
    versions: dict[str, str] = {}
    plugin: list[plugins.Plugin] = []


def _without_defaults(struct: msgspec.Struct) -> Table:
    """A struct as a table (with its tag, if it has one), values that are usual left out."""
    usual = {field.encode_name: field.default for field in msgspec.structs.fields(struct)}
    built: Table = msgspec.to_builtins(struct)
    return {k: v for k, v in built.items() if k not in usual or v != usual[k]}
