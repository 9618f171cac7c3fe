"""A hunt: programs drawn one after the other, tried, and what they show kept.

    for finding in Hunt(kernel, Options(seconds=60)):
        print(finding.text)

What it finds is determined by the seed and the number of programs, not by how many processes try
them: program ``n`` is drawn with what was seen in programs up to ``n - LAG``, and what comes back
is taken in order.  Only what is still news then is cut down.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import multiprocess

from mmurace.campaign.hunt.finding import Finding
from mmurace.campaign.hunt.programs import Sketch
from mmurace.campaign.hunt.steer import Steering
from mmurace.campaign.hunt.trial import Task, Tried, finding_in, shows, tried
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.explorer.run.outcome import BROKEN, HELD, INCONCLUSIVE, INTERRUPTED, VIOLATED
from mmurace.explorer.shrink.case import Target
from mmurace.nodes import plugins
from mmurace.nodes.kernel.variant import Kernel
from mmurace.protocol.errors import EmulatorError

LAG: Final = 16
"""Programs that may be under way: no more processes than that are of use."""
CUT_DOWN_MAX: Final = 3
"""A program that shows more bugs at once shows the others another time."""
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
    broken: int = 0
    """Programs at which the emulator itself broke."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program that is done, as it is kept."""

    index: int
    schedules: int
    deliveries: int
    windows: int
    points: tuple[str, ...]
    bugs: tuple[Target, ...]
    """What was broken."""
    known: tuple[Target, ...]
    """Of that, what is no news from now on."""
    findings: tuple[Finding, ...]
    """The new ones."""
    broke: str = ""
    """What went wrong in the emulator itself."""


class Log(Protocol):
    """Keeps what a hunt has done, so that it can go on after its end."""

    def before(self) -> Iterator[Record]:
        """The first programs, of which there is a record."""

    def add(self, record: Record) -> None:
        """One more, whole: first its findings, then that it was done."""


class Trying(Protocol):
    """A trial that was begun; may be in another process."""

    def ready(self) -> bool:
        """Whether it is over."""

    def get(self) -> Tried:
        """What came of it, once it is over."""


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
    broke: str = ""
    """The first program at which the emulator broke, and how."""
    seconds: float = 0.0
    steering: Steering = field(init=False)
    _known: dict[Target, None] = field(default_factory=dict)
    _keys: set[tuple[str, ...]] = field(default_factory=set)
    _under_way: deque[tuple[Sketch, Trying]] = field(default_factory=deque)
    _seen: deque[tuple[Sketch, Record]] = field(default_factory=deque)
    """What is done, and not yet learned from."""
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
        for record in self.log.before() if self.log is not None else ():
            yield from self._fold(self._draw(), record)
        while not self.options.spent(self._drawn, self.clock() - began):
            while len(self._under_way) >= LAG:
                yield from self._take()
            sketch = self._draw()
            self._under_way.append((sketch, begin(self._task(sketch))))
            while self._under_way and self._under_way[0][1].ready():
                yield from self._take()
            self._tell(self.clock() - began)
        while self._under_way:
            yield from self._take()
            self._tell(self.clock() - began)

    def _draw(self) -> Sketch:
        """The next program, with what was seen in those that were drawn ``LAG`` before it."""
        while self._seen and self._seen[0][1].index <= self._drawn - LAG:
            sketch, record = self._seen.popleft()
            self.steering.learn(sketch, record.points)
        self._drawn += 1
        return self.steering.draw(self._drawn - 1)

    def _task(self, sketch: Sketch) -> Task:
        options = self.options
        known = frozenset(self._known)
        return Task(
            self._drawn - 1, options.seed, sketch.draft, options.schedules, known, options.against
        )

    def _take(self) -> Iterator[Finding]:
        """The oldest program that is under way."""
        sketch, trying = self._under_way[0]
        record = self._judged(trying.get())
        if self.log is not None:
            self.log.add(record)
        self._under_way.popleft()
        yield from self._fold(sketch, record)

    def _judged(self, tried: Tried) -> Record:
        """What a program showed, with what is still news cut down."""
        known, found, broke = list(tried.both), list[Finding](), tried.broke
        news = [(bug, shown) for bug, shown in tried.shown if bug not in self._known]
        for bug, shown in news[:CUT_DOWN_MAX]:
            try:
                finding = finding_in(shown, bug, tried.index)
                both = finding is not None and self._is_shown_by_both(finding)
            except EmulatorError as error:
                broke = f"{bug.text()}: {error}"
                continue
            if finding is not None:
                known.append(bug)
            if finding is not None and not both and self._is_new(finding):
                found.append(finding)
        return Record(
            tried.index, tried.schedules, tried.deliveries, tried.windows, tried.points,
            tried.bugs, tuple(known), tuple(found), broke,
        )  # fmt: skip

    def _is_shown_by_both(self, finding: Finding) -> bool:
        against = self.options.against
        return against is not None and shows(against, finding, self.options.schedules)

    def _fold(self, sketch: Sketch, record: Record) -> Iterator[Finding]:
        """Count a program that is done."""
        tally = self.tally
        tally.programs += 1
        tally.schedules += record.schedules
        tally.deliveries += record.deliveries
        tally.windows += record.windows
        tally.broken += bool(record.broke)
        self.broke = self.broke or (record.broke and f"program {record.index}: {record.broke}")
        tally.findings += len(record.findings)
        tally.again += bool(record.bugs) and not record.findings
        self._known.update(dict.fromkeys(record.known))
        self._keys.update(finding.key for finding in record.findings)
        self._seen.append((sketch, record))
        yield from record.findings

    def _is_new(self, finding: Finding) -> bool:
        """Whether there is none with its rule and functions."""
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
        if self.broke:
            return BROKEN
        return HELD if self.tally.windows else INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class _Done:
    """A trial that is done already."""

    done: Tried

    def ready(self) -> bool:
        """It is."""
        return True

    def get(self) -> Tried:
        """What came of it."""
        return self.done


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

    def ready(self) -> bool:
        """Whether it is over."""
        return bool(self.result.ready())

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
