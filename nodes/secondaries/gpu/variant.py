"""lib/test_hmm.c and drivers/gpu/drm/amd/amdgpu: what drivers do with an interval notifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from mmurace.nodes.kernel.variant.switch import Switches, declare, since, switch, unreleased

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant.kernel import Kernel


@declare
class GpuSwitches(Switches, frozen=True):
    """lib/test_hmm.c and drivers/gpu/drm/amd/amdgpu."""

    OWNER: ClassVar[str] = "gpu"
    PROFILES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "x86": ("dmirror", "amdgpu", "nouveau"),
        "arm64": ("dmirror", "amdgpu"),
        "ppc": ("dmirror",),
    }

    gpu_entries: Literal["faulted_in", "of_jobs"] = switch(
        "lib/test_hmm.c",
        "dmirror_range_fault",
        since("faulted_in"),
        since("faulted_in", "v5.8", "b2ef9f5a5cb3", on="dmirror"),
        since("of_jobs", on="amdgpu"),
    )
    """What the device's page table holds: what it faulted in, until that is invalidated (dmirror,
    v5.8), or what the jobs under way use, whose fences an invalidation waits for (amdgpu:
    ``amdgpu_hmm_invalidate_gfx``; from v5.5 with interval notifiers, a commit that was not looked
    up)."""
    gpu_mirror: Literal["interval", "notifier"] = switch(
        "drivers/gpu/drm/nouveau/nouveau_svm.c",
        "nouveau_svmm_init",
        since("interval"),
        since("notifier", "v5.5", on="nouveau"),
    )
    """What tells a driver of a mirror's invalidations: an interval notifier (dmirror, amdgpu), or a
    notifier of the whole mm, beside an interval for as long as a fault is served (nouveau, with
    interval notifiers from v5.5; a commit that was not looked up).  That one always says -EAGAIN
    where it must not sleep."""
    gpu_retry_check: Literal["under_lock", "before_lock", "none"] = switch(
        "lib/test_hmm.c",
        "dmirror_range_fault",
        since("under_lock"),
        unreleased("before_lock", "a check that the callback can slip behind"),
        unreleased("none", "a driver that installs what it has found"),
    )
    """Where ``mmu_interval_read_retry`` is asked between the snapshot and its use: under the
    driver's lock (dmirror; amdgpu: ``amdgpu_cs_submit``), before it is taken, or nowhere."""
    gpu_set_seq: bool = switch(
        "lib/test_hmm.c",
        "dmirror_interval_invalidate",
        since(True),
        unreleased(False, "a callback that forgets it"),
    )
    """The callback calls ``mmu_interval_set_seq``."""
    gpu_unmap_waits: bool = switch(
        "lib/test_hmm.c",
        "dmirror_interval_invalidate",
        since(True),
        unreleased(False, "a callback that only queues the flush of the device's TLB"),
    )
    """The callback waits until the device has dropped the entries and uses none any more."""
    gpu_fence_wait: bool = switch(
        "drivers/gpu/drm/amd/amdgpu/amdgpu_hmm.c",
        "amdgpu_hmm_invalidate_gfx",
        since(True),
        unreleased(False, "to see what dma_resv_wait_timeout is for"),
    )
    """The callback of a driver whose entries belong to jobs waits for the fences of these."""
    gpu_nonblock: Literal["trylock", "locks"] = switch(
        "lib/test_hmm.c",
        "dmirror_interval_invalidate",
        since("trylock"),
        unreleased("locks", "a callback that does not ask mmu_notifier_range_blockable"),
    )
    """What the callback does where it must not sleep: it tries the driver's lock, and gives up
    (amdgpu gives up at once), or takes it as ever."""
    gpu_alloc: Literal["atomic", "before_lock", "under_lock"] = switch(
        "lib/test_hmm.c",
        "dmirror_do_fault",
        since("atomic"),
        unreleased("before_lock", "a driver whose table is of pages, taken before it locks"),
        unreleased("under_lock", "a driver that waits for memory under the lock of its callback"),
    )
    """Where a driver has the memory for its own table from: it waits for none under its lock
    (dmirror: GFP_ATOMIC); or it takes a page, for which others may be reclaimed, before it takes
    the lock that its callback takes, or under it.  Here the page goes back when the range is
    mapped: the table itself is in the device."""
    gpu_fence_signal: Literal["alone", "under_lock"] = switch(
        "drivers/dma-buf/dma-fence.c",
        "dma_fence_begin_signalling",
        since("alone"),
        unreleased("under_lock", "a worker that takes the lock of the callback to signal a fence"),
    )
    """What a job's fence needs to be signalled: nothing that somebody may hold who waits for it, as
    the rules of dma_fence have it (annotated from v5.9), or the driver's lock."""
    gpu_migrate_skips: Literal["none", "own", "any"] = switch(
        "lib/test_hmm.c",
        "dmirror_interval_invalidate",
        since("none"),
        since("own", "v5.9", "7d17e83abec1", on="dmirror"),
        unreleased("any", "a callback that does not ask whose migration it is"),
    )
    """Of which migrations (``MMU_NOTIFY_MIGRATE``) the callback returns at once, and does not set
    the sequence: of none; of those that are its own doing (7d17e83abec1, v5.9), whose entries it
    takes away itself; of all."""
    gpu_migrate_drops: Literal["after_copy", "before_copy"] = switch(
        "lib/test_hmm.c",
        "dmirror_migrate_alloc_and_copy",
        since("after_copy"),
        unreleased("before_copy", "a driver that stops its device itself, as it is not told to"),
    )
    """When the driver takes its own entries of what goes to its memory away: when the copy is made,
    where it maps the new pages (``dmirror_migrate_finalize_and_map``), or before."""
    gpu_exclusive_skips: Literal["none", "own", "any"] = switch(
        "lib/test_hmm.c",
        "dmirror_exclusive",
        since("none"),
        since("none", "v5.14", "b659baea7546", on="dmirror"),
        unreleased("own", "what nouveau does (8f187163eb89, v5.14)"),
        unreleased("any", "a callback that does not ask whose doing it is"),
    )
    """Which ``MMU_NOTIFY_EXCLUSIVE`` the callback passes over: none, and the driver names no owner
    (dmirror); those of its own doing, for which it names itself; or also those that take the page
    back."""
    gpu_exclusive_unlocks: Literal["after_map", "before_map"] = switch(
        "lib/test_hmm.c",
        "dmirror_exclusive",
        since("after_map"),
        unreleased("before_map", "a driver that gives the page back before its device has it"),
    )
    """When the driver unlocks such a page: once its device has the entry, or before."""
    gpu_close: Literal["removes", "frees_first", "under_lock"] = switch(
        "lib/test_hmm.c",
        "dmirror_fops_release",
        since("removes"),
        unreleased("frees_first", "a mirror that is freed while a callback may run"),
        unreleased("under_lock", "removal under the lock that the callback takes"),
    )
    """When a mirror is closed: ``mmu_interval_notifier_remove``, then it is freed; or freed first;
    or removed under the driver's lock."""

    gpu_insert_fails: Literal["frees", "removes_if_mm"] = switch(
        "drivers/gpu/drm/radeon/radeon_mn.c",
        "radeon_mn_unregister",
        since("frees"),
        unreleased("removes_if_mm", "as radeon, which is no driver here"),
    )
    """What a driver does with a mirror whose interval could not be inserted: it frees it (dmirror,
    amdgpu), or looks at ``notifier.mm``, and removes the interval first if that is set (radeon)."""

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """Fences belong to jobs, and jobs to a driver of intervals."""
        if self.gpu_mirror == "notifier" and self.gpu_entries == "of_jobs":
            yield "gpu_mirror = notifier contradicts gpu_entries = of_jobs", "faulted_in"
        if not self.gpu_fence_wait and self.gpu_entries != "of_jobs":
            yield "gpu_fence_wait = false contradicts gpu_entries = faulted_in", "entries of jobs"
        if self.gpu_fence_signal != "alone" and self.gpu_entries != "of_jobs":
            yield "gpu_fence_signal contradicts gpu_entries = faulted_in", "entries of jobs"
