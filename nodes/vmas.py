"""The VMAs of an mm (mm/mmap.c), as a sorted list."""

from __future__ import annotations

import msgspec

from mmurace.protocol.messages import memory as m


def merge(vmas: list[m.Vma]) -> list[m.Vma]:
    """Sorted by address, adjacent VMAs that can be one made one (``vma_merge``)."""
    merged: list[m.Vma] = []
    for vma in sorted(vmas, key=lambda v: v.start):
        last = merged[-1] if merged else None
        if last and vma.continues(last):
            anon_vma = last.anon_vma or vma.anon_vma
            merged[-1] = msgspec.structs.replace(last, end=vma.end, anon_vma=anon_vma)
        else:
            merged.append(vma)
    return merged


def anon_vma_prepare(vmas: list[m.Vma], address: int) -> bool:
    """``anon_vma_prepare``: the VMA at ``address`` has an ``anon_vma``; whether it had none."""
    for at, vma in enumerate(vmas):
        if vma.start <= address < vma.end and not vma.anon_vma:
            vmas[at] = msgspec.structs.replace(vma, anon_vma=True)
            return True
    return False
