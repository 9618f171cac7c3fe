"""``gfn_to_pfn_cache``: pages of a guest that KVM writes, on several vCPUs while they go."""

from __future__ import annotations

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.kvm.messages import GpcWrite
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol.messages import program as op
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.worlds import MM, page

SETUP = ("cpu0/2",)
SEEDS = 40


def vm(*gpcs: int) -> Vm:
    """Two vCPUs, eight pages, and a cache of each of ``gpcs``."""
    return Vm("kvm0", ("vcpu0", "vcpu1"), MM, (Slot(0, 8, 0),), gpcs)


def run(release: str, arch: str, seed: int, **switches: object) -> Outcome:
    """Both vCPUs have KVM write through one cache, while its page goes and comes, and moves."""
    world = World(
        kernel=preset(release, arch, switches), cpus=("cpu0", "cpu1"), parts=(vm(0, page(1)),)
    )
    taking = (op.MadviseDontneed(MM, 0, page(2)), op.MigratePages(MM, 0, page(2)))
    host = [op.Mmap(MM, 0, page(8), True, True), *(op.Touch(MM, page(i), True, 1) for i in (0, 1))]
    host += [*taking, *taking, op.Munmap(MM, page(1), page(1))]
    programs = [Program("cpu0", "cpu0", [Step(one) for one in host])]
    for vcpu in world.parts[0].processors():
        writes = [GpcWrite(page(at % 2 and at < 4) + 8, at) for at in range(6)]
        programs.append(Program(vcpu, vcpu, [Step(one, SETUP) for one in writes]))
    return simulate(RunSpec("gpc", world, seed, Script(tuple(programs))), schedule=RandomWalk(seed))


@pytest.mark.parametrize(
    ("release", "switches"),
    [("v5.18.18", {}), ("v6.6", {}), ("v6.6", {"gpc_refresh_lock": False})],
)
def test_a_cache_that_sees_open_brackets_is_never_of_a_page_that_went(
    release: str, switches: dict[str, object]
) -> None:
    """Nor does it need the mutex for that: the mutex is for caches that come to another page."""
    retries = 0
    for seed in range(SEEDS):
        outcome = run(release, "x86", seed, **switches)
        assert outcome.verdict.outcome == "held", outcome.verdict.reasons
        seen = outcome.verdict.how.statistics["retries"]
        retries += seen.get("mmu_notifier_retry_cache", 0)
    assert retries > 0


@pytest.mark.parametrize("switches", [{}, {"gpc_pins_page": False}])
def test_one_that_does_not_is(switches: dict[str, object]) -> None:
    rules = {
        v.rule for seed in range(SEEDS) for v in run("v5.17", "x86", seed, **switches).violations
    }
    assert "S4" in rules
    assert ("S1" in rules) == bool(switches), (
        "a reference keeps the page from being somebody else's"
    )


def test_before_there_were_any_nothing_is_written() -> None:
    for release, arch in (("v5.16", "x86"), ("v6.6", "arm64")):
        outcome = run(release, arch, 1)
        assert outcome.verdict.outcome == "held"
        assert outcome.verdict.how.statistics["accesses"].keys() == {"tlb"}


def test_a_cache_is_of_a_page_that_the_guest_has() -> None:
    world = World(kernel=preset("v6.6"), cpus=("cpu0",), parts=(vm(0),))
    assert list(vm(0).problems(world)) == []
    assert [problem for _, problem, _ in vm(page(8)).problems(world)] == ["0x8000 is in no memslot"]
    assert vm(0).misused_by("vcpu0", GpcWrite(8, 1)) is None
    assert vm(0).misused_by("vcpu0", GpcWrite(page(1), 1)) == (
        "gpa",
        "0x1000 is in no cache",
        "0x0",
    )
