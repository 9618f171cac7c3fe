"""One row of an interleaving in words: the kernel's function names and the values that matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from mmurace.explorer.explain.flushes import DONE, SENT
from mmurace.explorer.explain.interleaving import Row
from mmurace.nodes.secondary import caches
from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Message
from mmurace.protocol.pte import describe, frame_of
from mmurace.protocol.told import Values, range_text, reply
from mmurace.report.kernel_functions import DATA, function_of, kind_of, operation_of_kind


def text_of(row: Row) -> str:
    """What the party of the row did."""
    wording = WORDINGS.get(row.kind)
    if wording is not None:
        return wording(row.values, row)
    message = kind_of(row.kind)
    declared = _declared(message, row) if message is not None else ""
    if declared:
        return declared
    frame = row.values.get("frame")
    freed = f": frame {frame:#x} freed" if row.values.get("record") == "FrameFreed" else ""
    return f"{function_text(row.kind, row.operation_kind)}{freed}"


def _declared(message: type[Message], row: Row) -> str:
    """What a message says of itself, or of its lock; empty: nothing."""
    if message.TOLD.wording is not None:
        return message.TOLD.wording(row.values, row.target)
    if message.TAKES is not None:
        return _lock(message.TAKES, row.values, row)
    if message.GIVES_BACK is not None:
        return f"unlock {_name_of(message.GIVES_BACK, row.values, row)}"
    return ""


def operation_text(kind: str) -> str:
    """``move_pages`` for ``MigratePages``; an operation that is one access is no function."""
    of = operation_of_kind(kind)
    return of.CALLED or of.FUNCTION or kind


def function_text(kind: str, operation_kind: str) -> str:
    """The function that a message of this kind is, or would be called."""
    of = operation_kind if kind in DATA else ""
    message = kind_of(kind)
    called = message.TOLD.called if message is not None else ""
    return _FUNCTIONS.get(kind) or called or function_of(kind, of) or _snake(kind)


def _snake(kind: str) -> str:
    """``folio_lock`` for ``FolioLock``."""
    return _CAPITAL.sub(r"_\1", kind).lower().lstrip("_")


_FLUSHED_SHIFT: Final = 16
"""``TLB_FLUSH_BATCH_FLUSHED_SHIFT``."""
_PENDING_MASK: Final = (1 << _FLUSHED_SHIFT) - 1
_CAPITAL: Final = re.compile(r"([A-Z])")
_FUNCTIONS: Final = {
    "TableWalk": "hardware walk of an upper entry",
    "PteGetAndClear": "ptep_get_and_clear",
    "PteSet": "set_pte_at",
    "PteCmpxchg": "cmpxchg of the PTE",
    "PteLoad": "ptep_get",
}


_LEVELS: Final = ("pte", "pmd", "pud", "p4d", "pgd")
_UPPER: Final = {
    "PteGetAndClear": "clear", "PteSet": "populate", "PteCmpxchg": "populate", "PteLoad": "read",
    "PteWalk": "walk", "TableWalk": "walk",
}  # fmt: skip
"""What the kernel does with an upper entry: ``pmd_clear``, ``pmd_populate``."""


def _change(function: str) -> Callable[[Values, Row], str]:
    def wording(values: Values, row: Row) -> str:
        if values.get("level"):
            return _upper_change(values, row)
        if "old" not in values or "new" not in values:
            return function
        change = f"{describe(values['old'])} -> {describe(values['new'])}"
        return f"{function}{_place(values)}: {change}"

    return wording


def _upper_change(values: Values, row: Row) -> str:
    """``pmd_clear [0x10000, 0x18000): table in frame 0x2``."""
    level = _LEVELS[values["level"]]
    there = values.get("new") or values.get("old") or reply(values, "pte")
    table = f": table in frame {frame_of(there):#x}" if there else ": none"
    return f"{level}_{_UPPER[row.kind]} [{range_text(values)}){table}"


def _read(function: str) -> Callable[[Values, Row], str]:
    def wording(values: Values, row: Row) -> str:
        if not values.get("level") and row.kind != "TableWalk":
            return f"{function}{_place(values)}: {describe(reply(values, 'pte'))}"
        word = "hardware walk of the" if row.kind in ("PteWalk", "TableWalk") else "read the"
        level, found = _LEVELS[values.get("level", 1)], reply(values, "pte")
        table = f"table in frame {frame_of(found):#x}" if found else "none"
        span = f" [{range_text(values)})" if "start" in values else ""
        return f"{word} {level}{span}: {table}"

    return wording


def _scan(values: Values, _: Row) -> str:
    """The next entry that is not none, or that there is none."""
    found, level = reply(values, "index", -1), _LEVELS[values.get("level", 0)]
    if "start" not in values:
        return f"next {level} that is not none"
    each = (values["end"] - values["start"]) // (values["last"] - values["first"])
    at = values["start"] + (found - values["first"]) * each
    return f"read {level}s of [{range_text(values)}): {'none' if found < 0 else f'one at {at:#x}'}"


def _place(values: Values) -> str:
    """Which page, if it is not the one that all is about."""
    return f"({values['mm']}:{values['address']:#x})" if values.get("elsewhere") else ""


# ---- locks -------------------------------------------------------------------------------------


def _table_lock(values: Values) -> str:
    if "start" not in values or "level" not in values:
        return f"PTL of the table in frame {values['table']:#x}" if "table" in values else "PTL"
    upper = f"{_LEVELS[values['level']]} " if values["level"] else ""
    return f"{upper}PTL of [{range_text(values)})"


def _name_of(lock: Lock, values: Values, row: Row) -> str:
    """Its name, and what it locks."""
    if lock.name == "PtlLock":
        return _table_lock(values)
    return lock.called.format(**{"target": row.target, **values})


def _lock(lock: Lock, values: Values, row: Row) -> str:
    word = {"waits": "waits for", "got": "gets"}.get(values.get("state", ""), "lock")
    shared = " for read" if values.get("write") is False else ""
    return f"{word} {_name_of(lock, values, row)}{shared}"


# ---- values -----------------------------------------------------------------------------------


def _says(text: str) -> Callable[[Values, Row], str]:
    return lambda _values, _row: text


def _pending(values: Values, _: Row) -> str:
    verb = "" if values["delta"] else "mm_tlb_flush_nested: "
    return f"{verb}tlb_flush_pending = {reply(values, 'value')}"


def _batched(word: int) -> str:
    """``mm->tlb_flush_batched``: two counts in one word."""
    pending, flushed = word & _PENDING_MASK, word >> _FLUSHED_SHIFT
    return f"tlb_flush_batched: {pending} pending, {flushed} flushed"


def _swapped(values: Values, _: Row) -> str:
    return f"swap_writepage: frame {values['frame']:#x} -> slot {values['slot']}"


def _upper(values: Values, _: Row) -> str:
    return f"paging-structure cache: table in frame {values['table']:#x}"


def _denied(values: Values, _: Row) -> str:
    return f"permission fault: the {values['cache']} entry denies the access"


def _command(name: str) -> Callable[[Values, Row], str]:
    return lambda values, _: f"{name} [{range_text(values)})"


_INSTRUCTIONS: Final = {"FlushTlbIpi": "flush_tlb_func", "Tlbi": "tlbi", "Tlbie": "tlbie"}


def _sent(values: Values, _: Row) -> str:
    """``IPI to cpu1: flush_tlb_func [0x10000, 0x11000)``; a TLBI goes to everybody."""
    name, covered = _INSTRUCTIONS[values["flush"]], f"[{range_text(values)})"
    if values["flush"] == "FlushTlbIpi":
        return f"IPI to {', '.join(values['to'])}: {name} {covered}"
    return f"{name} {covered} sent"


def _done(values: Values, _: Row) -> str:
    """A DSB is what waits for TLBIs; an IPI is waited for by its sender."""
    name, covered = _INSTRUCTIONS[values["flush"]], f"[{range_text(values)})"
    to = ", ".join(values["to"])
    if values["flush"] == "FlushTlbIpi":
        return f"{to} acknowledged {name} {covered}"
    barrier = {"Tlbi": "DSB: ", "Tlbie": "ptesync: "}[values["flush"]] if values["waited"] else ""
    return f"{barrier}{name} {covered} complete on {to}"


def _data(word: str) -> Callable[[Values, Row], str]:
    return lambda values, _: f"{word} frame {values['frame']:#x}"


def _alloc(values: Values, _: Row) -> str:
    return f"alloc_page: frame {reply(values, 'frame', -1):#x}"


def _put(values: Values, _: Row) -> str:
    freed = " freed" if values.get("record") == "FrameFreed" else ""
    return f"put_page: frame {values['frame']:#x}{freed}"


def _copy(values: Values, _: Row) -> str:
    return f"copy_highpage: {values['source']:#x} -> {values['target']:#x}"


def _notifier(values: Values, _: Row) -> str:
    if values["phase"] == "end":
        return f"{values['callback']} returns"
    return f"{values['callback']}({values['subscriber']}, {range_text(values)})"


def _subscribers(values: Values, _: Row) -> str:
    found = values.get("reply", {}).get("entries", ())
    names = ", ".join(node for _, node in found) or "nobody"
    return f"notifier list of {values['mm']}: {names}"


def _fill(values: Values, _: Row) -> str:
    cache = caches().get(values["cache"])
    if cache is not None and cache.shows:
        return cache.shows.format(frame=frame_of(values["pte"]))
    return f"{values['cache']} filled: {describe(values['pte'])}"


def _killed(_: Values, row: Row) -> str:
    return f"killed: {operation_text(row.operation_kind)}"


def _begin(values: Values, row: Row) -> str:
    kind = row.operation_kind
    agent = operation_of_kind(kind).AGENT
    if agent:
        verb = "store to" if values.get("write") else "load from"
        return f"{agent} {verb} {values['start']:#x}"
    where = f"({values['start']:#x})" if values.get("end", 0) > values.get("start", 0) else ""
    return f"{operation_text(kind)}{where}"


def _end(values: Values, row: Row) -> str:
    kind, result = row.operation_kind, values["result"]
    agent = operation_of_kind(kind).AGENT
    if agent:
        verb = "store" if values.get("write") else "load"
        return f"{agent} {verb} {'fails' if result else 'done'}"
    return f"{operation_text(kind)} returns {result}"


def _trap(values: Values, _: Row) -> str:
    if values["trapped"]:
        return "the access traps"
    return f"the access goes to frame {values['frame']:#x}"


def _again(values: Values, _: Row) -> str:
    return f"... {values['times']} more times"


def _dropped(values: Values, _: Row) -> str:
    return f"{values['cache']} entry dropped"


WORDINGS: Final[Mapping[str, Callable[[Values, Row], str]]] = {
    "PteGetAndClear": _change("ptep_get_and_clear"),
    "PteSet": _change("set_pte_at"),
    "PteCmpxchg": _change("cmpxchg"),
    "PteLoad": _read("ptep_get"),
    "PteWalk": _read("hardware walk"),
    "TableWalk": _read("hardware walk"),
    "PteScan": _scan,
    SENT: _sent,
    DONE: _done,
    "OwnDsb": _says("DSB: waits for its own tlbi only"),
    "StartRefused": _says("a start says -EAGAIN: the caller will call no end"),
    "Queued": lambda _, row: f"is asked for {operation_text(row.operation_kind)}",
    "FlushTlbIpi": _command("flush_tlb_func"),
    "Tlbi": lambda values, _: f"tlbi [{range_text(values)}) arrives",
    "LoopCut": lambda values, _: f"its loop has {values['left']:,} more turns to come",
    "Tlbie": _command("tlbie"),
    "SwapWrite": _swapped,
    "NotifierList": _subscribers,
    "NotifierAdd": lambda values, _: f"on the notifier list of {values['mm']}: {values['node']}",
    "TlbFlushPending": _pending,
    "TlbBatchedLoad": lambda values, _: f"read {_batched(reply(values, 'value'))}",
    "TlbBatchedStore": lambda values, _: _batched(values["value"]),
    "TlbBatchedCmpxchg": lambda values, _: f"cmpxchg: {_batched(values['new'])}",
    "FrameWrite": _data("store to"),
    "FrameRead": _data("load from"),
    "FrameAlloc": _alloc,
    "PagePut": _put,
    "FrameCopy": _copy,
    "OpBegin": _begin,
    "OpEnd": _end,
    "NotifierCall": _notifier,
    "Fill": _fill,
    "Evict": _dropped,
    "TableCached": _upper,
    "PermissionFault": _denied,
    "GuestEnter": _says("VM entry"),
    "GuestExit": _says("VM exit"),
    "AccessTrapped": _trap,
    "InvalidateBegin": _dropped,
    "InvalidateDone": lambda values, _: f"{values['cache']} invalidation done",
    "FaultRetry": lambda values, _: f"retry ({values['why']})",
    "Killed": _killed,
    "Gone": _says("gone"),
    "Repeated": _again,
    "WalkDiscarded": _says("walk discarded, it overlapped an invalidation"),
}
"""Kind of a message or record -> its row in words; other messages say it themselves."""


def lock_of(row: Row) -> tuple[str, str] | None:
    """Whether it ``takes``, ``waits`` for or ``gives`` back a lock, and which; None: neither."""
    message = kind_of(row.kind)
    lock = None if message is None else message.TAKES or message.GIVES_BACK
    if message is None or lock is None:
        return None
    waits = row.values.get("state") == "waits"
    what = "gives" if message.TAKES is None else "waits" if waits else "takes"
    return what, _name_of(lock, row.values, row)
