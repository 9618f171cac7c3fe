"""The APIC-page reload race for frontrun (PyPI): real threads, DPOR over byte code.

    frontrun python apic_frontrun.py VARIANT VCPUS LOOPS

Variant 0 asks for the reload at range_start, 1 after the PTE is gone, 2 at range_start with a
reload that honours the count and the sequence.  One migration; each vCPU runs its loop ``LOOPS``
times.  Of the race, the first interleaving that shows it; of a variant that is right, all of them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import frontrun  # type: ignore[import-not-found]  # a peer that is measured, no part of this

GONE = 15


class Vcpu:
    """A vCPU's request bit and VMCS; the lock is held while it is in guest mode."""

    def __init__(self) -> None:
        self.req = self.vmcs = 0
        self.in_guest = threading.Lock()


class Host:
    """All that is shared."""

    def __init__(self, vcpus: int) -> None:
        self.pte = self.inprog = self.seq = self.freed = self.used_after_free = 0
        self.ptl, self.mmu = threading.Lock(), threading.Lock()
        self.vcpus = [Vcpu() for _ in range(vcpus)]

    def kick(self) -> None:
        """Ask every vCPU for a reload, and wait until none is in guest mode."""
        for vcpu in self.vcpus:
            vcpu.req = 1
            with vcpu.in_guest:
                pass


def invalidator(variant: int) -> Callable[[Host], None]:
    """Migrate the page."""

    def run(host: Host) -> None:
        with host.mmu:
            host.inprog = 1
        if variant != 1:
            host.kick()
        with host.ptl:
            host.pte = GONE
        if variant == 1:
            host.kick()
        with host.ptl:
            host.pte = 1
        with host.mmu:
            host.seq = host.seq + 1
            host.inprog = 0
        host.freed = 1

    return run


def reload_page(host: Host, vcpu: Vcpu, variant: int) -> None:
    """Look the page up and write the VMCS, or ask again."""
    vcpu.req = 0
    sampled = host.seq
    with host.ptl:
        got = host.pte
    if got == GONE:  # the lookup would sleep: give up
        vcpu.req = 1
        return
    with host.mmu:
        if variant == 2 and (host.inprog or host.seq != sampled):
            vcpu.req = 1
        else:
            vcpu.vmcs = got


def vcpu_thread(number: int, variant: int, loops: int) -> Callable[[Host], None]:
    """Serve requests, else run the guest."""

    def run(host: Host) -> None:
        vcpu = host.vcpus[number]
        for _ in range(loops):
            if vcpu.req:
                reload_page(host, vcpu, variant)
                continue
            with vcpu.in_guest:
                if not vcpu.req and vcpu.vmcs < host.freed:
                    host.used_after_free = 1

    return run


def main() -> None:
    """Explore, and print what came of it on one line."""
    variant, vcpus, loops = map(int, sys.argv[1:4])
    began = time.perf_counter()
    found = frontrun.explore(
        setup=lambda: Host(vcpus),
        workers=[invalidator(variant), *(vcpu_thread(n, variant, loops) for n in range(vcpus))],
        invariant=lambda host: host.used_after_free == 0,
        strategy="dpor",
        stop_on_first=variant == 0,
        max_executions=None,
        reproduce_on_failure=0,
    )
    seconds = time.perf_counter() - began
    print(f"holds {found.property_holds} explored {found.num_explored} in {seconds:.2f} s")


if __name__ == "__main__":
    main()
