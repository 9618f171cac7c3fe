"""How a driver decodes the range that a notifier callback is given, into commands for its unit.

A callback gets [start, end) in bytes, 64 bits each.  ``(0, ULONG_MAX)`` is the only code for "all".
A decoder that does arithmetic before it looks for that code computes with a size one byte short of
2**64: it may round up to nothing, or loop over 2**52 pages.

| decoder | whose | what it does |
|---|---|---|
| ``exact`` | drivers/iommu/intel/svm.c (v6.6.5) | looks for "all" first, then whole pages |
| ``round_up_overflow`` | intel/svm.c (v5.11 to v6.6.4) | pages = (end - start + 4095) >> 12 |
| ``unaligned`` | intel-svm.c (v4.4 to v5.10) | the same, and a power of two of pages from there |
| ``page_or_all`` | amd/iommu_v2.c (to v6.6) | start and end - 1 in one page, or everything |
| ``size0_all`` | arm-smmu-v3-sva.c (v6.6), ATC commands | size ULONG_MAX is 0, and 0 is "all" |
| ``as_given`` | arm-smmu-v3-sva.c (v5.18 to v6.5) | size = end - start; the IOTLB skips 0 |
| ``size0_noop`` | arm-smmu-v3-sva.c (v5.13 to v5.17) | size = end - start + 1; the IOTLB skips 0 |
| ``no_granule`` | arm-smmu-v3.c (v6.10 to v6.14) | ranges of entries of another granule |
| ``per_page_loop`` | drivers/misc/ocxl/link.c | one command for each page |
| ``off_by_one`` | arch/riscv (v6.15, in review) | the end counts as inclusive: one page more |
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, Literal

from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX
from mmurace.protocol.ranges import page_of

Decoder = Literal[
    "exact", "round_up_overflow", "unaligned", "page_or_all", "per_page_loop", "size0_noop",
    "as_given", "size0_all", "off_by_one", "no_granule",
]  # fmt: skip
LinkDecoder = Literal["per_page_loop", "exact"]
"""What there is for an OpenCAPI link, whose registers take a page or everything."""
Commands = Iterator[tuple[int, int]]
"""Ranges as the unit understands them: half-open, or (0, ULONG_MAX)."""

ALL = (0, ULONG_MAX)
CMDQ_MAX_TLBI_OPS: Final = 1 << PAGE_SHIFT - 3
"""``arm-smmu-v3-sva.c`` (d5afb4b47e13, v6.6): as many as a table has entries."""
_WORD = ULONG_MAX


def decode(decoder: Decoder, start: int, end: int, pages_max: int) -> Commands:
    """The IOTLB commands for [start, end).

    A loop over pages is cut off after ``pages_max`` commands; ``pages_left`` are left then.
    """
    if decoder == "per_page_loop":
        return islice(_per_page_loop(start, end), pages_max)
    return iter(_DECODERS[decoder](start, end))


def page_by_page(decoder: Decoder, start: int, end: int, pages_max: int) -> Commands:
    """The same to a unit that takes no ranges (no ``ARM_SMMU_FEAT_RANGE_INV``): pages, or all.

    From v6.6 on the driver then asks for all once it would be ``CMDQ_MAX_TLBI_OPS`` commands.
    """
    pages = end - start >> PAGE_SHIFT
    if decoder == "size0_all" and pages >= CMDQ_MAX_TLBI_OPS:
        return iter((ALL,))
    commands = decode(decoder, start, end, pages_max)
    return islice(chain.from_iterable(map(_pages_of, commands)), pages_max)


def _pages_of(command: tuple[int, int]) -> Commands:
    return iter((ALL,)) if command == ALL else _per_page_loop(*command)


def pages_left(start: int, end: int, pages_max: int) -> int:
    """How many turns of a loop over [start, end) come after the first ``pages_max``."""
    return max(0, (end - start + PAGE_SIZE - 1 >> PAGE_SHIFT) - pages_max)


def decode_atc(decoder: Decoder, start: int, end: int, pages_max: int) -> Commands:
    """The ATC commands.

    There a size of 0 has always been "all" (``arm_smmu_atc_inv_to_cmd``), and VT-d's driver has
    always looked at where a range ends (``QI_DEV_EIOTLB_SIZE``).
    """
    return decode(_ATC.get(decoder, decoder), start, end, pages_max)


_ATC: dict[Decoder, Decoder] = {
    "size0_noop": "size0_all",
    "as_given": "size0_all",
    "unaligned": "round_up_overflow",
}


def _exact(start: int, end: int) -> list[tuple[int, int]]:
    if (start, end) == ALL:
        return [ALL]
    return _pages(start, end)


def _pages(start: int, end: int) -> list[tuple[int, int]]:
    """Whole pages; nothing for an empty range."""
    return [(page_of(start), min(_round_up(end), ULONG_MAX))] if start < end else []


def _round_up(end: int) -> int:
    return (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)


def _round_up_overflow(start: int, end: int) -> list[tuple[int, int]]:
    """``intel_invalidate_range`` (v5.11 to v6.6.4): unsigned arithmetic, 64 bits wide.

    It flushes whole blocks of a power of two of pages, so at times more than this.
    """
    return _pages(start, min(page_of(start) + _bytes_rounded_up(start, end), ULONG_MAX))


def _bytes_rounded_up(start: int, end: int) -> int:
    return ((end - start + PAGE_SIZE - 1) & _WORD) & ~(PAGE_SIZE - 1)


def _unaligned(start: int, end: int) -> list[tuple[int, int]]:
    """``intel_flush_svm_range_dev`` (to v5.10): a power of two of pages, from ``start`` on.

    The unit ignores the bits of the address below that, so the block begins before ``start``, and
    may end before ``end``.  Rounded up to no page at all, it is one page (1 << 64 is 1 on x86).
    """
    pages = max(_bytes_rounded_up(start, end) >> PAGE_SHIFT, 1)
    block = PAGE_SIZE << (pages - 1).bit_length()
    first = start & ~(block - 1) & _WORD
    return [(first, min(first + block, ULONG_MAX))]


def _page_or_all(start: int, end: int) -> list[tuple[int, int]]:
    """``mn_invalidate_range`` of AMD IOMMUv2: of one page, or of the PASID."""
    one_page = (start ^ (end - 1)) & _WORD < PAGE_SIZE
    return [(page_of(start), min(page_of(start) + PAGE_SIZE, ULONG_MAX))] if one_page else [ALL]


def _size0_all(start: int, end: int) -> list[tuple[int, int]]:
    """``arm_smmu_mm_arch_invalidate_secondary_tlbs`` (v6.6): by ASID if the size says so."""
    size = end - start
    return [ALL] if size in (0, ULONG_MAX) else _pages(start, end)


def _size0_noop(start: int, end: int) -> list[tuple[int, int]]:
    """``arm_smmu_mm_invalidate_range`` (to v5.17): ``__arm_smmu_tlb_inv_range`` returns on 0.

    With range commands (``ARM_SMMU_FEAT_RANGE_INV``) it does not come back from the odd byte: these
    units have none.
    """
    size = (end - start + 1) & _WORD
    return _pages(start, end) if size > 1 else []


def _no_granule(start: int, end: int) -> list[tuple[int, int]]:
    """``__arm_smmu_tlb_inv_range`` of a domain without page sizes (``pgsize_bitmap`` is 0).

    ``__ffs(0)`` is 64 on arm64, and the command's granule field comes out as that of 64 KiB.  A
    unit may keep entries that were made with another granule, and this one does.  By ASID there is
    no granule.
    """
    return [ALL] if end - start in (0, ULONG_MAX) else []


def _off_by_one(start: int, end: int) -> list[tuple[int, int]]:
    """One page too many, which is safe; "all" stays what it is."""
    return [ALL] if (start, end) == ALL else _pages(start, end + PAGE_SIZE)


def _per_page_loop(start: int, end: int) -> Commands:
    """``invalidate_range`` of an OpenCAPI link: ``for (addr = start; addr < end; ...)``."""
    address = start
    while address < end:
        yield page_of(address), min(page_of(address) + PAGE_SIZE, ULONG_MAX)
        address += PAGE_SIZE


_DECODERS = {
    "exact": _exact,
    "round_up_overflow": _round_up_overflow,
    "unaligned": _unaligned,
    "page_or_all": _page_or_all,
    "size0_noop": _size0_noop,
    "as_given": _pages,
    "size0_all": _size0_all,
    "off_by_one": _off_by_one,
    "no_granule": _no_granule,
}
