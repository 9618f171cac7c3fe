"""What kernels are made of: switches by owner, their history, and presets computed from it.

``mm`` and ``arch`` have the core's and the architectures' switches; a driver has its own beside its
code.  ``kernel`` puts one kernel together, ``preset`` finds a release's.
"""

from __future__ import annotations

from mmurace.nodes.kernel.variant.kernel import MACHINES, Kernel
from mmurace.nodes.kernel.variant.preset import preset, usual

__all__ = ["MACHINES", "Kernel", "preset", "usual"]
