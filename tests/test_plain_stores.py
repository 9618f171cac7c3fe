"""No plain store over an entry that hardware may change between the load it was made from and it.

    kernel                              any walker
    load the entry
                                        sets accessed, or dirty, in it
    store the entry, plainly            [Required: both bits that a walker may set are set in
                                        what is stored, or the entry was cleared first, or the
                                        store is a compare and exchange]

Whether a walker came in between is a matter of luck, so the store itself is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmurace.broker.chaos import ChaosRules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import do_wp_page, memory, mprotect, pgtable
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import spin_lock, spin_unlock
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import program as op
from mmurace.protocol.records import PteChange
from mmurace.scenarios.catalogue import find
from tests.file_programs import FILE, KERNELS, file_programs, file_world
from tests.mm_programs import several_programs, several_world
from tests.test_madvise_free import one_after_the_other

READ_FAULT = Path(__file__).parent / "data" / "cases" / "false-s16-read-fault.toml"
DAEMONS = (op.Kswapd(4), op.Writeback(FILE), op.MadviseFree("mm0", 0, 4 * 4096))


def may_lose(old: int, new: int) -> bool:
    """Whether a plain store of ``new`` over ``old`` may undo what a walker has just set."""
    if not ptes.hw_present(old):
        return False
    settable = ptes.ACCESSED | (ptes.DIRTY if old & ptes.WRITE else 0)
    return ptes.frame_of(old) != ptes.frame_of(new) or bool(settable & ~new)


def plain_stores(
    here: World, programs: Iterable[Program], seed: int, chaos: ChaosRules | None = None
) -> list[tuple[int, int]]:
    """(old, new) of every plain store of a leaf entry over a present one."""
    found: list[tuple[int, int]] = []

    def observe(envelope: Envelope, handled: Handled) -> None:
        if envelope.is_reply or not isinstance(envelope.body, m.PteSet):
            return
        changes = [r for r in handled.records if isinstance(r, PteChange)][:1]
        if not changes:  # what was there is stored once more
            found.append((envelope.body.pte, envelope.body.pte))
        elif changes[0].level == 0 and ptes.hw_present(changes[0].old):
            found.append((changes[0].old, changes[0].new))

    exchange = Exchange(Feeder(tuple(programs)), chaos)
    drivers = build_all(here, seed)
    assert Simulator(drivers, exchange, RandomWalk(seed), observe).run(300_000).complete
    return found


def lost(stores: list[tuple[int, int]]) -> list[str]:
    """Those that may undo what a walker has set."""
    bad = [pair for pair in stores if may_lose(*pair)]
    return [f"{ptes.describe(old)} -> {ptes.describe(new)}" for old, new in bad]


@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_no_plain_store_undoes_a_walkers(
    release: str, arch: str, switches: dict[str, object]
) -> None:
    here = file_world(release, arch, switches)
    stores = [
        pair
        for seed in range(4)
        for pair in plain_stores(here, file_programs(seed, 20, DAEMONS, (0, 2, 8)), seed)
    ]
    assert lost(stores) == []
    assert (arch == "x86") == bool(stores)  # others have nothing but atomic updates


@pytest.mark.parametrize("arch", ["x86", "arm64", "ppc"])
def test_nor_with_several_processes(arch: str) -> None:
    for seed in range(2):
        stores = plain_stores(several_world("v6.2", arch), several_programs(seed, 30), seed)
        assert lost(stores) == []


# ---- the same with mistakes ----------------------------------------------------------------------


async def stores_what_it_loaded(
    cpu: Processor, mm: str, address: int, table: int, entry: int, dirty: bool
) -> bool:
    """``ptep_set_access_flags`` that stores for a load as for a store, on any architecture."""
    changed = await pgtable.ptep_get(cpu, table, address) != entry
    if changed:
        await pgtable.set_pte_at(cpu, table, address, entry)
    return changed


async def protects_without_clearing(
    cpu: Processor, gather: MmuGather, change: mprotect.Change, table: int, address: int, end: int
) -> None:  # fmt: skip
    """``change_pte_range`` without ``ptep_modify_prot_start``."""
    await spin_lock(cpu, table)
    for at in range(address, end, 4096):
        found = await pgtable.ptep_get(cpu, table, at)
        if ptes.pte_present(found):
            await pgtable.set_pte_at(cpu, table, at, mprotect.pte_modify(found, change.vma))
            gather.adjust_range(at)
    await spin_unlock(cpu, table)


def read_faults(kernel: str) -> list[str]:
    """What is lost when a load faults beside MADV_FREE and a store."""
    found: list[str] = []
    for seed in range(10):
        spec = find(str(READ_FAULT)).run(kernel, seed)
        chaos = ChaosRules(spec.chaos, seed) if spec.chaos else None
        found += lost(plain_stores(spec.world, spec.programs(), seed, chaos))
    return found


@pytest.mark.parametrize("kernel", ["v5.8", "v5.8-arm64", "v6.6.5", "v6.6.88-arm64"])
def test_a_plain_store_for_a_load_is_seen(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_faults(kernel) == []
    monkeypatch.setattr(pgtable, "ptep_set_access_flags", stores_what_it_loaded)
    assert read_faults(kernel)


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_a_plain_store_to_protect_is_seen(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = several_world("v6.2", arch)
    steps = one_after_the_other(
        ("cpu0", op.Mmap("mm0", 0, 4096, True, True)),
        ("cpu0", op.Touch("mm0", 0, True, 1)),
        ("cpu0", op.MadviseFree("mm0", 0, 4096)),
        ("cpu0", op.Mprotect("mm0", 0, 4096, True, False)),
    )
    assert lost(plain_stores(here, steps, 1)) == []
    monkeypatch.setattr(mprotect, "change_pte_range", protects_without_clearing)
    assert lost(plain_stores(here, steps, 1))


def test_the_functions_that_are_planted_are_those_that_run() -> None:
    """They are called by their modules' names."""
    for module in (do_wp_page, memory):
        assert module.pgtable is pgtable
