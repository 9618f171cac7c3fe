"""Reclaim of pages of files: what was stored is written first, and whoever asks reads it again."""

from __future__ import annotations

import random

import msgspec
import pytest

from broker.exchange import Exchange
from broker.programs import Program, Step
from nodes.kernel.variant import preset
from nodes.world import Unit, Vm, World
from protocol.limits import PAGE_SIZE
from protocol.messages import program as op
from protocol.messages.kvm import Memslot
from protocol.records import Access, FilePageDropped, FilePageRead, FilePageWritten, Record
from tests.test_madvise_free import one_after_the_other, run
from tests.worlds import page

MM, CHILD, OTHER = "mm0", "mm1", "mm2"
FILE = "data"
DSB = {"batched_pending_flush": "flush_tlb_mm"}
KERNELS = [
    ("v4.15", "x86", {"mremap_cpu_flush": "under_both_ptl"}),
    ("v5.8", "x86", {}),
    ("v6.2", "x86", {}),
    ("v6.2", "arm64", {}),
    ("v6.6", "x86", {}),
    ("v6.6", "arm64", DSB),
]


def world(release: str = "v6.6", arch: str = "x86", **switches: object) -> World:
    """Three CPUs and one for kswapd, a device, a guest, and three processes."""
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1", "cpu2", "cpu3"),
        mms=(MM, CHILD, OTHER),
        units=(Unit("iommu0", ("device0",), (MM,), "cpu1"),),
        vms=(Vm("kvm0", ("vcpu0",), MM, (Memslot(0, 16, 0),)),),
        gather_batch=2,
    )


def mapped(mm: str, shared: bool = True, pages: int = 2) -> op.Mmap:
    """The file, from the beginning of the address space on."""
    return op.Mmap(mm, 0, page(pages), True, True, FILE, 0, shared)


KSWAPD = ("cpu3", op.Kswapd(8))
READ = ("cpu2", op.Touch(OTHER, 0, False))


def values(records: list[Record]) -> list[int]:
    """What was read, in order."""
    return [r.value for r in records if isinstance(r, Access) and not r.write]


def count(records: list[Record], kind: type[Record]) -> int:
    """Records of that kind."""
    return sum(isinstance(r, kind) for r in records)


STORES: dict[str, tuple[tuple[str, op.Operation], ...]] = {
    "cpu": (("cpu0", op.Touch(MM, 0, True, 9)),),
    "reader before": (("cpu0", op.Touch(MM, 0, False)), ("cpu0", op.Touch(MM, 0, True, 9))),
    "device": (("device0", op.Dma(MM, 0, True, 9)),),
    "guest": (("vcpu0", op.GuestTouch(0, True, 9)),),
    "moved": (
        ("cpu0", op.Touch(MM, 0, True, 9)),
        ("cpu0", op.Mremap(MM, 0, page(2), page(8), page(2))),
    ),
    "unmapped": (("cpu0", op.Touch(MM, 0, True, 9)), ("cpu0", op.Munmap(MM, 0, page(2)))),
    "gone": (("cpu0", op.Touch(MM, 0, True, 9)), ("cpu0", op.Exit(MM))),
    "written before": (
        ("cpu0", op.Touch(MM, 0, True, 8)),
        ("cpu3", op.Writeback(FILE)),
        ("cpu0", op.Touch(MM, 0, True, 9)),
    ),
    "and read by all": (
        ("cpu0", op.Touch(MM, 0, True, 9)),
        ("cpu0", op.Touch(CHILD, 0, False)),
        ("cpu1", op.Touch(MM, 0, False)),
        ("device0", op.Dma(MM, 0, False)),
        ("vcpu0", op.GuestTouch(0, False)),
    ),
}
BEGIN = (("cpu0", mapped(MM)), ("cpu0", mapped(CHILD)), ("cpu0", mapped(OTHER)))


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_what_was_stored_is_read_again(
    release: str, arch: str, switches: dict[str, object], stores: str
) -> None:
    steps = (*BEGIN, *STORES[stores], KSWAPD, READ)
    oracle, records, complete = run(
        world(release, arch, **switches), one_after_the_other(*steps)
    )
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert values(records)[-1] == 9
    assert count(records, FilePageDropped) == 1
    assert count(records, FilePageRead) == 2
    assert count(records, FilePageWritten) == 1 + (stores == "written before")
