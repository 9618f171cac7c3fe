"""Explanations: what decides, what was owed, what cures it, in every form."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from mmurace.explorer.exhaustive.reversible import Order
from mmurace.explorer.explain.cures import other_values
from mmurace.explorer.explain.missed import owes_invalidation
from mmurace.explorer.explain.why import Explanation, explain
from mmurace.explorer.run.schedule_file import Loaded, load
from mmurace.explorer.run.session import simulate
from mmurace.explorer.sample.explore import Options, explore
from mmurace.explorer.shrink.minimize import minimize_quickly
from mmurace.explorer.shrink.play import How, play
from mmurace.explorer.shrink.shortest import look_for_shorter
from mmurace.explorer.shrink.smaller import with_world
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.kernel.variant.switch import fields
from mmurace.report import interleaving
from mmurace.report.labels import Labels
from mmurace.report.machine import as_json
from mmurace.report.steps import text_of
from mmurace.scenarios.catalogue import find, load_all
from tests.minimal import EXAMPLES, differences, explained


@pytest.fixture(params=EXAMPLES, ids="-".join)
def explanation(request: pytest.FixtureRequest) -> Explanation:
    """The explanation of a race of the catalogue."""
    return explained(*request.param)


def position(explanation: Explanation, party: str, text: str) -> int:
    """The first row of a party that begins so."""
    return next(
        at
        for at, row in enumerate(explanation.rows)
        if row.party == party and text_of(row).startswith(text)
    )


def test_the_examples_are_up_to_date() -> None:
    """Another process with another hash seed wrote them, so this also shows that none matters."""
    assert differences() == []


def test_it_fits_a_screen(explanation: Explanation) -> None:
    for text in (interleaving.terminal(explanation), interleaving.markdown(explanation)):
        assert len(text.splitlines()) <= interleaving.LINES_MAX
    widths = map(len, interleaving.markdown(explanation).splitlines())
    assert max(widths) <= interleaving.MARKDOWN_WIDTH


def test_the_reload_comes_before_the_change_and_is_never_asked_for_again() -> None:
    explanation = explained(*EXAMPLES[0])
    places = [
        position(explanation, "cpu0", "invalidate_range_start"),
        position(explanation, "vcpu0", "VMCS"),
        position(explanation, "cpu0", "ptep_get_and_clear"),
        position(explanation, "cpu0", "invalidate_range_end"),
    ]
    assert places == sorted(places)
    assert explanation.missed.before_fill
    assert explanation.missed.in_time == ()
    safe = {(cure.switch, cure.value) for cure in explanation.cures if cure.safe}
    assert {("apic_reload", "invalidate_range"), ("apic_reload", "zap_retries")} <= safe


def test_the_frame_is_free_before_the_secondary_is_told() -> None:
    explanation = explained(*EXAMPLES[1])
    freed = position(explanation, "cpu0", "put_page")
    assert "freed" in text_of(explanation.rows[freed])
    assert freed < position(explanation, "iommu0", "store to frame")
    assert explanation.missed.in_time == ()
    assert explanation.missed.too_late
    safe = {(cure.switch, cure.value) for cure in explanation.cures if cure.safe}
    assert ("gather_calls_ir", True) in safe


def test_the_swap_decides(explanation: Explanation) -> None:
    swap = explanation.swap
    assert swap is not None
    assert swap.first.name != swap.second.name
    hold = (swap.first.name, swap.second.name)
    failing = play(explanation.case, How(explanation.target))
    assert failing.found is not None
    assert hold[0] in failing.order


def test_necessary_orders_were_as_they_say(explanation: Explanation) -> None:
    assert explanation.orderings
    order = explanation.case.order
    for ordering in explanation.orderings:
        assert order.index(ordering.early.name) < order.index(ordering.late.name)
        hold = (ordering.early.name, ordering.late.name)
        assert play(explanation.case, How(explanation.target, hold=hold)).found is None


def test_cures_are_cures(explanation: Explanation) -> None:
    world = explanation.case.spec.world
    assert any(cure.safe for cure in explanation.cures)
    for cure in explanation.cures:
        kernel = world.kernel.replace(**{cure.switch: cure.value})
        changed = with_world(explanation.case, msgspec.structs.replace(world, kernel=kernel))
        played = play(changed, How(explanation.target, stop=False))
        assert not (cure.safe and played.violations), cure


def test_what_only_moves_the_schedule_is_no_cure(explanation: Explanation) -> None:
    """Each that is said to hold does so under schedules of another seed; each other one breaks."""
    world = explanation.case.spec.world
    held = [cure for cure in explanation.cures if cure.held]
    assert held
    for cure in held:
        kernel = world.kernel.replace(**{cure.switch: cure.value})
        spec = with_world(explanation.case, msgspec.structs.replace(world, kernel=kernel)).spec
        found = explore(spec.with_seed(77), Options(schedules=100))
        assert found.finding is None, cure
    assert all(cure.safe and not cure.held for cure in explanation.cures if cure.breaks)


def test_half_of_a_retry_check_is_no_cure() -> None:
    """Either half answers one order of the two; only both together cure a fault without a check."""
    cures = [c for c in explained("E12", "no-check").cures if c.switch == "kvm_retry"]
    assert {cure.value for cure in cures} == {"count", "seq", "count+seq"}
    assert [cure.value for cure in cures if cure.held] == ["count+seq"]


def test_every_switch_is_tried() -> None:
    kernel = preset("v6.6.5")
    tried = {switch for switch, _ in other_values(kernel)}
    assert tried == {field.name for field in fields()}
    assert all(kernel.switches()[switch] != value for switch, value in other_values(kernel))


def test_other_forms(explanation: Explanation) -> None:
    diagram = interleaving.mermaid(explanation)
    assert diagram.startswith("sequenceDiagram\n")
    assert ";" not in diagram
    built = json.loads(as_json(interleaving.as_dict(explanation)))
    assert built["violation"]["rule"] == explanation.target.rule
    assert len(built["rows"]) == len(explanation.rows)


def test_reversing_a_race_puts_the_second_first() -> None:
    case = explained(*EXAMPLES[1]).case
    order = Order(play(case, How(keep=True, stop=False)).moments)
    races = order.races()
    assert races
    for race in races[:20]:
        names = order.reversed_order(race.first, race.second)
        first, second = (order.moments[at].name for at in (race.first, race.second))
        assert names.index(second) + 1 == names.index(first)
        assert sorted(names) == sorted(moment.name for moment in order.moments)


def test_a_search_that_hits_its_bound_claims_nothing() -> None:
    explanation = explained(*EXAMPLES[1])
    cost = (explanation.deliveries, explanation.switches)
    search = look_for_shorter(explanation.case, explanation.target, cost, 5, 60.0)
    assert not search.proof.shortest
    assert search.proof.runs <= 5


def check_letters(explanation: Explanation, text: list[str]) -> None:
    """Whatever is spoken of below the table is a row of it, by its letter."""
    labels = Labels(explanation.rows)
    spots = [spot for o in explanation.orderings for spot in (o.early, o.late)]
    spots += [] if explanation.swap is None else [explanation.swap.first, explanation.swap.second]
    end = text.index("", text.index("") + 1)
    in_table = {line[1:3].strip() for line in text[:end] if line[:1] in (" ", ">")} - {""}
    spots += explanation.missed.spots() if owes_invalidation(explanation.violation) else []
    spots += [fate.after for fate in explanation.deaths if fate.after is not None]
    for spot in spots:
        said = labels.of(spot)
        assert said.endswith(")"), f"{said} has no row"
        assert said.rpartition("(")[2].rstrip(")") in in_table, said


# ---- every race --------------------------------------------------------------------------------

BAD = [
    next((race.id, case.name) for case in race.kernels if case.expect.verdict == "violated")
    for race in load_all().values()
]
FEW = 25
"""Tries of the minimiser: what is explained here may be long."""


@pytest.mark.parametrize(("race", "kernel"), BAD, ids=["-".join(pair) for pair in BAD])
def test_every_explanation_fits_a_screen(
    race: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = list(other_values(find(race).run(kernel).world.kernel))[::8]
    monkeypatch.setattr("mmurace.explorer.explain.cures.other_values", lambda _: iter(values))
    simulate(find(race).run(kernel, 1).save(tmp_path), tmp_path)
    found = minimize_quickly(load(tmp_path), FEW)
    explanation = explain(Loaded(found.case, found.target, found.played), passing_tries=2)
    text = interleaving.terminal(explanation).splitlines()
    check_letters(explanation, text)
    assert text[-1].endswith("."), "a sentence sums up"
    assert any(line.startswith("In words: ") for line in text)
    assert len(text) <= interleaving.LINES_MAX <= 50
    assert max(map(len, text)) <= 100
    assert any(line.lstrip().startswith("---") for line in text), "there is a table"
    assert max(map(len, interleaving.markdown(explanation).splitlines())) <= 75
    kinds = {row.kind for row in explanation.rows}
    assert not {text_of(row) for row in explanation.rows} & kinds, "the kernel's word for it"
