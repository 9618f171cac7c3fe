"""Waits on a machine that may stand still: what is frozen with the waiter is waited for anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmurace.broker import plan
from mmurace.broker.bounded_waits import Patience, Pulse
from mmurace.broker.router import Router
from mmurace.protocol import limits, wire
from tests.runs import nothing_left_behind
from tests.test_router import Impostor, impostor

__all__ = ["impostor", "nothing_left_behind"]


class FakeClock:
    """Goes on when it is told to, and by a tick each time that it is read."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 100.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_a_wait_that_is_watched_ends_in_time() -> None:
    clock = FakeClock()
    patience = Patience(60.0, clock)
    for _ in range(60):
        assert not patience.over()
        clock.now += 1.0
    assert patience.over()


def test_time_that_nobody_saw_does_not_count() -> None:
    clock = FakeClock()
    patience = Patience(60.0, clock)
    clock.now += 59.0  # frozen
    assert patience.left() == 60.0
    clock.now += 72.0
    assert patience.left() == 60.0
    for _ in range(60):
        assert not patience.over()
        clock.now += 1.0
    assert patience.over()


def test_a_machine_that_always_stands_still_does_not_wait_for_ever() -> None:
    clock = FakeClock()
    patience = Patience(60.0, clock)
    waits = 0
    while not patience.over():
        clock.now += 61.0
        waits += 1
    assert waits == limits.GAPS_MAX + 1


def test_a_pulse_is_a_look_every_second() -> None:
    clock = FakeClock()
    pulse = Pulse(clock)
    clock.now += limits.GAP_SECONDS
    assert not pulse.stood_still()
    clock.now += limits.GAP_SECONDS + 0.1
    assert pulse.stood_still()
    assert not pulse.stood_still()


def _gather(here: Router, monkeypatch: pytest.MonkeyPatch, first: float, rounds: int) -> str:
    """The status after a node came in that round of a second; ``first``: the first is longer."""
    clock = FakeClock()
    here.clock, here._pulse = clock, Pulse(clock)
    done = 0

    def receive() -> None:
        nonlocal done
        clock.now += 1.0 if done else first
        done += 1
        if done == rounds:
            here.ready = {plan.LAUNCHER, "cpu0"}

    monkeypatch.setattr(here, "_receive", receive)
    here._gather_peers()
    return here.status


def test_a_router_that_is_thawed_before_its_node_waits_for_it_anew(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _gather(impostor.router, monkeypatch, 72.0, 55) == ""


def test_a_node_that_does_not_come_is_not_waited_for_anew(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _gather(impostor.router, monkeypatch, 1.0, 63) == plan.NOT_READY


def test_a_delivery_that_was_frozen_with_the_router_is_not_late(impostor: Impostor) -> None:
    clock = FakeClock()
    here = impostor.router
    here.clock, here._pulse = clock, Pulse(clock)
    here.exchange.start()
    here.dispatcher.take()
    here._look_for_stuck()
    clock.now += limits.HANDLING_SECONDS_MAX + 42.0  # frozen, and the node is thawed later
    here._look_for_stuck()
    assert here.status == ""
    for _ in range(int(limits.HANDLING_SECONDS_MAX) + 2):
        clock.now += 1.0
        here._look_for_stuck()
    assert here.status == plan.STUCK


def test_last_words_end_though_somebody_goes_on_talking(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = impostor.router
    here.clock = FakeClock(0.01)
    monkeypatch.setattr(here, "_receive", lambda: impostor.node.send(wire.control_frame("x")))
    impostor.node.send(wire.control_frame("x"))
    here._death_seen = True
    assert here.socket.poll(1000)
    here._last_words()
    assert here.socket.poll(0)  # not all of it was heard


def test_a_stranger_gets_a_kilobyte(impostor: Impostor, tmp_path: Path) -> None:
    large = wire.control_frame("hello", "x" * limits.HELLO_BYTES_MAX, "token")
    for frames in ([large], [wire.control_frame("hello", "cpu0", "token"), b""]):
        impostor.node.send_multipart(frames)
        impostor.router._receive()
    assert impostor.router.rejected == {"too long for a hello": 2}
