"""A hunt: programs drawn one after the other, tried, and what they show kept.

    for finding in Hunt(kernel, Options(seconds=60)):
        print(finding.text)

What it finds is determined by the seed and the number of programs, not by how many processes try
them: program ``n`` is drawn with what is known of programs up to ``n - LAG``, and what comes back
is taken in order.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import multiprocess

from mmurace.campaign.hunt.finding import Finding
from mmurace.campaign.hunt.programs import Sketch
from mmurace.campaign.hunt.steer import Steering
from mmurace.campaign.hunt.trial import Task, Tried, tried
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.explorer.run.outcome import HELD, INCONCLUSIVE, INTERRUPTED, VIOLATED
from mmurace.explorer.shrink.case import Target
from mmurace.nodes import plugins
from mmurace.nodes.kernel.variant import Kernel

LAG: Final = 16
"""Programs that may be under way: no more processes than that are of use."""
SCHEDULES: Final = 100
"""Of each program, if nothing else is said."""
PROGRAMS: Final = 1000
"""Programs, if neither their number nor a time is given."""
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to hunt."""

    seed: int = 0
    programs: int | None = None
    """Try so many."""
    seconds: float | None = None
    """Draw none after so many seconds.  This bound alone depends on the machine."""
    schedules: int = SCHEDULES
    jobs: int = 1
    against: Kernel | None = None
    """Keep only what this kernel does not show."""

    def spent(self, programs: int, seconds: float) -> bool:
        """Whether the budget is used up."""
        if self.seconds is not None and seconds >= self.seconds:
            return True
        bound = PROGRAMS if self.programs is None and self.seconds is None else self.programs
        return bound is not None and programs >= bound


@dataclass(slots=True)
class Tally:
    """What was run."""

    programs: int = 0
    schedules: int = 0
    deliveries: int = 0
    windows: int = 0
    """Schedules with somebody inside a window of something that takes an entry away."""
    findings: int = 0
    again: int = 0
    """Programs that showed only what was found before, or what the other kernel shows."""


class Log(Protocol):
    """Keeps what a hunt has done, so that it can go on after its end."""

    def before(self) -> Iterator[Tried]:
        """What came of the first programs, of which there is a record."""

    def add(self, done: Tried, fresh: list[Finding]) -> None:
        """One more, whole: first its findings, then that it was done."""


class Trying(Protocol):
    """A trial that was begun; may be in another process."""

    def get(self) -> Tried:
        """What came of it."""


@dataclass(slots=True)
class Hunt:
    """Iterate over it for the findings, as they come."""

    kernel: Kernel
    options: Options
    log: Log | None = None
    progress: Progress | None = None
    clock: Callable[[], float] = time.monotonic
    """What ``Options.seconds`` are measured with."""
    tally: Tally = field(default_factory=Tally)
    interrupted: bool = False
    seconds: float = 0.0
    steering: Steering = field(init=False)
    _known: dict[Target, None] = field(default_factory=dict)
    _keys: set[tuple[str, ...]] = field(default_factory=set)
    _under_way: deque[tuple[Sketch, Trying]] = field(default_factory=deque)
    _drawn: int = 0

    def __post_init__(self) -> None:
        self.steering = Steering(self.kernel, self.options.seed)

    def __iter__(self) -> Iterator[Finding]:
        """Findings, in order of their programs.  Ctrl-C ends it; so does whoever stops asking."""
        began = self.clock()
        try:
            with collector_at_rest(), _hands(self.options.jobs) as begin:
                yield from self._all(began, begin)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.seconds = self.clock() - began

    def _all(self, began: float, begin: Callable[[Task], Trying]) -> Iterator[Finding]:
        recorded = self.log.before() if self.log is not None else iter(())
        for done in recorded:
            yield from self._next(_Recorded(done).again)
        while not self.options.spent(self._drawn, self.clock() - began):
            yield from self._next(begin)
            self._tell(self.clock() - began)
        while self._under_way:
            yield from self._take()
            self._tell(self.clock() - began)

    def _next(self, begin: Callable[[Task], Trying]) -> Iterator[Finding]:
        """Draw one program more, once the one that was drawn ``LAG`` programs before is done."""
        if len(self._under_way) >= LAG:
            yield from self._take()
        sketch = self.steering.draw(self._drawn)
        task = Task(
            self._drawn, self.options.seed, sketch.draft, self.options.schedules,
            frozenset(self._known), self.options.against,
        )  # fmt: skip
        self._drawn += 1
        self._under_way.append((sketch, begin(task)))

    def _take(self) -> Iterator[Finding]:
        """Fold the oldest program's result in."""
        sketch, trying = self._under_way.popleft()
        done = trying.get()
        self.steering.learn(sketch, done.points)
        tally = self.tally
        tally.programs += 1
        tally.schedules += done.schedules
        tally.deliveries += done.deliveries
        tally.windows += done.windows
        fresh = [finding for _, finding in done.findings if self._is_new(finding)]
        self._known.update(dict.fromkeys((*done.both, *(bug for bug, _ in done.findings))))
        tally.findings += len(fresh)
        tally.again += bool(done.bugs) and not fresh
        if self.log is not None and not isinstance(trying, _Recorded):
            self.log.add(done, fresh)
        yield from fresh

    def _is_new(self, finding: Finding) -> bool:
        new = finding.key not in self._keys
        self._keys.add(finding.key)
        return new

    def _tell(self, seconds: float) -> None:
        if self.progress is not None:
            self.progress(self.numbers(seconds))

    def numbers(self, seconds: float) -> dict[str, Any]:
        """Where it stands, for whoever shows progress."""
        tally = self.tally
        return {
            "seconds": seconds, "programs": tally.programs, "schedules": tally.schedules,
            "findings": tally.findings, "points": len(self.steering.points),
            "rate": tally.schedules / seconds if seconds else 0.0,
        }  # fmt: skip

    @property
    def exit_code(self) -> int:
        """The exit status of the command."""
        if self.tally.findings:
            return VIOLATED
        if self.interrupted:
            return INTERRUPTED
        return HELD if self.tally.windows else INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class _Done:
    """A trial that is done already."""

    done: Tried

    def get(self) -> Tried:
        """What came of it."""
        return self.done


@dataclass(frozen=True, slots=True)
class _Recorded(_Done):
    """One of which there is a record."""

    def again(self, _: Task) -> Trying:
        """It need not be tried again."""
        return self


@contextmanager
def _hands(jobs: int) -> Iterator[Callable[[Task], Trying]]:
    """Who tries: this process, or so many others."""
    if jobs == 1:
        yield lambda task: _Done(tried(task))
        return
    needed = [plugin.path for plugin in plugins.loaded()]
    with multiprocess.get_context("spawn").Pool(jobs, _prepare, (needed,)) as pool:
        yield lambda task: _Handed(pool.apply_async(tried, (task,)))


@dataclass(frozen=True, slots=True)
class _Handed:
    result: Any

    def get(self) -> Tried:
        """Wait for it."""
        done: Tried = self.result.get()
        return done


def _prepare(needed: list[str]) -> None:
    """What a process does first: Ctrl-C is its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plugins.load(needed)


def hunt(kernel: Kernel, options: Options, progress: Progress | None = None) -> Iterator[Finding]:
    """What random small programs show of a kernel, as it is found.  Raises ``PluginError``."""
    return iter(Hunt(kernel, options, None, progress))
