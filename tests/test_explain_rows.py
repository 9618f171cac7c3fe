"""What the rows of an interleaving say: steps as themselves, ranges, locks, and whose they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mmurace.explorer.explain.interleaving import GOT, WAITS, timeline
from mmurace.explorer.explain.missed import missed_by
from mmurace.explorer.explain.why import Explanation, explain
from mmurace.explorer.run.schedule_file import Loaded, load
from mmurace.explorer.run.session import simulate
from mmurace.explorer.shrink.case import Case, scripted
from mmurace.explorer.shrink.minimize import minimize_quickly
from mmurace.explorer.shrink.play import How, play
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.records import OpBegin
from mmurace.report import interleaving
from mmurace.report.in_words import closing
from mmurace.report.steps import text_of
from mmurace.scenarios.catalogue import find


@cache
def found(race: str, kernel: str) -> Explanation:
    """The explanation of a race of the catalogue, without what cures it."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmurace.explorer.explain.cures.other_values", lambda _: iter(()))
        directory = Path(name)
        simulate(find(race).run(kernel, 1).save(directory), directory)
        short = minimize_quickly(load(directory))
        return explain(Loaded(short.case, short.target, short.played), passing_tries=10)


def texts(explanation: Explanation) -> list[str]:
    """What its rows say, each behind its party."""
    return [f"{row.party} {text_of(row)}" for row in explanation.rows]


def test_a_table_that_is_moved_is_moved_by_its_upper_entry() -> None:
    told = texts(found("E20p", "v5.8"))
    assert "cpu0 pmd_clear [0x10000, 0x18000): table in frame 0x2" in told
    assert "cpu0 pmd_populate [0x20000, 0x28000): table in frame 0x2" in told
    shown = interleaving.terminal(found("E20p", "v5.8"))
    assert "pmd_populate" in shown


def test_the_clear_of_an_upper_entry_and_the_call_of_an_empty_range_are_rows() -> None:
    told = texts(found("E05b", "v5.8"))
    cleared = told.index("cpu0 pmd_clear [0x10000, 0x18000): table in frame 0x2")
    called = told.index("cpu0 invalidate_range(iommu0, ~0, ~0)")
    freed = told.index("cpu0 put_page: frame 0x2 freed")
    assert cleared < called < freed
    assert "the invalidation that came, of [0xfffffffffffff000, ~0), did not cover it" in closing(
        found("E05b", "v5.8")
    )


def test_a_barrier_that_waits_for_nothing_is_a_row() -> None:
    told = texts(found("E11d", "v6.6"))
    sent = told.index("cpu0 tlbi [0x10000, 0x11000) sent")
    barrier = told.index("cpu1 DSB: waits for its own tlbi only")
    arrived = told.index("cpu1 tlbi [0x10000, 0x11000) arrives")
    assert sent < barrier < arrived


def test_a_barrier_that_waited_comes_after_what_it_waited_for() -> None:
    told = texts(found("E09c", "v6.6-arm64-passed-over"))
    sent, arrived, barrier = (
        told.index(text)
        for text in (
            "cpu0 tlbi [0x0, ~0) sent", "vcpu0 tlbi [0x0, ~0) arrives",
            "cpu0 DSB: tlbi [0x0, ~0) complete on vcpu0",
        )
    )  # fmt: skip
    assert sent < arrived < barrier


def test_who_waits_for_a_lock_gets_it_after_it_was_let_go() -> None:
    rows = found("E11d", "v6.6").rows
    mine = [row for row in rows if row.kind.startswith("Ptl")]
    told = [f"{row.party} {text_of(row)}" for row in mine]
    lock = "PTL of [0x10000, 0x18000)"
    waits, gets = told.index(f"cpu1 waits for {lock}"), told.index(f"cpu1 gets {lock}")
    assert waits < told.index(f"cpu0 unlock {lock}") < gets
    assert [mine[at].values["state"] for at in (waits, gets)] == [WAITS, GOT]


def test_a_flush_that_came_in_vain_says_of_which_range() -> None:
    explanation = found("E20p", "v5.8")
    came = explanation.missed.in_time[0]
    assert (came.start, came.end, came.why) == (0x17000, 0x18000, "not_covered")
    said = interleaving.terminal(explanation)
    assert "flush_tlb_func [0x17000, 0x18000) (" in said
    assert "does not cover it" in said


def test_what_came_after_the_violation_did_not_prepare_it() -> None:
    """An explanation of a whole run: most of what it did came later."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        simulate(find("E08").run("v6.2-end-only", 1).save(directory), directory)
        loaded = load(directory)
    played = play(loaded.case, How(loaded.target, keep=True))
    begun = {moment.name for moment in played.moments if "." not in moment.name}
    explanation = explain(loaded, passing_tries=2)
    assert set(explanation.setup) <= begun
    assert len(begun) < len(loaded.case.operations())


def test_a_row_is_of_the_operation_that_it_belongs_to() -> None:
    """A thread that waited for its processor begins in a delivery of whoever left it."""
    case = Case(scripted(find("E27").run("", 1)))
    moments = play(case, How(keep=True, stop=False, seed=1)).moments
    guest = next(
        (moment, record)
        for moment in moments
        for record in moment.handled.records
        if isinstance(record, OpBegin) and record.op != operation_of(moment.envelope.id)
    )
    moment, record = guest
    events = tuple(Event("", 0, "", f"{op}.0") for op in (record.op, moment.name.split(".")[0]))
    rows = timeline(case, Violation("S3", "", "", racing=events), moments)
    begun = [row for row in rows if row.kind == "OpBegin"]
    assert record.op in {row.operation for row in begun if row.n == moment.n}
    assert all(row.operation_kind == row.values["kind"] for row in begun)


def test_an_accelerator_that_stores_does_not_load() -> None:
    explanation = found("E34c", "v5.12-harm")
    assert "link0 accelerator store to 0x10000" in texts(explanation)


def test_what_is_not_there_on_a_kernel_is_not_missed() -> None:
    violation = Violation("S1", "iommu0", "", cache="iotlb", mm="mm0", address=0x10000)
    missed = missed_by(found("E08", "v6.2-end-only").case, violation, (), 0)
    assert missed.kinds == ("IotlbInvalidate",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("frame 0x3 RW AD -> none", "took mm0:0x10000 away"),
        ("frame 0x3 RW AD -> frame 0x3 RO AD", "write-protected mm0:0x10000"),
        ("frame 0x3 RO AD -> frame 0x4 RW AD", "replaced mm0:0x10000"),
    ],
)
def test_the_last_sentence_says_what_was_done_to_the_page(change: str, said: str) -> None:
    explanation = found("E08", "v6.2-end-only")
    violation = explanation.violation
    changed = Explanation(**{
        field: getattr(explanation, field) for field in explanation.__dataclass_fields__
    })  # fmt: skip
    changed.violation = type(violation)(**{
        **{f: getattr(violation, f) for f in violation.__struct_fields__},
        "change": change, "address": 0x10000,
    })  # fmt: skip
    assert said in closing(changed)


def test_markdown_has_paragraphs() -> None:
    """Else a renderer runs them together; and git drops lines that begin with #."""
    lines = interleaving.markdown(found("E08", "v6.2-end-only")).splitlines()
    before = next(at for at, line in enumerate(lines) if line.startswith("Before: "))
    words = next(at for at, line in enumerate(lines) if line.startswith("In words: "))
    assert lines[before - 1] == lines[words - 1] == ""
    assert not any(line.startswith("#") for line in lines)
