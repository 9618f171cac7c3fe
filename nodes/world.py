"""The world of a run: which nodes there are and what each is made of.

A ``World`` is plain data, so that ``run.toml`` can hold it and any process can rebuild its node
from it.
"""

from __future__ import annotations

import msgspec

from nodes.kernel.variant import Kernel
from protocol.messages.kvm import Memslot

MEMORY = "memory"


class Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A KVM guest: its ``kvm`` node, its vCPU nodes, its VMM's mm and its memslots."""

    name: str
    vcpus: tuple[str, ...]
    mm: str
    slots: tuple[Memslot, ...]


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An IOMMU, the devices behind it, the mms bound to it (SVA), and the CPU of its workqueue."""

    name: str
    devices: tuple[str, ...]
    mms: tuple[str, ...]
    iopf_cpu: str
    ats: bool = False
    """Its devices have translation caches of their own (ATC), filled by translation requests."""
    pwc: bool = False
    """Its walker keeps upper entries (a paging-structure cache)."""


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenCAPI link: the mms attached to it from the start, and who serves its interrupts."""

    name: str
    mms: tuple[str, ...]
    fault_cpu: str

    def contexts(self) -> tuple[tuple[int, str], ...]:
        """(PASID, mm) of the contexts that are there from the start."""
        return tuple(enumerate(self.mms, 1))


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All nodes of a run and their sizes."""

    kernel: Kernel
    cpus: tuple[str, ...] = ("cpu0", "cpu1")
    mms: tuple[str, ...] = ("mm0",)
    units: tuple[Unit, ...] = ()
    vms: tuple[Vm, ...] = ()
    links: tuple[Link, ...] = ()
    levels: int = 2
    """Levels of the page table; the leaf level is 0."""
    entries: int = 8
    """Entries in a table of each level; a power of two."""
    frames: int = 32
    """Frames in the pool, page-table pages and the zero page included."""
    gather_batch: int = 8
    """Pages that an ``mmu_gather`` holds before it must flush (``MAX_GATHER_BATCH``)."""
    tlb_entries: int = 64
    """Translations that a TLB or IOTLB holds before it evicts one."""
    evict_one_in: int = 0
    """A cache also evicts by its own choice, once in so many fills; 0: never."""

    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes, in a fixed order."""
        names = [MEMORY, *self.cpus]
        for unit in self.units:
            names += [unit.name, *unit.devices]
        for vm in self.vms:
            names += [vm.name, *vm.vcpus]
        names += [link.name for link in self.links]
        return tuple(names)

    def processors(self) -> tuple[str, ...]:
        """Every node that runs host threads: CPUs and vCPU threads."""
        return (*self.cpus, *(vcpu for vm in self.vms for vcpu in vm.vcpus))

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry of a table at ``level`` maps."""
        return 12 + level * (self.entries.bit_length() - 1)

    def address_end(self) -> int:
        """The first address that the page table cannot map."""
        return 1 << self.shift(self.levels)

    def pgd(self, mm: str) -> int:
        """The frame of an mm's top-level table; frame 0 is the zero page."""
        return 1 + self.mms.index(mm)

    def context_ids(self) -> dict[str, int]:
        """PIDs (``mm->context.id``) at the start: of the mms that are attached to some link."""
        attached = {mm for link in self.links for mm in link.mms}
        return {mm: pid for pid, mm in enumerate((m for m in self.mms if m in attached), 1)}

    def subscribers(self, mm: str) -> tuple[tuple[str, str], ...]:
        """The notifier list of an mm: (driver, node), newest first as hlist_add_head does."""
        kvm = [("kvm", vm.name) for vm in self.vms if vm.mm == mm]
        sva = [("sva", unit.name) for unit in self.units if mm in unit.mms]
        told = self.kernel.ocxl_notifier and self.kernel.ocxl_link == "atsd"
        ocxl = [("ocxl", link.name) for link in self.links if told and mm in link.mms]
        return (*ocxl, *sva, *kvm)
