"""One row of an interleaving in words: the kernel's function names and the values that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from explorer.timeline import Row
from protocol.pte import describe, frame_of
from report.functions import OPERATIONS, function_of

Values = Mapping[str, Any]


def text_of(row: Row) -> str:
    """What the party of the row did."""
    wording = _WORDINGS.get(row.kind)
    return wording(row.values, row) if wording else row.kind


def operation_text(kind: str) -> str:
    """``move_pages`` for ``MigratePages``."""
    return OPERATIONS.get(kind, kind)


def function_text(kind: str, operation_kind: str) -> str:
    """The function that a message of this kind is, else the one in which it is sent."""
    return _FUNCTIONS.get(kind) or function_of(kind, operation_kind) or kind


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
        if "old" in values and "new" in values:
            return f"{function}: {describe(values['old'])} -> {describe(values['new'])}"
        return function

    return wording


def _entry(function: str) -> Callable[[Values, Row], str]:
    return lambda values, _: f"{function}: {describe(_reply(values, 'pte'))}"


def _says(text: str) -> Callable[[Values, Row], str]:
    return lambda _values, _row: text


def _in_progress(values: Values, _: Row) -> str:
    return f"mmu_invalidate_in_progress = {_reply(values, 'value')}"


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
    returns = " returns" if values["phase"] == "end" else ""
    return f"{values['callback']} of {values['subscriber']}{returns}"


def _fill(values: Values, _: Row) -> str:
    if values["cache"] == "vmcs":
        return f"VMCS: APIC page = frame {frame_of(values['pte']):#x}"
    return f"{values['cache']} filled: {describe(values['pte'])}"


def _begin(values: Values, row: Row) -> str:
    where = f"({values['start']:#x})" if values.get("start") is not None else ""
    return f"{operation_text(row.operation_kind)}{where}"


def _end(values: Values, row: Row) -> str:
    return f"{operation_text(row.operation_kind)} = {values['result']}"


def _trap(values: Values, _: Row) -> str:
    if values["trapped"]:
        return "APIC access traps"
    return f"APIC access goes to frame {values['frame']:#x}"


def _dropped(values: Values, _: Row) -> str:
    return f"{values['cache']} entry dropped"


_WORDINGS: Final[Mapping[str, Callable[[Values, Row], str]]] = {
    "PteGetAndClear": _change("ptep_get_and_clear"),
    "PteSet": _change("set_pte_at"),
    "PteCmpxchg": _change("cmpxchg"),
    "PteLoad": _entry("ptep_get"),
    "PteWalk": _entry("hardware walk"),
    "PtlLock": _says("lock PTL"),
    "PtlUnlock": _says("unlock PTL"),
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
    "IotlbInvalidate": _says("IOTLB invalidation"),
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
    "GuestEnter": _says("VM entry"),
    "GuestExit": _says("VM exit"),
    "ApicTrapped": _trap,
    "InvalidateBegin": _dropped,
    "InvalidateDone": lambda values, _: f"{values['cache']} invalidation done",
    "FaultRetry": lambda values, _: f"retry ({values['why']})",
    "WalkDiscarded": _says("walk discarded, it overlapped an invalidation"),
}
