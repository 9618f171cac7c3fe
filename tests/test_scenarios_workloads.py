"""Workloads: logs are imported whole, the mixed one is the same every time."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from mmurace.broker.programs import Program
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.oracle.sometimes import Entered
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import operation_kinds
from mmurace.scenarios.address_space import AreaMap, PageSet
from mmurace.scenarios.log_effects import Account, effects_of
from mmurace.scenarios.log_parties import TouchOptions
from mmurace.scenarios.mixed import Mix, Mixed, MixedOptions
from mmurace.scenarios.runs import mixed_run, strace_run
from mmurace.scenarios.strace import StraceLog
from mmurace.scenarios.strace_log import parse_log
from tests.test_scenarios import DATA, records_of, verdict_of

LOGS = ("numpy", "node", "bash", "gcc", "redis")
KERNEL = preset("v6.6.5")


def account_of(text: str) -> Account:
    return effects_of(parse_log(text, "a.strace"))[1]


# ---- logs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_every_line_of_a_log_is_accounted_for(name: str) -> None:
    path = DATA / f"{name}.strace"
    account = StraceLog(path).account()
    assert account.lines == len(path.read_text().splitlines())
    assert account.accounted == account.lines == sum(count for _, _, count in account.rows())


def test_the_account_of_a_log_names_what_is_not_built() -> None:
    rows = {
        (why, name): count for why, name, count in StraceLog(DATA / "node.strace").account().rows()
    }
    assert rows["executed", "munmap"] == 468
    assert rows["executed", "madvise(MADV_DONTNEED)"] == 147
    assert rows["not built yet", "madvise(MADV_DONTFORK)"] == 227
    assert rows["no memory effect", "clone3 (thread)"] == 7


@pytest.mark.parametrize("name", LOGS)
def test_every_executed_call_of_a_log_is_one_operation(name: str) -> None:
    log = StraceLog(DATA / f"{name}.strace")
    account = log.account()
    found = operations(strace_run(log.path, KERNEL, 1).programs(), "thread")
    calls = sum(account.executed.values())
    image = len(account.image) + 1  # and KVM's APIC page
    assert len([op for op in found if not isinstance(op, ops.Touch)]) == calls + image


def operations(programs: tuple[Program, ...], prefix: str = "") -> list[ops.Operation]:
    return [s.operation for p in programs if p.name.startswith(prefix) for s in p.steps]


@pytest.mark.parametrize("name", LOGS)
def test_no_two_programs_of_a_log_wait_for_each_other(name: str) -> None:
    programs = strace_run(DATA / f"{name}.strace", KERNEL, 1).programs()
    steps = {p.name: tuple(p.steps) for p in programs}
    done: set[str] = set()
    position = dict.fromkeys(steps, 0)
    moved = True
    while moved:
        moved = False
        for name_, own in steps.items():
            while position[name_] < len(own) and done.issuperset(own[position[name_]].after):
                done.add(f"{name_}/{position[name_]}")
                position[name_] += 1
                moved = True
    assert position == {name_: len(own) for name_, own in steps.items()}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_runs_to_its_end_holds_and_does_what_it_should(name: str) -> None:
    spec = strace_run(DATA / f"{name}.strace", KERNEL, 2)
    assert not any(isinstance(condition, Entered) for condition in spec.sometimes[:3])
    assert all(isinstance(condition, Entered) for condition in spec.sometimes[3:])
    verdict = verdict_of(spec)
    assert verdict.outcome == "held", verdict.reasons
    assert sum(map(sum, (row.values() for row in verdict.how.windows.values()))) > 20
    assert verdict.how.statistics["out_of_memory"] == 0
    assert verdict.how.deliveries < 4 * 60 * 4000


def test_mixed_holds_on_a_good_kernel_and_does_what_it_should() -> None:
    verdict = verdict_of(mixed_run(KERNEL, 2, operations_max=30_000))
    assert verdict.outcome == "held", verdict.reasons
    assert verdict.how.statistics["out_of_memory"] == 0
    assert {kind: list(row) for kind, row in verdict.how.windows.items()} == {
        kind: ["tlb", "iotlb", "spte", "gtlb"] + ["vmcs"] * (kind == "MigratePages")
        for kind in ("Brk", "MadviseDontneed", "MigratePages", "Mmap", "Mprotect", "Munmap",
                     "Touch")
    }  # fmt: skip
    assert all(count for row in verdict.how.windows.values() for count in row.values())


def test_mixed_finds_a_race_that_nobody_wrote_into_it() -> None:
    runs = (mixed_run(preset("v5.7"), seed, operations_max=2000) for seed in range(20))
    rules = (violation.rule for run in runs for violation in verdict_of(run).violations)
    assert "S4" in rules


def test_the_draws_of_a_log_depend_on_the_seed_alone() -> None:
    path = DATA / "numpy.strace"
    one, same, other = (strace_run(path, KERNEL, seed).programs() for seed in (1, 1, 2))
    assert one == same != other


def test_touching_can_be_turned_off() -> None:
    none = TouchOptions(touch=0, device=0, guest=0, apic=0, migrate=0, held=0)
    programs = strace_run(DATA / "numpy.strace", KERNEL, 1, none).programs()
    assert {p.name for p in programs} == {"thread0", "thread1"}
    assert not any(isinstance(op, ops.Touch) for op in operations(programs))


SMALL = """\
10 1.0 execve("x", [...], 0x7ffe /* 3 vars */) = 0
10 1.1 brk(NULL)       = 0x5000000
10 1.2 brk(0x5002000)  = 0x5002000
10 1.3 mmap(NULL, 5000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000
10 1.4 mprotect(0x400000, 4096, PROT_READ) = 0
10 1.5 clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x1}, 88) = 11
11 1.6 munmap(0x7f0000000000, 8192 <unfinished ...>
10 1.7 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0 <unfinished ...>
11 1.8 <... munmap resumed>) = 0
10 1.9 <... mmap resumed>) = 0x7f0000000000
10 2.0 munmap(0x1, 4096) = -1 EINVAL (Invalid argument)
10 2.1 --- SIGCHLD {si_signo=SIGCHLD} ---
10 2.2 fork() = 12
12 2.3 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000010000
12 2.4 +++ exited with 0 +++
10 2.4 madvise(0x7f0000000000, 4096, MADV_FREE) = 0
11 2.5 madvise(0x7f0000000000, 4096, MADV_FREE <unfinished ...>
11 2.6 +++ killed by SIGKILL +++
10 2.7 exit_group(0)   = ?
"""


def test_a_small_log_line_by_line() -> None:
    account = account_of(SMALL)
    assert account.rows() == [
        ("executed", "brk", 2),
        ("executed", "execve", 1),
        ("executed", "exit_group", 1),
        ("executed", "fork", 1),
        ("executed", "madvise(MADV_FREE)", 1),
        ("executed", "mmap", 3),
        ("executed", "mprotect", 1),
        ("executed", "munmap", 1),
        ("failed", "munmap", 1),
        ("never returned", "madvise", 1),
        ("no memory effect", "clone3 (thread)", 1),
        ("no memory effect", "exit", 2),
        ("no memory effect", "signal", 1),
        ("second half of an unfinished call", "mmap", 1),
        ("second half of an unfinished call", "munmap", 1),
    ]
    assert account.accounted == 19
    assert account.file_mappings == 1
    assert account.image == [(0x400000, 0x401000)]


def test_calls_of_two_threads_are_ordered_where_they_overlap(tmp_path: Path) -> None:
    path = tmp_path / "small.strace"
    path.write_text(SMALL)
    none = TouchOptions(touch=0, device=0, guest=0, apic=0, migrate=0, held=0)
    main, other, child = strace_run(path, KERNEL, 1, none).programs()
    steps = list(main.steps)
    assert [type(step.operation).__name__ for step in steps] == [
        "Execve", "Mmap", "Mmap", "Brk", "Brk", "Mmap", "Mprotect", "Mmap", "Fork", "MadviseFree",
        "Exit",
    ]  # fmt: skip
    (munmap,) = other.steps
    assert munmap.after == ("thread0/5", "thread0/6")  # its mapping; what came before the clone
    assert steps[7].after == ("thread1/0",)  # the address was freed by then
    assert steps[5].operation == ops.Mmap("mm0", 0x7F0000000000, 5000 // 4096 * 8192, True, True)
    assert steps[7].operation == ops.Mmap("mm0", 0x7F0000000000, 8192, True, False, "bytes-8192")
    assert steps[8].operation == ops.Fork("mm0", "mm1")
    (mapped,) = child.steps
    assert mapped.operation == ops.Mmap("mm1", 0x7F0000010000, 4096, True, False)
    assert mapped.after == ("thread0/8",)


MOVED = """\
10 1.0 execve("x", [...], 0x7ffe /* 3 vars */) = 0
10 1.1 mmap(NULL, 8192, PROT_READ, MAP_SHARED|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000
10 1.2 mremap(0x7f0000000000, 8192, 16384, MREMAP_MAYMOVE) = 0x7f0000010000
10 1.3 vfork( <unfinished ...>
12 1.4 execve("y", [...], 0x7ffe /* 3 vars */ <unfinished ...>
10 1.5 <... vfork resumed>) = 12
12 1.6 <... execve resumed>) = 0
12 1.7 mprotect(0x400000, 4096, PROT_READ) = 0
12 1.8 exit_group(0) = ?
10 1.9 munmap(0x7f0000010000, 16384) = 0
"""


def test_moves_and_programs_that_are_started(tmp_path: Path) -> None:
    path = tmp_path / "moved.strace"
    path.write_text(MOVED)
    none = TouchOptions(touch=0, device=0, guest=0, apic=0, migrate=0, held=0)
    main, child = strace_run(path, KERNEL, 1, none).programs()
    at = 0x7F0000000000
    assert [step.operation for step in main.steps][2:] == [
        ops.Mmap("mm0", at, 8192, True, False, "shm-2", 0, True),
        ops.Mremap("mm0", at, 8192, at + 0x10000, 16384),
        ops.Munmap("mm0", at + 0x10000, 16384),
    ]
    assert [type(step.operation) for step in child.steps] == [
        ops.Execve, ops.Mmap, ops.Mprotect, ops.Exit
    ]  # fmt: skip
    assert list(main.steps)[-1].after == ("thread1/0",)  # it slept until the child's execve
    assert next(iter(child.steps)).after == ("thread0/3",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10 1.2 mmap(NULL, 81", "a.strace:2: is damaged: 'mmap(NULL, 81' (expected PID TIME "
         "call(args) = result, as strace -f -ttt writes)"),
        ("10 1.2 brk(0x1000) = 0xffffffffffffffff", "a.strace:2: brk up to 0xffffffffffffffff "
         "(expected at most 0x1000000000000)"),
        ("10 1.2 brk(NULL) = 010", "a.strace:2: is damaged: 'brk(NULL) = 010' (expected PID TIME "
         "call(args) = result, as strace -f -ttt writes)"),
        ("hello", "a.strace:2: is damaged: 'hello' (expected PID TIME call(args) = result, as "
         "strace -f -ttt writes)"),
        ("10 1.2 <... mmap resumed>) = 0x1000", "a.strace:2: resumes mmap of thread 10, which had "
         "not begun (expected its unfinished half before it)"),
        ("10 1.2 munmap(oops, 4096) = 0",
         "a.strace:2: argument 1 of munmap is 'oops' (expected a number)"),
        ("10 1.2 munmap(0x1000) = 0",
         "a.strace:2: argument 2 of munmap is '' (expected a number)"),
        ("10 1.2 munmap(0x1001, 4096) = 0", "a.strace:2: munmap of [0x1001, 0x2001) (expected a "
         "page-aligned range that is not empty)"),
        ("10 1.2 mprotect(0x1000, 4096, RED) = 0",
         "a.strace:2: argument 3 of mprotect is 'RED' (expected PROT_ flags)"),
        ("10 1.2 mmap(NULL, 4096, PROT_READ) = 0x1000",
         "a.strace:2: mmap has too few arguments (expected six)"),
        ("10 1.2 brk(NULL <unfinished ...>\n10 1.3 brk(NULL) = 0x1000",
         "a.strace:3: thread 10 is inside brk (expected its resumed half first)"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        account_of(f"10 1.0 brk(NULL) = 0x5000\n{line}\n")
    assert str(caught.value) == message


def test_a_log_that_is_missing_empty_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.strace: cannot be read: No such file"):
        StraceLog(tmp_path / "gone.strace").account()
    (tmp_path / "empty.strace").write_text("")
    with pytest.raises(UserError, match=r"empty\.strace: holds no system call"):
        StraceLog(tmp_path / "empty.strace").account()
    (tmp_path / "bytes.strace").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.strace: is not UTF-8 at byte 0"):
        StraceLog(tmp_path / "bytes.strace").account()


# ---- the address space -------------------------------------------------------------------------


def test_an_area_map_is_what_a_dictionary_of_pages_would_be() -> None:
    """Against the obvious, slow way to do it."""
    draw = random.Random(4)
    areas: AreaMap[int] = AreaMap()
    pages: dict[int, int] = {}
    for value in range(400):
        start = draw.randrange(64)
        end = start + draw.randrange(1, 16)
        if draw.random() < 0.3:
            areas.remove(start, end)
            pages = {p: v for p, v in pages.items() if not start <= p < end}
        else:
            areas.put(start, end, value)
            pages.update(dict.fromkeys(range(start, end), value))
        assert [areas.at(page) for page in range(80)] == [pages.get(page) for page in range(80)]
        holes = {p for s, e in areas.holes(0, 80) for p in range(s, e)}
        assert holes == set(range(80)) - set(pages)


def test_a_page_set_is_sorted_and_forgets_ranges() -> None:
    pages = PageSet()
    for page in (5, 1, 3, 3, 9):
        pages.add(page)
    assert pages.inside(0, 10) == [1, 3, 5, 9]
    pages.remove(2, 6)
    assert [pages.pick(n) for n in range(3)] == [1, 9, 1]
    assert PageSet().pick(7) is None


# ---- mixed -------------------------------------------------------------------------------------


def first(spec_seed: int, count: int, options: MixedOptions | None = None) -> list[list[object]]:
    programs = mixed_run(KERNEL, spec_seed, options).programs()
    return [list(itertools.islice(p.steps, count)) for p in programs]


def test_mixed_is_repeatable_and_restartable() -> None:
    assert first(1, 300) == first(1, 300)
    assert first(1, 300) != first(2, 300)
    program = mixed_run(KERNEL, 1).programs()[0]
    assert list(itertools.islice(program.steps, 50)) == list(itertools.islice(program.steps, 50))


def test_mixed_does_every_operation_that_wears_nothing_out() -> None:
    """Of the kernel's and a device's own; the others are in the catalogue, or have a weight."""
    done = {type(s.operation) for steps in first(3, 1500) for s in steps}  # type: ignore[attr-defined]  # list[object] of Steps
    once = {ops.Mremap, ops.Truncate, ops.Fork, ops.Execve, ops.Exit, ops.OomReap}
    weighed = {ops.Kswapd, ops.MadviseFree, ops.MadviseNohugepage, ops.Writeback, ops.ClearRefs}
    core = {kind for kind in operation_kinds() if kind.__module__ == ops.__name__}
    weighed |= {ops.ShrinkActiveList, ops.ChangeProtNuma, ops.KsmScan}
    assert done >= core - once - weighed


def test_mixed_stays_inside_its_arena() -> None:
    spec = mixed_run(KERNEL, 1)
    assert isinstance(spec.workload, Mixed)
    low, high = 0x5500_0000_0000, 0x7F00_0000_0000 + 64 * PAGE_SIZE
    for program in spec.programs():
        for step in itertools.islice(program.steps, 300):
            address = getattr(step.operation, "address", low)
            assert low <= address < high


@pytest.mark.parametrize(
    "options",
    [
        MixedOptions(operations=40),
        MixedOptions(operations=40, cpus=1, slots=1, pages=1, heap=1),
        MixedOptions(operations=40, cpus=3, devices=2, vcpus=2),
        MixedOptions(operations=40, cpus=4, devices=0, vcpus=0, slots=2),
    ],
)
def test_mixed_runs_to_its_end_at_any_size(options: MixedOptions) -> None:
    records, complete = records_of(mixed_run(KERNEL, 1, options))
    assert complete
    assert records


ALL_WEIGHTS = Mix(
    madvise_free=12,
    mremap=8,
    kswapd=8,
    shrink_active_list=4,
    file=12,
    writeback=4,
    clear_refs=4,
    change_prot_numa=4,
    ksm_scan=4,
)


def test_mixed_moves_frees_and_reclaims_if_it_is_told_to() -> None:
    spec = mixed_run(KERNEL, 1, MixedOptions(mix=ALL_WEIGHTS))
    steps = [s.operation for p in spec.programs() for s in itertools.islice(p.steps, 1500)]
    told = {ops.MadviseFree, ops.Mremap, ops.Kswapd, ops.Writeback, ops.ClearRefs}
    told |= {ops.ShrinkActiveList, ops.ChangeProtNuma, ops.KsmScan}
    assert told <= {type(step) for step in steps}
    assert any(isinstance(o, ops.Mmap) and o.file for o in steps)
    arena = 0x7F00_0000_0000 + 64 * PAGE_SIZE
    assert all(o.new_address < arena for o in steps if isinstance(o, ops.Mremap))


@pytest.mark.parametrize(
    ("release", "arch", "mremap"),
    [("v6.6.5", "x86", 8), ("v6.6.5", "arm64", 8), ("v6.2", "x86", 0), ("v5.11", "x86", 0)],
)
def test_mixed_with_all_of_it_in_a_small_pool_holds(release: str, arch: str, mremap: int) -> None:
    mix = Mix(madvise_free=12, mremap=mremap, kswapd=0 if arch == "arm64" else 2, file=12)
    covered = Counter[str]()
    for seed in range(12):
        spec = mixed_run(preset(release, arch), seed, MixedOptions(mix=mix), operations_max=800)
        world = msgspec.structs.replace(spec.world, frames=16)
        outcome = simulate(replace(spec, world=world))
        assert outcome.ending.complete
        assert not outcome.violations, [v.text() for v in outcome.violations]
        covered.update(outcome.verdict.how.statistics["covered"])
    assert covered["direct_reclaim"]
    assert covered["file_page_reclaimed"]


def test_mixed_without_weights_is_refused() -> None:
    zero = {"mix": dict.fromkeys(Mix.__struct_fields__, 0)}
    with pytest.raises(UserError, match=r"^r: workload\.mix: has no weight above 0"):
        Mixed.from_table(zero, "r: workload")


def test_a_log_that_is_cut_short_is_no_deadlock() -> None:
    # What another thread waits for may never be fed then.
    spec = replace(strace_run(DATA / "bash.strace", KERNEL, 2), operations_max=400)
    outcome = simulate(spec)
    assert outcome.ending.complete
    assert outcome.violations == ()
