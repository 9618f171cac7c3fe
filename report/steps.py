"""One row of an interleaving in words: the kernel's function names and the values that matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from mmurace.explorer.explain.interleaving import Row
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.pte import describe, frame_of
from mmurace.report.functions import DATA, OPERATIONS, function_of

Values = Mapping[str, Any]


def text_of(row: Row) -> str:
    """What the party of the row did."""
    wording = _WORDINGS.get(row.kind)
    if wording is not None:
        return wording(row.values, row)
    frame = row.values.get("frame")
    freed = f": frame {frame:#x} freed" if row.values.get("record") == "FrameFreed" else ""
    return f"{function_text(row.kind, row.operation_kind)}{freed}"


def operation_text(kind: str) -> str:
    """``move_pages`` for ``MigratePages``; an operation that is one access is no function."""
    return _INITIATORS.get(kind) or OPERATIONS.get(kind, kind)


def function_text(kind: str, operation_kind: str) -> str:
    """The function that a message of this kind is, or would be called."""
    of = operation_kind if kind in DATA else ""
    return _FUNCTIONS.get(kind) or function_of(kind, of) or _snake(kind)


def _snake(kind: str) -> str:
    """``folio_lock`` for ``FolioLock``."""
    return _CAPITAL.sub(r"_\1", kind).lower().lstrip("_")


_FLUSHED_SHIFT: Final = 16
"""``TLB_FLUSH_BATCH_FLUSHED_SHIFT``."""
_PENDING_MASK: Final = (1 << _FLUSHED_SHIFT) - 1
_CAPITAL: Final = re.compile(r"([A-Z])")
_INITIATORS: Final = {
    "Touch": "user access",
    "Dma": "DMA",
    "AfuTouch": "accelerator access",
    "GuestTouch": "vcpu_enter_guest",
    "GuestApic": "vcpu_enter_guest",
}
_ACCESSES: Final = {
    "Touch": "user", "Dma": "DMA", "AfuTouch": "accelerator", "GuestTouch": "guest",
    "GuestApic": "guest",
}  # fmt: skip
_FUNCTIONS: Final = {
    "PteGetAndClear": "ptep_get_and_clear",
    "PteSet": "set_pte_at",
    "PteCmpxchg": "cmpxchg of the PTE",
    "PteLoad": "ptep_get",
}


def _reply(values: Values, name: str, missing: int = 0) -> int:
    found: int = values.get("reply", {}).get(name, missing)
    return found


def _change(function: str) -> Callable[[Values, Row], str]:
    def wording(values: Values, _: Row) -> str:
        if "old" not in values or "new" not in values:
            return function
        change = f"{describe(values['old'])} -> {describe(values['new'])}"
        if values.get("level"):
            return f"{function} of the upper entry: {change}"
        return f"{function}{_place(values)}: {change}"

    return wording


def _place(values: Values) -> str:
    """Which page, if it is not the one that all is about."""
    return f"({values['mm']}:{values['address']:#x})" if values.get("elsewhere") else ""


def _ptl(word: str) -> Callable[[Values, Row], str]:
    def wording(values: Values, _: Row) -> str:
        return f"{word} PTL{' of another table' if values.get('elsewhere') else ''}"

    return wording


def limit(value: int) -> str:
    """An end of a range as kernel people write it: ``~0`` for ULONG_MAX."""
    return "~0" if value == ULONG_MAX else f"{value:#x}"


def _range(values: Values) -> str:
    return f"{limit(values['start'])}, {limit(values['end'])}"


def _entry(function: str) -> Callable[[Values, Row], str]:
    return lambda values, _: f"{function}: {describe(_reply(values, 'pte'))}"


def _says(text: str) -> Callable[[Values, Row], str]:
    return lambda _values, _row: text


def _in_progress(values: Values, _: Row) -> str:
    covered = f" [{_range(values)})" if values["delta"] > 0 else ""
    return f"mmu_invalidate_in_progress = {_reply(values, 'value')}{covered}"


def _pending(values: Values, _: Row) -> str:
    verb = "" if values["delta"] else "mm_tlb_flush_nested: "
    return f"{verb}tlb_flush_pending = {_reply(values, 'value')}"


def _batched(word: int) -> str:
    """``mm->tlb_flush_batched``: two counts in one word."""
    pending, flushed = word & _PENDING_MASK, word >> _FLUSHED_SHIFT
    return f"tlb_flush_batched: {pending} pending, {flushed} flushed"


def _memslot(values: Values, _: Row) -> str:
    slot = values["slot"]
    first = slot["gfn"] if isinstance(slot, Mapping) else slot.gfn
    return f"new memslot: gfn {first:#x}"


def _swapped(values: Values, _: Row) -> str:
    return f"swap_writepage: frame {values['frame']:#x} -> slot {values['slot']}"


def _upper(values: Values, _: Row) -> str:
    return f"paging-structure cache: table in frame {values['table']:#x}"


def _denied(values: Values, _: Row) -> str:
    return f"permission fault: the {values['cache']} entry denies the access"


def _page_request(_: Values, row: Row) -> str:
    return f"page request to {row.target}"


def _command(name: str) -> Callable[[Values, Row], str]:
    return lambda values, _: f"{name} [{_range(values)})"


def _seq(values: Values, _: Row) -> str:
    count = _reply(values, "in_progress")
    return f"read mmu_invalidate_seq: {_reply(values, 'seq')}, in progress {count}"


def _request(values: Values, row: Row) -> str:
    return f"kvm_make_request({values['request']}) of {row.target}"


def _dma(values: Values, _: Row) -> str:
    return f"DMA {'store to' if values['write'] else 'load from'} {values['address']:#x}"


def _data(word: str) -> Callable[[Values, Row], str]:
    return lambda values, _: f"{word} frame {values['frame']:#x}"


def _alloc(values: Values, _: Row) -> str:
    return f"alloc_page: frame {_reply(values, 'frame', -1):#x}"


def _put(values: Values, _: Row) -> str:
    freed = " freed" if values.get("record") == "FrameFreed" else ""
    return f"put_page: frame {values['frame']:#x}{freed}"


def _copy(values: Values, _: Row) -> str:
    return f"copy_highpage: {values['source']:#x} -> {values['target']:#x}"


def _notifier(values: Values, _: Row) -> str:
    if values["phase"] == "end":
        return f"{values['callback']} returns"
    return f"{values['callback']}({values['subscriber']}, {_range(values)})"


def _fill(values: Values, _: Row) -> str:
    if values["cache"] == "vmcs":
        return f"VMCS: APIC page = frame {frame_of(values['pte']):#x}"
    return f"{values['cache']} filled: {describe(values['pte'])}"


def _killed(_: Values, row: Row) -> str:
    return f"killed: {operation_text(row.operation_kind)}"


def _begin(values: Values, row: Row) -> str:
    kind = row.operation_kind
    if kind in _ACCESSES:
        verb = "store to" if values.get("write") else "load from"
        return f"{_ACCESSES[kind]} {verb} {values['start']:#x}"
    where = f"({values['start']:#x})" if values.get("start") is not None else ""
    return f"{operation_text(kind)}{where}"


def _end(values: Values, row: Row) -> str:
    kind, result = row.operation_kind, values["result"]
    if kind in _ACCESSES:
        verb = "store" if values.get("write") else "load"
        return f"{_ACCESSES[kind]} {verb} {'fails' if result else 'done'}"
    return f"{operation_text(kind)} returns {result}"


def _trap(values: Values, _: Row) -> str:
    if values["trapped"]:
        return "APIC access traps"
    return f"APIC access goes to frame {values['frame']:#x}"


def _again(values: Values, _: Row) -> str:
    return f"... {values['times']} more times"


def _dropped(values: Values, _: Row) -> str:
    return f"{values['cache']} entry dropped"


_WORDINGS: Final[Mapping[str, Callable[[Values, Row], str]]] = {
    "PteGetAndClear": _change("ptep_get_and_clear"),
    "PteSet": _change("set_pte_at"),
    "PteCmpxchg": _change("cmpxchg"),
    "PteLoad": _entry("ptep_get"),
    "PteWalk": _entry("hardware walk"),
    "PtlLock": _ptl("lock"),
    "PtlUnlock": _ptl("unlock"),
    "MmuLock": _says("lock mmu_lock"),
    "MmuUnlock": _says("unlock mmu_lock"),
    "InProgress": _in_progress,
    "SeqBump": _says("mmu_invalidate_seq++"),
    "SeqRead": _seq,
    "SpteSet": lambda values, _: f"mmu_spte_set: {describe(values['pte'])}",
    "SpteClear": _says("zap spte"),
    "SpteLoad": _entry("walk of the shadow table"),
    "KvmRequest": _request,
    "FlushTlbIpi": _says("flush_tlb_func"),
    "Tlbi": _says("tlbi"),
    "IotlbInvalidate": _command("IOTLB invalidation"),
    "AtsdLaunch": _command("ATSD"),
    "Tlbie": _command("tlbie"),
    "AtcInvalidate": _command("ATC invalidation command"),
    "InvalidateRequest": _command("ATC invalidation"),
    "AtsTranslate": _entry("ATS translation request"),
    "PriRequest": _page_request,
    "PageRequest": _page_request,
    "MemslotAdd": _memslot,
    "SwapWrite": _swapped,
    "TlbFlushPending": _pending,
    "TlbBatchedLoad": lambda values, _: f"read {_batched(_reply(values, 'value'))}",
    "TlbBatchedStore": lambda values, _: _batched(values["value"]),
    "TlbBatchedCmpxchg": lambda values, _: f"cmpxchg: {_batched(values['new'])}",
    "DmaAccess": _dma,
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
    "ApicTrapped": _trap,
    "InvalidateBegin": _dropped,
    "InvalidateDone": lambda values, _: f"{values['cache']} invalidation done",
    "FaultRetry": lambda values, _: f"retry ({values['why']})",
    "Killed": _killed,
    "Gone": _says("gone"),
    "Repeated": _again,
    "WalkDiscarded": _says("walk discarded, it overlapped an invalidation"),
}
