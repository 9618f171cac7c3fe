"""A page as a Perfetto trace (TrackEvent protobuf), for ui.perfetto.dev and its trace processor.

A delivery is a microsecond: what comes after what is all that a delivery number says.  A party is
a track with an instant for each delivery, and below it a track for each lock and translation that
lasts; a flow leads from whoever sent a message to who got it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmurace.protocol.errors import UserError
from mmurace.report.page.model import Bar, Page

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

NANOSECONDS: Final = 1000
"""Of a delivery."""
SEQUENCE: Final = 1
"""All packets are of one writer."""


def perfetto_of(page: Page) -> bytes:
    """The trace.  Raises ``UserError`` without the package."""
    try:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder
    except ImportError:
        raise UserError("--format perfetto", "needs the package perfetto", "it installed") from None
    builder = TraceProtoBuilder()
    tracks = _tracks(builder, page)
    for n, lane, source, text in page.deliveries:
        if 0 <= source != lane:
            _event(builder, n - 1, source, TrackEvent.TYPE_INSTANT, f"sends: {text}", n)
        _event(builder, n, lane, TrackEvent.TYPE_INSTANT, text, n)
    for row in page.rows:
        _event(builder, row.n, row.lane, TrackEvent.TYPE_INSTANT, row.text, 0, row.hover)
    for bar, track in tracks:
        _event(builder, bar.first, track, TrackEvent.TYPE_SLICE_BEGIN, f"{bar.kind}: {bar.name}")
        _event(builder, max(bar.last, bar.first + 1), track, TrackEvent.TYPE_SLICE_END)
    return bytes(builder.serialize())


def _tracks(builder: TraceProtoBuilder, page: Page) -> list[tuple[Bar, int]]:
    """A track for each lane, and one below it for each bar: (bar, its track)."""
    for number, lane in enumerate(page.lanes):
        _describe(builder, number, lane.title)
    placed = []
    for number, bar in enumerate(page.bars, start=len(page.lanes)):
        _describe(builder, number, bar.name, bar.lane)
        placed.append((bar, number))
    return placed


def _describe(
    builder: TraceProtoBuilder, number: int, name: str, parent: int | None = None
) -> None:  # fmt: skip
    packet = builder.add_packet()
    packet.track_descriptor.uuid = number + 1
    packet.track_descriptor.name = name
    if parent is not None:
        packet.track_descriptor.parent_uuid = parent + 1


def _event(
    builder: TraceProtoBuilder, n: int, track: int, kind: Any, name: str = "", flow: int = 0,
    detail: str = "",
) -> None:  # fmt: skip
    packet = builder.add_packet()
    packet.timestamp = n * NANOSECONDS
    packet.trusted_packet_sequence_id = SEQUENCE
    event = packet.track_event
    event.type, event.track_uuid = kind, track + 1
    if name:
        event.name = name
    if flow:
        event.flow_ids.append(flow)
    if detail:
        note = event.debug_annotations.add()
        note.name, note.string_value = "what", detail
