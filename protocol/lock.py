"""What a message says of the lock that it asks for or gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lock:
    """A kind of lock.  The request that takes it is called ``name``."""

    name: str
    called: str
    """What the kernel calls it, for reports: a template over the fields of the message, and
    ``target``, the node that has it (``mmu_lock of {target}``)."""
    spins: bool = False
    """It is a spinlock: who holds it does not sleep.  Others sleep until they get it."""
