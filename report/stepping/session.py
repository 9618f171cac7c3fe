"""The commands of the stepper, whatever face asks for them: a line in, lines out.

A name may be given by its beginning; whatever cannot be is said in a line.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mmurace.explorer.run.schedule_file import SUFFIX, schedule_text, write
from mmurace.explorer.step.calls import Called, calls_of
from mmurace.explorer.step.events import Predicate, of_lock, of_page, of_party
from mmurace.explorer.step.state import State, difference
from mmurace.explorer.step.stepper import Stepper
from mmurace.oracle.violation import Violation
from mmurace.protocol.errors import UserError
from mmurace.protocol.names import meant, perhaps
from mmurace.report.stepping import words

AROUND: Final = 5
"""Deliveries that ``list`` shows before and after where we are."""
EXPLAINED_DELIVERIES_MAX: Final = 400
"""The deciding swap is looked for by playing a run a hundred times."""


class Session:
    """A stepper with breakpoints, and the commands that people give it."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.functions: set[str] = set()
        """Breakpoints."""
        self.lines: set[tuple[str, int]] = set()
        self.stops_on_violations = True
        self.ended = False
        """``quit`` was said."""
        self._calls: list[Called] | None = None
        self._commands: dict[str, Callable[[list[str]], Iterator[str]]] = {
            name: getattr(self, f"_{name.replace('-', '_')}") for name in HELP
        }

    # -- what both faces do ------------------------------------------------------------------

    def calls(self) -> list[Called]:
        """What each delivery calls; found out once for each run."""
        if self._calls is None:
            self._calls = calls_of(self.stepper.case)
        return self._calls

    def run(self, back: bool = False) -> str:
        """On to the next breakpoint or the first new violation, or back to the last breakpoint.

        Why it stopped: ``breakpoint``, ``violation``, or ``end`` (``start``).
        """
        stepper, calls = self.stepper, self.calls()
        broken = {at for at, _ in stepper.broken if self.stops_on_violations}
        ahead = range(stepper.at + 1, len(calls) + 1)
        for at in range(stepper.at - 1, 0, -1) if back else ahead:
            met = calls[at - 1].meets(self.functions, self.lines)
            if met or (at in broken and not back):
                stepper.go(at)
                return "breakpoint" if met else "violation"
        stepper.go(0 if back else len(stepper.moments))
        return "start" if back else "end"

    def seek(self, wanted: Predicate, back: bool = False) -> bool:
        """To the next delivery that is wanted, or the last one before; False: none, we stay."""
        at = self.stepper.find(wanted, back)
        if at is not None:
            self.stepper.go(at)
        return at is not None

    def changes(self) -> list[tuple[str, str, str, str]]:
        """What the last delivery changed.  We are then where we were."""
        at = self.stepper.at
        after: State = self.stepper.state()
        self.stepper.go(at - 1)
        before = self.stepper.state()
        self.stepper.go(at)
        return difference(before, after)

    def do(self, line: str) -> list[str]:
        """Do what a line asks for; what there is to say, errors included."""
        try:
            given = shlex.split(line, comments=True)
        except ValueError as error:
            return [f"{line}: {error}"]
        if not given:
            return []
        found = [given[0]] if given[0] in HELP else meant(ALIASES.get(given[0], given[0]), HELP)
        if len(found) != 1:
            near = perhaps(given[0], HELP, "see help")
            return [f"{given[0]}: {'more than one command' if found else 'no command'} ({near})"]
        try:
            return list(self._commands[found[0]](given[1:]))
        except UserError as error:
            return [str(error)]

    # -- moving ------------------------------------------------------------------------------

    def broken_here(self) -> list[Violation]:
        """What the last delivery broke; at the end also what is judged only there."""
        stepper = self.stepper
        new = [violation for at, violation in stepper.broken if at == stepper.at]
        if stepper.at == len(stepper.moments):
            known = [violation for _, violation in stepper.broken]
            new += [violation for violation in stepper.played.violations if violation not in known]
        return new

    def _here(self) -> Iterator[str]:
        """Where we are, what came of it, and what has been broken by it."""
        stepper = self.stepper
        yield words.place_line(stepper)
        if stepper.last is not None:
            yield from (f"    {line}" for line in words.record_lines(stepper, stepper.last))
        yield from map(words.broken_line, self.broken_here())

    def _next(self, given: list[str]) -> Iterator[str]:
        self.stepper.go(self.stepper.at + _count(given))
        yield from self._here()

    def _back(self, given: list[str]) -> Iterator[str]:
        self.stepper.go(self.stepper.at - _count(given))
        yield from self._here()

    def _go(self, given: list[str]) -> Iterator[str]:
        self.stepper.go(_number(_one(given, "a number of deliveries")))
        yield from self._here()

    def _sought(self, wanted: Predicate, given: list[str], what: str) -> Iterator[str]:
        back = given[1:] == ["back"]
        if not self.seek(wanted, back):
            yield f"no {'earlier' if back else 'further'} delivery {what}"
        yield from self._here()

    def _page(self, given: list[str]) -> Iterator[str]:
        address = _number(_one(given[:1], "an address"))
        yield from self._sought(of_page(address), given, f"about the page of {address:#x}")

    def _lock(self, given: list[str]) -> Iterator[str]:
        name = _one(given[:1], "a part of a lock's name")
        yield from self._sought(of_lock(name), given, f"takes or gives back a lock {name!r}")

    def _party(self, given: list[str]) -> Iterator[str]:
        node = self._node(_one(given[:1], "a node"))
        yield from self._sought(of_party(node), given, f"of {node}")

    def _break(self, given: list[str]) -> Iterator[str]:
        if given:
            name = _one(given, "a function")
            called = {function for one in self.calls() for function in one.functions}
            if name not in called:
                raise UserError(name, "is never called in this run", perhaps(name, sorted(called)))
            self.functions.add(name)
        yield f"breakpoints: {', '.join(sorted(self.functions)) or 'none'}"

    def _delete(self, given: list[str]) -> Iterator[str]:
        self.functions -= set(given) if given else self.functions
        yield from self._break([])

    def _continue(self, _: list[str]) -> Iterator[str]:
        yield f"stopped: {self.run()}"
        yield from self._here()

    def _reverse_continue(self, _: list[str]) -> Iterator[str]:
        yield f"stopped: {self.run(back=True)}"
        yield from self._here()

    def _decide(self, _: list[str]) -> Iterator[str]:
        first, second = deciding_swap(self.stepper)
        names = [moment.name for moment in self.stepper.moments]
        self.stepper.go(names.index(first))
        yield f"next is {first}; if {second} came first, it would pass: what-if {second}"
        yield from self._here()

    # -- looking -----------------------------------------------------------------------------

    def _list(self, _: list[str]) -> Iterator[str]:
        stepper = self.stepper
        first = max(stepper.at - AROUND, 0)
        for moment in stepper.moments[first : stepper.at + AROUND]:
            mark = ">" if moment is stepper.last else " "
            yield f"{mark}{moment.n:>6}  {words.delivery_text(stepper, moment)}"

    def _state(self, given: list[str]) -> Iterator[str]:
        state = self.stepper.state()
        for node in [self._node(one) for one in given] or state:
            yield f"{node}:"
            yield from words.fields_lines(state[node])

    def _diff(self, _: list[str]) -> Iterator[str]:
        yield from words.difference_lines(self.changes()) or ["nothing changed"]

    def _where(self, given: list[str]) -> Iterator[str]:
        stacks = {node: self.stepper.stacks(node) for node in self.stepper.drivers}
        waiting = [node for node, found in stacks.items() if found]
        if not given and not waiting:
            yield "no thread of any node waits"
        for node in [self._node(one) for one in given] or waiting:
            yield from words.stack_lines(node, stacks[node])

    def _heads(self, _: list[str]) -> Iterator[str]:
        following = self.stepper.next
        for name in self.stepper.deliverable():
            yield f"{'>' if following is not None and name == following.name else ' '} {name}"

    # -- what else -----------------------------------------------------------------------------

    def _what_if(self, given: list[str]) -> Iterator[str]:
        wanted = _one(given, "a delivery that is still to come")
        later = [
            m.name for m in self.stepper.moments[self.stepper.at :] if m.name.startswith(wanted)
        ]
        otherwise = self.stepper.what_if(wanted if wanted in later else (*later, wanted)[0])
        self._calls = None
        yield f"{otherwise.first} before {otherwise.before}: {_came_of(otherwise.violations)}"
        yield from self._here()

    def _undo(self, _: list[str]) -> Iterator[str]:
        yield "as before" if self.stepper.undo() else "there is nothing to undo"
        self._calls = None
        yield from self._here()

    def _save(self, given: list[str]) -> Iterator[str]:
        file = Path(_one(given, f"a file that ends with {SUFFIX}"))
        if not file.name.endswith(SUFFIX):
            raise UserError(str(file), "is no name of a schedule", f"one that ends with {SUFFIX}")
        write(file, schedule_text(self.stepper.case))
        yield f"written to {file}"

    def _help(self, _: list[str]) -> Iterator[str]:
        yield from (f"  {usage:<22} {what}" for usage, what in HELP.values())

    def _quit(self, _: list[str]) -> Iterator[str]:
        self.ended = True
        yield from ()

    def _node(self, name: str) -> str:
        """A node by its name or its beginning."""
        found = meant(name, self.stepper.drivers)
        if len(found) != 1:
            raise UserError(name, "is no node", ", ".join(self.stepper.drivers))
        return found[0]


HELP: Final = {
    "next": ("next [N]", "the next delivery, or N of them"),
    "back": ("back [N]", "back by one, or by N"),
    "go": ("go N", "to where N deliveries have been made"),
    "page": ("page ADDRESS [back]", "to the next event of a page, or the last one"),
    "lock": ("lock NAME [back]", "... of a lock, by a part of its name"),
    "party": ("party NODE [back]", "... of a node"),
    "decide": ("decide", "to the two deliveries whose order decides"),
    "break": ("break [FUNCTION]", "stop where a function is called; show breakpoints"),
    "delete": ("delete [FUNCTION]", "no breakpoint there, or nowhere"),
    "continue": ("continue", "to the next breakpoint or violation"),
    "reverse-continue": ("reverse-continue", "to the last breakpoint before this"),
    "list": ("list", "deliveries around this one"),
    "state": ("state [NODE]", "what nodes know: entries, caches, locks, counts"),
    "diff": ("diff", "what the last delivery changed"),
    "where": ("where [NODE]", "kernel functions that have not returned"),
    "heads": ("heads", "deliveries that could come next; > is the one that does"),
    "what-if": ("what-if DELIVERY", "let a later one come now, and go on from there"),
    "undo": ("undo", "the run before the last what-if"),
    "save": ("save FILE", f"write this run's schedule (FILE{SUFFIX})"),
    "help": ("help", "this"),
    "quit": ("quit", "leave"),
}
"""Command -> its usage, what it does."""
ALIASES: Final = {
    "n": "next", "b": "back", "p": "page", "l": "list", "s": "state", "d": "diff", "w": "where",
    "c": "continue", "rc": "reverse-continue", "bt": "where", "q": "quit", "?": "help",
    "h": "help", "swap": "what-if",
}  # fmt: skip


def _one(given: list[str], what: str) -> str:
    if len(given) != 1:
        raise UserError(" ".join(given) or "this command", "is not one argument", what)
    return given[0]


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(text, "is no number", "decimal, or hexadecimal with 0x") from None


def _count(given: list[str]) -> int:
    return _number(_one(given, "a number")) if given else 1


def _came_of(violations: tuple[object, ...]) -> str:
    rules = dict.fromkeys(getattr(v, "rule", "") for v in violations)
    return f"it breaks {', '.join(rules)}" if rules else "nothing is broken"


def deciding_swap(stepper: Stepper) -> tuple[str, str]:
    """Names of the two deliveries whose order decides, as ``explain`` finds them.

    Raises ``UserError`` if there are none, or the run is too long to look for them.
    """
    from mmurace.explorer.explain.why import explain
    from mmurace.explorer.run.schedule_file import Loaded
    from mmurace.explorer.shrink.case import chosen_violation, target_of

    violation = chosen_violation(stepper.case.spec, stepper.played.violations)
    if violation is None:
        raise UserError("decide", "nothing is broken", "a run with a violation")
    if len(stepper.moments) > EXPLAINED_DELIVERIES_MAX:
        problem = f"{len(stepper.moments):,} deliveries are too many"
        raise UserError("decide", problem, "the schedule that minimize writes")
    target = stepper.target or target_of(violation, stepper.case.spec.world, stepper.case.kinds())
    swap = explain(Loaded(stepper.case, target, stepper.played)).swap
    if swap is None:
        raise UserError("decide", "no swap of two deliveries decides this one", "explain says more")
    return swap.first.name, swap.second.name
