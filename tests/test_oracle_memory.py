"""What the oracle keeps of a long run: no more than of a short one."""

from __future__ import annotations

import gc
from types import FunctionType, MethodType, ModuleType

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run.session import Watch
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.state.trace import step_of
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.scenarios.runs import mixed_run

EVERY, SAMPLES = 20_000, 12
"""Deliveries between two counts of what is kept, and how many."""
_CODE = (type, FunctionType, MethodType, ModuleType)


def kept_by(oracle: Oracle) -> int:
    """How many objects can be reached from it, however deep they are."""
    known, todo = {id(oracle)}, [oracle]
    while todo:
        for found in gc.get_referents(todo.pop()):
            if id(found) not in known and not isinstance(found, _CODE):
                known.add(id(found))
                todo.append(found)
    return len(known)


def test_the_second_half_of_a_run_needs_no_more_memory_than_the_first() -> None:
    spec = mixed_run(preset("v6.6.5", "x86"), 3)
    programs = spec.programs()
    exchange = Exchange(Feeder(programs))
    watch, sizes = Watch(spec, programs), list[int]()

    def observe(envelope: Envelope, handled: Handled) -> bool:
        watch.step(step_of(envelope, handled))
        if handled.n % EVERY == 0:
            watch.forget_before(exchange.low_water())
            sizes.append(kept_by(watch.oracle))
        return len(sizes) >= SAMPLES

    Simulator(build_all(spec.world, spec.seed), exchange, RandomWalk(3), observe).run()
    # What is over is swept now and then, so the sizes go up and down.
    first, second = sizes[: SAMPLES // 2], sizes[SAMPLES // 2 : SAMPLES]
    assert max(second) < 1.2 * max(first), sizes
