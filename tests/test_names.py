"""Names that are typed in part, in another case, or nearly right."""

from __future__ import annotations

import pytest

from mmurace import launch
from mmurace.nodes.kernel.variant.switch import fields
from mmurace.protocol.errors import UserError
from mmurace.protocol.names import SUGGESTED, meant, perhaps
from mmurace.report.commands.values import kernel_from
from mmurace.scenarios.catalogue import find, load_all
from mmurace.scenarios.operations import steps_from
from mmurace.scenarios.world_file import WorldFile

KNOWN = ("E01", "E11", "E11b", "kvm-apic-reload-vs-range", "kvm-other")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("E11", ["E11"]),  # though it is also the beginning of another
        ("e11B", ["E11b"]),
        ("kvm-a", ["kvm-apic-reload-vs-range"]),
        ("kvm", ["kvm-apic-reload-vs-range", "kvm-other"]),
        ("apic", []),
        ("", []),
    ],
)
def test_a_name_or_the_beginning_of_one(word: str, found: list[str]) -> None:
    assert meant(word, KNOWN) == found


def test_who_mistypes_is_told_what_is_near_and_not_sixty_names() -> None:
    assert perhaps("E12b", KNOWN) == "perhaps E11b"
    assert perhaps("kvm", KNOWN) == "perhaps kvm-apic-reload-vs-range, kvm-other"
    assert perhaps("zzz", KNOWN, "one of many") == "one of many"
    assert perhaps("e", [f"E{n}" for n in range(60)]).count(",") == SUGGESTED - 1


def test_every_race_is_found_by_its_whole_id_and_name_and_by_a_beginning() -> None:
    races = load_all().values()
    for race in races:
        assert find(race.id, races) is find(race.name.upper(), races) is race
    assert find("kvm-apic").id == "E01"
    with pytest.raises(UserError, match="more than one scenario 'E0'"):
        find("E0")


def test_a_kernel_by_its_beginning() -> None:
    race = find("E01")
    assert race.kernel_case("V6.6-s").name == "v6.6-spins"
    assert race.kernel_case("v6.6").name == "v6.6"
    with pytest.raises(UserError, match=r"several kernels 'v6' \(expected one of v6.6, v6.6-spins"):
        race.kernel_case("v6")


def test_a_switch_by_its_beginning_on_the_command_line_alone() -> None:
    names = [field.name for field in fields()]
    alone = next(n for n in names if len(meant(n[:-1], names)) == 1 and n[:-1] not in names)
    file = WorldFile()
    usual = file.kernel_of().switches()[alone]
    value = f"{alone[:-1]}={str(usual).lower()}"
    assert kernel_from(file, "", "", [value], []) == file.kernel_of()
    with pytest.raises(UserError, match="unknown switch"):
        file.kernel_of(switches={alone[:-1]: usual})


def test_an_operation_that_is_nearly_right() -> None:
    with pytest.raises(UserError, match=r"unknown op 'munmp' \(expected perhaps munmap"):
        steps_from({"op": "munmp"}, "mm0", "race.toml: program[0].steps[0]")


def test_a_command_takes_the_beginning_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["show", "kvm-apic"]) == 0
    assert capsys.readouterr().out.startswith("E01 kvm-apic-reload-vs-range: ")
