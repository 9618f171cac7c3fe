"""What a long run may take: journals up to a size, memory for what is live and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step, awaited, rounds_of
from mmurace.broker.recorder import FirstSteps, broker_records
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run import session
from mmurace.explorer.run.session import Watch
from mmurace.explorer.run.stop import bytes_in, size_from
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.oracle.state.order import Order
from mmurace.oracle.state.trace import step_of
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import EmulatorError, UserError
from mmurace.protocol.messages.program import OpDone, Touch
from mmurace.scenarios.runs import mixed_run
from tests.runs import nothing_left_behind

__all__ = ["nothing_left_behind"]

TOUCH = Touch("mm0", 0, False)


# ---- journals ------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_run_ends_in_order_when_its_journals_are_full(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    spec = mixed_run(preset("v6.6.5"), 3).save(first)
    outcome = session.run_on_processes(spec, first, seconds=40.0, journal_bytes=400_000)
    assert (outcome.status, outcome.stopped) == ("finished", "journals of 400,000 bytes")
    assert outcome.ending.complete
    size = bytes_in(first.glob("*.journal"))
    assert 400_000 <= size < 4_000_000
    assert [r[2] for r in broker_records(first) if r[0] == "stop"] == [outcome.stopped]
    assert session.check(first).verdict == outcome.verdict
    again = session.replay(first, "simulator", second)
    assert (again.status, again.detail, again.verdict) == ("finished", "", outcome.verdict)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("20K", 20_000), ("500M", 500_000_000), ("2G", 2_000_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_from(text, "--journal-max") == size


@pytest.mark.parametrize("text", ["", "0", "M", "-1", "1.5G", "10T", "64 M", "1MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--journal-max: is"):
        size_from(text, "--journal-max")


def test_files_that_are_not_there_yet_have_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    assert bytes_in([tmp_path / "a", tmp_path / "b"]) == 3


# ---- memory --------------------------------------------------------------------------------


def test_ends_of_operations_are_forgotten() -> None:
    """Neither the broker nor the oracle grows with the number of operations."""
    spec = mixed_run(preset("v6.6.5"), 1, operations_max=2000)
    programs = spec.programs()
    feeder, watch = Feeder(programs, 2000), Watch(spec, programs)
    exchange = Exchange(feeder)
    kept: list[int] = []

    def observe(envelope: Envelope, handled: Handled) -> None:
        watch.step(step_of(envelope, handled))
        if handled.n % 500 == 0:
            watch.forget_before(exchange.low_water())
            kept.append(len(watch.oracle.order._kept))

    ending = Simulator(build_all(spec.world, 1), exchange, RandomWalk(1), observe).run()
    assert (ending.complete, ending.finished) == (True, 2000)
    rounds = rounds_of(programs)
    assert rounds is not None
    of_rounds = {op for op in feeder._done if op in rounds}
    assert len(of_rounds) <= rounds.kept * len(programs) == 16
    assert set(feeder._done) - of_rounds == set(awaited(programs) or ()) == {"cpu0/4", "cpu1/2"}
    assert max(kept) < 64
    assert watch.oracle.violations == []


def test_what_a_step_comes_after_is_known_beforehand_or_kept() -> None:
    written = Program("w", "a", [Step(TOUCH), Step(TOUCH, ("x/1", "y/0"))])
    endless = FirstSteps(written, 2)
    assert awaited([written]) == frozenset({"x/1", "y/0"})
    assert awaited([Program("e", "a", endless)]) is None
    said = Program("e", "a", endless, frozenset({"z/3"}))
    assert awaited([written, said]) == frozenset({"x/1", "y/0", "z/3"})


def feed(*programs: Program) -> dict[str, int]:
    """Run programs to their ends; what is remembered of them."""
    feeder = Feeder(programs)
    open_ = feeder.start()
    for number in range(1, 100):
        if not open_:
            break
        open_ = open_[1:] + feeder.done(open_[0].id, number)
    assert feeder.exhausted
    return feeder._done


def test_the_feeder_remembers_what_is_asked_for() -> None:
    one = Program("one", "a", [Step(TOUCH)] * 6)
    two = Program("two", "b", [Step(TOUCH, ("one/3",)), Step(TOUCH)])
    assert set(feed(one, two)) == {"one/3"}
    unknown = Program("unknown", "c", FirstSteps(two, 2))
    assert len(feed(one, unknown)) == 8


def test_a_program_that_says_too_little_is_our_own_fault() -> None:
    one = Program("one", "a", [Step(TOUCH)])
    two = Program(
        "two", "b", FirstSteps(Program("", "", [Step(TOUCH, ("one/0",))]), 1), frozenset()
    )
    with pytest.raises(EmulatorError, match="two/0 comes after one/0, which its program did not"):
        feed(one, two)


def order_of(awaits: Any) -> Order:
    """Ten operations of one program, the end of the third awaited, and everything forgotten."""
    order = Order(("a", "b"))
    order.awaited = awaits
    for number in range(1, 11):
        order.deliver(number, 0, (number - 1,) if number > 1 else ())
        order.keep(number, f"p/{number - 1}")
        order.forget_before(number)
    return order


def test_the_last_end_of_each_program_is_kept_and_those_awaited() -> None:
    order = order_of(frozenset({"p/2"}))
    order.forget_before(100)
    assert order.deliver(101, 1, (3, 10)) == (10, 101)
    with pytest.raises(EmulatorError, match="its cause 4 is not in the trace"):
        order.deliver(102, 1, (4,))


def test_without_programs_every_end_is_kept() -> None:
    order = order_of(None)
    order.forget_before(100)
    assert [order.deliver(100 + n, 1, (n,))[0] for n in range(1, 11)] == list(range(1, 11))


def test_a_repetition_of_an_operation_finds_its_cause() -> None:
    """The end that it comes after is kept until the broker says that nothing names it."""
    order = Order(("a", "b"))
    order.awaited = frozenset()
    for number, operation in ((1, "p/0"), (2, "p/1"), (3, "p/2")):
        order.deliver(number, 0, ())
        order.keep(number, operation)
        order.forget_before(1)
    assert order.deliver(4, 1, (1,)) == (1, 4)
    order.forget_before(2)
    with pytest.raises(EmulatorError):
        order.deliver(5, 1, (1,))


def test_the_broker_counts_a_repetition_of_an_operation() -> None:
    program = Program("p", "a", [Step(TOUCH)] * 2)
    exchange = Exchange(Feeder([program]))
    exchange.start()
    first = exchange.take(0)
    exchange.release(1, [Envelope("p/0~", "a", "broker", "Touch~", "p/0", "", OpDone(0))])
    second = exchange.take(0)
    assert (first.id, second.id, second.causes) == ("p/0", "p/1", (1,))
    assert exchange.low_water() == 2
    exchange._repeat(second, 0)
    assert exchange.low_water() == 1
