"""Every message, one file per receiver; importing this package registers them all.

A message is one access to shared state.  Its class says which object it accesses (a label and
the fields that complete it), how (read, write), and which reply it gets; ``docs/protocol.md`` is
generated from that.
"""

from protocol.messages import device, filemap, iommu, kvm, memory, ocxl, processor, program, swap
from protocol.messages.base import Message, kinds

__all__ = [
    "Message",
    "device",
    "filemap",
    "iommu",
    "kinds",
    "kvm",
    "memory",
    "ocxl",
    "processor",
    "program",
    "swap",
]
