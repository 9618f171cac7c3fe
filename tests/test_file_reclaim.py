"""Reclaim of pages of files: what was stored is written first, and whoever asks reads it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from mmurace.broker.chaos import ChaosRules, parse_rules
from mmurace.broker.programs import Program, Step
from mmurace.nodes.kernel import pgtable, rmap, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.memory import Memory
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages import swap as s
from mmurace.protocol.messages.base import Ack
from mmurace.protocol.records import Access, FilePageDropped, FilePageRead, FilePageWritten, Record
from tests.file_programs import (
    CHILD,
    FILE,
    KERNELS,
    MM,
    OTHER,
    file_programs,
    file_world,
    map_slot,
)
from tests.test_independence import commuting_pairs
from tests.test_madvise_free import one_after_the_other, run
from tests.worlds import page

Steps = tuple[tuple[str, op.Operation], ...]


def mapped(mm: str, shared: bool = True) -> op.Mmap:
    """The first pages of the file, from the beginning of the address space on."""
    return op.Mmap(mm, 0, page(2), True, True, FILE, 0, shared)


KSWAPD = ("cpu3", op.Kswapd(8))
READ = ("cpu2", op.Touch(OTHER, 0, False))


def values(records: list[Record]) -> list[int]:
    """What was read, in order."""
    return [r.value for r in records if isinstance(r, Access) and not r.write]


def count(records: list[Record], kind: type[Record]) -> int:
    """Records of that kind."""
    return sum(isinstance(r, kind) for r in records)


STORES: dict[str, Steps] = {
    "cpu": (("cpu0", op.Touch(MM, 0, True, 9)),),
    "reader before": (("cpu0", op.Touch(MM, 0, False)), ("cpu0", op.Touch(MM, 0, True, 9))),
    "device": (("device0", Dma(MM, 0, True, 9)),),
    "guest": (("vcpu0", GuestTouch(0, True, 9)),),
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
        ("device0", Dma(MM, 0, False)),
        ("vcpu0", GuestTouch(0, False)),
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
        file_world(release, arch, switches), one_after_the_other(*steps)
    )
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert values(records)[-1] == 9
    assert count(records, FilePageDropped) == 1
    assert count(records, FilePageRead) == 2
    assert count(records, FilePageWritten) == 1 + (stores == "written before")


def alone(*steps: tuple[str, op.Operation], **switches: object) -> list[Record]:
    """The records of these steps on v6.6, one after the other, which break no rule."""
    oracle, records, complete = run(
        file_world("v6.6.5", "x86", switches), one_after_the_other(*steps)
    )
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    return records


def test_a_clean_page_is_dropped_unwritten() -> None:
    records = alone(
        BEGIN[0], ("cpu0", op.Touch(MM, 0, False)), KSWAPD, ("cpu0", op.Touch(MM, 0, False))
    )
    assert values(records) == [0, 0]
    assert (count(records, FilePageDropped), count(records, FilePageWritten)) == (1, 0)
    assert count(records, FilePageRead) == 2


def test_a_private_copy_is_not_the_files() -> None:
    steps = (
        ("cpu0", mapped(MM, shared=False)), BEGIN[2],
        ("cpu0", op.Touch(MM, 0, False)), ("cpu0", op.Touch(MM, 0, True, 7)),
        ("cpu0", op.Fork(MM, CHILD)), ("cpu2", op.Touch(OTHER, 0, True, 8)), KSWAPD, READ,
        ("cpu0", op.Touch(MM, 0, False)), ("cpu1", op.Touch(CHILD, 0, False)), KSWAPD, READ,
    )  # fmt: skip
    assert values(alone(*steps)) == [0, 8, 7, 7, 8]


def test_what_was_truncated_does_not_come_back_from_the_disk() -> None:
    cut = (("cpu0", op.Truncate(FILE, 0)), ("cpu0", op.Truncate(FILE, page(2))))
    records = alone(*BEGIN, *STORES["cpu"], KSWAPD, *cut, READ)
    assert count(records, FilePageWritten) == 1
    assert values(records)[-1] == 0


def test_whoever_finds_no_frame_reclaims_those_of_files() -> None:
    pages = range(12)
    steps: list[op.Operation] = [op.Mmap(MM, 0, page(12), True, True, FILE, 0, True)]
    steps += [op.Touch(MM, page(n), True, 100 + n) for n in pages]
    steps += [op.Touch(MM, page(n), False) for n in pages]
    here = file_world("v6.6.5", "x86", {}, frames=12)
    oracle, records, complete = run(here, (Program("cpu0", "cpu0", [Step(o) for o in steps]),))
    assert complete
    assert not oracle.violations
    assert values(records) == [100 + n for n in pages]
    assert oracle.statistics.covered["direct_reclaim"] >= 2
    assert oracle.statistics.oom_kills == 0


# ---- beside everything else ----------------------------------------------------------------------

Make = Callable[[int], tuple[Program, ...]]


def reclaimed(seed: int) -> tuple[Program, ...]:
    """Moves, forks, protection, migration, while kswapd goes over the pages."""
    return file_programs(seed, 20, (op.Kswapd(2), op.Kswapd(4)))


def written(seed: int) -> tuple[Program, ...]:
    """The same and a flusher thread, and somebody makes the file shorter and longer."""
    return file_programs(seed, 20, (op.Kswapd(3), op.Writeback(FILE)), (1, 2, 4, 4))


def crowded(seed: int) -> tuple[Program, ...]:
    """No daemon: whoever allocates reclaims."""
    return file_programs(seed, 30, (), (2, 4, 4))


WAYS: dict[str, tuple[Make, int, set[str]]] = {
    "reclaimed": (reclaimed, 64, {"file_page_reclaimed", "file_page_kept"}),
    "written": (written, 64, {"file_page_reclaimed", "folio_mkclean"}),
    "crowded": (crowded, 16, {"file_page_reclaimed", "direct_reclaim"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_no_kernel_is_flagged(
    release: str, arch: str, switches: dict[str, object], way: str
) -> None:
    make, frames, points = WAYS[way]
    covered = Counter[str]()
    for seed in range(8):
        here = file_world(release, arch, switches, frames)
        oracle, _, complete = run(here, make(seed), seed)
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]
        covered.update(oracle.statistics.covered)
    assert points <= set(covered)


def cut_while_reclaimed(seed: int) -> tuple[Program, ...]:
    """Few pages, which are stored to, cut off and reclaimed at the same time."""
    cut: list[op.Operation] = []
    for n in (2, 0, 1):
        cut += [op.Touch(OTHER, page(8 + n), True, n), op.Truncate(FILE, page(n))]
        cut += [op.Truncate(FILE, page(4)), op.Touch(OTHER, page(9 + n), False)]
    thread = [op.Touch(MM, page(8 + (n + seed) % 4), n % 3 > 0, 10 + n) for n in range(16)]
    other = [op.Touch(OTHER, page(8 + n % 4), n % 2 > 0, 50 + n) for n in range(8)]
    device = [Dma(MM, page(8 + n % 4), True, n) for n in range(5)]
    begun = ("cpu0/0", "cpu1/0")
    return (
        Program("cpu0", "cpu0", [Step(o) for o in (map_slot(MM, 2), *thread)]),
        Program("cpu1", "cpu1", [Step(o) for o in (map_slot(OTHER, 2), *other)]),
        Program("cut", "cpu2", [Step(o, begun) for o in cut]),
        Program("daemon", "cpu3", [Step(op.Kswapd(3), begun) for _ in range(9)]),
        Program("device0", "device0", [Step(o, begun) for o in device]),
    )


@pytest.mark.parametrize("first", range(0, 100, 20))
@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_truncation_beside_reclaim(
    release: str, arch: str, switches: dict[str, object], first: int
) -> None:
    covered = Counter[str]()
    for seed in range(first, first + 20):
        here = file_world(release, arch, switches)
        oracle, _, complete = run(here, cut_while_reclaimed(seed), seed)
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]
        covered.update(oracle.statistics.covered)
    assert covered["file_page_reclaimed"] > 4
    assert covered["file_page_kept"]
    assert covered["filemap_fault_truncated"]


# ---- one thing missing ---------------------------------------------------------------------------


def nobody_tells_the_page(patch: pytest.MonkeyPatch) -> None:
    """An entry that was dirty is forgotten with its dirty bit."""
    real = Memory.folio_mark_dirty

    def mark(memory: Memory, message: s.FolioMarkDirty, envelope: Envelope) -> Ack:
        cached = memory.frames[message.frame].mapping
        return Ack() if cached else real(memory, message, envelope)

    patch.setattr(Memory, "folio_mark_dirty", mark)


def written_before_the_flush(patch: pytest.MonkeyPatch) -> None:
    """``pageout`` does not wait for the flush of who may still store."""

    async def nothing(_: object, __: object) -> None:
        return

    patch.setattr(tlbbatch, "try_to_unmap_flush_dirty", nothing)


def cleaned_without_a_flush(patch: pytest.MonkeyPatch) -> None:
    """``folio_mkclean`` leaves copies of the entries where they are."""

    async def clean(cpu: Processor, mm: str, address: int, folio: int) -> bool:
        table = await pgtable.pte_offset_map_lock(cpu, mm, address)
        if table < 0:
            return False
        old = await pgtable.ptep_get(cpu, table, address)
        ours = ptes.pte_present(old) and ptes.frame_of(old) == folio
        if ours:
            await pgtable.set_pte_at(cpu, table, address, old & ~(ptes.WRITE | ptes.DIRTY))
        await pgtable.pte_unmap_unlock(cpu, table)
        return ours

    patch.setattr(rmap, "page_mkclean_one", clean)


@pytest.mark.parametrize(
    ("mistake", "rules"),
    [
        (nobody_tells_the_page, {"S9", "S16"}),
        (written_before_the_flush, {"O"}),
        (cleaned_without_a_flush, {"S5", "O"}),
    ],
)
def test_what_is_forgotten_is_found(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None], rules: set[str]
) -> None:
    mistake(monkeypatch)
    found: set[str] = set()
    for seed in range(150, 350):
        here = file_world("v6.6.5", "x86", {})
        found |= {v.rule for v in run(here, written(seed), seed)[0].violations}
        if rules <= found:
            break
    assert rules <= found


def chaos(seed: int, *rules: dict[str, object]) -> ChaosRules:
    """Rules of a chaos file."""
    named = [{"name": f"rule-{n}", **rule} for n, rule in enumerate(rules)]
    return ChaosRules(parse_rules({"schema": 1, "rule": named}, "test"), seed)


def zap_while_written() -> tuple[Program, ...]:
    """One thread gives a page up that another one stores to, and a flusher thread writes it."""
    begin = [Step(o) for o in (mapped(MM), mapped(OTHER), op.Touch(MM, 0, True, 1))]
    return (
        Program("cpu0", "cpu0", begin),
        Program("zap", "cpu0", [Step(op.MadviseDontneed(MM, 0, page(1)), ("cpu1/0",))]),
        Program("cpu1", "cpu1", [
            Step(op.Touch(MM, 0, True, 2), ("cpu0/2",)), Step(op.Touch(MM, 0, True, 3)),
        ]),
        Program("daemon", "cpu3", [
            Step(op.Writeback(FILE), ("cpu1/0",)), Step(op.Kswapd(8), ("cpu1/1", "zap/0")),
        ]),
        Program("cpu2", "cpu2", [Step(op.Touch(OTHER, 0, False), ("daemon/1",))]),
    )  # fmt: skip


LATE_FLUSH: tuple[dict[str, object], ...] = (
    {"match": {"operation": "daemon/0", "kind": "Writeback"}, "fault": "hold",
     "until": {"dst": "memory", "kind": "RmapRemove", "operation": "zap/0"}},
    {"match": {"operation": "cpu1/1", "kind": "Touch"}, "fault": "hold",
     "until": {"dst": "memory", "kind": "WritePage", "operation": "daemon/0"}},
    {"match": {"src": "cpu0", "kind": "FlushTlbIpi", "operation": "zap/0"}, "fault": "hold",
     "until": {"dst": "cpu1", "kind": ["FrameWrite~", "MmapUnlock~"], "operation": "cpu1/1"}},
)  # fmt: skip


@pytest.mark.parametrize("release", ["v5.8", "v6.2", "v6.6.5"])
def test_the_rmap_forgets_a_dirty_page_when_it_is_flushed(release: str) -> None:
    """5df397dec7c4 (v6.2): before, it was written and clean while somebody stored to it."""
    for seed in range(5):
        here = file_world(release, "x86", {})
        oracle, records, complete = run(here, zap_while_written(), seed, chaos(seed, *LATE_FLUSH))
        assert complete
        found = {(v.rule, v.agent) for v in oracle.violations}
        assert found == ({("S9", "cpu1")} if release == "v5.8" else set())
        assert values(records)[-1] == (2 if release == "v5.8" else 3)


@pytest.mark.parametrize("passes_over", ["nothing", "protection_page"])
def test_a_guest_must_hear_of_a_page_that_becomes_clean(passes_over: str) -> None:
    guest = GuestTouch(0, True, 9)
    steps = (*BEGIN, ("vcpu0", GuestTouch(0, True, 8)), ("cpu3", op.Writeback(FILE)),
             ("vcpu0", guest), KSWAPD, READ)  # fmt: skip
    here = file_world("v6.6.5", "x86", {"shadow_passes_over": passes_over})
    oracle, records, complete = run(here, one_after_the_other(*steps))
    assert complete
    rules = {v.rule for v in oracle.violations if v.agent in ("kvm0", "vcpu0")}
    assert values(records)[-1] == (9 if passes_over == "nothing" else 8)
    assert ("S9" in rules) == (passes_over == "protection_page")
    assert (not oracle.violations) == (passes_over == "nothing")


HELD: tuple[dict[str, object], ...] = (
    {"match": {"kind": "Kswapd"}, "fault": "hold", "until": {"dst": "kvm0", "kind": "SpteSet"}},
    {"match": {"src": "vcpu0", "kind": "PagePut"}, "fault": "hold",
     "until": {"dst": "memory", "kind": ["PutbackLru", "FreeUnrefPage"]}},
)  # fmt: skip


@pytest.mark.parametrize("write", [True, False])
def test_a_page_that_somebody_holds_stays(write: bool) -> None:
    """A vCPU still has its reference from GUP when kswapd comes."""
    begin = one_after_the_other(BEGIN[0], ("cpu0", op.Touch(MM, 0, write, 7)))
    guest = Program("vcpu0", "vcpu0", [Step(GuestTouch(0, write, 8), ("cpu0/1",))])
    daemon = Program("daemon", "cpu3", [Step(op.Kswapd(4), ("cpu0/1",))])
    for seed in range(5):
        here = file_world("v6.6.5", "x86", {})
        programs = (*begin, guest, daemon)
        oracle, records, complete = run(here, programs, seed, chaos(seed, *HELD))
        assert complete
        assert not oracle.violations
        assert count(records, FilePageDropped) == 0
        assert oracle.statistics.covered["file_page_kept"] == 1


# ---- the network and the search ------------------------------------------------------------------


def test_independent_deliveries_commute() -> None:
    assert commuting_pairs(file_world("v6.6.5", "x86", {}, 20), written(1), 40) >= 20
