"""What one looks for in a run: the next event of a page, a lock or a party."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from mmurace.explorer.shrink.play import Moment
from mmurace.protocol.envelope import BROKER
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.base import Message

Predicate = Callable[[Moment], bool]
"""Whether a delivery is one that somebody looks for."""


def party_of(moment: Moment) -> str:
    """Who acts: who resumes with an answer, who is asked by a program; else as reports say."""
    envelope = moment.envelope
    body = envelope.body
    receives = isinstance(body, Message) and body.TOLD.row == "receiver"
    if envelope.is_reply or envelope.src == BROKER or receives:
        return envelope.dst
    return envelope.src


def of_party(name: str) -> Predicate:
    """Deliveries in which a node acts, or that it handles."""
    return lambda moment: name in (party_of(moment), moment.envelope.dst)


def of_page(address: int) -> Predicate:
    """Deliveries about the page with this byte address, in whatever mm."""
    return lambda moment: any(_covers(values, address) for values in _told(moment))


def of_lock(name: str) -> Predicate:
    """Requests for a lock, and those that give it back, by a part of its name."""
    wanted = name.lower()
    return lambda moment: wanted in lock_of(moment).lower()


def lock_of(moment: Moment) -> str:
    """The lock that a delivery asks for or gives back; empty: none."""
    body = moment.envelope.body
    if not isinstance(body, Message) or moment.envelope.is_reply:
        return ""
    return lock_named(body, moment.envelope.dst)


def lock_named(body: Message, target: str) -> str:
    """``mmap_lock of mm0`` for the message that takes it or gives it back; empty: neither."""
    lock = body.TAKES or body.GIVES_BACK
    if lock is None:
        return ""
    values = msgspec.structs.asdict(body)
    called = lock.called.format(**{"target": target, **values})
    return f"{called} of table {values['table']:#x}" if "table" in values else called


def _told(moment: Moment) -> Iterator[Mapping[str, Any]]:
    """What the message and the records of its handling say, by field."""
    if isinstance(moment.envelope.body, Message):
        yield msgspec.structs.asdict(moment.envelope.body)
    for record in moment.handled.records:
        yield msgspec.structs.asdict(record)


def _covers(values: Mapping[str, Any], address: int) -> bool:
    found = values.get("address")
    if isinstance(found, int):
        return found // PAGE_SIZE == address // PAGE_SIZE
    start, end = values.get("start"), values.get("end")
    return isinstance(start, int) and isinstance(end, int) and start <= address < end
