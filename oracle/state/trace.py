"""From what a broker sees of a delivery to a step of the trace."""

from __future__ import annotations

from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.trace import TraceStep


def step_of(envelope: Envelope, handled: Handled) -> TraceStep:
    """The step of one delivery and its handling."""
    return TraceStep(
        handled.n, envelope.id, envelope.src, envelope.dst, envelope.kind, envelope.causes,
        handled.records,
    )  # fmt: skip
