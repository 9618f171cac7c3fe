"""A run as a log with vector clocks, as ShiViz and TSViz draw it.

Two lines for an event: the party with its clock, and what it did.  ``PARSER`` is the regular
expression that these tools ask for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from mmurace.explorer.shrink.play import Moment
from mmurace.protocol.envelope import operation_of
from mmurace.report.formats import plain
from mmurace.report.steps import function_text

PARSER: Final = r"(?<host>\S*) (?<clock>{.*})\n(?<event>.*)"
Clock = dict[str, int]


def shiviz_of(moments: Iterable[Moment], kinds: Mapping[str, str]) -> str:
    """The log: a delivery is an event of who gets it, and it knows what its sender knew."""
    return "\n".join(_lines(moments, kinds)) + "\n"


def _lines(moments: Iterable[Moment], kinds: Mapping[str, str]) -> Iterator[str]:
    clocks: dict[str, Clock] = {}
    sent: dict[str, Clock] = {}
    for moment in moments:
        host = moment.envelope.dst
        clock = clocks.setdefault(host, {})
        for party, count in sent.get(moment.envelope.id, {}).items():
            clock[party] = max(clock.get(party, 0), count)
        clock[host] = clock.get(host, 0) + 1
        for message in moment.handled.messages:
            sent[message.id] = dict(clock)
        yield f"{host} {json.dumps(clock, sort_keys=True)}"
        yield plain(_text(moment, kinds))


def _text(moment: Moment, kinds: Mapping[str, str]) -> str:
    operation = kinds.get(operation_of(moment.name), "")
    kind = moment.envelope.kind
    text = function_text(kind.rstrip("~"), operation)
    return f"{text}: answer" if kind.endswith("~") else f"{text} ({moment.name})"
