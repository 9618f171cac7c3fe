"""GPUs that mirror an mm with HMM (lib/test_hmm.c, drivers/gpu/drm/amd/amdgpu)."""

from __future__ import annotations

from mmurace.nodes.node import Node
from mmurace.nodes.secondaries.gpu import amdgpu_hmm, devmem, driver
from mmurace.nodes.secondaries.gpu.device import CACHE, GpuNode
from mmurace.nodes.secondaries.gpu.messages import (
    DeviceUnmap,
    FenceSignal,
    GpuFault,
    GpuJob,
    GpuMigrate,
    GpuMirror,
    GpuUnmirror,
)
from mmurace.nodes.secondaries.gpu.part import Gpu, Gpus
from mmurace.nodes.secondary import Cache, Secondary
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.ranges import page_of


def node_class(_gpu: Gpu, _name: str) -> type[Node]:
    """A GPU is one node."""
    return GpuNode


GPU = Secondary(
    name="gpu",
    key="gpus",
    named_by={"gpu": lambda gpu: (gpu.name,)},
    idle=frozenset({"GpuMirror", "GpuUnmirror"}),
    given={GpuMigrate: devmem.given, GpuJob: lambda _ground, _gpu: {"atomic": False}},
    copying=frozenset({"GpuMigrate"}),
    points=dict.fromkeys(
        ("device_page_gone", "migration_entry_wait", "migrate_vma_restored"),
        frozenset({"GpuMigrate"}),
    ),
    place=3,
    part=Gpu,
    node_class=node_class,
    caches=(
        Cache(
            CACHE, "shadow", refused="mmu_interval_read_retry", filled_by="hmm_range_fault",
            held_in="the device's page table", dropped_by=(DeviceUnmap,),
        ),
    ),
    ops=driver.notifier_ops,
    interval=driver.invalidate,
    work={GpuFault: driver.gpu_fault, FenceSignal: amdgpu_hmm.signal_fence},
    migrate_to_ram=devmem.dmirror_devmem_fault,
    calls={
        GpuMirror: driver.open_mirror, GpuUnmirror: driver.close_mirror,
        GpuMigrate: devmem.dmirror_migrate,
    },
    accesses={GpuJob: lambda gpu: (gpu.name,)},
    drawn={GpuJob: lambda _gpu, d: GpuJob(d.mm, page_of(d.address), PAGE_SIZE, d.write, d.value)},
    beside=Gpus,
)  # fmt: skip
"""The declaration."""
