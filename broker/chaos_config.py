"""Chaos configuration: a TOML file of rules, read strictly.

A rule is match + fault + how often + when.  Whatever does not fit is a ``UserError`` that names
the file and the key path; nothing is ignored.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from mmurace.protocol.envelope import REPLY_MARK
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import REPEAT_DISTANCE_MAX
from mmurace.protocol.messages.base import Message, Request, kinds
from mmurace.protocol.messages.program import Operation

SCHEMA = 1
CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the emulator; a name without a suffix means one of them."""

FaultName = Literal[
    "delay", "drop", "duplicate", "reorder", "hold", "slow_node", "pause_node", "partition",
    "kill_node",
]  # fmt: skip
FAULTS: tuple[str, ...] = get_args(FaultName)
GATES = frozenset({"pause_node", "partition"})
"""Faults that stop deliveries for a while, whatever was sent when (``gates.py``)."""
KILL = "kill_node"
"""The fault that ends a node (``kills.py``)."""
TIMED = GATES | {KILL}
"""Faults that ``when`` alone brings about, whatever is sent."""
Globs = str | tuple[str, ...] | None
"""One ``fnmatch`` pattern, several of which one must fit, or no condition."""
WILDCARDS = frozenset("*?[")
T = TypeVar("T")


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which messages: every condition that is given must hold.

    ``kind`` is the message's class name, a reply's is its request's with ``~``.  ``program`` and
    ``operation`` (``program/index``) say for whom it was sent; ``op`` is the class name of that
    operation.
    """

    src: Globs = None
    dst: Globs = None
    kind: Globs = None
    program: Globs = None
    operation: Globs = None
    op: Globs = None
    id: Globs = None


class Until(Match, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The event of a hold: ``count`` matching messages were delivered since it began.

    With ``ever`` since the run began: who is slow enough to send what is held after the event does
    not wait for another one.
    """

    count: int = 1
    ever: bool = False


class After(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many deliveries later, drawn evenly from ``min`` to ``max``."""

    min: int
    max: int


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Only messages sent from one delivery to (not including) another, and only so many.

    With ``every`` the same again after so many deliveries, and after as many again.
    """

    from_delivery: int = 0
    until_delivery: int | None = None
    every: int | None = None
    hits_max: int | None = None

    def includes(self, deliveries: int) -> bool:
        """Whether it is now, after so many deliveries."""
        since, until = deliveries - self.from_delivery, self.until_delivery
        if since < 0 or until is None:
            return since >= 0
        return (since % self.every if self.every else since) < until - self.from_delivery


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule; the first rule that hits a message decides what becomes of it."""

    name: str
    fault: FaultName
    match: Match = Match()
    between: tuple[str, str] | None = None
    """The two parts of a partition, one pattern each."""
    probability: float = 1.0
    after: After | None = None
    until: Until | None = None
    when: When = When()


class ChaosConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All rules of a run, in order.  ``msgspec.to_builtins`` gives what ``parse_rules`` reads."""

    schema: int
    rule: tuple[Rule, ...] = ()
    about: str = ""
    """One sentence for people: which races it favours."""


_RULE_PARTS: Mapping[str, type] = {"match": Match, "after": After, "until": Until, "when": When}


def load_rules(path: str | Path) -> ChaosConfig:
    """The rules in a file, or in the configuration of that name in ``broker/configs``.

    Raises ``UserError`` if it cannot be read, is not TOML, or says something wrong.
    """
    file = find_config(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(str(file), f"cannot be read: {error.strerror}", "a TOML file") from None
    except UnicodeDecodeError as error:
        raise UserError(str(file), f"is not UTF-8 at byte {error.start}", "a TOML file") from None
    except (ValueError, RecursionError) as error:  # also numbers and arrays beyond Python's bounds
        raise UserError(str(file), f"is not TOML: {error}", "a TOML file") from None
    return parse_rules(table, str(file))


def find_config(name: str | Path) -> Path:
    """The file that ``name`` means; ``UserError`` if there is neither a file nor a preset."""
    path = Path(name)
    preset = CONFIGS / f"{name}.toml"
    if path.suffix or path.exists() or preset.parent != CONFIGS:
        return path
    if preset.exists():
        return preset
    raise UserError(str(name), "no such chaos configuration", f"a file, or {_one_of(presets())}")


def presets() -> list[str]:
    """Names of the configurations that come with the emulator."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def parse_rules(table: Mapping[str, Any], where: str) -> ChaosConfig:
    """A table as rules.

    ``where`` is the file that it came from in errors, or ``file: key`` if it is a part of one.
    Raises ``UserError``.
    """
    top = _top(where)
    _known_keys(table, ChaosConfig, top, "")
    if table.get("schema") != SCHEMA:
        problem = f"is {table['schema']!r}" if "schema" in table else "is missing"
        raise UserError(f"{top}schema", problem, f"schema = {SCHEMA}")
    rules = table.get("rule", [])
    if not isinstance(rules, list | tuple):
        raise UserError(f"{top}rule", "is not a list of tables", "[[rule]]")
    parsed = tuple(_rule(rule, f"{top}rule[{i}]") for i, rule in enumerate(rules))
    _distinct(parsed, top)
    about = _convert(table.get("about", ""), str, f"{top}about")
    return ChaosConfig(SCHEMA, parsed, about)


def _top(where: str) -> str:
    """What comes before the first key of a place: ``file: `` or ``file: key.``."""
    return f"{where}." if ": " in where else f"{where}: "


def _rule(table: Any, where: str) -> Rule:
    _known_keys(table, Rule, where, ".")
    _known_fault(table, where)
    for key, part in _RULE_PARTS.items():
        if key in table:
            _known_keys(table[key], part, f"{where}.{key}", ".")
    rule = _convert(table, Rule, where)
    _check_rule(rule, where)
    return rule


def _known_keys(table: Any, struct: type[msgspec.Struct], where: str, dot: str) -> None:
    if not isinstance(table, Mapping):
        raise UserError(where.rstrip(": ."), f"is {table!r}", "a table")
    known = struct.__struct_fields__
    for key in table:
        if key not in known:
            raise UserError(f"{where}{dot}{key}", "unknown key", suggest(str(key), known))


def _known_fault(table: Mapping[str, Any], where: str) -> None:
    fault = table.get("fault")
    if fault not in FAULTS:
        problem = "is missing" if fault is None else f"unknown fault {fault!r}"
        raise UserError(f"{where}.fault", problem, suggest(str(fault), FAULTS))


def _convert(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        raise UserError(where + place.rstrip("`"), problem[:1].lower() + problem[1:]) from None


def _check_rule(rule: Rule, where: str) -> None:
    if not rule.name:
        raise UserError(f"{where}.name", "is empty", "a name; draws depend on it")
    if not 0.0 <= rule.probability <= 1.0:
        raise UserError(f"{where}.probability", f"is {rule.probability}", "0.0 to 1.0")
    _check_after(rule, where)
    _check_until(rule, where)
    _check_when(rule.when, f"{where}.when")
    _check_match(rule.match, f"{where}.match")
    _check_nodes(rule, where)


def _check_after(rule: Rule, where: str) -> None:
    if rule.fault == "hold" or rule.fault in TIMED:
        if rule.after is not None:
            instead = "until = { ... }" if rule.fault == "hold" else "when = { ... }"
            raise UserError(f"{where}.after", f"a {rule.fault} has no delay", instead)
        return
    if rule.after is None:
        raise UserError(
            f"{where}.after", f"is missing: how late is a {rule.fault}?", "after = { min, max }"
        )
    if not 1 <= rule.after.min <= rule.after.max <= REPEAT_DISTANCE_MAX:
        raise UserError(
            f"{where}.after", f"min = {rule.after.min}, max = {rule.after.max}",
            f"1 <= min <= max <= {REPEAT_DISTANCE_MAX} deliveries",
        )  # fmt: skip


def _check_until(rule: Rule, where: str) -> None:
    if rule.fault != "hold":
        if rule.until is not None:
            instead = "when = { ... }" if rule.fault in TIMED else "after = { ... }"
            raise UserError(f"{where}.until", f"a {rule.fault} has no event", instead)
        return
    if rule.until is None:
        raise UserError(f"{where}.until", "is missing: not before what?", "until = { kind = ... }")
    if rule.until.count < 1:
        raise UserError(f"{where}.until.count", f"is {rule.until.count}", "1 or more")
    _check_match(rule.until, f"{where}.until")


def _check_nodes(rule: Rule, where: str) -> None:
    """The conditions of faults that are about nodes rather than about messages."""
    given = [f for f in Match.__struct_fields__ if getattr(rule.match, f) is not None]
    if rule.fault in ("slow_node", "pause_node", KILL) and given != ["dst"]:
        raise UserError(
            f"{where}.match", f"a {rule.fault} is about a node", "match = { dst = ... }"
        )
    if rule.fault == "partition" and given:
        raise UserError(f"{where}.match", "a partition is about nodes", "between = [ ..., ... ]")
    if (rule.fault == "partition") != (rule.between is not None):
        problem = "is missing" if rule.between is None else f"a {rule.fault} has no two parts"
        raise UserError(f"{where}.between", problem, "for a partition: two patterns of nodes")
    if rule.fault in GATES and rule.when.until_delivery is None:
        raise UserError(f"{where}.when.until_delivery", "is missing: it must end", "a delivery")


def _check_when(when: When, where: str) -> None:
    if when.from_delivery < 0:
        raise UserError(f"{where}.from_delivery", f"is {when.from_delivery}", "0 or more")
    if when.until_delivery is not None and when.until_delivery <= when.from_delivery:
        raise UserError(
            f"{where}.until_delivery", f"is {when.until_delivery}",
            f"more than from_delivery, {when.from_delivery}",
        )  # fmt: skip
    if when.every is not None and when.every <= (when.until_delivery or 0) - when.from_delivery:
        raise UserError(f"{where}.every", f"is {when.every}", "more than the window is long")
    if when.every is not None and (when.until_delivery is None or when.every < 1):
        raise UserError(f"{where}.every", "repeats no window", "until_delivery = ...")
    if when.hits_max is not None and when.hits_max < 1:
        raise UserError(f"{where}.hits_max", f"is {when.hits_max}", "1 or more")


def _check_match(match: Match, where: str) -> None:
    for name in Match.__struct_fields__:
        if getattr(match, name) == ():
            raise UserError(f"{where}.{name}", "an empty list matches nothing", "a name")
    if match.kind is not None:
        _check_kinds(match.kind, message_kinds(), f"{where}.kind")
    if match.op is not None:
        _check_kinds(match.op, operation_kinds(), f"{where}.op")


def _check_kinds(given: Globs, known: Iterable[str], where: str) -> None:
    known = frozenset(known)
    for pattern in globs(given):
        if pattern not in known and not any(fnmatchcase(kind, pattern) for kind in known):
            problem = f"no message kind is {pattern!r}"
            raise UserError(where, problem, suggest(pattern, sorted(known)))


def _distinct(rules: tuple[Rule, ...], top: str) -> None:
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        if rule.name in seen:
            raise UserError(
                f"{top}rule[{index}].name", f"{rule.name!r} is used twice", "distinct names"
            )
        seen.add(rule.name)


def check_names(
    config: ChaosConfig, nodes: Iterable[str], programs: Iterable[str], where: str
) -> None:
    """Refuse names (not patterns) of nodes or programs that a run does not have: ``UserError``."""
    nodes, programs = list(nodes), list(programs)
    for index, rule in enumerate(config.rule):
        place = f"{_top(where)}rule[{index}]"
        for position, part in enumerate(rule.between or ()):
            _check_known(part, nodes, f"{place}.between[{position}]", "node")
        for key, match in (("match", rule.match), ("until", rule.until or Match())):
            place = f"{_top(where)}rule[{index}].{key}"
            _check_known(match.src, [*nodes, "broker"], f"{place}.src", "node")
            _check_known(match.dst, nodes, f"{place}.dst", "node")
            _check_known(match.program, programs, f"{place}.program", "program")
            of = tuple(text.rpartition("/")[0] for text in globs(match.operation))
            _check_known(of or None, programs, f"{place}.operation", "program")


def _check_known(given: Globs, known: list[str], where: str, what: str) -> None:
    for name in globs(given):
        if name not in known and not WILDCARDS & set(name):
            raise UserError(where, f"this run has no {what} {name!r}", suggest(name, known))


# ---- words -------------------------------------------------------------------------------------


def globs(given: Globs) -> tuple[str, ...]:
    """The patterns of a condition; none if it is not given."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else given


def request_kinds() -> set[str]:
    """Kinds of requests: the classes that are sent, not the bases that they share."""
    return _leaves(Request)


def _leaves(base: type[Message]) -> set[str]:
    return {
        name for name, cls in kinds().items() if issubclass(cls, base) and not cls.__subclasses__()
    }


def message_kinds() -> set[str]:
    """Every kind that an envelope can have: requests, and their replies."""
    requests = request_kinds()
    return requests | {kind + REPLY_MARK for kind in requests}


def operation_kinds() -> set[str]:
    """Kinds of operations (``Munmap``, ``Touch``, ...)."""
    return _leaves(Operation)


def suggest(word: str, known: Iterable[str]) -> str:
    """What was probably meant, else everything that is known (if that is short)."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=2)
    if close:
        return " or ".join(repr(name) for name in close)
    return _one_of(known) if len(known) <= 12 else f"one of {len(known)} known names"


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)
