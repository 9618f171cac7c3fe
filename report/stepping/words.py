"""A delivery, a state and a stack in words, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mmurace.explorer.explain.interleaving import Row
from mmurace.explorer.shrink.play import Moment
from mmurace.explorer.step.events import party_of
from mmurace.explorer.step.stacks import Stack
from mmurace.explorer.step.state import Fields
from mmurace.explorer.step.stepper import Stepper
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import BROKER, operation_of, request_id
from mmurace.protocol.messages.base import Message
from mmurace.protocol.records import Coverage, Record, Use
from mmurace.report import formats
from mmurace.report.kernel_functions import kind_of
from mmurace.report.steps import WORDINGS, operation_text, text_of

_IN_MESSAGE: Final = frozenset({"PteChange", "PteRead", "FrameFreed", "FrameAllocated", "Access"})
"""Records that say what their message did, and have no words of their own."""
_SILENT: Final = (Coverage, Use)


def delivery_text(stepper: Stepper, moment: Moment) -> str:
    """What a delivery is: ``cpu0: ptep_get_and_clear(mm0:0x8000): frame 0x3 RW AD -> none``."""
    envelope = moment.envelope
    party, operation = party_of(moment), operation_of(envelope.id)
    kind = stepper.case.kinds().get(operation, "")
    if envelope.src == BROKER:
        return f"{party}: begins {operation_text(kind)} ({operation})"
    if envelope.is_reply:
        return f"{party}: has the answer to {_request_text(stepper, moment)}"
    return f"{party}: {text_of(_row(stepper, moment, kind))}"


def _request_text(stepper: Stepper, answer: Moment) -> str:
    wanted = request_id(answer.envelope.id)
    asked = next((m for m in stepper.moments if m.envelope.id == wanted), None)
    if asked is None:
        return wanted
    return delivery_text(stepper, asked).partition(": ")[2]


def _row(stepper: Stepper, moment: Moment, kind: str) -> Row:
    envelope, body = moment.envelope, moment.envelope.body
    values: dict[str, Any] = msgspec.structs.asdict(body) if isinstance(body, Message) else {}
    answered = stepper.answers.get(envelope.id)
    if answered is not None:
        values["reply"] = msgspec.structs.asdict(answered[1])
    for record in moment.handled.records:
        if type(record).__name__ in _IN_MESSAGE:
            values |= {"record": type(record).__name__} | msgspec.structs.asdict(record)
    if values.get("level"):
        shift = stepper.case.spec.world.shift(values["level"])
        values |= {"start": values["address"], "end": values["address"] + (1 << shift)}
    values["elsewhere"] = "mm" in values and "address" in values
    return Row(moment.n, party_of(moment), envelope.kind, operation_of(envelope.id), kind, values,
               target=envelope.dst)  # fmt: skip


def record_lines(stepper: Stepper, moment: Moment) -> Iterator[str]:
    """What came of a delivery beyond what it says: entries filled and dropped, guest mode, ..."""
    operation = operation_of(moment.envelope.id)
    kind = stepper.case.kinds().get(operation, "")
    for record in moment.handled.records:
        name = type(record).__name__
        if name in _IN_MESSAGE or isinstance(record, _SILENT):
            continue
        values = msgspec.structs.asdict(record)
        row = Row(moment.n, moment.envelope.dst, name, operation, kind, values)
        text = text_of(row) if _has_words(name) else _plainly(record)
        yield f"{moment.envelope.dst}: {text}"


def _has_words(name: str) -> bool:
    return name in WORDINGS or kind_of(name) is not None


def _plainly(record: Record) -> str:
    """Its name and what it holds; integers of more than a digit as addresses."""
    parts = (f"{k}={_value(v)}" for k, v in msgspec.structs.asdict(record).items() if v != "")
    return f"{type(record).__name__} {' '.join(parts)}"


def _value(value: Any) -> str:
    if type(value) is int and value > 9:
        return f"{value:#x}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def place_line(stepper: Stepper) -> str:
    """Where we are: how many deliveries were made, and the last of them."""
    last, total = stepper.last, len(stepper.moments)
    if last is None:
        return f"0 of {total}: nothing has been delivered yet"
    return f"{stepper.at} of {total}: {delivery_text(stepper, last)}"


def broken_line(violation: Violation) -> str:
    """``BROKEN: O by cpu1 (tlb) at mm0:0x8000: still held when frame freed``."""
    cache = f" ({violation.cache})" if violation.cache else ""
    where = formats.place(violation.mm, violation.address)
    at = f" at {where}" if where else ""
    return f"BROKEN: {violation.rule} by {violation.agent}{cache}{at}: {violation.detail}"


def fields_lines(fields: Fields) -> list[str]:
    """A node's fields, values below each other."""
    width = min(max(map(len, fields), default=0), 36)
    return [f"  {name:<{width}}  {text}" for name, text in fields.items()]


def difference_lines(changes: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """``memory: pte mm0:0x8000: frame 0x3 RW AD -> none``; what is new has ``+``, gone ``-``."""
    lines = []
    for node, name, before, after in changes:
        if before and after:
            lines.append(f"  {node}: {name}: {before} -> {after}")
        else:
            lines.append(f"{'+' if after else '-'} {node}: {name}: {after or before}")
    return lines


def stack_lines(node: str, stacks: Sequence[Stack]) -> list[str]:
    """Each thread of a node: the functions that have not returned, innermost first."""
    if not stacks:
        return [f"{node}: no thread of it waits"]
    lines = []
    for stack in stacks:
        lines.append(f"{node}, for {stack.operation}: waits for {stack.waits_for}")
        for at, frame in enumerate(stack.frames):
            file = f" ({frame.stands_for})" if frame.stands_for else ""
            where = f"{Path(frame.file).name}:{frame.line}"
            lines.append(f"  #{at} {frame.function} at {where}{file}")
    return lines
