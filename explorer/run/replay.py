"""Replaying a schedule file: the same deliveries and choices, in the simulator or on processes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from mmurace.broker import plan as plans
from mmurace.broker.follow import compare_runs
from mmurace.broker.plan import Plan
from mmurace.broker.recorder import Recorder, read_record
from mmurace.broker.schedules import Recorded
from mmurace.explorer.run import session
from mmurace.explorer.run.outcome import Outcome, Status
from mmurace.explorer.run.schedule_file import read_case
from mmurace.explorer.shrink.case import Case
from mmurace.explorer.shrink.play import How, Player
from mmurace.nodes.packing import pack_world
from mmurace.oracle.state.trace import step_of
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import ReplayDivergence
from mmurace.protocol.trace import Ending
from mmurace.scenarios import versions


def replay_file(source: Path, on: Literal["processes", "simulator"], out: Path) -> Outcome:
    """Play a schedule file to the letter into ``out``, which must exist and be empty.

    The status is ``diverged`` where it no longer fits; ``detail`` names node, delivery and field.
    On processes the nodes are given the deliveries and choices that the simulator had.  Raises
    ``UserError`` if ``source`` is not a schedule file.
    """
    case, _ = read_case(source)
    recorded = case.spec.versions
    outcome = _replay(replace(case, spec=case.spec.save(out)), on, out)
    if outcome.status == "diverged":
        outcome.detail += versions.difference(recorded)
    return outcome


def _replay(case: Case, on: Literal["processes", "simulator"], out: Path) -> Outcome:
    if on == "simulator":
        return simulate_case(case, out)
    with TemporaryDirectory() as directory:
        first = simulate_case(case, Path(directory))
        return first if first.status != "finished" else _on_processes(case, Path(directory), out)


def simulate_case(case: Case, out: Path) -> Outcome:
    """Play a case strictly in the simulator, with the files of a run in ``out``."""
    began = time.monotonic()
    watch = session.Watch(case.spec)
    recorder = Recorder(out, case.spec.world.nodes())
    player = Player(case, How(strict=True, stop=False))
    player.exchange.chaos = recorder.watch(player.exchange.chaos)

    def observe(envelope: Envelope, handled: Handled) -> None:
        watch.step(step_of(envelope, handled))
        recorder.observe(envelope, handled)

    player.observer, player.mourner = observe, watch.oracle.lost
    status: Status = "finished"
    detail, how = "", plans.SCHEDULE_END
    try:
        played = player.run()
        ending, quiescent = played.ending, not player.exchange.pending
        how = plans.QUIESCENT if quiescent else how
    except ReplayDivergence as error:
        status, detail = "diverged", str(error)
        ending = Ending(player.exchange.number, player.exchange.feeder.finished, False, ())
    counts = player.exchange.counts.as_dict() | {"pending": player.exchange.pending}
    result = plans.Outcome(how, ending, counts, detail=detail)
    unwritten = recorder.close(result)
    seconds = time.monotonic() - began
    outcome = session.conclude(case.spec, "simulator", watch, result, status, seconds, out)
    outcome.unwritten = (unwritten,) if unwritten else ()
    return outcome


def _on_processes(case: Case, recorded: Path, out: Path) -> Outcome:
    """What the simulator recorded, again on processes; the traces must be equal."""
    record = read_record(recorded)
    spec = case.spec
    plan = Plan(
        out,
        spec.world.nodes(),
        pack_world(spec.world),
        spec.seed,
        spec.programs(),
        chaos=record.chaos(spec.world),
        schedule=Recorded(record.deliveries),
        choices=record.choices,
    )
    outcome = session.follow_plan(spec, plan)
    difference = compare_runs(recorded, out)
    if difference is not None and outcome.status == "finished":
        node, number, field = difference
        outcome.status = "diverged"
        outcome.detail = f"{node}, delivery {number}, field {field}: differs from the simulator"
    return outcome
