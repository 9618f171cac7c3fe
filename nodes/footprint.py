"""Footprints: what a delivery's handling accessed, and when two of them are independent."""

from __future__ import annotations

from nodes.driver import Driver
from protocol.envelope import Envelope
from protocol.messages.base import ObjectKey

Footprint = list[tuple[ObjectKey, str]]
"""(object, ``read`` or ``write``) of every access; () is the whole node."""


def footprint_of(driver: Driver, envelope: Envelope) -> Footprint:
    """Handle ``envelope`` and say what that touched.  The driver moves on."""
    touched: Footprint = []
    driver.touched = touched
    driver.deliver(0, envelope)
    driver.touched = None
    return touched


def conflict(left: Footprint, right: Footprint) -> bool:
    """Whether some access of one and some access of the other are to one object, one a write."""
    return any(
        "write" in (a_access, b_access) and _overlap(a, b)
        for a, a_access in left
        for b, b_access in right
    )


def _overlap(a: ObjectKey, b: ObjectKey) -> bool:
    """One key is a prefix of the other."""
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


def independent(driver: Driver, first: Envelope, second: Envelope) -> bool:
    """Whether two deliveries to this node commute, by what they touch.  The driver moves on."""
    return not conflict(footprint_of(driver, first), footprint_of(driver, second))
