"""Deliveries of a run as people need to find them."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.explorer.shrink.case import Case
from mmurace.explorer.shrink.play import Moment
from mmurace.protocol.envelope import operation_of


@dataclass(frozen=True, slots=True)
class Spot:
    """A delivery of a run, as people need to find it."""

    n: int
    name: str
    kind: str
    src: str
    dst: str
    operation: str
    operation_kind: str


def spot_of(moment: Moment, case: Case) -> Spot:
    """A delivery for people."""
    e = moment.envelope
    operation = operation_of(e.id)
    kind = case.kinds().get(operation, "")
    return Spot(moment.n, moment.name, e.kind, e.src, e.dst, operation, kind)
