"""Races are found by subsystem, rule, release and CVE; and each has a page."""

from __future__ import annotations

import json
import sys

import pytest

from mmurace import launch
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import find, load_all
from mmurace.scenarios.index import chosen, known_subsystems, terms_of
from tests.minimal import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import races as pages

RACES = load_all()


@pytest.mark.parametrize(
    ("race", "subsystem", "rule", "release"),
    [
        ("E01", "kvm", "S4", "v5.7"),
        ("E02", "sva", "L6", "v6.2"),
        ("E20", "mm", "S1", "v4.15"),
        ("E34b", "ocxl", "S12", "v4.18"),
    ],
)
def test_a_race_is_found_under_its_words(
    race: str, subsystem: str, rule: str, release: str
) -> None:
    terms = terms_of(RACES[race])
    assert subsystem in terms.subsystems
    assert rule in terms.rules
    assert release in terms.releases
    assert RACES[race] in chosen(RACES.values(), subsystem, rule, release)
    assert RACES[race] not in chosen(RACES.values(), subsystem, "P2" if rule != "P2" else "P4")


def test_every_race_has_a_subsystem_and_a_rule_and_every_subsystem_a_race() -> None:
    terms = [terms_of(race) for race in RACES.values()]
    assert all(one.subsystems and one.rules and one.releases for one in terms)
    assert {name for one in terms for name in one.subsystems} == set(known_subsystems())


def test_cves_are_those_that_the_file_names() -> None:
    assert terms_of(find("E20")).cves == ("CVE-2018-18281",)
    assert {race.id for race in chosen(RACES.values(), cve=True)} >= {"E20", "E36", "E52"}


def test_the_command_line_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["list", "--subsystem", "kvm", "--rule", "S4", "--json"]
    assert launch.main(words) == 0
    races = json.loads(capsys.readouterr().out)["races"]
    assert {race["id"] for race in races} >= {"E01", "E12", "E12r"}
    assert all("S4" in race["found_under"]["rules"] for race in races)


@pytest.mark.parametrize("words", [["--subsystem", "kv"], ["--rule", "S99"]])
def test_words_that_do_not_exist_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["list", *words]) == 2
    assert f"{words[0]}: no " in capsys.readouterr().err


def test_no_race_is_found_under_a_word_that_is_wrong() -> None:
    with pytest.raises(UserError, match="--subsystem"):
        chosen(RACES.values(), "virt")


def test_the_pages_say_what_the_files_say() -> None:
    """``python docs/races.py --check`` runs what is on them, too."""
    assert list(pages.stale(RACES.values(), again=False)) == []


def test_a_page_shows_what_was_run() -> None:
    quick = [find("E12m"), find("E17")]
    assert list(pages.stale(quick, again=True)) == []
