"""States as values: hashable, equal if and only if the states are; and copies of plain nodes.

Unlike a digest this has no collisions.  A suspended coroutine is written down as its position,
its locals and what lies on its value stack (half-evaluated expressions, iterators of loops), along
the await chain.  Anything that cannot be written down is an ``EmulatorError``, never skipped.
"""

from __future__ import annotations

import gc
import types
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import msgspec

from mmurace.nodes.driver import Driver, Port, Task
from mmurace.nodes.node import Node
from mmurace.nodes.pwc import PagingStructureCache
from mmurace.nodes.translation import TranslationCache
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError

Frozen = Hashable
_CONSTANT = frozenset({"name", "world", "port"})


class TaskState(NamedTuple):
    """A suspended coroutine with what its next sends and choices will be called."""

    path: str
    sends: int
    choices: int
    suspended: Frozen


class IteratorState(tuple[Frozen, ...]):
    """What an iterator goes through, and how far it is."""

    __slots__ = ()


def freeze_driver(driver: Driver) -> Frozen:
    """The whole state of a node as far as its future deliveries depend on it.

    Replies kept for repeated requests are left out: without loss nothing is repeated.
    """
    return (
        freeze_fields(driver.node),
        frozenset(driver.open.items()),
        frozenset((key, freeze_task(task)) for key, task in driver.waiting.items()),
        frozenset((on, tuple(map(freeze_task, tasks))) for on, tasks in driver.parked.items()),
        frozenset((freeze_task(task), wanted) for task, wanted in driver.settling.items()),
        frozenset((key, freeze(body)) for key, body in driver.posted.items()),
    )


def freeze_fields(node: object) -> Frozen:
    """A node's own fields."""
    return tuple(
        _freeze_field(value) for name, value in vars(node).items() if name not in _CONSTANT
    )


def freeze_task(task: Task) -> Frozen:
    """A suspended coroutine."""
    return TaskState(task.path, task.sends, task.choices, _freeze_suspended(task.coroutine))


def freeze(value: Any) -> Frozen:
    """Any value.  Raises ``EmulatorError`` for what is not plain."""
    known = _BY_TYPE.get(type(value))
    if known is None:
        known = _BY_TYPE[type(value)] = _how_to_freeze(value)
    return known(value)


def _freeze_field(value: Any) -> Frozen:
    if isinstance(value, TranslationCache):
        return _freeze_cache(value)
    return _freeze_entries(value) if isinstance(value, PagingStructureCache) else freeze(value)


def _freeze_entries(cache: TranslationCache | PagingStructureCache) -> Frozen:
    """In their order only if that decides something: which one is dropped for another."""
    entries = cache.entries.values()
    return tuple(entries) if cache.evicts else frozenset(entries)


def _freeze_cache(cache: TranslationCache) -> Frozen:
    return (
        _freeze_entries(cache),
        tuple((walk.load, walk.tag, walk.address, walk.stale) for walk in cache.walks),
        tuple(cache.in_flight),
        tuple(cache.stores),
    )


def _freeze_suspended(awaitable: Any) -> Frozen:
    """A coroutine or generator: code, position, locals and value stack.

    ``gc.get_referents`` sees the value stack, which no other interface shows; what is awaited
    lies on top of it, so the await chain comes by itself.
    """
    prefix = "cr" if isinstance(awaitable, types.CoroutineType) else "gi"
    frame = getattr(awaitable, f"{prefix}_frame")
    code = getattr(awaitable, f"{prefix}_code")
    if frame is None:
        return (code.co_qualname, "over")
    values = frame.f_locals
    held = [v for v in gc.get_referents(awaitable) if v is not frame and v is not values]
    # The order of names says only when somebody looked at them before.
    return (code.co_qualname, frame.f_lasti, frozenset(values), tuple(map(freeze, held)))


def _same(value: Any) -> Frozen:
    held: Frozen = value
    return held


def _sequence(value: Any) -> Frozen:
    return tuple(map(freeze, value))


def _mapping(value: Mapping[Any, Any]) -> Frozen:
    return frozenset([(key, freeze(held)) for key, held in value.items()])


def _struct(value: Any) -> Frozen:
    return (type(value).__name__, *map(freeze, msgspec.structs.astuple(value)))


def _iterator(value: Any) -> Frozen:
    return IteratorState(map(freeze, value.__reduce__()))


def _callable(value: Any) -> Frozen:
    """A function by its name, with what it closes over; a bound method with its owner."""
    owner = getattr(value, "__self__", None)
    owned = None if owner is None or isinstance(owner, types.ModuleType) else freeze(owner)
    cells = getattr(value, "__closure__", None) or ()
    return (value.__qualname__, owned, tuple(map(freeze, cells)))


def _cell(value: Any) -> Frozen:
    try:
        return ("cell", freeze(value.cell_contents))
    except ValueError:
        return ("cell",)  # nothing was assigned yet


def _object(value: Any) -> Frozen:
    return (type(value).__name__, *(freeze(getattr(value, name)) for name in _field_names(value)))


def _field_names(value: Any) -> tuple[str, ...]:
    if hasattr(value, "__dict__"):
        return tuple(sorted(vars(value)))
    return tuple(getattr(type(value), "__slots__", ()))


_ATOMS = (type(None), bool, int, str, bytes, float, range, types.CodeType)
_EMPTY: tuple[Any, ...] = ((), [], {}, {}.values(), {}.items(), range(0), set(), "", b"")
_BUILT_IN: tuple[type, ...] = (type(iter(range(1 << 70))), enumerate, zip, reversed, map, filter)
_ITERATORS: tuple[type, ...] = (*(type(iter(empty)) for empty in _EMPTY), *_BUILT_IN)
_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
)

_BY_TYPE: dict[type, Callable[[Any], Frozen]] = {
    **dict.fromkeys(_ATOMS, _same),
    **dict.fromkeys((tuple, list, deque), _sequence),
    **dict.fromkeys((set, frozenset), lambda value: frozenset(map(freeze, value))),
    **dict.fromkeys(_ITERATORS, _iterator),
    **dict.fromkeys(_FUNCTIONS, _callable),
    **dict.fromkeys((types.CoroutineType, types.GeneratorType), _freeze_suspended),
    types.CellType: _cell,
    dict: _mapping,
    Envelope: lambda value: (value.id, value.kind, freeze(value.body)),
}


def _how_to_freeze(value: Any) -> Callable[[Any], Frozen]:
    """By class, for those classes that are met while running."""
    if isinstance(value, (World, Port, type)):
        return lambda held: getattr(held, "__name__", type(held).__name__)  # constants of a run
    if isinstance(value, (Node, TranslationCache)):
        # Reached from a coroutine; the node's own fields show what it holds.
        return lambda held: getattr(held, "name", None) or held.cache
    if isinstance(value, msgspec.Struct):
        return _struct
    if isinstance(value, Mapping):
        return _mapping
    if isinstance(value, _ATOMS):
        return _same
    if isinstance(value, (tuple, list)):
        return _sequence
    if hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
        return _object
    raise EmulatorError(f"cannot write down a {type(value).__name__}")


# ---- copies ------------------------------------------------------------------------------------


def clone(value: Any) -> Any:
    """A copy that shares nothing mutable.  Raises ``EmulatorError`` for what is not plain."""
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind is dict:
        return {key: clone(held) for key, held in value.items()}
    if kind is list or kind is tuple or kind is deque or kind is set:
        return kind(map(clone, value))
    if isinstance(value, (World, Port, Node)):
        return value
    if isinstance(value, msgspec.Struct):
        if value.__struct_config__.frozen:
            return value
        return kind(*map(clone, msgspec.structs.astuple(value)))
    names = _field_names(value)
    if not names:
        raise EmulatorError(f"cannot copy a {kind.__name__}")
    copied = object.__new__(kind)
    for name in names:
        setattr(copied, name, clone(getattr(value, name)))
    return copied


_IMMUTABLE = frozenset({type(None), bool, int, str, bytes, float, frozenset})
