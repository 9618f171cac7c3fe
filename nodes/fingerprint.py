"""Fingerprints of a node's whole state, suspended coroutines included.

Nodes and coroutines keep plain values, so a state can be written down: the node's fields, what
the driver knows of its requests, and for each suspended coroutine the position and the locals
along its await chain.  Anything that cannot be written down is an error, never skipped.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from mmurace.nodes.driver import Driver, Port, Task
from mmurace.nodes.node import Node
from mmurace.nodes.translation import TranslationCache
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError

Plain = Any
"""Nested tuples of str, int, bool, bytes and None."""


def fingerprint(driver: Driver) -> str:
    """A hash of the driver's and its node's state; equal states have equal fingerprints."""
    return blake2b(repr(state_of(driver)).encode(), digest_size=16).hexdigest()


def state_of(driver: Driver) -> Plain:
    """The state as nested plain values; what ``fingerprint`` hashes."""
    return (
        plain(node_fields(driver)),
        tuple(sorted(driver.open.items())),
        tuple(sorted((key, task_state(task)) for key, task in driver.waiting.items())),
        tuple(sorted((str(on), tuple(map(task_state, t))) for on, t in driver.parked.items())),
        tuple(sorted((task.path, wanted) for task, wanted in driver.settling.items())),
        plain(driver.posted),
    )


def node_fields(driver: Driver) -> dict[str, Any]:
    """The node's own fields, its caches opened."""
    fields = vars(driver.node).items()
    return {k: vars(v) if isinstance(v, TranslationCache) else v for k, v in fields}


def task_state(task: Task) -> Plain:
    """A suspended coroutine: who it is, and where it stands."""
    return (task.path, task.sends, task.choices, await_chain(task.coroutine))


def await_chain(awaitable: Any) -> Plain:
    """Position and locals of every frame from the outermost coroutine to what it waits for."""
    chain = []
    while awaitable is not None:
        if isinstance(awaitable, types.CoroutineType):
            frame, following = awaitable.cr_frame, awaitable.cr_await
        elif isinstance(awaitable, types.GeneratorType):
            frame, following = awaitable.gi_frame, awaitable.gi_yieldfrom
        else:
            raise EmulatorError(f"cannot write down what awaits: {type(awaitable).__name__}")
        if frame is not None:
            values = plain(dict(frame.f_locals))
            chain.append((frame.f_code.co_qualname, frame.f_lasti, values))
        awaitable = following
    return tuple(chain)


def plain(value: Any) -> Plain:
    """A value as nested tuples.  Raises ``EmulatorError`` for what is not a plain value."""
    if value is None or isinstance(value, (str, int, bytes, float)):
        return value
    if isinstance(value, (tuple, list, deque)):
        return tuple(plain(v) for v in value)
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(plain(v) for v in value))
    if isinstance(value, Mapping):
        return tuple(sorted(((plain(k), plain(v)) for k, v in value.items()), key=repr))
    return _plain_object(value)


def _plain_object(value: Any) -> Plain:
    name = type(value).__name__
    if isinstance(value, (World, Port)):
        return name  # the same for every state of a run
    if isinstance(value, Node):
        return (name, value.name)  # a local that names what the node's own fields show
    if isinstance(value, TranslationCache):
        return (name, value.cache)
    if isinstance(value, Envelope):
        return (name, value.id, value.src, value.dst, value.kind)
    if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)):
        return _plain_callable(value)
    if isinstance(value, types.CoroutineType):
        return (name, await_chain(value))
    if isinstance(value, types.GeneratorType):
        return (name, value.gi_code.co_qualname)
    if isinstance(value, msgspec.Struct):
        return (name, *(plain(getattr(value, f)) for f in value.__struct_fields__))
    fields = _fields(value)
    if fields is None:
        raise EmulatorError(f"cannot write down a {name}")
    return (name, plain(fields))


def _plain_callable(value: Any) -> Plain:
    """A function by its name, with what it closes over; a bound method by its class."""
    owner = getattr(value, "__self__", None)
    closure = getattr(value, "__closure__", None) or ()
    cells = tuple(plain(cell.cell_contents) for cell in closure)
    return (value.__qualname__, type(owner).__name__ if owner is not None else "", cells)


def _fields(value: Any) -> dict[str, Any] | None:
    """An object's own fields, from ``__dict__`` or ``__slots__``."""
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    slots = getattr(type(value), "__slots__", None)
    return None if slots is None else {slot: getattr(value, slot) for slot in slots}
