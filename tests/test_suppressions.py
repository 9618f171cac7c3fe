"""What a naive rule would report, and none of ours does: one test for each kind.

"Naive" is said in each test: the simplest rule that would fire on the very same trace.
"""

from __future__ import annotations

from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.messages import program as op
from tests.observed import Run, beside, moments, observe
from tests.oracle_story import PAGE, RO, Story, change, dropped, entry, play
from tests.worlds import MM, page


def silent(s: Story) -> bool:
    """Whether the story, which must be one that comes to rest, breaks no rule at all."""
    return [v.text() for v in play(s.steps).violations] == []


def cached(flags: int = ptes.PRESENT | ptes.WRITE) -> Story:
    """The IOTLB has PAGE as ``f``, frame 3."""
    s = Story()
    s.map("t/0", entry(3, flags))
    s.dma("d/0", entry(3, flags), "f", write=bool(flags & ptes.WRITE))
    return s


def access(s: Story, name: str, *, write: bool = True) -> None:
    """The device goes through ``f`` once more."""
    s.begin(name, "dev0", "Dma")
    s.go(name, "iommu0")
    s.use(name, "iommu0", "f", 3, write)
    s.end(name, "dev0", "Dma")


def test_a_store_between_the_change_and_the_end_of_the_operation() -> None:
    """Naive: nobody stores through an entry that the page table does not have any more."""
    s = cached()
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    access(s, "d/1")
    s.call("m/0", "iommu0", *dropped("iotlb", "f"))
    s.call("m/0", "memory", r.FrameFreed(3))
    s.end("m/0", "cpu0", "Munmap")
    assert silent(s)


def test_an_entry_that_only_denies() -> None:
    """Naive: what is cached is what the page table says."""
    s = cached(RO)
    s.begin("t/1", "cpu0", "Touch")
    s.call("t/1", "memory", change(entry(3, RO), entry(3)))
    s.end("t/1", "cpu0", "Touch")
    access(s, "d/1", write=False)
    assert silent(s)


def two_faults() -> Run:
    """Two processors write to a page at the same time, and both fault."""
    world = World(kernel=preset("v6.6.5"), cpus=("cpu0", "cpu1"))
    zap: list[op.Operation] = [op.MadviseDontneed(MM, 0, 4096), op.Touch(MM, 0, True, 1)] * 8
    touches = [op.Touch(MM, 0, True, 2) for _ in range(60)]
    setup = [op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1)]
    return observe(world, beside(setup, zap, {"cpu1": touches}), 1)


def test_a_spurious_fault() -> None:
    """Naive: a fault that changes nothing is no progress."""
    run = two_faults()
    changed = {m.op for m in moments(run) if isinstance(m.record, r.PteChange)}
    faulted = {s.id.partition(".")[0] for s in run.steps if s.kind == "PtlLock~"}
    spurious = {o for o in faulted - changed if run.kinds[o] == "Touch"}
    assert spurious
    assert run.violations == []


def test_a_store_to_a_pinned_page() -> None:
    """Naive: nobody stores to a frame that no entry leads to."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("p/0", "cpu0", "Touch")
    s.begin("m/0", "cpu1", "MadviseDontneed")
    s.call("m/0", "memory", change(entry(3), 0))
    s.end("m/0", "cpu1", "MadviseDontneed")
    s.map("t/1", entry(4))
    s.call("p/0", "memory", r.Access(3, 0, True, 9))
    s.call("p/0", "memory", r.FrameFreed(3))
    s.end("p/0", "cpu0", "Touch")
    assert silent(s)


def test_a_fill_ahead_of_any_use() -> None:
    """Naive: nothing is filled from an entry that is about to go."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    load = s.call("d/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    s.go("d/0", "iommu0", r.Fill("iotlb", "mm0", PAGE, entry(3), "f", load))
    s.call("m/0", "iommu0", *dropped("iotlb", "f"))
    s.call("m/0", "memory", r.FrameFreed(3))
    s.end("m/0", "cpu0", "Munmap")
    s.end("d/0", "dev0", "Dma")
    assert silent(s)


def test_a_read_of_a_page_that_is_on_its_way() -> None:
    """Naive: nobody reads the frame that a migration is about to leave."""
    s = cached()
    waits = ptes.make(3, ptes.MIGRATION | ptes.WRITE)
    s.begin("m/0", "cpu0", "MigratePages")
    s.call("m/0", "memory", change(entry(3), 0))
    s.call("m/0", "memory", change(0, waits))
    access(s, "d/1", write=False)
    s.call("m/0", "iommu0", *dropped("iotlb", "f"))
    s.call("m/0", "memory", r.FrameCopied(3, 4))
    s.call("m/0", "memory", change(waits, entry(4)))
    s.call("m/0", "memory", r.FrameFreed(3))
    s.end("m/0", "cpu0", "MigratePages")
    assert silent(s)


def walking() -> Run:
    """A unit keeps the upper entry of a table that is emptied again and again, and stays."""
    unit = Unit("iommu0", ("device0",), (MM,), "cpu1", pwc=True)
    world = World(kernel=preset("v6.6.5"), cpus=("cpu0", "cpu1"), parts=(unit,))
    zap: list[op.Operation] = [op.MadviseDontneed(MM, 0, page(2))] * 8
    dma = [Dma(MM, page(i % 2), True, i) for i in range(40)]
    setup = [op.Mmap(MM, 0, page(2), True, True), op.Touch(MM, 0, True, 1)]
    return observe(world, beside(setup, zap, {"device0": dma}), 1)


def test_an_upper_entry_of_a_table_that_is_empty_and_alive() -> None:
    """Naive: an upper entry goes with the last entry below it."""
    run = walking()
    mapped: set[int] = set()
    empty_uses = 0
    for moment in moments(run):
        record = moment.record
        if isinstance(record, r.PteChange) and not record.level:
            (mapped.add if record.new else mapped.discard)(record.address)
        empty_uses += isinstance(record, r.TableUse) and not mapped
    assert empty_uses
    assert run.violations == []


def test_a_flush_at_the_end_for_who_holds_a_reference() -> None:
    """Naive: a reference is given back after every copy is gone."""
    s = cached()
    s.begin("k/0", "cpu0", "Kswapd")
    s.call("k/0", "memory", change(entry(3), 0))
    swapped = ptes.make(5, ptes.SWAP)
    s.call("k/0", "memory", change(0, swapped))
    s.call("k/0", "memory")  # the reference of the mapping; kswapd has one of its own
    access(s, "d/1")
    s.call("k/0", "iommu0", *dropped("iotlb", "f"))
    s.call("k/0", "memory", r.PageWritten(3, 5))
    s.call("k/0", "memory", r.FrameFreed(3))
    s.end("k/0", "cpu0", "Kswapd")
    assert silent(s)
