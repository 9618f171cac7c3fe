"""Chaos: rules that delay, lose, repeat or hold messages, as a part of the schedule.

Whether a rule hits a message depends on the seed, the rule's name and the message's id, never
on the order in which messages were sent, so that one rule's draws do not move when another
changes.  Delays are counted in deliveries; nothing here reads a clock.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any

from mmurace.broker.chaos_config import (
    GATES,
    KILL,
    TIMED,
    WILDCARDS,
    ChaosConfig,
    Globs,
    Match,
    Rule,
    globs,
    load_rules,
    parse_rules,
)
from mmurace.broker.faults import Fault, FaultKind
from mmurace.broker.gates import Gates
from mmurace.broker.kills import Kills
from mmurace.broker.programs import operation_program
from mmurace.nodes.driver import draw
from mmurace.nodes.world import World
from mmurace.protocol.envelope import BROKER, Envelope, operation_of

__all__ = ["ChaosConfig", "ChaosRules", "load_rules", "parse_rules"]

DRAW_END = 1 << 64
"""``draw`` gives 0 <= number < this."""
GIVEN_UP_MAX = 100
"""Message ids of given-up holds that the report names; more are only counted."""

KINDS: dict[str, FaultKind] = {
    "delay": "delay", "drop": "drop", "duplicate": "duplicate", "hold": "hold",
    "slow_node": "delay", "reorder": "hold",
}  # fmt: skip
"""What the exchange does for a fault; the rest is done by gates and kills."""

Accept = Callable[[str], object]


@lru_cache(maxsize=256)
def _accept(given: Globs) -> Accept | None:
    """A test for one condition: a set where all are plain names, else one expression."""
    patterns = globs(given)
    if not patterns:
        return None
    if not any(WILDCARDS & set(pattern) for pattern in patterns):
        return frozenset(patterns).__contains__
    return re.compile("|".join(translate(pattern) for pattern in patterns)).fullmatch


class _Pattern:
    """A compiled ``Match``.  ``kind`` is tested apart: it decides which rules are looked at."""

    __slots__ = ("dst", "id", "kind", "op", "operation", "program", "src")

    def __init__(self, match: Match) -> None:
        self.kind, self.op = _accept(match.kind), _accept(match.op)
        self.src, self.dst, self.id = _accept(match.src), _accept(match.dst), _accept(match.id)
        self.program, self.operation = _accept(match.program), _accept(match.operation)

    def accepts_kind(self, kind: str) -> bool:
        """Whether a message of this kind can match at all."""
        return self.kind is None or bool(self.kind(kind))

    def accepts(self, envelope: Envelope, op: str) -> bool:
        """Whether all but the kind fits; ``op`` is the kind of the operation it belongs to."""
        return (
            (self.src is None or bool(self.src(envelope.src)))
            and (self.dst is None or bool(self.dst(envelope.dst)))
            and (self.id is None or bool(self.id(envelope.id)))
            and (self.program is None or bool(self.program(operation_program(envelope.id))))
            and (self.operation is None or bool(self.operation(operation_of(envelope.id))))
            and (self.op is None or bool(self.op(op)))
        )


@dataclass(slots=True)
class _Held:
    """A message that waits for ``left`` more events of its rule; ``order`` is when it began.

    The event of a ``reorder`` is a message of another channel that goes to the same node.
    """

    envelope: Envelope
    left: int
    order: int


class _Active:
    """A rule at work: compiled, with its tally and what it holds."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.pattern = rule, _Pattern(rule.match)
        self.until = None if rule.until is None else _Pattern(rule.until)
        self.below = int(rule.probability * DRAW_END)
        self.matched = self.hits = self.gave_up = 0
        self.ever = rule.until is not None and rule.until.ever
        self.events = 0
        """How often the event was seen, if that counts from the beginning."""
        self.held: deque[_Held] = deque()

    def may_hit(self, deliveries: int) -> bool:
        """Whether ``when`` allows a hit after so many deliveries."""
        when = self.rule.when
        return (
            self.below > 0
            and when.includes(deliveries)
            and (when.hits_max is None or self.hits < when.hits_max)
        )

    def draws(self, seed: int, message_id: str) -> bool:
        """The draw for one message: a matter of seed, rule and id alone."""
        identity = f"chaos/{self.rule.name}/{message_id}"
        return self.below >= DRAW_END or draw(seed, identity) < self.below

    def after(self, seed: int, message_id: str) -> int:
        """How many deliveries later; 0 for a hold."""
        span = self.rule.after
        if span is None:
            return 0
        number = draw(seed, f"chaos/{self.rule.name}/{message_id}/after")
        return span.min + number % (span.max - span.min + 1)

    def left(self) -> int:
        """How many more events a hold that begins now waits for; none: it is over."""
        until = self.rule.until
        return 0 if until is None else until.count - self.events

    def event(self, by: Envelope | None = None) -> list[Envelope]:
        """The awaited event happened once more: who waited long enough.

        ``by``: it is an overtaking, of those whom this message can overtake.
        """
        self.events += self.ever
        for held in self.held:
            held.left -= by is None or _overtakes(by, held.envelope)
        freed = [held.envelope for held in self.held if held.left <= 0]
        if freed:
            self.held = deque(held for held in self.held if held.left > 0)
        return freed


def _overtakes(envelope: Envelope, held: Envelope) -> bool:
    """Whether it goes to the same node, on another channel."""
    if envelope.dst != held.dst:
        return False
    if envelope.stream or held.stream:
        return envelope.stream != held.stream
    return envelope.path != held.path


class ChaosRules:
    """The rules of a configuration at work; what ``Exchange`` asks about every message."""

    def __init__(self, config: ChaosConfig, seed: int, world: World | None = None) -> None:
        """Without a ``world`` nobody is killed: what dies how is a matter of what it is."""
        self.config, self.seed = config, seed
        self.deliveries = 0
        self.healed = False
        self.given_up: list[tuple[str, str]] = []
        """(rule, message id) of holds whose event could not come; the first ``GIVEN_UP_MAX``."""
        self.gates = Gates((rule for rule in config.rule if rule.fault in GATES), seed)
        """What stops deliveries for a while (``faults.Gated``)."""
        deadly = [rule for rule in config.rule if rule.fault == KILL]
        self.kills = Kills(deadly, seed, world if deadly else None)
        """Who dies (``deaths.Killing``)."""
        self._rules = [_Active(rule) for rule in config.rule if rule.fault not in TIMED]
        self._reorders = [a for a in self._rules if a.rule.fault == "reorder"]
        self._named = {active.rule.name: active for active in self._rules}
        self.spared: set[str] = set()
        """Kinds of messages that were seen and that no rule is about (``faults.Sparing``)."""
        self._by_kind: dict[str, tuple[_Active, ...]] = {}
        self._until_by_kind: dict[str, tuple[_Active, ...]] = {}
        self._held = 0
        self._holds = 0
        self._ever = any(active.ever for active in self._rules)
        self._uses_op = any(a.pattern.op or (a.until and a.until.op) for a in self._rules)
        self._ops: dict[str, tuple[str, str]] = {}
        """Program -> its current operation and that operation's kind."""

    # -- what the exchange asks ------------------------------------------------------------

    def fault(self, envelope: Envelope) -> Fault | None:
        """The fault for a message that was just sent; copies are exempt."""
        if self._uses_op and envelope.src == BROKER:
            program = operation_program(envelope.id)
            self._ops[program] = (envelope.id, envelope.kind)
        rules = self._by_kind.get(envelope.kind)
        if rules is None:
            rules = self._rules_for(envelope.kind)
        if not rules or envelope.copy or self.healed:
            return None
        for active in rules:
            if active.pattern.accepts(envelope, self._op_of(envelope)):
                active.matched += 1
                if active.may_hit(self.deliveries) and active.draws(self.seed, envelope.id):
                    return self._hit(active, envelope)
        return None

    def delivered(self, envelope: Envelope) -> Sequence[Envelope]:
        """A message was delivered: the held ones that it sets free."""
        self.deliveries += 1
        if not self._held and not self._ever:
            return ()
        freed = [e for a in self._reorders if a.held for e in a.event(envelope)]
        if envelope.copy:
            self._held -= len(freed)
            return freed
        for active in self._waiting_for(envelope.kind):
            until = active.until
            awaited = active.held or active.ever
            if awaited and until and until.accepts(envelope, self._op_of(envelope)):
                freed += active.event()
        self._held -= len(freed)
        return freed

    def hold(self, envelope: Envelope, rule: str) -> None:
        """Keep a message until the event of its rule."""
        active = self._named[rule]
        self._holds += 1
        self._held += 1
        left = active.left() if active.until else active.after(self.seed, envelope.id)
        active.held.append(_Held(envelope, left, self._holds))

    def give_up(self) -> Sequence[Envelope]:
        """Nothing else can move: set the oldest held message free, and report its rule.

        What only waits to be overtaken goes before what waits for an event.
        """
        waiting = [active for active in self._reorders if active.held]
        holding = waiting or [active for active in self._rules if active.held]
        if not holding:
            return ()
        oldest = min(holding, key=lambda active: active.held[0].order)
        held = oldest.held.popleft()
        self._held -= 1
        oldest.gave_up += 1
        if waiting:
            return (held.envelope,)
        if len(self.given_up) < GIVEN_UP_MAX:
            self.given_up.append((oldest.rule.name, held.envelope.id))
        return (held.envelope,)

    def heal(self) -> Sequence[Envelope]:
        """No more faults from now on: set every held message free, oldest first."""
        self.healed = True
        held = sorted((h for a in self._rules for h in a.held), key=lambda h: h.order)
        for active in self._rules:
            active.held.clear()
        self._held = 0
        return [h.envelope for h in held]

    # -- what people ask -------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """What every rule did, as plain values for the summary.

        Of a gate: the messages that it stopped, how often it closed, how often it opened early.
        Of a kill: the nodes that it was about, and how many of them it killed.
        """
        rows = {
            a.rule.name: _row(a.rule, a.matched, a.hits, a.gave_up) for a in self._rules
        } | {
            g.rule.name: _row(g.rule, g.stopped, g.windows, g.cut_short) for g in self.gates.gates
        } | {
            k.rule.name: _row(k.rule, len(k.nodes), k.kills, 0) for k in self.kills.killers
        }  # fmt: skip
        return {
            "rules": [rows[rule.name] for rule in self.config.rule],
            "unmatched": self.unmatched(),
            "given_up": [list(pair) for pair in self.given_up],
        }

    def unmatched(self) -> list[str]:
        """Rules that matched no message, or killed nobody: probably not what was meant."""
        matched = {a.rule.name for a in self._rules if a.matched}
        matched |= {gate.rule.name for gate in self.gates.gates if gate.stopped}
        matched |= {killer.rule.name for killer in self.kills.killers if killer.kills}
        return [rule.name for rule in self.config.rule if rule.name not in matched]

    # -- inside ----------------------------------------------------------------------------

    def _rules_for(self, kind: str) -> tuple[_Active, ...]:
        rules = tuple(active for active in self._rules if active.pattern.accepts_kind(kind))
        self._by_kind[kind] = rules
        if not rules and not self._uses_op:  # else every operation has to be noted
            self.spared.add(kind)
        return rules

    def _waiting_for(self, kind: str) -> tuple[_Active, ...]:
        rules = self._until_by_kind.get(kind)
        if rules is None:
            rules = tuple(a for a in self._rules if a.until and a.until.accepts_kind(kind))
            self._until_by_kind[kind] = rules
        return rules

    def _op_of(self, envelope: Envelope) -> str:
        """The kind of the operation that a message belongs to; empty if it is long over."""
        if not self._uses_op:
            return ""
        operation, kind = self._ops.get(operation_program(envelope.id), ("", ""))
        return kind if operation == operation_of(envelope.id) else ""

    def _hit(self, active: _Active, envelope: Envelope) -> Fault | None:
        active.hits += 1
        if active.until and active.left() <= 0:
            return None  # what it would wait for has happened
        after = active.after(self.seed, envelope.id)
        return Fault(KINDS[active.rule.fault], after, active.rule.name)


def _row(rule: Rule, matched: int, hits: int, gave_up: int) -> dict[str, Any]:
    """One rule of the report."""
    return {
        "name": rule.name, "fault": rule.fault, "matched": matched, "hits": hits,
        "gave_up": gave_up,
    }  # fmt: skip
