"""virt/kvm/kvm_mm.h: a VM's mmu_lock, by the names that common code has for it."""

from __future__ import annotations

from collections.abc import Awaitable

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondaries.kvm.messages import MmuLock, MmuUnlock
from mmurace.protocol.messages.base import Ack


def kvm_mmu_lock(cpu: Processor, vm: str) -> Awaitable[Ack]:
    """``KVM_MMU_LOCK(kvm)``: for write where it is an rwlock; spins."""
    return cpu.port.call(vm, MmuLock(True))


def read_lock(cpu: Processor, vm: str) -> Awaitable[Ack]:
    """``read_lock(&kvm->mmu_lock)``."""
    return cpu.port.call(vm, MmuLock(False))


def kvm_mmu_unlock(cpu: Processor, vm: str) -> Awaitable[Ack]:
    """``KVM_MMU_UNLOCK(kvm)``, ``read_unlock(&kvm->mmu_lock)``."""
    return cpu.port.call(vm, MmuUnlock())
