"""The parts of the machine, one file each, and the kernel code that they run.

A node is a deterministic state machine: it reacts to deliveries and to nothing else.  It reads
no clock, does no I/O and draws no unseeded chance; only ``runtime.py`` (one node as a process)
and what it stands on, ``sockets.py`` and ``journal.py``, touch the operating system.
May import ``protocol``; imported by ``broker`` and above.
"""

from mmurace.nodes import secondaries  # noqa: F401 - importing it registers them
