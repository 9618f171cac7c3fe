"""OpenCAPI links: who tells them what, the order in which a process comes and goes, and tags."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run.session import simulate
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, EINVAL
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.ocxl import messages as o
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch, OcxlAttach, OcxlDetach
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.sometimes import workload_conditions
from mmurace.oracle.verdict import Verdict
from mmurace.protocol import records as r
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.book3s64 import ContextIdLoad, CoprosAdd, Mmgrab, Tlbie
from mmurace.protocol.messages.memory import NotifierAdd
from mmurace.protocol.trace import TraceStep
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.mixed import Mixed, MixedOptions
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from mmurace.scenarios.worlds import world_from, world_to
from tests.mm_programs import several_programs, several_world
from tests.oracle_story import shuffled
from tests.part_programs import link_programs, link_world
from tests.runs import change_by_hand
from tests.test_independence import commuting_pairs

A = 8 * PAGE_SIZE
Switches = dict[str, object]
POWER9: Switches = {
    "ocxl_link": "snoops_tlbie", "upgrade_needs_flush": True, "refetch_on_perm_fault": False,
}  # fmt: skip
RELEASES: Switches = {"ocxl_notifier_releases": True}
CURED: Switches = {"flush_page_notifies": True, "ocxl_decoder": "exact"}


def world(
    release: str = "v6.2", attached: tuple[str, ...] = (), switches: Switches | None = None
) -> World:
    """Two processes and a link."""
    return World(
        kernel=preset(release, "ppc", switches),
        mms=("mm0", "mm1"),
        parts=(Link("link0", attached, "cpu0"),),
    )


Sent = list[tuple[str, str, Message]]
"""(who, to whom, what) of every request, in the order of delivery."""


class Ran:
    """A run of some programs: what was sent, what operations returned, the trace, the verdict."""

    def __init__(self, of: World, programs: list[Program], seed: int = 0) -> None:
        self.sent: Sent = []
        self.results: dict[str, int] = {}
        self.steps: list[TraceStep] = []
        exchange = Exchange(Feeder(programs))
        simulator = Simulator(build_all(of, seed), exchange, RandomWalk(seed), self._note)
        ending = simulator.run(deliveries_max=100_000)
        oracle = Oracle(of)
        for step in self.steps:
            oracle.step(step)
        oracle.finish(ending)
        self.complete = ending.complete
        self.verdict: Verdict = oracle.verdict(ending)

    def _note(self, e: Envelope, handled: Handled) -> None:
        step = TraceStep(handled.n, e.id, e.src, e.dst, e.kind, e.causes, tuple(handled.records))
        self.steps.append(step)
        if not e.is_reply and isinstance(e.body, Message):
            self.sent.append((e.src, e.dst, e.body))
        for record in handled.records:
            if isinstance(record, r.OpEnd):
                self.results[record.op] = record.result

    def kinds(self, *wanted: type[Message]) -> list[str]:
        """The kinds among ``wanted`` in the order in which they were delivered."""
        return [type(body).__name__ for _, _, body in self.sent if isinstance(body, wanted)]

    def rules(self) -> set[str]:
        """The rules that were broken."""
        return {v.rule for v in self.verdict.violations}


def program(node: str, *operations: op.Operation, after: tuple[str, ...] = ()) -> Program:
    """A program of one node; its first operation comes after those named."""
    return Program(node, node, [Step(o, after if n == 0 else ()) for n, o in enumerate(operations)])


def mapped(mm: str = "mm0") -> tuple[op.Operation, ...]:
    """Two pages, written to."""
    touches = (op.Touch(mm, A + n * PAGE_SIZE, True, n) for n in range(2))
    return (op.Mmap(mm, A, 2 * PAGE_SIZE, True, True), *touches)


# ---- who is told -----------------------------------------------------------------------------


def test_a_flush_stays_on_the_only_processor_if_no_context_counts() -> None:
    programs = [program("cpu0", *mapped(), op.Munmap("mm0", A, 2 * PAGE_SIZE))]
    alone = Ran(world("v5.10"), programs)
    assert not alone.kinds(Tlbie, o.AtsdLaunch)
    assert "Tlbi" not in {type(body).__name__ for _, _, body in alone.sent}
    assert alone.verdict.outcome != "violated"


@pytest.mark.parametrize(
    ("release", "told"), [("v4.18", Tlbie), ("v5.10", Tlbie), ("v5.12", o.AtsdLaunch)]
)
def test_a_context_of_a_link_is_told_by_bus_or_by_register(
    release: str, told: type[Message]
) -> None:
    afu = program("link0", AfuTouch("mm0", A, True, 7), after=("cpu0/2",))
    cpu = [*(Step(o) for o in mapped()), Step(op.Munmap("mm0", A, 2 * PAGE_SIZE), ("link0/0",))]
    ran = Ran(world(release, ("mm0",)), [Program("cpu0", "cpu0", cpu), afu])
    assert set(ran.kinds(Tlbie, o.AtsdLaunch)) == {told.__name__}
    dropped = [
        record.fills for step in ran.steps for record in step.records
        if isinstance(record, r.InvalidateDone) and record.cache == "xsl"
    ]  # fmt: skip
    assert any(dropped)
    assert ran.results["link0/0"] == 0
    assert ran.verdict.outcome != "violated"


def test_one_process_is_not_told_of_another() -> None:
    programs = [
        program("cpu0", *mapped("mm1"), op.Munmap("mm1", A, 2 * PAGE_SIZE)),
    ]
    assert not Ran(world("v5.12", ("mm0",)), programs).kinds(o.AtsdLaunch, Tlbie)


def launched(release: str, address: int) -> list[tuple[int, int]]:
    """What a munmap of two pages at ``address`` writes to the registers of a link."""
    programs = [
        program(
            "cpu0",
            op.Mmap("mm0", address, 2 * PAGE_SIZE, True, True),
            op.Touch("mm0", address, True, 1),
            op.Munmap("mm0", address, 2 * PAGE_SIZE),
        )
    ]
    ran = Ran(world(release, ("mm0",)), programs)
    return [(b.start, b.end) for _, _, b in ran.sent if isinstance(b, o.AtsdLaunch)]


def test_the_registers_take_a_page_and_page_0_is_everything() -> None:
    pages = {(A, A + PAGE_SIZE), (A + PAGE_SIZE, A + 2 * PAGE_SIZE)}
    assert set(launched("v5.12", A)) == pages
    assert set(launched("v5.12", 0)) == {(0, ULONG_MAX), (PAGE_SIZE, 2 * PAGE_SIZE)}


def test_a_whole_mm_is_a_loop_that_is_cut_or_one_command() -> None:
    programs = [program("cpu0", *mapped(), op.Fork("mm0", "mm1"))]
    looped = Ran(world("v6.6.5", ("mm0",)), programs)
    assert looped.rules() == {"L2", "P4"}
    cuts = [x for step in looped.steps for x in step.records if isinstance(x, r.LoopCut)]
    assert [(cut.start, cut.end, cut.left) for cut in cuts] == [(0, ULONG_MAX, (1 << 52) - 64)]
    once = Ran(world("v6.6.5", ("mm0",), {"ocxl_decoder": "exact"}), programs)
    assert once.kinds(o.AtsdLaunch) == ["AtsdLaunch"]
    assert not once.rules()


# ---- to come and to go -----------------------------------------------------------------------

COMING = (o.SpaStore, CoprosAdd, NotifierAdd, o.PeTreeInsert, Mmgrab, o.AfuStart)


@pytest.mark.parametrize("release", ["v5.10", "v6.2"])
def test_the_accelerator_works_only_when_all_is_registered(release: str) -> None:
    ran = Ran(world(release), [program("cpu0", OcxlAttach("mm0", "link0"))])
    notifier = ["NotifierAdd"] if release == "v6.2" else []
    steps = ["SpaStore", "CoprosAdd", *notifier, "PeTreeInsert", "Mmgrab", "AfuStart"]
    assert ran.kinds(*COMING) == steps
    assert ran.results == {"cpu0/0": 1}


def leaving(release: str, switches: Switches | None = None) -> list[str]:
    """The steps in which a process leaves a link."""
    attach, detach = OcxlAttach("mm0", "link0"), OcxlDetach("mm0", "link0")
    programs = [
        program("cpu0", attach),
        program("cpu1", *mapped(), detach, after=("cpu0/0",)),
    ]
    ran = Ran(world(release, (), switches), programs)
    assert ran.results["cpu1/3"] == 0
    of = [(s, d, b) for s, d, b in ran.sent if s == "cpu1"]
    at = next(n for n, (_, _, b) in enumerate(of) if isinstance(b, o.TerminatePasid))
    told = {
        "TerminatePasid", "SpaStore", "SpaClearCache", "PeTreeDelete", "NotifierDelete",
        "AtsdLaunch", "Tlbie", "CoprosAdd", "ActiveCpusAdd", "Mmdrop", "PasidFree",
    }  # fmt: skip
    return [type(b).__name__ for _, _, b in of[at:] if type(b).__name__ in told]


def test_a_tag_is_taken_back_when_nothing_is_left_under_it() -> None:
    down = ["CoprosAdd", "ActiveCpusAdd", "Mmdrop", "PasidFree"]
    clear = ["TerminatePasid", "SpaStore", "SpaClearCache", "PeTreeDelete"]
    # The read of the count belongs to the flush, which is a tlbie where the link snoops.
    assert leaving("v6.2") == [*clear, "NotifierDelete", "AtsdLaunch", "CoprosAdd", *down]
    assert leaving("v5.10") == [*clear, "CoprosAdd", "Tlbie", *down]
    assert leaving("v4.18") == [*clear, "CoprosAdd", "CoprosAdd", *down[1:]]
    assert "SpaClearCache" not in leaving("v5.10", {"ocxl_clears_pe_cache": False})
    assert "AtsdLaunch" not in leaving("v6.2", {"ocxl_invalidates_pid": False})


def test_an_accelerator_without_a_context_is_refused() -> None:
    cpu = program(
        "cpu0", OcxlAttach("mm0", "link0"), OcxlAttach("mm0", "link0"),
        OcxlDetach("mm1", "link0"),
    )  # fmt: skip
    afu = program("link0", AfuTouch("mm0", A, False), AfuTouch("mm1", A, False), after=("cpu0/2",))
    ran = Ran(world(), [cpu, afu])
    assert ran.complete
    assert ran.results == {
        "cpu0/0": 1, "cpu0/1": -EBUSY, "cpu0/2": -EINVAL,
        "link0/0": -EFAULT,  # nothing is mapped there
        "link0/1": -EINVAL,
    }  # fmt: skip


def test_a_process_that_ends_closes_its_contexts() -> None:
    cpu = program(
        "cpu0", OcxlAttach("mm0", "link0"), *mapped(), op.Exit("mm0"),
        OcxlAttach("mm1", "link0"),
    )  # fmt: skip
    ran = Ran(world("v6.5"), [cpu])
    tags = [x for s in ran.steps for x in s.records if isinstance(x, (r.TagAlloc, r.TagFree))]
    assert tags == [
        r.TagAlloc("pid1", "mm0"), r.TagFree("pid1", "mm0"), r.TagAlloc("pid1", "mm1"),
    ]  # fmt: skip
    assert ran.results["cpu0/5"] == 1
    assert not ran.rules()


# ---- tags ------------------------------------------------------------------------------------


def churn() -> list[Program]:
    """Two processes that come, go and end, and an accelerator that works for whoever is there."""
    programs = []
    for number in range(2):
        mm, cpu = f"mm{number}", f"cpu{number}"
        attach, detach = OcxlAttach(mm, "link0"), OcxlDetach(mm, "link0")
        once = (*mapped(mm), attach, op.Touch(mm, A, True, number), detach)
        again = (attach, op.Munmap(mm, A + PAGE_SIZE, PAGE_SIZE), detach)
        life = (*once, op.Exit(mm))
        programs.append(program(cpu, *life, *once, *again, op.Exit(mm), *mapped(mm), attach))
        attached = [f"{cpu}/{at}" for at in (3, 10, 13, 20)]
        touches = [
            Step(AfuTouch(mm, A + page * PAGE_SIZE, True, page), (after,))
            for after in attached for page in (0, 1)
        ]  # fmt: skip
        programs.append(Program(f"afu{number}", "link0", touches))
    return programs


@pytest.mark.parametrize(
    ("release", "switches"),
    [
        ("v4.18", {"copro_removal": "flush_then_count"}),
        ("v5.10", {}),
        ("v6.2", {}),
        ("v6.6.5", CURED),
        ("v6.6.5", POWER9),
    ],
)
def test_whoever_comes_next_finds_nothing(release: str, switches: Switches) -> None:
    for seed in range(6):
        ran = Ran(world(release, (), switches), churn(), seed)
        assert ran.complete
        assert not ran.rules(), (seed, ran.verdict.violations[0].text())


@pytest.mark.parametrize(
    ("release", "switches"),
    [
        ("v4.18", {}),
        ("v5.10", {"ocxl_clears_pe_cache": False}),
        ("v6.2", {"ocxl_invalidates_pid": False}),
    ],
)
def test_a_step_left_out_is_found(release: str, switches: Switches) -> None:
    found: set[str] = set()
    for seed in range(12):
        found |= Ran(world(release, (), switches), churn(), seed).rules()
    assert found & {"S12", "O"}


@pytest.mark.parametrize("kernel", ["v4.18", "v5.10-keeps-pe", "v6.2-keeps-pid", "v6.2"])
def test_every_linearisation_agrees(kernel: str) -> None:
    race = find("E34b")
    spec = race.run(kernel, 3)
    ran = Ran(spec.world, list(spec.programs()), 3)
    wanted = {v.identity() for v in ran.verdict.violations}
    assert ("S12" in ran.rules()) == (kernel != "v6.2")
    for seed in range(5):
        oracle = Oracle(spec.world)
        for step in shuffled(ran.steps, seed):
            oracle.step(step)
        assert {v.identity() for v in oracle.violations} == wanted


def test_the_steps_left_out_are_told_apart() -> None:
    """By who comes upon it: the next owner of the PASID, or the next owner of the PID."""
    race = find("E34b")
    for name, access in (("v5.10-keeps-pe", "link0/1"), ("v6.2-keeps-pid", "link0/2")):
        found = simulate(race.run(name, 1)).verdict.violations
        assert [v.racing[-1].id.partition(".")[0] for v in found if v.rule == "S12"] == [access]


# ---- the mixed workload ----------------------------------------------------------------------


def mixed(release: str, seed: int, switches: Switches) -> Verdict:
    """The mixed workload beside a link and a guest."""
    workload = Mixed(MixedOptions(operations=600))
    of = workload.world(preset(release, "ppc", switches))
    assert not of.parts_of(Unit)
    conditions = workload_conditions(of, 3, 2)
    return simulate(RunSpec("mixed", of, seed, workload, sometimes=conditions)).verdict


@pytest.mark.parametrize(
    ("release", "switches"),
    [
        ("v4.18", {"apic_reload": "zap_retries"}),  # as it was it has E01
        ("v5.10", {}), ("v5.12", {}), ("v6.2", {}), ("v6.5", {}),
        ("v6.6.5", POWER9), ("v6.6.5", CURED),
    ],
)  # fmt: skip
def test_kernels_without_the_bugs_are_never_flagged(release: str, switches: Switches) -> None:
    for seed in range(2):
        verdict = mixed(release, seed, switches)
        assert verdict.outcome == "held", (seed, verdict.reasons, verdict.violations[:1])


def test_the_flush_of_a_page_tells_no_link_on_v6_6() -> None:
    found = mixed("v6.6.5", 1, {"ocxl_decoder": "exact"}).violations
    assert {(v.agent, v.cache) for v in found} == {("link0", "xsl")}
    assert "O" in {v.rule for v in found}


def linked(programs: tuple[Program, ...]) -> tuple[Program, ...]:
    """The same with an accelerator in place of the device."""
    accesses = [
        Step(AfuTouch(o.mm, o.address, o.write, o.value))
        for p in programs for o in (step.operation for step in p.steps) if isinstance(o, Dma)
    ]  # fmt: skip
    rest = tuple(p for p in programs if p.node != "device0")
    return (*rest, Program("link0", "link0", accesses))


@pytest.mark.parametrize(
    ("release", "switches"), [("v5.10", {}), ("v6.6.5", POWER9), ("v6.6.5", CURED | RELEASES)]
)
def test_moves_forks_files_and_ends_beside_a_link(release: str, switches: Switches) -> None:
    for seed in range(2):
        of = msgspec.structs.replace(
            several_world("v6.6.5", "x86").with_parts(Unit, ()).with_parts(
                Link, (Link("link0", ("mm0",), "cpu1"),)
            ),
            kernel=preset(release, "ppc", switches),
        )  # fmt: skip
        spec = RunSpec("several", of, seed, Script(linked(several_programs(seed, 40))))
        outcome = simulate(spec)
        assert outcome.status == "finished", outcome.detail
        assert not outcome.verdict.violations, outcome.verdict.violations[0].text()


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "switches"),
    [("v4.18", {}), ("v5.10", {}), ("v6.2", {}), ("v6.2", {"ocxl_notifier_releases": True})],
)
def test_who_comes_second_closes_nothing(release: str, switches: Switches) -> None:
    """Exits and detaches of one process beside each other, and beside an attach.

    One waits until the other is out of the notifier's ``release``, if that has one (S13).
    """
    exits = [OcxlDetach("mm0", "link0"), OcxlAttach("mm0", "link0"), op.Exit("mm0")]
    closes = [OcxlDetach("mm0", "link0"), op.Exit("mm0"), op.Exit("mm0")]
    programs = [
        Program("cpu0", "cpu0", [Step(o) for o in exits]),
        Program("cpu1", "cpu1", [Step(o) for o in closes]),
    ]
    beaten = 0
    for seed in range(30):
        ran = Ran(world(release, ("mm0",), switches), programs, seed)
        assert len(ran.results) == len(exits) + len(closes)
        assert not ran.verdict.violations
        beaten += ran.results["cpu1/0"] == -EINVAL
    assert 0 < beaten < 30


def test_links_are_of_power() -> None:
    table = world_to(world())
    assert world_from(table, preset("v6.2", "ppc"), "w") == world()
    with pytest.raises(UserError, match=r"w\.links: are there on x86 \(expected arch = ppc\)"):
        world_from(table, preset("v6.2", "x86"), "w")
    with pytest.raises(UserError, match=r"nodes\.links: is 1 on arm64"):
        Mixed(MixedOptions(links=1)).world(preset("v6.6.5", "arm64"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mms": ["mm7"]}, r"w\.links\[0\]\.mms: unknown name 'mm7'"),
        ({"fault_cpu": "link0"}, r"w\.links\[0\]\.fault_cpu: unknown name 'link0'"),
        ({"pasids": 2}, r"unknown key 'pasids'"),
    ],
)
def test_a_link_that_makes_no_sense_is_refused(change: Switches, said: str) -> None:
    table = world_to(world())
    table["links"] = [table["links"][0] | change]
    with pytest.raises(UserError, match=said):
        world_from(table, preset("v6.2", "ppc"), "w")


def test_a_run_with_links_is_saved_and_read(tmp_path: Path) -> None:
    script = Script(tuple(churn()))
    spec = RunSpec("links", world(), 1, script).save(tmp_path)
    again = RunSpec.load(tmp_path)
    assert again.world == spec.world
    assert [list(p.steps) for p in again.programs()] == [list(p.steps) for p in churn()]
    change_by_hand(tmp_path / "run.toml", 'link = "link0"', 'link = "link9"')
    with pytest.raises(UserError, match="unknown name 'link9' in links"):
        RunSpec.load(tmp_path)


def test_only_the_memory_of_power_has_contexts() -> None:
    plain = World(kernel=preset("v6.6.5", "x86"))
    kinds = {name: set(driver.handlers) for name, driver in build_all(plain, 0).items()}
    assert ContextIdLoad not in kinds[MEMORY]
    assert ContextIdLoad in build_all(world(), 0)[MEMORY].handlers


@pytest.mark.parametrize("release", ["v5.10", "v6.2"])
def test_independent_deliveries_commute(release: str) -> None:
    assert commuting_pairs(link_world(release), link_programs(1), 40) >= 20
