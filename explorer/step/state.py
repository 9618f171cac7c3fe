"""What every node knows at one moment, as text by name, and how two moments differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mmurace.explorer.shrink.play import Moment
from mmurace.explorer.step.events import lock_named
from mmurace.nodes.driver import Driver
from mmurace.nodes.locks import LockWord
from mmurace.nodes.memory import Frame
from mmurace.nodes.node import Node
from mmurace.nodes.pwc import PagingStructureCache
from mmurace.nodes.translation import TranslationCache
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import operation_of, request_id
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.memory import MmapDowngrade

Fields = dict[str, str]
"""What a node knows: name -> text."""
State = dict[str, Fields]
"""By node."""
Leaves = Iterator[tuple[str, str]]
_CONSTANT: Final = frozenset({"name", "world", "port"})
_LEVELS: Final = ("pte", "pmd", "pud", "p4d", "pgd")
_ADDRESSES: Final = frozenset({
    "address", "start", "end", "hva", "gfn", "brk", "table", "frame", "invalidate_range", "lru",
})  # fmt: skip
"""Fields whose integers are written in hexadecimal."""


def state_of(drivers: Mapping[str, Driver], moments: Sequence[Moment]) -> State:
    """What every node knows after these moments; locks are told where they are."""
    state = {name: dict(_fields(driver.node)) for name, driver in drivers.items()}
    for place, word in locks_after(moments).items():
        state.setdefault(place[0], {})[place[1]] = word.text()
    return state


def difference(before: State, after: State) -> list[tuple[str, str, str, str]]:
    """(node, name, text before, text after) of all that differs; an empty text: not there."""
    return [
        (node, name, before.get(node, {}).get(name, ""), after.get(node, {}).get(name, ""))
        for node in after
        for name in dict.fromkeys((*before.get(node, {}), *after[node]))
        if before.get(node, {}).get(name) != after[node].get(name)
    ]


# ---- the fields of a node ----------------------------------------------------------------------


def _fields(node: object) -> Leaves:
    """All that it knows; what is empty is left out."""
    if not isinstance(node, Node):
        return
    for name, value in vars(node).items():
        if name in _CONSTANT:
            continue
        shown = node.SHOWN.get(name)
        if shown is not None:
            yield from shown(value).items()
        elif name == "frames":
            yield from _page_tables(node.world, value)
            yield from _frames(value)
        elif name not in ("free", "locks"):
            yield from _leaves(name, value)


def _leaves(name: str, value: Any) -> Leaves:
    """A value as text, or as one text for each of its parts."""
    if isinstance(value, (LockWord, World)):
        return  # locks are told by who holds them
    if isinstance(value, (TranslationCache, PagingStructureCache)):
        yield from _cached(name, value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{name}[{_key(key)}]", part)
    elif isinstance(value, (str, int)) or not _empty(value):
        yield from _one(name, value)


def _one(name: str, value: Any) -> Leaves:
    own = _own_fields(value)
    if own is None:
        yield name, _text(value, name)
    elif "pte" in own:
        yield name, ptes.describe(own["pte"])
    else:
        for part, inner in own.items():
            yield from _leaves(f"{name}.{part}", inner)


def _own_fields(value: Any) -> dict[str, Any] | None:
    """Those of a struct or of an object with slots; None: it is one value."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    slots = getattr(type(value), "__slots__", None)
    if slots is None or isinstance(value, (str, int, bytes, tuple, list, AbstractSet)):
        return None
    return {slot: getattr(value, slot) for slot in slots}


def _empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and not len(value))


def _key(key: Any) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return ":".join(f"{part:#x}" if type(part) is int else str(part) for part in parts)


def _text(value: Any, name: str = "") -> str:
    """One value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        known = name.rpartition(".")[2] in _ADDRESSES or name.endswith("gpa")
        return f"{value:#x}" if known and value >= 0 else str(value)
    if isinstance(value, (tuple, list, AbstractSet)):
        return ", ".join(_text(part, name) for part in value)
    if isinstance(value, msgspec.Struct):
        parts = msgspec.structs.asdict(value)
        return " ".join(f"{key}={_text(part, key)}" for key, part in parts.items() if part)
    return str(value)


def _cached(name: str, cache: TranslationCache | PagingStructureCache) -> Leaves:
    """What a cache holds, by address; and accesses through it that are on their way."""
    if isinstance(cache, PagingStructureCache):
        for entry in cache.entries.values():
            yield f"{name} {entry.tag}:{entry.address:#x}", f"table in frame {entry.table:#x}"
        return
    for kept in cache.entries.values():
        yield f"{cache.cache} {kept.tag}:{kept.address:#x}", ptes.describe(kept.pte)
    for walk in cache.walks:
        stale = ", overlapped by an invalidation" if walk.stale else ""
        yield f"{cache.cache} walk of {walk.tag}:{walk.address:#x}", f"on its way{stale}"
    for used in cache.in_flight:
        yield f"{cache.cache} access to {used.tag}:{used.address:#x}", "on its way"


def _page_tables(world: World, frames: Sequence[Frame]) -> Leaves:
    """Every entry that is not none, by mm, level and address."""
    for table in frames:
        if table.level < 0:
            continue
        for index, entry in sorted(table.words.items()):
            address = table.address + (index << world.shift(table.level))
            upper = table.level and ptes.hw_present(entry)
            text = f"table in frame {ptes.frame_of(entry):#x}" if upper else ptes.describe(entry)
            yield f"{_LEVELS[table.level]} {table.mm}:{address:#x}", text


def _frames(frames: Sequence[Frame]) -> Leaves:
    """Frames that somebody has a reference to: who, and what the words are."""
    for number, frame in enumerate(frames):
        if frame.refs <= 0 and not frame.rmap:
            continue
        said = [f"refs {frame.refs}"]
        said += [f"table of level {frame.level}"] if frame.level >= 0 else []
        said += [f"mapped at {mm}:{address:#x}" for mm, address in frame.rmap]
        said += [word for word in ("anon", "dirty", "anon_exclusive") if getattr(frame, word)]
        said += [f"{frame.mapping} page {frame.index}"] if frame.mapping else []
        words = {} if frame.level >= 0 else frame.words
        said += [f"word {at:#x} = {value:#x}" for at, value in sorted(words.items())]
        yield f"frame {number:#x}", ", ".join(said)


# ---- locks -------------------------------------------------------------------------------------


@dataclass(slots=True)
class LockState:
    """Who holds a lock and who waits for it: operations, oldest first."""

    holders: list[str] = field(default_factory=list)
    shared: bool = False
    waiters: list[str] = field(default_factory=list)

    def text(self) -> str:
        """``held by cpu0/4; waiting: cpu1/2``."""
        held = f"held by {', '.join(self.holders)}" if self.holders else "free"
        read = " for read" if self.holders and self.shared else ""
        waiting = f"; waiting: {', '.join(self.waiters)}" if self.waiters else ""
        return f"{held}{read}{waiting}"


def locks_after(moments: Sequence[Moment]) -> dict[tuple[str, str], LockState]:
    """(node that has it, lock) -> who holds it and who waits, where anybody does."""
    known: dict[tuple[str, str], LockState] = {}
    asked: dict[str, tuple[tuple[str, str], bool]] = {}
    for moment in moments:
        envelope, body = moment.envelope, moment.envelope.body
        if isinstance(body, Message) and not envelope.is_reply and envelope.copy == 0:
            _see(body, envelope.id, envelope.dst, known, asked)
        for sent in moment.handled.messages:
            request = request_id(sent.id) if sent.is_reply else ""
            if request in asked:
                place, shared = asked.pop(request)
                _grant(known[place], operation_of(request), shared)
    return {place: lock for place, lock in known.items() if lock.holders or lock.waiters}


def _see(
    body: Message,
    id_: str,
    target: str,
    known: dict[tuple[str, str], LockState],
    asked: dict[str, tuple[tuple[str, str], bool]],
) -> None:
    """A request for a lock, or one that gives it back or holds it for less."""
    if isinstance(body, MmapDowngrade):
        for (_, name), lock in known.items():
            lock.shared |= name == f"mmap_lock of {body.mm}"
    place = (target, lock_named(body, target))
    if not place[1]:
        return
    lock, operation = known.setdefault(place, LockState()), operation_of(id_)
    if body.TAKES is not None:
        lock.waiters.append(operation)
        asked[id_] = (place, getattr(body, "write", True) is False)
    elif lock.holders:
        lock.holders.remove(operation if operation in lock.holders else lock.holders[0])


def _grant(lock: LockState, operation: str, shared: bool) -> None:
    lock.waiters.remove(operation)
    lock.holders.append(operation)
    lock.shared = shared
