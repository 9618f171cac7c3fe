"""drivers/misc/ocxl and the links that it drives."""

from __future__ import annotations

from typing import ClassVar, Literal

from mmurace.nodes.kernel.variant.switch import Switches, declare, since, switch, unreleased
from mmurace.nodes.secondaries.decode import LinkDecoder


@declare
class OcxlSwitches(Switches, frozen=True):
    """drivers/misc/ocxl and the links that it drives."""

    OWNER: ClassVar[str] = "ocxl"

    ocxl_link: Literal["snoops_tlbie", "atsd"] = switch(
        "Documentation/userspace-api/accelerators/ocxl.rst",
        "POWER9, POWER10",
        since("snoops_tlbie"),
        since("atsd", "v5.12", on="ppc"),
        hardware=True,
    )
    """An OpenCAPI link sees the processors' ``tlbie`` (POWER9), or only what is written to its
    registers (POWER10).  No commit: it is the machine.  One with v5.12 or later is taken to be a
    POWER10, which v5.11 was the first to drive."""
    ocxl_notifier: bool = switch(
        "drivers/misc/ocxl/link.c",
        "ocxl_link_add_pe",
        since(False),
        since(True, "v5.11", "5f686eea4b3c"),
    )
    """The driver registers a notifier if the link has such registers (v5.11)."""
    ocxl_notifier_releases: bool = switch(
        "drivers/misc/ocxl/link.c",
        "ocxl_mmu_notifier_ops",
        since(False),
        unreleased(True, "to see what a release would cure"),
    )
    """That notifier has a ``release``, which stops the accelerator and invalidates the PID (none
    has): the end of an mm takes every subscriber off its list, and only then unmaps."""
    ocxl_decoder: LinkDecoder = switch(
        "drivers/misc/ocxl/link.c",
        "invalidate_range",
        since("per_page_loop"),
        unreleased("exact", "a driver that knows what (0, ULONG_MAX) means"),
    )
    """How it reads the range: page after page (v5.11), or all of the PID at once if that is all."""
    ocxl_counts_copro: bool = switch(
        "drivers/misc/ocxl/link.c",
        "ocxl_link_add_pe",
        since(True),
        since(True, "v4.16", "5ef3166e8a32"),
        unreleased(False, "to see what the count is for"),
    )
    """Its contexts count as coprocessors, for which flushes are global (v4.16, as old as the
    driver)."""
    ocxl_clears_pe_cache: bool = switch(
        "drivers/misc/ocxl/link.c",
        "ocxl_link_remove_pe",
        since(True),
        unreleased(False, "to see what the SPA's cache is cleared for"),
    )
    """``ocxl_link_remove_pe`` makes the link drop the process element (all releases)."""
    ocxl_invalidates_pid: bool = switch(
        "drivers/misc/ocxl/link.c",
        "ocxl_link_remove_pe",
        since(True),
        since(True, "v5.11", "5f686eea4b3c"),
        unreleased(False, "to see what that flush is for"),
    )
    """It invalidates the PID once the notifier is unregistered (v5.11; before, there is no notifier
    and nothing asks)."""
