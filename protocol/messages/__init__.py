"""The core's messages, one file per receiver; a secondary has its own beside its code.

A message is one access to shared state.  Its class says which object it accesses (a label and
the fields that complete it), how (read, write), and which reply it gets; ``docs/protocol.md`` is
generated from that.
"""

from mmurace.protocol.messages import (
    book3s64,
    device_memory,
    filemap,
    memory,
    processor,
    program,
    shadow,
    swap,
    vma_lock,
)
from mmurace.protocol.messages.base import Message, kinds

__all__ = [
    "Message",
    "book3s64",
    "device_memory",
    "filemap",
    "kinds",
    "memory",
    "processor",
    "program",
    "shadow",
    "swap",
    "vma_lock",
]
