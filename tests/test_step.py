"""Going through a run: any place from either side, the state there, and what else could come."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmurace import launch
from mmurace.explorer.explain.why import explain
from mmurace.explorer.run.schedule_file import load
from mmurace.explorer.step.calls import calls_of
from mmurace.explorer.step.events import Predicate, of_lock, of_page, of_party
from mmurace.explorer.step.state import difference, locks_after
from mmurace.explorer.step.stepper import Stepper, stepper_of
from mmurace.nodes.fingerprint import fingerprint
from mmurace.nodes.locks import LockWord
from mmurace.nodes.translation import TranslationCache
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages.memory import PteGetAndClear
from mmurace.report.stepping.session import HELP, Session
from tests.stepping import schedule_file

PAGE, ENTRY = 0x8000, "pte mm0:0x8000"


@pytest.fixture
def stepper(tmp_path: Path) -> Stepper:
    """At the beginning of the race of the README."""
    return stepper_of(schedule_file(tmp_path))


@pytest.fixture
def session(stepper: Stepper) -> Session:
    """The same with commands."""
    return Session(stepper)


def where_all_stand(stepper: Stepper) -> list[str]:
    """The state of every node, suspended coroutines included."""
    return [fingerprint(driver) for driver in stepper.drivers.values()]


def changes_the_entry(stepper: Stepper) -> int:
    """Where the entry of the page has just been taken out."""
    found = stepper.find(lambda moment: isinstance(moment.envelope.body, PteGetAndClear))
    assert found is not None
    return found


# ---- places ------------------------------------------------------------------------------------

_SHARED: dict[str, Stepper] = {}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-5, 200), min_size=1, max_size=5))
def test_a_place_is_the_same_however_one_came_there(
    tmp_path_factory: pytest.TempPathFactory, way: list[int]
) -> None:
    if not _SHARED:
        file = schedule_file(tmp_path_factory.mktemp("step"))
        _SHARED["wandering"], _SHARED["straight"] = stepper_of(file), stepper_of(file)
    wandering, straight = _SHARED["wandering"], _SHARED["straight"]
    for at in way:
        assert wandering.go(at) == max(0, min(at, len(wandering.moments)))
    straight.go(0)
    straight.go(wandering.at)
    assert where_all_stand(wandering) == where_all_stand(straight)
    assert wandering.state() == straight.state()
    assert wandering.violations == straight.violations
    assert wandering.deliverable() == straight.deliverable()


def test_the_violation_is_where_the_run_breaks(stepper: Stepper) -> None:
    (at, violation), *_ = stepper.broken
    stepper.go(at - 1)
    assert not stepper.violations
    stepper.go(at)
    assert stepper.violations == [violation]
    assert violation.rule == "S4"


@pytest.mark.parametrize(
    "wanted", [of_page(PAGE), of_lock("mmu_lock"), of_party("vcpu0")], ids=["page", "lock", "party"]
)
def test_what_is_sought_is_met_in_the_same_places_both_ways(
    stepper: Stepper, wanted: Predicate
) -> None:
    there = [at for at, moment in enumerate(stepper.moments, 1) if wanted(moment)]
    assert len(there) > 1
    met = []
    while (at := stepper.find(wanted)) is not None:
        met.append(stepper.go(at))
    back = [stepper.at]
    while (at := stepper.find(wanted, back=True)) is not None:
        back.append(stepper.go(at))
    assert met == there == back[::-1]


# ---- state -------------------------------------------------------------------------------------


def test_the_entry_changes_and_what_was_read_from_it_stays(stepper: Stepper) -> None:
    at = changes_the_entry(stepper)
    stepper.go(at - 1)
    before = stepper.state()
    stepper.go(at)
    after = stepper.state()
    assert before["memory"][ENTRY] == "frame 0x3 RW AD"
    assert ENTRY not in after["memory"]
    assert before["vcpu0"]["VMCS.APIC_ACCESS_ADDR"] == "frame 0x3"
    assert after["vcpu0"]["VMCS.APIC_ACCESS_ADDR"] == "frame 0x3"
    assert ("memory", ENTRY, "frame 0x3 RW AD", "") in difference(before, after)
    assert {node for node, *_ in difference(before, after)} == {"memory"}


def test_locks_are_told_with_who_holds_them(stepper: Stepper) -> None:
    stepper.go(changes_the_entry(stepper))
    memory = stepper.state()["memory"]
    assert memory["folio lock of frame 0x3"] == memory["PTL of table 0x2"] == "held by cpu0/1"
    assert memory["anon_vma lock of mm0"] == "held by cpu0/1 for read"
    taken = stepper.find(of_lock("mmu_lock"), back=True)
    assert taken is not None  # given back: it is the unlock
    stepper.go(taken)
    assert "mmu_lock of kvm0" not in stepper.state()["kvm0"]
    stepper.go(taken - 1)
    assert stepper.state()["kvm0"]["mmu_lock of kvm0"] == "held by cpu0/1"


def test_a_thread_stands_where_its_kernel_code_waits(stepper: Stepper) -> None:
    stepper.go(changes_the_entry(stepper))
    (stack,) = stepper.stacks("cpu0")
    functions = [frame.function for frame in stack.frames]
    assert functions.index("try_to_migrate_one") < functions.index("move_pages")
    one = stack.frames[functions.index("try_to_migrate_one")]
    assert one.stands_for == "mm/rmap.c"
    line = Path(one.file).read_text().splitlines()[one.line - 1]
    assert "await" in line
    assert stepper.stacks("memory") == []


def test_functions_that_return_at_once_are_called_too(stepper: Stepper) -> None:
    calls = calls_of(stepper.case)
    assert len(calls) == len(stepper.moments)
    name = "vmcs_write_apic_access_addr"
    written = [at for at, one in enumerate(calls, 1) if name in one.functions]
    assert len(written) == 2
    stepper.go(written[0])
    assert stepper.state()["vcpu0"]["VMCS.APIC_ACCESS_ADDR"] == "frame 0x3"
    stepper.go(written[0] - 1)
    assert stepper.state()["vcpu0"]["VMCS.APIC_ACCESS_ADDR"] == "none"


# ---- what else could come ----------------------------------------------------------------------


def test_the_deciding_swap_the_other_way_round_passes_and_can_be_undone(
    stepper: Stepper, tmp_path: Path
) -> None:
    swap = explain(load(schedule_file(tmp_path))).swap
    assert swap is not None
    names = [moment.name for moment in stepper.moments]
    stepper.go(names.index(swap.first.name))
    before = (stepper.at, stepper.state())
    otherwise = stepper.what_if(swap.second.name)
    assert otherwise.violations == ()
    assert stepper.last is not None
    assert stepper.last.name == swap.second.name
    assert swap.first.name in [moment.name for moment in stepper.moments[stepper.at :]]
    assert stepper.undo()
    assert (stepper.at, stepper.state()) == before
    assert [violation.rule for _, violation in stepper.broken] == ["S4"]
    assert not stepper.undo()


def test_what_cannot_come_first_is_refused(stepper: Stepper) -> None:
    stepper.go(20)
    assert stepper.next is not None
    answer = next(m for m in stepper.moments[20:] if stepper.next.n in m.envelope.causes)
    for wanted, problem in (
        (stepper.next.name, "comes of|is next"),
        (answer.name, "comes of"),
        (stepper.moments[3].name, "does not come any more"),
    ):
        with pytest.raises(UserError, match=problem):
            stepper.what_if(wanted)
    assert stepper.at == 20


def test_what_became_of_it_can_be_saved_and_played(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "other.schedule.toml"
    session.do("decide")
    first = session.do("heads")
    assert any(line.startswith("> ") for line in first)
    session.do(f"go {session.stepper.at}")
    told = session.do("what-if cpu0/1.PteGetAndClear")
    assert told[0].endswith("nothing is broken")
    assert session.do(f"save {file}") == [f"written to {file}"]
    assert stepper_of(file).played.violations == []


# ---- by commands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("frobnicate", "no command"), ("s nowhere", "is no node"), ("go", "is not one argument"),
        ("go far", "is no number"), ("page x", "is no number"), ("break x", "is never called"),
        ("save x.toml", "is no name of a schedule"), ("what-if nobody/7", "does not come any more"),
        ("de", "more than one command"), ("'", "No closing quotation"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_line_and_nothing_moves(session: Session, line: str, said: str) -> None:
    session.do("go 5")
    (told,) = session.do(line)
    assert said in told
    assert session.stepper.at == 5


def test_every_command_says_something(session: Session) -> None:
    session.do("go 40")
    needs = {
        "go": "41", "page": "0x8000", "lock": "ptl", "party": "cpu0", "what-if": "x", "save": "x",
    }  # fmt: skip
    for name in HELP:
        if name != "quit":
            assert session.do(f"{name} {needs.get(name, '')}"), name
    assert session.do("quit") == []
    assert session.ended


def test_it_runs_to_breakpoints_and_to_the_violation_and_back(session: Session) -> None:
    session.do("break kvm_vcpu_reload_apic_access_page")
    assert [session.run() for _ in range(3)] == ["breakpoint", "breakpoint", "violation"]
    end = session.stepper.at
    assert session.do("next")[-1].startswith("BROKEN: S4 by vcpu0 (vmcs) at mm0:0x8000")
    assert session.run(back=True) == "breakpoint"
    assert session.stepper.at < end
    session.do("delete")
    assert session.run(back=True) == "start"


def test_commands_come_from_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = schedule_file(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("c\nstate vcpu0\nno-such\n"))
    assert launch.main(["step", str(file)]) == 0
    out = capsys.readouterr().out
    assert "\n(step) c\nstopped: violation\n" in out
    assert "\n  VMCS.APIC_ACCESS_ADDR  frame 0x3\n" in out
    assert "no-such: no command" in out


def test_a_place_as_an_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = schedule_file(tmp_path)
    assert launch.main(["step", str(file), "--at", "13", "--json"]) == 0
    place = json.loads(capsys.readouterr().out)
    assert place["at"] == 13
    assert place["state"]["memory"]
    assert launch.main(["step", "--json"]) == 2


@pytest.mark.parametrize(
    ("race", "kernel"), [("E08", "v6.2-end-only"), ("E11d", ""), ("E20p", ""), ("E52", "")]
)
def test_any_recorded_run_can_be_gone_through(
    race: str, kernel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["repro", race, "--on", "simulator", "--seed", "1", "--out", str(tmp_path / "run")]
    launch.main([*words, *(["--kernel", kernel] if kernel else [])])
    session = Session(stepper_of(tmp_path / "run"))
    said = session.do("continue") + session.do("state") + session.do("where") + session.do("diff")
    assert any(line.startswith("BROKEN: ") for line in said)
    for at in range(0, len(session.stepper.moments), 37):
        session.stepper.go(at)
        assert session.do("list")
        assert session.do("next")


# ---- against the lock words themselves ---------------------------------------------------------


def words_of(value: object) -> list[LockWord]:
    """Every lock word in what a node knows."""
    if isinstance(value, LockWord):
        return [value]
    if isinstance(value, dict):
        return [word for part in value.values() for word in words_of(part)]
    slots = [] if isinstance(value, TranslationCache) else getattr(type(value), "__slots__", [])
    return [word for slot in slots for word in words_of(getattr(value, slot, None))]


@pytest.mark.parametrize("chaos", ["lossy", "shuffle"])
def test_who_holds_a_lock_is_what_its_word_says(chaos: str, tmp_path: Path) -> None:
    words = ["--on", "simulator", "--operations", "120", "--seed", "4", "--kernel", "v5.18"]
    launch.main(["stress", *words, "--chaos", chaos, "--out", str(tmp_path / "run")])
    stepper = stepper_of(tmp_path / "run")
    held = waited = 0
    for at in range(0, len(stepper.moments), 3):
        stepper.go(at)
        told: dict[str, list[tuple[int, int]]] = {node: [] for node in stepper.drivers}
        for (node, _), lock in locks_after(stepper.moments[:at]).items():
            told[node].append((len(lock.holders), len(lock.waiters)))
        for node, driver in stepper.drivers.items():
            there = [w for value in vars(driver.node).values() for w in words_of(value)]
            real = [(w.readers + w.writer, len(w.waiters)) for w in there if w.held]
            assert sorted(told[node]) == sorted(real), (at, node)
            held, waited = held + len(real), waited + sum(waits for _, waits in real)
    assert held > 100
    assert waited > 10
