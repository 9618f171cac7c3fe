"""The handling contract: determinism, identity, repetitions, choices."""

from __future__ import annotations

import msgspec
import pytest

from mmurace.nodes.build import build, build_all
from mmurace.nodes.driver import draw
from mmurace.nodes.fingerprint import fingerprint
from mmurace.protocol.codec import pack
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import ReplayDivergence
from mmurace.protocol.messages.memory import PtlLock, PtlUnlock
from tests.worlds import run_small, small_world

KERNELS = [
    ("v6.6.5", "x86"),
    ("v6.6.5", "arm64"),
    ("v5.7", "x86"),
    ("v5.8", "x86"),
    ("v6.2", "x86"),
]


def flat(handled: Handled) -> bytes:
    """A ``Handled`` as bytes, so that equality is equality of every byte."""
    return pack(
        [
            handled.n,
            [[m.id, m.dst, m.kind, m.path, m.stream, m.body] for m in handled.messages],
            handled.choices,
            handled.records,
        ]
    )


def request(message: PtlLock | PtlUnlock, identity: str) -> Envelope:
    return Envelope(identity, "cpu0", "memory", type(message).__name__, "cpu0/0", "", message)


@pytest.mark.parametrize(("release", "arch"), KERNELS)
def test_same_deliveries_give_the_same_handled(release: str, arch: str) -> None:
    world = small_world(release, arch)
    deliveries: list[tuple[Envelope, bytes]] = []
    ending, drivers = run_small(
        world, 3, lambda e, h: deliveries.append((msgspec.structs.replace(e), flat(h)))
    )
    assert ending.complete
    again = build_all(world, 3)
    for number, (envelope, expected) in enumerate(deliveries, 1):
        assert flat(again[envelope.dst].deliver(number, envelope)) == expected
    for name, driver in drivers.items():
        assert fingerprint(driver) == fingerprint(again[name])


def test_identity_does_not_move_when_unrelated_deliveries_swap() -> None:
    # Two schedules of the same programs: whatever an operation sends first has the same id.
    firsts = []
    for seed in (1, 2):
        sent: list[str] = []

        def note(_: Envelope, handled: Handled, sent: list[str] = sent) -> None:
            sent.extend(m.id for m in handled.messages)

        run_small(small_world(), seed, note)
        firsts.append({i for i in sent if i.endswith(".0") and i.count(".") == 1})
    assert firsts[0] == firsts[1]


def test_a_repeated_request_repeats_its_answer_and_acts_once() -> None:
    memory = build("memory", small_world(), 0)
    lock, unlock = PtlLock(3), PtlUnlock(3)
    granted = memory.deliver(1, request(lock, "a/0.0")).messages
    assert [m.id for m in granted] == ["a/0.0~"]
    assert memory.deliver(2, request(lock, "b/0.0")).messages == []  # waits its turn
    before = fingerprint(memory)
    assert [m.id for m in memory.deliver(3, request(lock, "a/0.0")).messages] == ["a/0.0~"]
    assert memory.deliver(4, request(lock, "b/0.0")).messages == []
    assert fingerprint(memory) == before
    released = memory.deliver(5, request(unlock, "a/0.1")).messages
    assert [m.id for m in released] == ["b/0.0~", "a/0.1~"]
    assert [m.id for m in memory.deliver(6, request(lock, "b/0.0")).messages] == ["b/0.0~"]


def test_choices_are_given_or_drawn_and_must_fit() -> None:
    cpu = build("cpu0", msgspec.structs.replace(small_world(), evict_one_in=4), 7)
    cpu.current.path = "p/1"
    cpu.given = [("evict", 4, 2)]
    assert cpu.choose("evict", 4) == 2
    assert cpu.choose("evict", 4) == draw(7, "p/1/1/evict") % 4
    cpu.handled = Handled(9)
    cpu.given = [("evict", 8, 2)]
    with pytest.raises(ReplayDivergence, match="delivery 9 on cpu0, field choices"):
        cpu.choose("evict", 4)
