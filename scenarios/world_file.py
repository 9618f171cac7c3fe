"""The file of ``stress --world``: which nodes there are, how large, under which kernel.

::

    schema = 1

    [kernel]                     # what --kernel, --arch, --driver and --set say; those win
    release = "v6.6.5"
    arch = "arm64"
    drivers = []
    set = { btm = true }

    [nodes]                      # how many of each
    cpus = 4
    devices = 2
    ats = true

    [sizes]                      # nodes.world.World
    frames = 512

    [mixed]                      # scenarios.mixed.MixedOptions
    slots = 8
    mix = { touch = 40, munmap = 20 }

Every key may be left out but ``schema``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.nodes.kernel.variant.preset import drivers_of
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.scenarios.agents import apart, problems_beside
from mmurace.scenarios.arena import Counts, MixedOptions, addable, cpu_names, told
from mmurace.scenarios.mixed import Mixed
from mmurace.scenarios.switches import kernel_from
from mmurace.scenarios.tables import Table, TomlTable, convert, read_toml
from mmurace.scenarios.worlds import FRAMES_MAX, Few, Levels, OneIn

SCHEMA: Final = 1
RELEASE: Final = "v6.6.5"
ARCH: Final = "x86"
"""The kernel where neither the file nor the command line names one: the first v6.6 on which the
drivers of all machines flush what they are told."""

WORLDS: Final = Path(__file__).resolve().parent / "world_files"
"""The files that come with the emulator."""

Switches = dict[str, object]


class KernelTable(TomlTable, frozen=True):
    """``[kernel]``: a preset and what differs from it."""

    release: str = RELEASE
    arch: str = ARCH
    drivers: list[str] = []
    """Driver profiles other than the usual ones."""
    set: dict[str, Any] = {}


class SizeTable(TomlTable, frozen=True):
    """``[sizes]``: what is left out is as the workload has it (see ``nodes.world.World``)."""

    levels: Levels | None = None
    entries: Annotated[int, msgspec.Meta(ge=2, le=512)] | None = None
    frames: Annotated[int, msgspec.Meta(ge=16, le=FRAMES_MAX)] | None = None
    gather_batch: Few | None = None
    tlb_entries: Few | None = None
    evict_one_in: OneIn | None = None


class WorldFileTable(TomlTable, frozen=True):
    """The keys of the file."""

    schema: int
    kernel: KernelTable = KernelTable()
    nodes: Table = {}
    sizes: SizeTable = SizeTable()
    mixed: Table = {}


@dataclass(frozen=True, slots=True)
class WorldFile:
    """What a file says.  ``where`` is its path, for errors; without a file nothing is said."""

    where: str = "--world"
    kernel: KernelTable = field(default_factory=KernelTable)
    nodes: Table | None = None
    sizes: SizeTable = field(default_factory=SizeTable)
    mixed: Table | None = None

    def kernel_of(
        self,
        release: str = "",
        arch: str = "",
        switches: Switches | None = None,
        drivers: Sequence[str] = (),
    ) -> Kernel:
        """The kernel: what is given here, else what the file says, else v6.6.5 on x86.

        Raises ``UserError`` that names the option.
        """
        table = self.kernel
        named = (release or table.release, arch or table.arch)
        preset(named[0])
        preset(*named, where="--arch")
        profiles = drivers_of(named[1], drivers or table.drivers, "--driver")
        where = "--set" if switches else "--kernel"
        return kernel_from(*named, dict(table.set) | (switches or {}), where, drivers=profiles)

    def options(self, kernel: Kernel | None = None) -> MixedOptions:
        """The options of the mixed workload, which ``kernel`` must have room for: ``UserError``."""
        kinds = addable()
        nodes, added = apart(self.nodes or {}, frozenset(kinds))
        counts = convert(nodes, Counts, self._at("nodes"))
        for key in self.mixed or {}:
            if key in (*Counts.__struct_fields__, "added"):
                raise UserError(self._at(f"mixed.{key}"), "is not of the workload", f"nodes.{key}")
        options = Mixed.from_table(self.mixed or {}, self._at("mixed")).options
        own = {k: convert(n, kinds[k], self._at(f"nodes.{k}")) for k, n in added.items()}
        options = msgspec.structs.replace(options, added=own, **msgspec.structs.asdict(counts))
        for key, problem, expected in problems_beside(told(options), kernel):
            raise UserError(self._at(f"nodes.{key}"), problem, expected)
        return options

    def resize(self, world: World) -> World:
        """The world with the sizes of the file.  Raises ``UserError`` if it has no room."""
        sizes = {k: v for k, v in msgspec.structs.asdict(self.sizes).items() if v is not None}
        resized = msgspec.structs.replace(world, **sizes)
        if resized.entries & (resized.entries - 1):
            raise UserError(self._at("sizes.entries"), f"is {resized.entries}", "a power of two")
        if resized.address_end() < world.address_end():
            raise UserError(
                self._at("sizes"),
                f"levels = {resized.levels} of entries = {resized.entries} map "
                f"{resized.shift(resized.levels)} bits",
                f"the {world.shift(world.levels)} bits that the workload uses",
            )
        return resized

    def log_world(self, world: World) -> World:
        """The world of a log with the file's CPUs and sizes.  Raises ``UserError``.

        The log decides its programs and what it takes beside them.
        """
        for key, given in (("nodes", self.nodes), ("mixed", self.mixed)):
            for name in given or {}:
                if (key, name) != ("nodes", "cpus"):
                    raise UserError(
                        self._at(f"{key}.{name}"), "a log brings its own",
                        "[kernel], nodes.cpus and [sizes]",
                    )  # fmt: skip
        return self.resize(_with_cpus(world, self.options().cpus) if self.nodes else world)

    def check(self) -> None:
        """Raise ``UserError`` with the place of what no run could use."""
        table = self.kernel
        preset(table.release, where=self._at("kernel.release"))
        preset(RELEASE, table.arch, where=self._at("kernel.arch"))
        drivers_of(table.arch, table.drivers, self._at("kernel.drivers"))
        kernel_from(
            table.release, table.arch, table.set, self._at("kernel.set"), drivers=table.drivers
        )
        self.options()

    def _at(self, key: str) -> str:
        return f"{self.where}: {key}"


def load_world(path: Path | None) -> WorldFile:
    """What the file says, or that of this name in ``scenarios/world_files``; nothing without one.

    Raises ``UserError`` with file and key path.
    """
    if path is None:
        return WorldFile()
    path = find_world(path)
    where = str(path)
    table = convert(read_toml(path), WorldFileTable, where)
    if table.schema != SCHEMA:
        raise UserError(f"{where}: schema", f"is {table.schema}", str(SCHEMA))
    file = WorldFile(where, table.kernel, table.nodes, table.sizes, table.mixed)
    file.check()
    return file


def find_world(name: Path) -> Path:
    """The file that ``name`` means; ``UserError`` if there is neither a file nor such a world."""
    shipped = WORLDS / f"{name}.toml"
    if name.suffix or name.exists() or shipped.parent != WORLDS:
        return name
    if shipped.exists():
        return shipped
    raise UserError(str(name), "no such world", f"a file, or {' or '.join(worlds())}")


def worlds() -> list[str]:
    """Names of the worlds that come with the emulator."""
    return sorted(path.stem for path in WORLDS.glob("*.toml"))


def _with_cpus(world: World, count: int) -> World:
    """The world with so many CPUs; the last one serves page requests."""
    cpus = cpu_names(count)
    parts = (msgspec.structs.replace(p, **dict.fromkeys(p.CPUS, cpus[-1])) for p in world.parts)
    return msgspec.structs.replace(world, cpus=cpus, parts=tuple(parts))
