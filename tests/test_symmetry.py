"""Interchangeable nodes: one state stands for all that are the same but for names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.exhaustive.node_tables import CLOSES
from mmurace.explorer.exhaustive.oracle_table import RULES, OracleTable
from mmurace.explorer.exhaustive.persistent_sets import Futures
from mmurace.explorer.exhaustive.search import Budget, explore_stateful
from mmurace.explorer.exhaustive.stateful import Stateful
from mmurace.explorer.exhaustive.symmetry import Forms, Key, interchangeable
from mmurace.explorer.exhaustive.world_state import Model, model_of
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.device import Device
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm import kvm_main
from mmurace.nodes.secondaries.kvm.messages import KvmRequest
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import FrameRead
from mmurace.scenarios.catalogue import load_all
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.search_toy import WORLD, Accesses, toy
from tests.test_futures import RACES, SCOPES
from tests.test_stateful import rules
from tests.worlds import MM, page

SAMPLE = 400


def table_of(world: World) -> OracleTable:
    """The oracle of a search."""
    return OracleTable(lambda: Oracle(world, (), frozenset(RULES)))


def concrete_states(model: Model, table: OracleTable, most: int) -> Iterator[Key]:
    """Breadth-first, every order, nothing left out."""
    first = model.first()
    level: list[Key] = [(first.nodes, first.front, 0)]
    seen = set(level)
    while level:
        following: list[Key] = []
        for key in level:
            yield key
            for reached, _ in successors(model, table, key):
                if reached not in seen and len(seen) < most:
                    seen.add(reached)
                    following.append(reached)
        level = following


def successors(model: Model, table: OracleTable, key: Key) -> Iterator[tuple[Key, tuple[str, ...]]]:
    """All that can come next, and the rules that it breaks."""
    nodes, front, oracle = key
    for message in front.heads:
        at = model.index[message.dst]
        for move in model.machines[at].moves_of(nodes[at], message):
            then, _ = model.pass_on(front, message, move)
            judged, broken = table.step(oracle, message, move)
            reached = (*nodes[:at], move.target, *nodes[at + 1 :]), then, judged
            yield reached, tuple(violation.rule for violation in broken)


# ---- orbits --------------------------------------------------------------------------------------

ALIKE: list[Accesses] = [[("r", 0), ("w", 1)], [("w", 0), ("r", 0)], [("w", 0), ("w", 1)]]


def swapped(text: str) -> str:
    """A state that was written down, with the workers' names exchanged."""
    return text.replace("w0", "w?").replace("w1", "w0").replace("w?", "w1")


def written(model: Model, key: Key, other_way: bool) -> tuple[object, ...]:
    """A state of two workers as text, the second way with their names exchanged."""
    as_is = swapped if other_way else str
    shelf, *workers = [
        as_is(repr(machine.frozen[state]))
        for machine, state in zip(model.machines, key[0], strict=True)
    ]
    pending = sorted(
        as_is(repr([(m.id, m.src, m.dst, m.kind, m.body) for m in queue]))
        for queue in key[1].queues.values()
    )
    return shelf, *(workers[::-1] if other_way else workers), *pending


@pytest.mark.parametrize("accesses", ALIKE)
def test_as_many_forms_as_orbits(accesses: Accesses) -> None:
    model, table = toy(accesses, accesses, alike=True), table_of(WORLD)
    states = list(concrete_states(model, table, 10**6))
    orbits = {frozenset({written(model, s, False), written(model, s, True)}) for s in states}
    forms = Forms(model, table)
    assert forms.orbits == [("w0", "w1")]
    assert len({forms.canonical(*state) for state in states}) == len(orbits) < len(states)


def test_each_state_stands_for_its_orbit() -> None:
    model, table = toy(ALIKE[0], ALIKE[0], alike=True), table_of(WORLD)
    states = list(concrete_states(model, table, 10**6))
    forms = Forms(model, table)
    first = {forms.canonical(*state): state for state in states}
    assert sum(forms.images(*state) for state in first.values()) == len(states)


# ---- who is interchangeable ----------------------------------------------------------------------


def under_dma(
    values: tuple[int, int] = (3, 3),
    units: tuple[Unit, ...] = (),
    switches: dict[str, object] | None = None,
    pages: int = 2,
) -> RunSpec:
    """Pages are unmapped, a batch for each, while two devices use the first."""
    world = World(
        kernel=preset("v6.2", "x86", switches or {}), cpus=("cpu0",), levels=1, gather_batch=1,
        parts=(*(units or (Unit("iommu0", ("device0", "device1"), (MM,), "cpu0"),)),),
    )  # fmt: skip
    cpu = [
        Step(op.Mmap(MM, 0, page(pages), True, True)),
        *[Step(op.Touch(MM, page(at), True, 1)) for at in range(pages)],
        Step(op.Munmap(MM, 0, page(pages))),
    ]
    programs = [Program("cpu0", "cpu0", cpu)]
    for name, value in zip(("device0", "device1"), values, strict=True):
        dma = Step(Dma(MM, 0, True, value), (f"cpu0/{pages}",))
        programs.append(Program(name, name, [dma]))
    return RunSpec("t", world, 0, Script(tuple(programs)))


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (under_dma(), [("device0", "device1")]),
        (under_dma((3, 4)), []),
        (
            under_dma(
                units=(
                    Unit("iommu0", ("device0",), (MM,), "cpu0"),
                    Unit("iommu1", ("device1",), (MM,), "cpu0", ats=True),
                )
            ),
            [],
        ),
    ],
    ids=["same", "other values", "another place"],
)
def test_who_is_interchangeable(spec: RunSpec, found: list[tuple[str, ...]]) -> None:
    assert interchangeable(spec.world, model_of(spec)) == found


# ---- nothing is lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [{}, {"gather_calls_ir": False}])
def test_verdicts_are_those_of_all_states(switches: dict[str, object]) -> None:
    spec = under_dma(switches=switches, pages=1)
    few = explore_stateful(spec, Budget(), go_on=True)
    each = explore_stateful(spec, Budget(), go_on=True, symmetry=False)
    assert few.exhaustive
    assert each.exhaustive
    assert rules(few) == rules(each)
    assert few.verdict.outcome == each.verdict.outcome == ("violated" if switches else "held")
    assert few.states < each.states
    assert few.symmetric == (("device0", "device1"),)


@pytest.mark.parametrize("switches", [{}, {"gather_calls_ir": False}])
def test_final_states_are_those_of_all(switches: dict[str, object]) -> None:
    spec = under_dma(switches=switches, pages=1)
    model, table = model_of(spec), table_of(spec.world)
    forms = Forms(model, table)

    def finals(eager: bool, used: Forms | None) -> set[object]:
        found: set[object] = set()
        search = Stateful(model, table, lambda *_: False, lambda _: False, eager, used)
        assert search.run()
        for key, _ in search.left.values():
            if not key[1].heads:
                found.add(forms.canonical(key[0], key[1], 0))
        return found

    assert finals(True, forms) == finals(True, None) == finals(False, None)


def check_successors(model: Model, table: OracleTable, most: int) -> int:
    """States of one form have successors of the same forms, and break the same: how many."""
    forms = Forms(model, table)
    known: dict[object, Counter[object]] = {}
    pairs = 0
    for key in list(concrete_states(model, table, most)):
        after = Counter[object](
            (forms.canonical(*reached), broken) for reached, broken in successors(model, table, key)
        )
        form = forms.canonical(*key)
        pairs += form in known
        assert known.setdefault(form, after) == after
    return pairs


@pytest.mark.parametrize(("name", "kernel"), SCOPES)
def test_states_of_one_form_have_the_same_future(name: str, kernel: str) -> None:
    spec = RACES[name].run_in_scope(kernel)
    check_successors(model_of(spec), table_of(spec.world), SAMPLE)


def test_the_same_of_devices() -> None:
    spec = under_dma(switches={"gather_calls_ir": False})
    assert check_successors(model_of(spec), table_of(spec.world), 5000) > 1000


def with_caches_of_their_own(**switches: object) -> RunSpec:
    """Two devices that keep translations; each has a stream of invalidations that is its own."""
    unit = Unit("iommu0", ("device0", "device1"), (MM,), "cpu0", ats=True)
    return under_dma(units=(unit,), switches=switches, pages=1)


def test_streams_are_named_after_nodes() -> None:
    spec = with_caches_of_their_own()
    assert check_successors(model_of(spec), table_of(spec.world), 2000) > 100
    found = explore_stateful(with_caches_of_their_own(ats_wait=False), Budget())
    assert found.verdict.outcome == "violated"
    assert found.symmetric == (("device0", "device1"),)


def test_what_is_sent_to_a_stream_has_another_stream_for_another_node() -> None:
    """The future of one device's messages is that of the other's, with its stream."""
    futures = Futures(model_of(with_caches_of_their_own()))
    mine, other = (futures.stream(f"device{n}.atc") for n in (0, 1))
    shared = futures.stream("iommu0.cmdq")
    assert futures.renamed_streams(CLOSES | other | shared, {"device1": "device0"}) == (
        CLOSES | mine | shared
    )


def two_vcpus(kernel: str) -> RunSpec:
    """E01 with two vCPUs."""
    return load_all()["E01"].run_in_scope(kernel, scope="two-vcpus")


@pytest.mark.parametrize("kernel", ["v5.7", "v5.8", "v6.6"])
def test_the_same_of_vcpus(kernel: str) -> None:
    spec = two_vcpus(kernel)
    model, table = model_of(spec), table_of(spec.world)
    forms = Forms(model, table)
    assert forms.orbits == [("vcpu0", "vcpu1")]
    assert check_successors(model, table, 3000) > 100


def test_a_kernel_that_forgets_one_of_two_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that hits one of two interchangeable nodes is found like any other."""

    async def all_but_the_last(cpu: Processor, vm: str, request: str) -> None:
        vcpus = kvm_main.vm_named(cpu.world, vm).vcpus[:-1]
        await cpu.port.gather((vcpu, KvmRequest(request, True)) for vcpu in vcpus)

    monkeypatch.setattr(kvm_main, "kvm_make_all_cpus_request", all_but_the_last)
    result = explore_stateful(two_vcpus("v5.8"), Budget(executions_max=10_000))
    assert result.violation is not None
    assert {violation.agent for violation in result.violation.verdict.violations} == {"vcpu1"}


def test_node_code_that_looks_at_names_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Symmetry is not assumed of node code: then nothing is taken to be alike."""
    dma = Device.dma

    async def looks_again(self: Device, operation: Dma, envelope: Envelope) -> op.OpDone:
        done = await dma(self, operation, envelope)
        if self.name == "device1":
            await self.port.call("memory", FrameRead(0, 0))
        return done

    monkeypatch.setattr(Device, "dma", looks_again)
    result = explore_stateful(under_dma(), Budget(executions_max=5_000))
    assert result.symmetric == ()
