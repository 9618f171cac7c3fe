"""Gates: for some deliveries nothing passes to a paused node, or between two parts of a world.

A gate looks at what is about to be delivered, not at what is sent, so it also stops messages that
were on their way when it closed, and repetitions.  A message keeps its place in its channel.

Windows are counted in deliveries: closed while ``from <= deliveries made < until``, again every
``every`` deliveries where that is given.  Whether one window closes is a draw by (seed, rule,
number of the window).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from typing import Final

from mmurace.broker.chaos_config import Globs, Rule, globs
from mmurace.nodes.driver import draw
from mmurace.protocol.envelope import BROKER, Envelope

NEVER: Final = 1 << 62
"""A delivery number that no run comes to."""
DRAW_END: Final = 1 << 64
"""``draw`` gives 0 <= number < this."""

Note = Callable[[int, str, bool], None]
"""(deliveries made, rule, whether it closed)."""


def _names(given: Globs) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in globs(given)))


class Gate:
    """One rule ``pause_node`` or ``partition`` at work."""

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule, self.seed = rule, seed
        self.closed = False
        self.windows = self.stopped = self.cut_short = 0
        """Times that it closed; messages that it stopped; windows that ended early."""
        self.opens = NEVER
        """When the window that it is closed for ends."""
        self._cut = -1
        """End of the last window that was cut short."""
        one, other = rule.between or (None, None)
        self._one, self._other, self._to = _names(one), _names(other), _names(rule.match.dst)

    def stops(self, envelope: Envelope) -> bool:
        """Whether the message may not pass while this is closed."""
        src, dst = envelope.src, envelope.dst
        if self.rule.between is None:
            return self._to.fullmatch(dst) is not None
        if src in (BROKER, dst):  # the broker is everywhere; nobody is cut off from itself
            return False
        one, other = self._one.fullmatch, self._other.fullmatch
        return bool((one(src) and other(dst)) or (other(src) and one(dst)))

    def at(self, number: int) -> int:
        """Open or close for after delivery ``number``; the number at which to look again."""
        start, end, again = self._window(number)
        inside = start <= number < end
        closed = inside and end != self._cut and self._drawn(start)
        self.windows += closed and not self.closed
        self.closed, self.opens = closed, end if closed else NEVER
        return end if inside else again

    def cut(self) -> None:
        """End the window that this is closed for: nothing else can move."""
        self._cut, self.closed, self.opens = self.opens, False, NEVER
        self.cut_short += 1

    def _window(self, number: int) -> tuple[int, int, int]:
        """The last window that began by ``number``, or the first: start, end, next start."""
        when = self.rule.when
        first, every = when.from_delivery, when.every or 0
        length = (NEVER if when.until_delivery is None else when.until_delivery) - first
        if number < first:
            return first, first + length, first
        start = first + (number - first) // every * every if every else first
        return start, start + length, start + every if every else NEVER

    def _drawn(self, start: int) -> bool:
        when, below = self.rule.when, int(self.rule.probability * DRAW_END)
        count = (start - when.from_delivery) // when.every if when.every else 0
        if when.hits_max is not None and count >= when.hits_max:
            return False
        return below >= DRAW_END or draw(self.seed, f"chaos/{self.rule.name}/{count}") < below


class Gates:
    """All gates of a configuration."""

    def __init__(self, rules: Iterable[Rule], seed: int) -> None:
        self.gates = [Gate(rule, seed) for rule in rules]
        self.note: Note | None = None
        """Told of every gate that closes or opens."""
        self._next = 0 if self.gates else NEVER
        self._closed: list[Gate] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.gates)

    def moved(self, number: int) -> bool:
        """After delivery ``number``: whether a gate has closed or opened."""
        if number < self._next:
            return False
        before = [gate.closed for gate in self.gates]
        self._next = min(gate.at(number) for gate in self.gates)
        return self._changed(before, number)

    def shut(self, envelope: Envelope, again: bool = False) -> bool:
        """Whether the message must wait; ``again``: it was stopped before."""
        for gate in self._closed:
            if gate.stops(envelope):
                gate.stopped += not again
                return True
        return False

    def opens(self) -> int:
        """The delivery after which the first closed gate opens; ``NEVER`` if all are open."""
        return min((gate.opens for gate in self._closed), default=NEVER)

    def cut_short(self, number: int) -> None:
        """Nothing else can move, so no delivery will open a gate: open the first one now."""
        before = [gate.closed for gate in self.gates]
        min(self._closed, key=lambda gate: gate.opens).cut()
        self._changed(before, number)

    def heal(self, number: int) -> None:
        """Open all, for good."""
        before = [gate.closed for gate in self.gates]
        for gate in self.gates:
            gate.closed, gate.opens = False, NEVER
        self._next = NEVER
        self._changed(before, number)

    def _changed(self, before: list[bool], number: int) -> bool:
        self._closed = [gate for gate in self.gates if gate.closed]
        turned = [g for g, closed in zip(self.gates, before, strict=True) if g.closed != closed]
        for gate in turned:
            if self.note is not None:
                self.note(number, gate.rule.name, gate.closed)
        return bool(turned)
