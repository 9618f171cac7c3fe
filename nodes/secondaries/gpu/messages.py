"""What a ``gpu`` node answers, and what is asked of others for its sake."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Flag
from mmurace.protocol.messages.program import Operation
from mmurace.protocol.pte import describe
from mmurace.protocol.told import ESSENTIAL, HELPFUL, MINOR, Told, Values, over_range, says

# ---- the device and what its driver shares with it -----------------------------------------------


def _maps(values: Values, _: str) -> str:
    return f"device entry of {values['address']:#x}: {describe(values['pte'])}"


_DRIVER_LOCK = Lock("DriverLock", "driver lock of {target}")


class DriverLock(Request[Ack], frozen=True):
    """``mutex_lock`` of the driver's own lock (``dmirror->mutex``, ``adev->notifier_lock``)."""

    OBJECT: ClassVar[tuple[str, ...]] = ("driver_lock",)
    TAKES: ClassVar[Lock | None] = _DRIVER_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class DriverTrylock(Request[Flag], frozen=True):
    """``mutex_trylock``: False if somebody has it."""

    OBJECT: ClassVar[tuple[str, ...]] = ("driver_lock",)
    TOLD: ClassVar[Told] = Told(function="mutex_trylock", weight=HELPFUL)


class DriverUnlock(Request[Ack], frozen=True):
    """``mutex_unlock``."""

    OBJECT: ClassVar[tuple[str, ...]] = ("driver_lock",)
    GIVES_BACK: ClassVar[Lock | None] = _DRIVER_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class DeviceMap(Request[Ack], frozen=True):
    """An entry of the device's page table; ``walk`` names the load that found it.

    ``job``: for whose fence it is made, where entries belong to jobs.
    """

    mm: str
    address: int
    pte: int
    walk: str
    job: str = ""
    TOLD: ClassVar[Told] = Told(
        function="dmirror_do_fault", wording=_maps, weight=ESSENTIAL, whole=True, fills=True
    )


class DeviceUnmap(Request[Ack], frozen=True):
    """Entries of a range go, and the device's TLB with them: answered once none is in use."""

    mm: str
    start: int
    end: int
    TOLD: ClassVar[Told] = Told(
        function="dmirror_do_update", called="invalidation of the device's page table",
        wording=over_range("drop device entries"), weight=ESSENTIAL,
    )  # fmt: skip


class FenceWait(Request[Ack], frozen=True):
    """``dma_resv_wait_timeout``: answered once every job that uses the range is done."""

    mm: str
    start: int
    end: int
    MAY_SLEEP: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(
        function="dma_resv_wait_timeout", wording=over_range("wait for fences of"),
        weight=ESSENTIAL,
    )  # fmt: skip


class MirrorOpen(Request[Flag], frozen=True):
    """The driver notes the range of an mm that it mirrors: whether there was none so far."""

    mm: str
    start: int
    end: int


class MirrorClose(Request[Flag], frozen=True):
    """The last user of a mirror closes it: no job of it runs any more, and its entries are gone.

    False: there is none.
    """

    mm: str
    MAY_SLEEP: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(
        function="dmirror_fops_release", wording=says("no job of it is left; its entries go"),
        weight=HELPFUL,
    )  # fmt: skip


class MirrorDone(Request[Ack], frozen=True):
    """The call returns: a mirror that it opened has a file, one that it closed is gone."""

    mm: str
    closed: bool


# ---- a processor -----------------------------------------------------------------------------


class FaultDone(Message, frozen=True):
    """0, or -errno."""

    result: int


class GpuFault(Request[FaultDone], frozen=True):
    """The driver is to map [start, end) for a job, in a thread of this processor."""

    gpu: str
    mm: str
    start: int
    end: int
    write: bool
    atomic: bool = False
    """For atomic accesses, of one page."""
    TOLD: ClassVar[Told] = Told(function="dmirror_range_fault")


class FenceSignal(Request[Ack], frozen=True):
    """A worker thread is to let a job's fence be signalled."""

    gpu: str
    TOLD: ClassVar[Told] = Told(
        function="dma_fence_signal", wording=says("worker of a job's fence"), weight=HELPFUL
    )


# ---- operations ------------------------------------------------------------------------------


class GpuJob(Operation, frozen=True):
    """A job loads, or stores, the first word of each page of [address, address + length).

    With ``atomic`` it adds ``value`` to that word, for which it needs the page for itself.  -EPERM,
    -EFAULT: it may not; -EINVAL: the driver cannot do that.
    """

    mm: str
    address: int
    length: int
    write: bool
    value: int = 0
    atomic: bool = False
    FUNCTION: ClassVar[str] = "dmirror_range_fault"
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "GPU"
    CALLED: ClassVar[str] = "GPU job"


class GpuMigrate(Operation, frozen=True):
    """What a device mirrors goes to its memory, or comes back (``HMM_DMIRROR_MIGRATE_TO_DEV``,
    ``_TO_SYS``): how many pages.

    -EINVAL: a part of it is not mapped for reading, or the device has no memory.
    """

    mm: str
    gpu: str
    address: int
    length: int
    back: bool = False
    """To system memory."""
    FUNCTION: ClassVar[str] = "dmirror_migrate_to_device"
    CHANGES: ClassVar[str] = "migrate_vma_collect_pmd"


class GpuMirror(Operation, frozen=True):
    """A process has a device mirror [address, address + length) of its memory.

    -EOVERFLOW: it does not end; -EBUSY: the device mirrors it already.
    """

    mm: str
    gpu: str
    address: int
    length: int
    REFUSES_RANGES: ClassVar[bool] = True
    FUNCTION: ClassVar[str] = "dmirror_fops_open"
    CHANGES: ClassVar[str] = "dmirror_fops_open"


class GpuUnmirror(Operation, frozen=True):
    """The mirror is closed, once its jobs are done (``dmirror_fops_release``)."""

    mm: str
    gpu: str
    FUNCTION: ClassVar[str] = "dmirror_fops_release"
    CHANGES: ClassVar[str] = "dmirror_fops_release"
