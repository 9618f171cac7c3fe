"""Worlds in TOML: the nodes of a run and their sizes."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from broker.plan import NODE_NAME, impossible_names
from nodes.kernel.variant import Kernel
from nodes.world import Link, Unit, Vm, World
from protocol.errors import UserError
from protocol.limits import NODES_MAX
from protocol.messages.kvm import Memslot
from scenarios.tables import Table, TomlTable, convert, convert_each

Positive = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""What TOML promises to hold, and a message to carry."""
FRAMES_MAX: Final = 1 << 20
Levels = Annotated[int, msgspec.Meta(ge=1, le=5)]
Entries = Annotated[int, msgspec.Meta(ge=1, le=512)]
Frames = Annotated[int, msgspec.Meta(ge=1, le=FRAMES_MAX)]
Few = Annotated[int, msgspec.Meta(ge=1, le=4096)]
OneIn = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class SlotTable(TomlTable, frozen=True):
    """``struct kvm_memory_slot``: ``pages`` guest frames from ``gfn`` are at ``hva``."""

    gfn: Number
    pages: Positive
    hva: Number
    apic: bool = False


class VmTable(TomlTable, frozen=True):
    """A KVM guest."""

    name: str
    vcpus: tuple[str, ...]
    mm: str
    slots: list[Any]


class UnitTable(TomlTable, frozen=True):
    """An IOMMU and the devices behind it."""

    name: str
    devices: tuple[str, ...]
    mms: tuple[str, ...]
    iopf_cpu: str
    ats: bool = False
    pwc: bool = False


class LinkTable(TomlTable, frozen=True):
    """An OpenCAPI link, and who is attached to it from the start."""

    name: str
    fault_cpu: str
    mms: tuple[str, ...] = ()


class WorldTable(TomlTable, frozen=True):
    """A world without its kernel; what is left out is as in ``nodes.world.World``."""

    cpus: tuple[str, ...] = ("cpu0", "cpu1")
    mms: tuple[str, ...] = ("mm0",)
    units: list[Any] = []
    vms: list[Any] = []
    links: list[Any] = []
    levels: Levels = 2
    entries: Entries = 8
    frames: Frames = 32
    gather_batch: Few = 8
    tlb_entries: Few = 64
    evict_one_in: OneIn = 0


def world_from(value: Any, kernel: Kernel, where: str) -> World:
    """The world of a ``[world]`` table under ``kernel``.  Raises ``UserError``."""
    table = convert(value, WorldTable, where)
    units = convert_each(table.units, UnitTable, f"{where}.units")
    vms = convert_each(table.vms, VmTable, f"{where}.vms")
    links = convert_each(table.links, LinkTable, f"{where}.links")
    sizes = {
        name: getattr(table, name)
        for name in ("cpus", "mms", "levels", "entries", "frames", "gather_batch", "tlb_entries",
                     "evict_one_in")
    }  # fmt: skip
    world = World(
        kernel=kernel,
        units=tuple(Unit(u.name, u.devices, u.mms, u.iopf_cpu, u.ats, u.pwc) for u in units),
        vms=tuple(_vm(vm, f"{where}.vms[{index}]") for index, vm in enumerate(vms)),
        links=tuple(Link(link.name, link.mms, link.fault_cpu) for link in links),
        **sizes,
    )
    _check(world, where)
    return world


def _vm(table: VmTable, where: str) -> Vm:
    slots = convert_each(table.slots, SlotTable, f"{where}.slots")
    memslots = tuple(Memslot(s.gfn, s.pages, s.hva, s.apic) for s in slots)
    return Vm(table.name, table.vcpus, table.mm, memslots)


def world_to(world: World) -> Table:
    """The ``[world]`` table, without the kernel."""
    table: Table = {
        name: _plain(getattr(world, name))
        for name in WorldTable.__struct_fields__
        if name not in ("units", "vms", "links")
    }
    table["units"] = [msgspec.to_builtins(unit) for unit in world.units]
    table["vms"] = [_vm_to(vm) for vm in world.vms]
    table["links"] = [msgspec.to_builtins(link) for link in world.links]
    return table


def _vm_to(vm: Vm) -> Table:
    slots = [{"gfn": s.gfn, "pages": s.pages, "hva": s.hva, "apic": s.apic} for s in vm.slots]
    return {"name": vm.name, "vcpus": list(vm.vcpus), "mm": vm.mm, "slots": slots}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check(world: World, where: str) -> None:
    """Names are there and are unique; sizes make sense."""
    names = world.nodes()
    if len(set(names)) != len(names):
        raise UserError(where, "two nodes have one name", "a different name for each node")
    for name in impossible_names(names):
        raise UserError(where, f"a node cannot be called {name!r}", NODE_NAME.pattern)
    if len(names) > NODES_MAX:
        raise UserError(where, f"has {len(names)} nodes", f"at most {NODES_MAX}")
    if not world.cpus or not world.mms:
        raise UserError(where, "has no cpu or no mm", "at least one of each")
    if world.entries & (world.entries - 1) or world.entries < 2:
        raise UserError(f"{where}.entries", f"is {world.entries}", "a power of two")
    if world.frames <= len(world.mms):
        problem = f"is {world.frames}, too few for the zero page and the tables of all mms"
        raise UserError(f"{where}.frames", problem, f"more than {len(world.mms)}")
    for index, unit in enumerate(world.units):
        _known(unit.mms, world.mms, f"{where}.units[{index}].mms")
        _known((unit.iopf_cpu,), world.cpus, f"{where}.units[{index}].iopf_cpu")
    for index, vm in enumerate(world.vms):
        _known((vm.mm,), world.mms, f"{where}.vms[{index}].mm")
    for index, link in enumerate(world.links):
        _known(link.mms, world.mms, f"{where}.links[{index}].mms")
        _known((link.fault_cpu,), world.cpus, f"{where}.links[{index}].fault_cpu")
    if world.links and world.kernel.arch != "ppc":
        raise UserError(f"{where}.links", f"are there on {world.kernel.arch}", "arch = ppc")


def _known(names: tuple[str, ...], among: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in among:
            raise UserError(where, f"unknown name {name!r}", f"one of {', '.join(among)}")
