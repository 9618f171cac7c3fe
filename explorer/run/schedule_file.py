"""Schedules as files: small, self-contained text that any later version can try to play.

A file holds the run (as ``run.toml`` does), what was delivered in which order, the choices of
the hardware, and the faults that changed what there was to deliver.  Deliveries are named by
what caused them, so a file outlives changes of the code that do not concern it; where it does
not, replaying it says which delivery no longer fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from mmurace.broker.exchange import Exchange
from mmurace.broker.faults import Fault, FaultKind
from mmurace.broker.recorder import Record, ReplayedFaults, read_record
from mmurace.broker.schedules import Recorded
from mmurace.explorer.shrink.case import (
    Case,
    Names,
    Target,
    chosen_violation,
    scripted,
    switches,
    target_of,
)
from mmurace.explorer.shrink.deaths import Death, check_deaths, recorded
from mmurace.explorer.shrink.play import How, Played, Player, as_played, attempt, play
from mmurace.nodes.driver import draw
from mmurace.nodes.files import not_opened, sealed, write_whole
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError, ReplayDivergence, UserError
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.tables import Table, TomlTable, convert, parse_toml, read_toml, toml_text
from mmurace.scenarios.versions import current

FORMAT: Final = 1
FORMAT_WITH_DEATHS: Final = 2
"""A file says the oldest version that can say it, so that older programs read what they can."""
SUFFIX: Final = ".schedule.toml"
HEAD: Final = """\
# A schedule of the mmu_notifier emulator: python launch.py replay, minimize or explain THIS FILE
"""
_QUOTES: Final = "'''"


class _FaultTable(TomlTable, frozen=True):
    """``[[fault]]``: what became of the nth sending of a message."""

    message: str
    nth: int
    kind: FaultKind


class _DeathTable(TomlTable, frozen=True):
    """``[[death]]``: a node dies after a delivery of the order; without ``after`` before any."""

    node: str
    after: str = ""


class _FileTable(TomlTable, frozen=True):
    """The keys of a schedule file."""

    format: int
    run: Table
    order: str
    choices: dict[str, int] = {}
    fault: list[_FaultTable] = []
    death: list[_DeathTable] = []
    target: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A case and the violation that it is about; ``played`` is its replay."""

    case: Case
    target: Target
    played: Played
    diverged: str = ""
    """Where it no longer fits, if the replay was not exact but found the same violation."""


# ---- files -------------------------------------------------------------------------------------


def schedule_text(case: Case, target: Target | None = None) -> str:
    """The file of a case, sealed; ``target`` says which violation it is about."""
    faults = [
        {"message": name, "nth": nth, "kind": kind}
        for (name, nth), kind in sorted(case.faults.items())
    ]
    about = "" if target is None else f"# {target.text()}\n"
    size = f"# {len(case.order)} deliveries, {switches(case.order)} switches between threads\n"
    head: Table = {"format": FORMAT_WITH_DEATHS if case.deaths else FORMAT}
    if target is not None:
        head["target"] = msgspec.to_builtins(target)
    body: Table = {
        "choices": dict(sorted(case.choices.items())) or None,
        "fault": faults or None,
        "death": [{"node": d.node, "after": d.after} for d in case.deaths] or None,
        "run": parse_toml(replace(case.spec, versions=current()).to_toml(Path()), "run"),
    }
    order = "\n".join(("", *case.order, ""))
    rest = toml_text({key: value for key, value in body.items() if value is not None})
    return sealed(f"{HEAD}{about}{size}{_inline(head)}order = {_QUOTES}{order}{_QUOTES}\n\n{rest}")


def write(path: Path, text: str) -> None:
    """Write a schedule file, whole or not at all.

    Raises ``UserError``; ``OSError`` with the path if the disk is full.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise not_opened(path, error, "cannot be written", "a new file") from None


def _inline(head: Table) -> str:
    """Keys of the top table, tables among them on one line."""
    target = head.pop("target", None)
    text = toml_text(head)
    if target is None:
        return text
    pairs = ", ".join(f'{key} = "{value}"' for key, value in target.items())
    return f"{text}target = {{ {pairs} }}\n"


def is_schedule_file(source: Path) -> bool:
    """Whether this is a schedule file and not a run."""
    return source.is_file() and source.name.endswith(SUFFIX)


def read_case(path: Path) -> tuple[Case, Target | None]:
    """The case in a schedule file.  Raises ``UserError``: file, key, what was expected."""
    return case_from(read_toml(path), str(path), path.parent)


def case_from(top: Table, where: str, directory: Path) -> tuple[Case, Target | None]:
    """The case in the table of such a file; files are relative to ``directory``.

    Raises ``UserError``.
    """
    table = convert(top, _FileTable, where)
    if table.format not in (FORMAT, FORMAT_WITH_DEATHS):
        raise UserError(
            f"{where}: format", f"is {table.format}", f"{FORMAT} to {FORMAT_WITH_DEATHS}"
        )
    if table.death and table.format != FORMAT_WITH_DEATHS:
        raise UserError(
            f"{where}: format", f"{table.format} has no deaths", str(FORMAT_WITH_DEATHS)
        )
    spec = RunSpec.from_table(table.run, f"{where}: run", directory)
    order = tuple(table.order.split())
    repeated = [name for name, count in Counter(order).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: order", f"{repeated[0]} is there twice", "each delivery once")
    faults = {(fault.message, fault.nth): fault.kind for fault in table.fault}
    target = convert(table.target, Target, f"{where}: target") if table.target else None
    deaths = tuple(Death(death.node, death.after) for death in table.death)
    check_deaths(deaths, order, spec.world, where)
    return Case(scripted(spec), order, table.choices, faults, deaths), target


# ---- from what was recorded --------------------------------------------------------------------


def load(source: Path, rule: str = "") -> Loaded:
    """The case of a run's directory or a schedule file, played once.

    It is about the violation that its scenario expects, else the first; with ``rule`` the first
    by that rule.  A schedule file that no longer fits to the letter is played leniently.  Raises
    ``UserError`` if it violates nothing, ``ReplayDivergence`` if it does not fit and that does
    not help.
    """
    if is_schedule_file(source):
        return _load_file(source, rule)
    case, played = case_of_run(source)
    target = _target(case, played, str(source), rule)
    return _by_name(case, target, str(source)) if case.deaths else Loaded(case, target, played)


def _by_name(case: Case, target: Target, where: str) -> Loaded:
    """A record with deaths as a case: on processes they take longer than in the simulator."""
    for how in (How(target), How(target, eager=True)):
        played = attempt(case, how)
        if played is not None:
            return Loaded(as_played(case, played), target, played)
    problem = "its violation is not there when its nodes die as fast as in the simulator"
    raise UserError(where, problem, "a run whose violation does not depend on that")


def _load_file(source: Path, rule: str) -> Loaded:
    case, target = read_case(source)
    if rule and target is not None and target.rule != rule:
        target = None
    try:
        played = play(case, How(target, strict=True, stop=False))
    except ReplayDivergence as error:
        played = play(case, How(target, eager=True))
        if played.found is None:
            raise
        case = replace(case, order=played.order, deaths=played.deaths)
        return Loaded(case, _known(target), played, str(error))
    if target is None or played.found is None:
        target = _target(case, played, str(source), rule)
    return Loaded(case, target, played)


def _known(target: Target | None) -> Target:
    if target is None:
        raise EmulatorError("a run found a target without having one")
    return target


def _target(case: Case, played: Played, where: str, rule: str) -> Target:
    meant = [v for v in played.violations if rule in ("", v.rule)]
    violation = chosen_violation(case.spec, meant)
    if violation is None:
        broken = ", ".join(dict.fromkeys(v.rule for v in played.violations))
        problem = f"does not violate {rule}" if rule and broken else "violates nothing"
        raise UserError(where, problem, broken or "a schedule with a violation")
    return target_of(violation, case.spec.world, case.kinds())


def case_of_run(source: Path) -> tuple[Case, Played]:
    """A recorded run as a case, and its replay.

    ``source`` is a run's directory, or the file ``schedule`` in one.  Raises ``UserError``,
    ``ReplayDivergence``, and ``PeerError`` if its journals do not fit each other.
    """
    spec = RunSpec.load(source if source.is_dir() else source.parent)
    record = read_record(source)
    case = Case(scripted(spec, record.operations))
    player = _Exact(case, record)
    played = player.run()
    numbers = [n for n, _, _ in record.deliveries]
    begun, killed = (
        [(bisect_right(numbers, n), node) for n, node in deaths]
        for deaths in (record.begun, record.killed)
    )
    deaths = recorded(begun, killed, played.order, spec.world)
    case = replace(
        case, order=played.order, choices=played.choices, faults=player.noted.kinds, deaths=deaths
    )
    return case, played


class _Noted:
    """The faults of a record, noted by name as they happen."""

    def __init__(self, names: Names, faults: ReplayedFaults) -> None:
        self.faults, self.names, self.kills = faults, names, faults.kills
        self.kinds: dict[tuple[str, int], FaultKind] = {}
        self._seen: dict[str, int] = {}
        self.delivered, self.hold = faults.delivered, faults.hold
        self.give_up, self.heal = faults.give_up, faults.heal

    def fault(self, envelope: Envelope) -> Fault | None:
        """The recorded one."""
        name = self.names.by_id(envelope.id)
        count = self._seen.get(name, 0)
        self._seen[name] = count + 1
        fault = self.faults.fault(envelope)
        if fault is not None:
            self.kinds[name, count] = fault.kind
        return fault


class _Exact(Player):
    """Plays a record by the messages' own ids, with its choices."""

    def __init__(self, case: Case, record: Record) -> None:
        last = record.deliveries[-1][0] if record.deliveries else 0
        super().__init__(case, How(deliveries_max=last + 1))
        self.noted = _Noted(self.names, record.chaos(case.spec.world))
        self.exchange = Exchange(self.exchange.feeder, self.noted, recorded=True)
        self._recorded, self._given = Recorded(record.deliveries), record.choices
        self._at = (0, 0)

    def _pick(self, heads: list[Envelope]) -> int:
        return self._recorded.pick(heads)

    def _number(self) -> int:
        return self._recorded.number

    def _choose(self, path: str, nth: int, name: str, ways: int) -> int:
        number, count = self._at
        count = count + 1 if number == self.exchange.number else 0
        self._at = (self.exchange.number, count)
        given: Any = self._given.get(self.exchange.number, ())
        if count < len(given):
            way: int = given[count][2]
        else:
            way = draw(self.case.spec.seed, f"{path}/{nth}/{name}") % ways
        if way != ways - 1:
            self.choices[self.names.choice(path, nth, name)] = way
        return way
