"""What the broker's journal knows of a few deliveries: who sent which kind, for which operation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from mmurace.broker.recorder import broker_records
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import BROKER, operation_of
from mmurace.protocol.errors import PeerError, UserError


@dataclass(slots=True)
class Trail:
    """Kinds and senders by delivery number; kinds of operations by their id."""

    kinds: dict[int, str] = field(default_factory=dict)
    senders: dict[int, str] = field(default_factory=dict)
    operations: dict[str, str] = field(default_factory=dict)


def events_of(violation: Violation) -> list[Event]:
    """Every place in the trace that a violation names."""
    named = (violation.read, violation.filled, violation.changed, violation.deadline)
    return [event for event in (*named, *violation.racing) if event is not None]


def trail_of(violation: Violation, directory: Path | None) -> Trail:
    """What is known of the violation's deliveries; little, if the run left no journal."""
    trail = Trail()
    events = events_of(violation)
    numbers = {event.n for event in events}
    operations = {operation_of(event.id) for event in events}
    if directory is not None:
        try:
            _read(trail, directory, numbers, operations)
        except (UserError, PeerError):
            return trail  # a report says less without a journal; it never fails for want of it
    return trail


def _read(
    trail: Trail, directory: Path, numbers: Collection[int], operations: Collection[str]
) -> None:
    for word, *fields in broker_records(directory):
        if word != "deliver":
            continue
        n, id_, _copy, src, _dst, kind = fields[:6]
        if n in numbers:
            trail.kinds[n], trail.senders[n] = kind, src
        if src == BROKER and id_ in operations:
            trail.operations[id_] = kind
