"""A GPU: its page table, the driver's lock and mirrors, and the jobs that run on it."""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.nodes.driver import Port
from mmurace.nodes.kernel.errno import EAGAIN, EFAULT, EINVAL
from mmurace.nodes.locks import LockWord
from mmurace.nodes.node import Handlers, Node
from mmurace.nodes.secondaries.gpu import messages as g
from mmurace.nodes.secondaries.gpu.part import Gpu
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.nodes.translation import (
    Attempts,
    Entry,
    TranslationCache,
    atomic_add,
    data_access,
)
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.base import Ack
from mmurace.protocol.messages.memory import Flag
from mmurace.protocol.messages.program import OpDone
from mmurace.protocol.ranges import covers
from mmurace.protocol.records import FaultRetry

CACHE = "gmmu"


class GpuNode(Node):
    """The ``gpu`` node."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        part = world.part_of(name)
        assert isinstance(part, Gpu)
        self.cpu = part.fault_cpu
        self.of_jobs = GpuSwitches.of(world.kernel).gpu_entries == "of_jobs"
        self.signals_alone = GpuSwitches.of(world.kernel).gpu_fence_signal == "alone"
        self.one_by_one = GpuSwitches.of(world.kernel).gpu_mirror == "notifier"
        self.faulting = False
        """One thread works the fault buffer off (``nouveau_svm_fault``), and is at it."""
        self.table = TranslationCache(CACHE, world, port)
        self.driver_lock = LockWord()
        self.mirrors = dict.fromkeys(part.mms, (0, ULONG_MAX))
        """mm -> the range that is mirrored."""
        self.in_call: tuple[str, ...] = ()
        """mms whose mirror a call is opening or closing: nobody else has a file of it."""
        self.running: tuple[tuple[str, str], ...] = ()
        """(job, mm) of those that are under way."""
        self.fences: tuple[tuple[str, str, int], ...] = ()
        """(job, mm, page): entries of jobs, each until the fence of the job."""

    def handlers(self) -> Handlers:
        """Jobs, and what the driver asks of the device."""
        return {
            g.GpuJob: self.gpu_job,
            g.DriverLock: self.lock, g.DriverUnlock: self.unlock,
            g.DriverTrylock: self.trylock,
            g.DeviceMap: self.map, g.DeviceUnmap: self.unmap, g.FenceWait: self.fence_wait,
            g.MirrorOpen: self.mirror_open, g.MirrorClose: self.mirror_close,
            g.MirrorDone: self.mirror_done,
        }  # fmt: skip

    # -- what the driver asks ------------------------------------------------------------------

    def lock(self, _: g.DriverLock, envelope: Envelope) -> Ack | None:
        """Grant the driver's lock, now or in turn."""
        return Ack() if self.driver_lock.acquire(envelope.id) else None

    def trylock(self, _message: g.DriverTrylock, envelope: Envelope) -> Flag:
        """Take it if it is free."""
        free = not self.driver_lock.held
        return Flag(free and self.driver_lock.acquire(envelope.id))

    def unlock(self, _message: g.DriverUnlock, _: Envelope) -> Ack:
        """Release it."""
        for request in self.driver_lock.release():
            self.port.reply(request, Ack())
        return Ack()

    def map(self, message: g.DeviceMap, _: Envelope) -> Ack:
        """Make an entry."""
        if message.job:
            self.fences = (*self.fences, (message.job, message.mm, message.address))
        self.table.install(message.mm, message.address, message.pte, message.walk)
        return Ack()

    async def unmap(self, message: g.DeviceUnmap, _: Envelope) -> Ack:
        """Drop entries; answered when none of them is in use."""
        await self.table.invalidate(message.mm, message.start, message.end)
        return Ack()

    async def fence_wait(self, message: g.FenceWait, _: Envelope) -> Ack:
        """Wait for the jobs that have entries of the range now."""
        jobs = {
            job
            for job, mm, page in self.fences
            if mm == message.mm and covers(message.start, message.end, page)
        }
        while any(fence[0] in jobs for fence in self.fences):
            await self.port.park("fence")
        return Ack()

    def mirror_open(self, message: g.MirrorOpen, _: Envelope) -> Flag:
        """Note a mirror, if the mm has none."""
        if message.mm in self.mirrors:
            return Flag(False)
        self.mirrors = {**self.mirrors, message.mm: (message.start, message.end)}
        self.in_call = (*self.in_call, message.mm)
        return Flag(True)

    async def mirror_close(self, message: g.MirrorClose, _: Envelope) -> Flag:
        """No job begins; those that run come to their end; then its entries go."""
        mm = message.mm
        if mm not in self.mirrors or mm in self.in_call:
            return Flag(False)
        self.in_call = (*self.in_call, mm)
        while any(running == mm for _, running in self.running):
            await self.port.park("job done")
        await self.table.invalidate(mm, 0, ULONG_MAX)
        return Flag(True)

    def mirror_done(self, message: g.MirrorDone, _: Envelope) -> Ack:
        """There is a file, or there is none any more."""
        self.in_call = tuple(mm for mm in self.in_call if mm != message.mm)
        if message.closed:
            self.mirrors = {mm: r for mm, r in self.mirrors.items() if mm != message.mm}
        return Ack()

    # -- jobs ------------------------------------------------------------------------------------

    async def gpu_job(self, job: g.GpuJob, _: Envelope) -> OpDone:
        """One job: 0, or -errno."""
        return await self.operate(job, self._run(job))

    async def _run(self, job: g.GpuJob) -> int:
        start, end = self.mirrors.get(job.mm, (0, 0))
        if (
            job.mm in self.in_call
            or not start <= job.address
            or not job.address + job.length <= end
        ):
            return -EFAULT
        if job.atomic and (self.of_jobs or self.one_by_one):
            return -EINVAL
        name = self.port.operation
        self.running = (*self.running, (name, job.mm))
        result = await (self._fenced(job) if self.of_jobs else self._faulting(job))
        self.running = tuple(one for one in self.running if one[0] != name)
        self.port.wake("job done")
        return result

    async def _faulting(self, job: g.GpuJob) -> int:
        """Each page as it is met; what is not mapped is faulted in, with all that follows it."""
        for page in _pages(job):
            attempts = Attempts()
            while not await self._access(job, page):
                result = await self._fault(job, page)
                if result:
                    return result
                if attempts.refusals:
                    self._note_retry(job, page)
                if not attempts.refused():
                    return -EAGAIN
        return 0

    async def _fenced(self, job: g.GpuJob) -> int:
        """All pages are mapped when the job is submitted, and until its fence is signalled."""
        name, result = self.port.operation, await self._fault(job, job.address)
        for page in _pages(job) if not result else ():
            await self._access(job, page)
        if not result and not self.signals_alone:
            await self.port.call(self.cpu, g.FenceSignal(self.name))
        for _, mm, page in (fence for fence in self.fences if fence[0] == name):
            entry = self.table.lookup(mm, page)
            others = any(f[0] != name and f[1:] == (mm, page) for f in self.fences)
            if entry is not None and not others:
                self.table.evict(entry)
        self.fences = tuple(fence for fence in self.fences if fence[0] != name)
        self.port.wake("fence")
        return result

    async def _access(self, job: g.GpuJob, page: int) -> bool:
        """One load or store; False if no entry permits it."""
        entry = self.table.lookup(job.mm, page)
        if job.atomic:
            return await self._add(entry, job, page)
        if entry is None or not ptes.permits(entry.pte, job.write):
            return False
        await data_access(self.table, entry, page, job.write, job.value)
        return True

    async def _add(self, entry: Entry | None, job: g.GpuJob, page: int) -> bool:
        """An atomic addition; False if the page is not for this device alone."""
        if entry is None or not entry.pte & ptes.DEVICE_EXCLUSIVE:
            return False
        await atomic_add(self.table, entry, page, job.value)
        return True

    async def _fault(self, job: g.GpuJob, page: int) -> int:
        end = job.address + job.length
        end = page + PAGE_SIZE if job.atomic else end
        fault = g.GpuFault(self.name, job.mm, page, end, job.write, job.atomic)
        if not self.one_by_one:
            return (await self.port.call(self.cpu, fault)).result
        while self.faulting:
            await self.port.park("fault served")
        self.faulting = True
        result = (await self.port.call(self.cpu, fault)).result
        self.faulting = False
        self.port.wake("fault served")
        return result

    def _note_retry(self, job: g.GpuJob, page: int) -> None:
        self.port.emit(FaultRetry(job.mm, page, job.write, "GPU fault", self.port.operation))


def _pages(job: g.GpuJob) -> Iterator[int]:
    return iter(range(job.address, job.address + job.length, PAGE_SIZE))
