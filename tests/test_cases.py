"""Small inputs on which good kernels were blamed, or bad ones passed over: ``tests/data/cases``.

Every file comes out as it says itself, on every kernel that it names, of x86 and of arm64.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from mmurace.explorer.sample.explore import Options, explore
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import Race, find, load_race

CASES = Path(__file__).parent / "data" / "cases"
REFUSED: Final = {"vm-destroyed-busy"}
ONE_MACHINE: Final = {
    "flush-ceiling", "flush-ceiling-arm64", "smmu-command-storm", "vmsa-no-hook",
}  # fmt: skip
"""Of what is so on one architecture only."""
STRATEGY: Final = {"false-l1-flush-pending": "stall"}
"""``stall`` lets a device be refused as often as it likes while reclaim has yet to flush."""
SCHEDULES_GOOD, SCHEDULES_BAD = 200, 1500


def case(name: str) -> Race:
    """The race in a case's file."""
    return load_race(CASES / f"{name}.toml")


NAMES = sorted({path.stem for path in CASES.glob("*.toml")} - REFUSED)
KERNELS = [(name, kernel.name) for name in NAMES for kernel in case(name).kernels]


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_a_case_comes_out_as_it_says(name: str, kernel: str) -> None:
    race = find(str(CASES / f"{name}.toml"))
    expected = race.kernel_case(kernel).expect
    count = SCHEDULES_BAD if expected.verdict == "violated" else SCHEDULES_GOOD
    strategy = STRATEGY.get(name, "portfolio")
    options = Options(schedules=count, strategy=strategy, stop_on=expected.rule or "any")
    found = explore(race.run(kernel, seed=1), options)
    assert found.verdict().outcome == expected.verdict, found.verdict().reasons
    rules = {violation.rule for violation in found.violations.values()}
    assert expected.rule in rules or not expected.rule
    assert found.incomplete == 0


def test_a_case_is_about_both_architectures() -> None:
    def machines(name: str) -> set[str]:
        return {case(name).run(kernel.name).world.kernel.machine for kernel in case(name).kernels}

    assert {name for name in NAMES if not machines(name) >= {"x86", "arm64"}} == ONE_MACHINE


def test_a_vm_that_runs_cannot_be_destroyed() -> None:
    """Every vCPU's file holds a reference."""
    with pytest.raises(UserError) as error:
        case("vm-destroyed-busy")
    assert "vm-destroyed-busy.toml: program[1].steps[0]" in str(error.value)
    assert "vcpu0/6" in str(error.value)


@pytest.mark.parametrize("arch", ["arm64", "ppc"])
def test_an_apic_page_is_refused_where_there_is_no_apic(tmp_path: Path, arch: str) -> None:
    """No kernel could ask a vCPU to look it up again, which would be called a stale VMCS (S4)."""
    text = (CASES / "vmsa-no-hook.toml").read_text(encoding="utf-8")
    path = tmp_path / "race.toml"
    release = 'release = "v4.14"\n'
    assert release in text
    path.write_text(text.replace(release, f'{release}arch = "{arch}"\n'), encoding="utf-8")
    with pytest.raises(UserError, match="none but on x86") as error:
        load_race(path)
    assert f"world.vms[0].slots[0].apic: is an APIC-access page on {arch}" in str(error.value)


@pytest.mark.parametrize(
    ("slots", "told"),
    [
        ("{ gfn = 0x0, pages = 4, hva = 0x10008 }", "slots[0].hva: is not page aligned"),
        ("{ gfn = 0x4, pages = 4, hva = 0x10000 }, { gfn = 0x7, pages = 1, hva = 0x8000 }",
         "slots[1].gfn: overlaps the slot at 0x4"),
        ("{ gfn = 0x0, pages = 1, hva = 0x8000, apic = true },"
         "{ gfn = 0x1, pages = 1, hva = 0x9000, apic = true }",
         "slots[1].apic: is a second one of kvm0"),
    ],
)  # fmt: skip
def test_memslots_that_kvm_refuses_are_refused(tmp_path: Path, slots: str, told: str) -> None:
    """An address within a page was looked up as one page and called another (S8)."""
    text = (CASES / "vmsa-no-hook.toml").read_text(encoding="utf-8")
    path = tmp_path / "race.toml"
    path.write_text(re.sub(r"(?m)^slots = .*$", f"slots = [{slots}]", text), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_race(path)
    assert f"world.vms[0].{told}" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "kvm0"', 'name = "mm0"', "world: a node and an mm are called 'mm0'"),
        ('{ op = "mmap", address = 0x10000, pages = 4 },',
         '{ op = "kvm_add_memslot", vm = "", gfn = 9, address = 0x10000, pages = 1 },',
         "program[0].steps[0].vm: unknown name '' in vms"),
    ],
)  # fmt: skip
def test_names_that_tell_nobody_apart_are_refused(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    """A VM that is called as an mm shares its tag, so that walks of one were taken for the other's.
    What is asked of a VM without a name would be sent to nobody."""
    text = (CASES / "vmsa-no-hook.toml").read_text(encoding="utf-8")
    path = tmp_path / "race.toml"
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_race(path)
    assert told in str(error.value)


def test_an_access_to_no_apic_page_is_refused(tmp_path: Path) -> None:
    """Its frame is in no VMCS, so whatever came out would be about something else."""
    text = (CASES / "vmsa-no-hook.toml").read_text(encoding="utf-8")
    path = tmp_path / "race.toml"
    path.write_text(text.replace(", apic = true", ""), encoding="utf-8")
    with pytest.raises(UserError, match="slot of kvm0 with apic = true") as error:
        load_race(path)
    assert f"{path}: program[1].steps[0].gpa: 0x0 is in no APIC" in str(error.value)
