"""A row of ``vms`` in a world file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

import msgspec

from mmurace.nodes.beside import Beside, NodeCount, OwnerCount, Problem, Site, shared_out, too_many
from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.kvm.messages import (
    GpcWrite,
    GuestApic,
    GuestTouch,
    KvmAddMemslot,
    KvmCreateVm,
    KvmDestroyVm,
    Memslot,
    Sigkill,
)
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.nodes.secondary import Death, Number, Part, Positive, Task
from mmurace.nodes.world import World
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.program import Operation


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``struct kvm_memory_slot``: ``pages`` guest frames from ``gfn`` are at ``hva``."""

    gfn: Number
    pages: Positive
    hva: Number
    apic: bool = False


class Vm(Part, frozen=True):
    """A KVM guest: its ``kvm`` node, its vCPU nodes, its VMM's mm and its memslots."""

    MMS: ClassVar[tuple[str, ...]] = ("mm",)

    vcpus: tuple[str, ...]
    mm: str
    slots: tuple[Slot, ...]
    gpcs: tuple[Number, ...] = ()
    """Guest addresses of pages that it has a ``gfn_to_pfn_cache`` of."""
    created: bool = True
    """It is there from the start; if not, ``kvm_create_vm`` makes it."""

    def nodes(self) -> tuple[str, ...]:
        """The shadow MMU and the vCPUs."""
        return (self.name, *self.vcpus)

    def processors(self) -> tuple[str, ...]:
        """The vCPU threads."""
        return self.vcpus

    def subscribed(self, kernel: Kernel) -> tuple[str, ...]:  # noqa: ARG002
        """Its VMM's mm, unless it is still to be created."""
        return (self.mm,) if self.created else ()

    def memslots(self) -> tuple[Memslot, ...]:
        """What ``KVM_SET_USER_MEMORY_REGION`` is, or was, told."""
        return tuple(Memslot(slot.gfn, slot.pages, slot.hva, slot.apic) for slot in self.slots)

    def ranges(self) -> Iterable[tuple[str, int, int, int]]:
        """The memslots."""
        for slot in self.slots:
            yield self.mm, slot.gfn << PAGE_SHIFT, slot.hva, slot.pages * PAGE_SIZE

    def apic_page(self) -> int | None:
        """The host's address of its APIC-access page, if it has one."""
        return next((slot.hva for slot in self.slots if slot.apic), None)

    def slot_of(self, address: int) -> Slot | None:
        """The memslot that a byte of the host's is in."""
        inside = (s for s in self.slots if s.hva <= address < s.hva + s.pages * PAGE_SIZE)
        return next(inside, None)

    def guest_address(self, address: int) -> int:
        """The guest's address of a byte that is in one of its memslots."""
        slot = self.slot_of(address)
        if slot is None:
            raise EmulatorError(f"{address:#x} is in no memslot of {self.name}")
        return (slot.gfn << PAGE_SHIFT) + address - slot.hva

    def waits_for_mmap_lock(self, cache: str, kernel: Kernel) -> bool:
        """The page fault of arm64 looks the VMA up first."""
        return cache == "spte" and KvmSwitches.of(kernel).kvm_looks_at_vma

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """The shadow MMU, and the vCPUs; of what only some have, those that have it."""
        held: dict[str, tuple[str, ...]] = {"spte": (self.name,), "gtlb": self.vcpus}
        if any(slot.apic for slot in self.slots):
            held["vmcs"] = self.vcpus
        if self.gpcs:
            held["gpc"] = (self.name,)
        return held

    def moved(self, down: int) -> Part:
        """The same with its memslots so much lower."""
        slots = tuple(msgspec.structs.replace(s, hva=s.hva - down) for s in self.slots)
        return msgspec.structs.replace(self, slots=slots)

    def death(self, node: str, world: World) -> Death | None:
        """A vCPU is sent SIGKILL; a VM goes when all of its vCPUs are gone."""
        if node != self.name:
            return Death((Task(node, Sigkill()),))
        signals = tuple(Task(vcpu, Sigkill(), of=vcpu) for vcpu in self.vcpus)
        destroy = Task(world.cpus[0], KvmDestroyVm(self.name), after=self.vcpus)
        return Death((*signals, destroy))

    def begun_by(self, operation: Operation) -> bool:
        """``KVM_CREATE_VM``."""
        return isinstance(operation, KvmCreateVm) and operation.vm == self.name

    def there_from_the_start(self) -> bool:
        """Unless its row says otherwise."""
        return self.created

    def ended_by(self, operation: Operation) -> bool:
        """A VM lives as long as somebody holds a reference to it.

        The file of each vCPU is one, as is an ioctl in progress (virt/kvm/kvm_main.c:
        ``kvm_vm_ioctl_create_vcpu``, ``kvm_put_kvm``; all releases):

            vcpu0                               cpu1
            KVM_RUN                             close(vm_fd)
            leaves; close(vcpu_fd)              [Required: after that, kvm_destroy_vm]
        """
        return isinstance(operation, KvmDestroyVm) and operation.vm == self.name

    def needed_by(self, node: str, operation: Operation) -> bool:
        """A vCPU that runs, and an ioctl."""
        if isinstance(operation, KvmAddMemslot):
            return operation.vm == self.name
        return isinstance(operation, (GuestTouch, GuestApic, GpcWrite)) and node in self.vcpus

    def let_go_by(self, operation: Operation) -> bool:
        """A vCPU's thread that is killed closes its file."""
        return isinstance(operation, Sigkill)

    def misused_by(self, node: str, operation: Operation) -> tuple[str, str, str] | None:
        """``GuestApic`` of what is no APIC-access page, ``GpcWrite`` of what is not cached."""
        if isinstance(operation, GpcWrite) and node in self.vcpus:
            known = ", ".join(hex(gpa) for gpa in self.gpcs) or f"one of gpcs of {self.name}"
            cached = operation.gpa >> PAGE_SHIFT in (gpa >> PAGE_SHIFT for gpa in self.gpcs)
            return None if cached else ("gpa", f"{operation.gpa:#x} is in no cache", known)
        if not isinstance(operation, GuestApic) or node not in self.vcpus:
            return None
        pages = [slot.gfn for slot in self.slots if slot.apic]
        if operation.gpa >> PAGE_SHIFT in pages:
            return None
        known = ", ".join(hex(gfn << PAGE_SHIFT) for gfn in pages)
        expected = known or f"a slot of {self.name} with apic = true"
        return "gpa", f"{operation.gpa:#x} is in no APIC-access page", expected

    def problems(self, world: World) -> Iterator[tuple[str, str, str]]:
        """What ``__kvm_set_memory_region`` returns -EINVAL or -EEXIST for, and what no VM has.

        A cache of what is in no memslot has no page.  Only VMX has an APIC-access page:
        ``vmx_set_apic_access_page_addr`` is its one user (arch/x86/kvm/vmx/vmx.c), the interrupt
        controller of an arm64 guest (arch/arm64/kvm/vgic) needs none of its memory.
        """
        for number, slot in enumerate(self.slots):
            if slot.hva % PAGE_SIZE:
                yield f"slots[{number}].hva", "is not page aligned", f"a multiple of {PAGE_SIZE:#x}"
            for other in self.slots[:number]:
                if slot.gfn < other.gfn + other.pages and other.gfn < slot.gfn + slot.pages:
                    problem = f"overlaps the slot at {other.gfn:#x}"
                    yield f"slots[{number}].gfn", problem, "guest frames of no other slot"
        yield from self._problems_of_apic(world)
        for gpa in self.gpcs:
            if self.host_page(gpa) is None:
                yield "gpcs", f"{gpa:#x} is in no memslot", "an address in one of slots"

    def _problems_of_apic(self, world: World) -> Iterator[tuple[str, str, str]]:
        apic = [number for number, slot in enumerate(self.slots) if slot.apic]
        for number in apic if world.kernel.machine != "x86" else ():
            problem = f"is an APIC-access page on {world.kernel.machine}"
            yield f"slots[{number}].apic", problem, "none but on x86"
        for number in apic[1:]:
            yield f"slots[{number}].apic", f"is a second one of {self.name}", "one"

    def smaller(self, used: Collection[str]) -> Iterator[Part | None]:
        """Without it if nothing of it is used, else with one vCPU less."""
        if not any(name in used for name in self.nodes()):
            yield None
            return
        for vcpu in self.vcpus:
            if vcpu not in used and len(self.vcpus) > 1:
                left = tuple(other for other in self.vcpus if other != vcpu)
                yield msgspec.structs.replace(self, vcpus=left)


# ---- beside a workload -------------------------------------------------------------------------


class Guests(Beside, frozen=True):
    """vCPUs are shared out evenly among the VMs; without any there is no VM either."""

    vms: OwnerCount = 1
    vcpus: NodeCount = 1
    """Of all VMs together."""

    def problems(self, kernel: Kernel | None) -> Iterator[Problem]:  # noqa: ARG002
        """Every VM has a vCPU."""
        yield from too_many("vms", "vcpus", self)

    def rows(self, site: Site) -> Iterator[Part]:
        """VMs whose VMM is the process: its memory is theirs."""
        for n, vcpus in enumerate(shared_out("vcpu", self.vcpus, self.vms)):
            yield Vm(f"kvm{n}", vcpus, site.mm, tuple(_memslots(site)))


def _memslots(site: Site) -> Iterator[Slot]:
    """Its memory from guest address 0 on, on x86 the APIC page, and the heap behind that."""
    start, end = site.memory
    apic = (site.private - start) >> PAGE_SHIFT
    yield Slot(0, (end - start) >> PAGE_SHIFT, start)
    if site.kernel.machine == "x86":
        yield Slot(apic, 1, site.private, True)
    if site.heap:
        heap, top = site.heap
        yield Slot(apic + 1, (top - heap) >> PAGE_SHIFT, heap)


# ---- in small worlds ---------------------------------------------------------------------------

APIC_GFN: Final = 0xFEE00
"""``APIC_DEFAULT_PHYS_BASE`` >> PAGE_SHIFT (arch/x86/include/asm/apicdef.h)."""


def row(ground: Ground, number: int) -> Vm:
    """A guest with one or two vCPUs, to which all pages belong, now and then in two memslots.

    Half of them have an APIC page, some a ``gfn_to_pfn_cache``.
    """
    split = ground.pages // 2 if ground.one_in(4) else 0
    slots = [Slot(split, ground.pages - split, ground.page(split))]
    slots += [Slot(0, split, ground.start)] if split else []
    if ground.machine == "x86" and ground.one_in(2):
        slots.append(Slot(APIC_GFN, 1, ground.quiet, True))
    first = 2 * number
    vcpus = [f"vcpu{first}"] + [f"vcpu{first + 1}"] * ground.one_in(8)
    gpcs = (slots[0].gfn + ground.below(slots[0].pages) << PAGE_SHIFT,) if ground.one_in(4) else ()
    return Vm(f"kvm{number}", tuple(vcpus), ground.mm, tuple(slots), gpcs)


def apic_access(_: Ground, vm: Vm) -> Mapping[str, Any] | None:
    """Where its APIC page is, if it has one."""
    apic = (slot for slot in vm.slots if slot.apic)
    return next(({"gpa": slot.gfn << PAGE_SHIFT} for slot in apic), None)


def cached_page(_: Ground, vm: Vm) -> Mapping[str, Any] | None:
    """A page that it has a ``gfn_to_pfn_cache`` of, if there is one."""
    return next(({"gpa": gpa} for gpa in vm.gpcs), None)


def guest_access(ground: Ground, vm: Vm) -> Mapping[str, Any] | None:
    """Any word of the guest's memory but that page."""
    slot = ground.one_of([slot for slot in vm.slots if not slot.apic])
    return {"gpa": (slot.gfn + ground.below(slot.pages) << PAGE_SHIFT) + 8 * ground.below(8)}


def another_slot(ground: Ground, vm: Vm) -> Mapping[str, Any] | None:
    """A memslot behind the others, of pages that are the guest's already."""
    if ground.world is None:
        return None
    pages = 1 + ground.below(ground.pages)
    behind = max(slot.gfn + slot.pages for slot in vm.slots)
    return {"vm": vm.name, "gfn": behind, "address": ground.start, "length": pages * PAGE_SIZE}


def not_there_yet(_: Ground, _vm: Vm) -> None:
    """Guests of small worlds are there from the start."""
