"""The built-in secondaries, each declared in a folder of its own.

The order is that of their notifiers: the last one here is the newest on an mm's list.
"""

from __future__ import annotations

from mmurace.nodes.secondaries.gpu import GPU
from mmurace.nodes.secondaries.iommu_sva import SVA
from mmurace.nodes.secondaries.kvm import KVM
from mmurace.nodes.secondaries.ocxl import OCXL
from mmurace.nodes.secondary import register

BUILT_IN = tuple(map(register, (KVM, SVA, OCXL, GPU)))
