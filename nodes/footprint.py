"""Footprints: what a delivery's handling accessed, and when two of them are independent."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from mmurace.nodes.driver import Driver
from mmurace.nodes.node import Node
from mmurace.nodes.translation import TranslationCache
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import ObjectKey

Footprint = list[tuple[ObjectKey, str]]
"""(object, ``read``, ``add``, ``drop`` or ``write``) of every access; () is the whole node."""


_CONSTANT = frozenset({"name", "world", "port"})
_KNOWN: dict[type[Node], type[Node]] = {}


def track(driver: Driver) -> None:
    """Make a node whose handlers are coroutines note every field of its own that it accesses.

    Without this a resumed coroutine counts as touching the whole node.  Looking at a field that
    holds something mutable counts as writing it; translation caches say themselves which pages
    they touch.  Nodes whose handlers are all plain functions stay with what messages declare.
    """
    node = driver.node
    if driver.tracked or not isinstance(node, Node):
        return
    if any(inspect.iscoroutinefunction(handler) for handler in driver.handlers.values()):
        # Handlers are bound to the node itself, so it must be this object that changes.
        node.__class__ = _tracking(type(node))
        driver.tracked = True


def _tracking(cls: type[Node]) -> type[Node]:
    """The same class, whose instances note which of their fields are read and written."""
    found = _KNOWN.get(cls)
    if found is None:
        members = {"__getattribute__": _noted_get, "__setattr__": _noted_set, "TRACKS": cls}
        found = _KNOWN[cls] = type(cls.__name__, (cls,), members)
    return found


def _noted_get(self: Node, name: str) -> Any:
    value = object.__getattribute__(self, name)
    if name not in _CONSTANT and name in object.__getattribute__(self, "__dict__"):
        access = _access_of(value)
        if access:
            object.__getattribute__(self, "port").touch(("field", name), access)
    return value


def _noted_set(self: Node, name: str, value: Any) -> None:
    object.__getattribute__(self, "port").touch(("field", name))
    object.__setattr__(self, name, value)


def _access_of(value: Any) -> str:
    """What looking at a value may lead to; empty: it says for itself what is touched."""
    if isinstance(value, TranslationCache):
        return ""
    frozen = isinstance(value, msgspec.Struct) and value.__struct_config__.frozen
    plain = value is None or isinstance(value, (bool, int, str, bytes, tuple, frozenset))
    return "read" if plain or frozen else "write"


def footprint_of(driver: Driver, envelope: Envelope) -> Footprint:
    """Handle ``envelope`` and say what that touched.  The driver moves on."""
    track(driver)
    touched: Footprint = []
    driver.port.touched = touched
    driver.deliver(0, envelope)
    driver.port.touched = None
    return touched


def conflict(left: Footprint, right: Footprint) -> bool:
    """Whether some access of one and some access of the other to one object do not commute.

    Reads commute, and so do adds, and drops; an add and a read do not, nor do an add and a drop.
    """
    return any(
        (a_access != b_access or a_access == "write") and _overlap(a, b)
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
