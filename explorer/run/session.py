"""One run: a spec, a broker, the oracle, and how it came out.

The same trace goes through the same ``Watch`` whether it comes from the simulator as it happens,
from the journals of processes while they run, or from a saved run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mmurace.broker import plan as plans
from mmurace.broker.aborted import write_aborted
from mmurace.broker.chaos import ChaosRules
from mmurace.broker.dispatch import killed_text
from mmurace.broker.exchange import Exchange
from mmurace.broker.faults import Chaos
from mmurace.broker.follow import Follower, compare_runs
from mmurace.broker.plan import Plan
from mmurace.broker.programs import Feeder, Program, awaited, rounds_of
from mmurace.broker.recorder import Record, Recorder, is_blank, read_record
from mmurace.broker.schedules import RandomWalk, Recorded, Schedule
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.explorer.run.latency import Latencies
from mmurace.explorer.run.outcome import OperationCount, Outcome, Status
from mmurace.explorer.run.stop import Bounds, bytes_in
from mmurace.nodes.build import build_all
from mmurace.nodes.journal import journal_path
from mmurace.nodes.packing import pack_world
from mmurace.nodes.plugin_driver import author_of_node
from mmurace.nodes.plugins import at_fault, named_in
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.state.trace import step_of
from mmurace.protocol.envelope import BROKER, Envelope, Handled
from mmurace.protocol.errors import PluginError, ReplayDivergence
from mmurace.protocol.limits import LOW_WATER_EVERY
from mmurace.protocol.records import InvalidateBegin, OpEnd
from mmurace.protocol.signals import held
from mmurace.protocol.trace import Ending, TraceStep
from mmurace.protocol.wire import Choices
from mmurace.scenarios import versions
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.strace import StraceLog

if TYPE_CHECKING:
    from mmurace.broker.supervisor import Supervisor

Progress = Callable[[dict[str, Any]], None]
FOLLOW_SECONDS = 0.05
"""How often the journals of a live run are read."""
PROGRESS_SECONDS = 0.5


class Watch:
    """Reads one trace: the oracle, and a tally of operations for the summary."""

    def __init__(self, spec: RunSpec, programs: Sequence[Program] | None = None) -> None:
        """``programs``, if they are known, say which ends of operations can be forgotten."""
        self.oracle = Oracle(spec.world, spec.sometimes)
        if programs is not None:
            order = self.oracle.order
            order.awaited, order.rounds = awaited(programs), rounds_of(programs)
        self.operations: dict[str, OperationCount] = {}
        self.latencies = Latencies()
        self._forgotten = 0

    def step(self, step: TraceStep) -> None:
        """The next step of the trace."""
        for node in step.lost:
            self.oracle.lost(node)
        self.oracle.step(step)
        self.latencies.step(step)
        for record in step.records:
            if type(record) is OpEnd:
                self._count(record)
            elif type(record) is InvalidateBegin:
                self.latencies.began(step, record)

    def forget_before(self, low_water: int) -> None:
        """No step to come has a cause below this, but for ends of operations."""
        if low_water > self._forgotten:
            self._forgotten = low_water
            self.oracle.forget_before(low_water)

    def _count(self, record: OpEnd) -> None:
        count = self.operations.setdefault(record.kind, OperationCount())
        count.done += 1
        if record.result < 0:
            count.errors[-record.result] = count.errors.get(-record.result, 0) + 1

    def rest_of(self, follower: Follower) -> None:
        """All further steps of a run that grows no more."""
        for step in follower.rest():
            self.step(step)
            self.forget_before(follower.low_water)

    def broke(self, rule: str) -> bool:
        """Whether ``rule`` has been broken (``any``: some rule)."""
        return any(rule in ("any", v.rule) for v in self.oracle.violations)


# ---- in the simulator ----------------------------------------------------------------------


def simulate(
    spec: RunSpec,
    run_dir: Path | None = None,
    schedule: Schedule | None = None,
    deliveries_max: int | None = None,
    choices: Mapping[int, Choices] | None = None,
) -> Outcome:
    """Run ``spec`` in this process; the random walk unless another schedule is given.

    ``choices`` are what hardware chooses in a delivery, where that is not left to the seed.

    With ``run_dir`` (which must exist) the run's files are written as processes write them.
    """
    chaos = ChaosRules(spec.chaos, spec.seed, spec.world) if spec.chaos else None
    schedule = schedule or RandomWalk(spec.seed)
    return _simulate(
        spec, spec.programs(), chaos, schedule, run_dir, deliveries_max, choices,
        spec.operations_max,
    )  # fmt: skip


def _plan_outcome(
    exchange: Exchange, chaos: Chaos | None, status: Status, detail: str, ending: Ending
) -> plans.Outcome:
    how = _how_it_ended(status, quiescent=status == "finished" and not exchange.heads)
    if exchange.deaths is not None and exchange.deaths.ended_by:
        how, detail = plans.KILLED, killed_text(exchange.deaths.ended_by, ending.deliveries)
    return plans.Outcome(
        how,
        ending,
        exchange.counts.as_dict() | {"pending": exchange.pending},
        chaos=chaos.report() if isinstance(chaos, ChaosRules) else {},
        detail=detail,
    )


def _simulate(
    spec: RunSpec,
    programs: tuple[Program, ...],
    chaos: Chaos | None,
    schedule: Schedule,
    run_dir: Path | None,
    deliveries_max: int | None = None,
    choices: Mapping[int, Choices] | None = None,
    operations_max: int | None = None,
) -> Outcome:
    began = time.monotonic()
    watch = Watch(spec, programs)
    recorder = None if run_dir is None else Recorder(run_dir, spec.world.nodes())

    def observe(envelope: Envelope, handled: Handled) -> None:
        watch.step(step_of(envelope, handled))
        if handled.n % LOW_WATER_EVERY == 0:
            watch.forget_before(exchange.low_water())
        if recorder is not None:
            recorder.observe(envelope, handled)

    watched = chaos if recorder is None else recorder.watch(chaos)
    recorded = isinstance(schedule, Recorded)
    exchange = Exchange(Feeder(programs, operations_max), watched, recorded)
    drivers = build_all(spec.world, spec.seed)
    lost = watch.oracle.lost
    simulator = Simulator(drivers, exchange, schedule, observe, choices, lost)
    status: Status = "finished"
    detail = ""
    try:
        with collector_at_rest(), at_fault():
            ending = simulator.run(deliveries_max)
    except ReplayDivergence as error:
        status, detail, ending = "diverged", str(error), exchange.ending()
    except KeyboardInterrupt:
        status, detail, ending = "interrupted", "Ctrl-C", exchange.ending()
    except PluginError:
        if recorder is not None:
            recorder.close()
        raise
    except OSError as error:
        return _unrecorded(spec, watch, run_dir, error, began)
    result = _as_recorded(_plan_outcome(exchange, chaos, status, detail, ending), schedule)
    unwritten = ""
    try:
        unwritten = "" if recorder is None else recorder.close(result)
    except OSError as error:
        return _unrecorded(spec, watch, run_dir, error, began)
    seconds = time.monotonic() - began
    outcome = conclude(spec, "simulator", watch, result, status, seconds, run_dir)
    outcome.unwritten = (unwritten,) if unwritten else ()
    return outcome


def _unrecorded(
    spec: RunSpec, watch: Watch, run_dir: Path | None, error: OSError, began: float
) -> Outcome:
    """A run whose record could not be written: what it says is what the record says.

    Raises ``error`` if it is about something else.
    """
    if run_dir is None or error.filename is None:
        raise error
    problem = f"{error.filename}: {error.strerror}"
    recorded = Watch(spec, spec.programs())
    with closing(Follower(run_dir, spec.world.nodes())) as follower:
        recorded.rest_of(follower)
    lost = len(watch.oracle.violations) - len(recorded.oracle.violations)
    more = f"; {lost} violations were seen that are not on file" if lost > 0 else ""
    result = plans.Outcome(plans.UNRECORDED, _cut_short(recorded), {}, detail=problem + more)
    seconds = time.monotonic() - began
    outcome = conclude(spec, "simulator", recorded, result, "broken", seconds, run_dir)
    outcome.unwritten, outcome.record = (problem,), follower.end_text()
    return outcome


def _as_recorded(result: plans.Outcome, schedule: Schedule) -> plans.Outcome:
    """What was played to the end of a record that was cut short is not complete either."""
    if not (isinstance(schedule, Recorded) and schedule.cut and result.sound):
        return result
    ending = replace(result.ending, complete=False)
    return msgspec.structs.replace(result, status=plans.SCHEDULE_END, ending=ending)


def _how_it_ended(status: Status, quiescent: bool) -> str:
    if status == "finished":
        return plans.QUIESCENT if quiescent else plans.SCHEDULE_END
    return plans.ABORTED if status == "interrupted" else plans.DIVERGED


# ---- on processes --------------------------------------------------------------------------


def run_on_processes(
    spec: RunSpec,
    run_dir: Path,
    seconds: float | None = None,
    progress: Progress | None = None,
    stop_on: str = "",
    journal_bytes: int | None = None,
) -> Outcome:
    """Run ``spec`` on real processes, with its files in ``run_dir`` (which must exist).

    After ``seconds``, once ``stop_on`` (a rule, or ``any``) was broken or once the journals have
    ``journal_bytes``, chaos is healed, nothing more is fed and what is in flight finishes.  Ctrl-C
    ends every process within a second and gives what there is.
    """
    chaos = ChaosRules(spec.chaos, spec.seed, spec.world) if spec.chaos else None
    plan = Plan(
        run_dir,
        spec.world.nodes(),
        pack_world(spec.world),
        spec.seed,
        spec.programs(),
        spec.operations_max,
        chaos=chaos,
    )
    return follow_plan(spec, plan, Bounds(seconds, stop_on, journal_bytes), progress)


def follow_plan(
    spec: RunSpec, plan: Plan, bounds: Bounds | None = None, progress: Progress | None = None
) -> Outcome:
    """Start the plan's processes and read their journals until the end."""
    # Sockets and processes are a fifth of the time to start, and the simulator needs neither.
    with held():  # Ctrl-C in the import of a C module can come out as any exception
        from mmurace.broker.supervisor import Supervisor

    began = time.monotonic()
    live = _Live(spec, plan, bounds or Bounds(), progress)
    unwritten = ""
    with closing(Follower(plan.directory, plan.nodes)) as follower:
        try:
            with at_fault():
                with Supervisor(plan) as run:
                    result = _as_recorded(live.watch_until_end(run, follower), plan.schedule)
                live.watch.rest_of(follower)
                unwritten = run.unwritten
        except KeyboardInterrupt:
            with held():  # it may have come before the supervisor was there to write it
                write_aborted(plan.directory, "Ctrl-C")
            result = plans.Outcome(plans.ABORTED, _cut_short(live.watch), {}, detail="Ctrl-C")
    elapsed = time.monotonic() - began
    status = _status_of(result)
    if status == "broken" and (blamed := _blamed(result, spec.world)):
        raise PluginError(blamed)
    outcome = conclude(spec, "processes", live.watch, result, status, elapsed, plan.directory)
    outcome.stopped = live.stopped
    outcome.unwritten = (unwritten,) if unwritten else ()
    return outcome


def _blamed(result: plans.Outcome, world: World) -> str:
    """Which plug-in broke a run: as its process said, or as the broker says of a node of it."""
    if said := named_in(result.detail):
        return said
    node = result.detail.partition(" ")[0]
    author = author_of_node(node, world) if node in world.nodes() else ""
    return f"plug-in {author}: {result.detail}" if author else ""


class _Live:
    """Follows a run on processes and decides when feeding stops."""

    def __init__(
        self, spec: RunSpec, plan: Plan, bounds: Bounds, progress: Progress | None
    ) -> None:
        self.watch = Watch(spec, plan.programs)
        self.bounds, self.progress = bounds, progress
        self.journals = [journal_path(plan.directory, name) for name in (BROKER, *plan.nodes)]
        self.stopped = ""
        """Why nothing more is fed."""

    def watch_until_end(self, run: Supervisor, follower: Follower) -> plans.Outcome:
        """Until the broker says how it ended."""
        began = told = time.monotonic()
        while (result := run.wait(FOLLOW_SECONDS)) is None:
            for step in follower.poll():
                self.watch.step(step)
            self.watch.forget_before(follower.low_water)
            now = time.monotonic()
            self._stop_if_due(run, now - began)
            if self.progress is not None and now - told >= PROGRESS_SECONDS:
                told = now
                self.progress(self._numbers(now - began))
        return result

    def _stop_if_due(self, run: Supervisor, elapsed: float) -> None:
        if self.stopped:
            return
        self.stopped = self._why_stop(elapsed)
        if self.stopped:
            run.heal()
            run.stop_feeding(self.stopped)

    def _why_stop(self, elapsed: float) -> str:
        """Which bound was reached; empty: none."""
        bounds = self.bounds
        if bounds.seconds is not None and elapsed >= bounds.seconds:
            return f"{bounds.seconds:g} s"
        if bounds.stop_on and self.watch.broke(bounds.stop_on):
            return f"broke {bounds.stop_on}"
        most = bounds.journal_bytes
        if most is not None and bytes_in(self.journals) >= most:
            return f"journals of {most:,} bytes"
        return ""

    def _numbers(self, elapsed: float) -> dict[str, Any]:
        oracle = self.watch.oracle
        return {
            "seconds": elapsed,
            "deliveries": oracle.statistics.deliveries,
            "operations": sum(c.done for c in self.watch.operations.values()),
            "violations": len(oracle.violations),
        }


# ---- again ---------------------------------------------------------------------------------


def replay(source: Path, on: Literal["processes", "simulator"], out: Path) -> Outcome:
    """Run a recorded run again, delivery by delivery, into ``out``; the traces must be equal.

    ``source`` is a run's directory, or the file ``schedule`` in one, which is then followed to the
    letter.  A run that was cut short is run again up to the last delivery that was handled
    (``record`` of the outcome says so).  If the traces are not equal, the status is ``diverged``
    and ``detail`` names node, delivery and field.  Raises ``UserError`` if ``source`` is not a run,
    and ``PeerError`` if its journals do not fit each other.
    """
    directory = source if source.is_dir() else source.parent
    spec = RunSpec.load(directory)
    record = Record() if is_blank(directory) else read_record(source)
    programs = record.programs(spec.programs())
    schedule = Recorded(record.deliveries, record.cut)
    operations_max = record.operations_max(spec.operations_max)
    chaos = record.chaos(spec.world)
    spec.save(out)
    if on == "simulator":
        outcome = _simulate(
            spec, programs, chaos, schedule, out, None, record.choices, operations_max
        )
    else:
        plan = Plan(
            out,
            spec.world.nodes(),
            pack_world(spec.world),
            spec.seed,
            programs,
            operations_max,
            chaos=chaos,
            schedule=schedule,
            choices=record.choices,
        )
        outcome = follow_plan(spec, plan)
    outcome.record = record.end_text()
    if record.changed:
        outcome.record = f"is another schedule than {source}, from delivery {record.changed} on"
    elif outcome.status == "finished":
        _compare(outcome, directory, out, record.last if record.cut else None)
    if outcome.status == "diverged":
        outcome.detail += versions.difference(spec.versions)
    return outcome


def _compare(outcome: Outcome, source: Path, out: Path, last: int | None) -> None:
    """The trace must be the recorded one, up to delivery ``last`` if it was cut short."""
    difference = compare_runs(source, out, last)
    if difference is not None:
        node, number, field = difference
        outcome.status = "diverged"
        outcome.detail = f"{node}, delivery {number}, field {field}: differs from the record"


@at_fault()
def check(source: Path) -> Outcome:
    """The oracle alone on a saved run, whole or cut short.

    Raises ``UserError``, and ``PeerError`` if the record lacks what a run that ended well had.
    """
    began = time.monotonic()
    spec = RunSpec.load(source)
    watch = Watch(spec, spec.programs())
    with closing(Follower(source, spec.world.nodes())) as follower:
        watch.rest_of(follower)
        follower.check_whole()
        result = follower.outcome
    if result is None:
        detail = "the record ends before the run did"
        result = plans.Outcome(plans.NODE_DIED, _cut_short(watch), {}, detail=detail)
    status = _status_of(result)
    outcome = conclude(spec, "file", watch, result, status, time.monotonic() - began, source)
    outcome.record = follower.end_text()
    return outcome


# ---- conclusions ---------------------------------------------------------------------------


def _cut_short(watch: Watch) -> Ending:
    """The ending of a run that did not come to one."""
    done = sum(count.done for count in watch.operations.values())
    return Ending(watch.oracle.statistics.deliveries, done, False, ())


def _status_of(result: plans.Outcome) -> Status:
    if result.sound:
        return "finished"
    if result.status == plans.ABORTED:
        return "interrupted"
    return "diverged" if result.status == plans.DIVERGED else "broken"


def _notes(spec: RunSpec) -> dict[str, int]:
    """What became of the lines of a log, by reason and call; nothing for other workloads."""
    if not isinstance(spec.workload, StraceLog):
        return {}
    rows = spec.workload.account().rows()
    return {f"{reason}: {name}": count for reason, name, count in rows}


def conclude(
    spec: RunSpec,
    on: Literal["processes", "simulator", "file"],
    watch: Watch,
    result: plans.Outcome,
    status: Status,
    seconds: float,
    run_dir: Path | None,
) -> Outcome:
    """How a run came out, once its whole trace has been watched."""
    oracle = watch.oracle
    oracle.finish(result.ending, quiescent=result.status == plans.QUIESCENT)
    return Outcome(
        spec=spec,
        on=on,
        status=status,
        detail=result.detail,
        verdict=oracle.verdict(result.ending),
        ending=result.ending,
        operations=dict(sorted(watch.operations.items())),
        counts=result.counts,
        rejected=result.rejected,
        chaos=result.chaos,
        notes=_notes(spec),
        seconds=seconds,
        run_dir=run_dir,
        latencies=watch.latencies.result(),
    )
