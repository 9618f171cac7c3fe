"""Whether the machine has room for a run, asked before anything of it is started.

Where libzmq can have no thread or no descriptor, it ends the whole process without a word to us.
"""

from __future__ import annotations

import os
from threading import Event, Thread
from typing import Final

from mmurace.protocol.errors import EmulatorError

THREADS: Final = 2
"""What a context of libzmq starts."""
DESCRIPTORS: Final = 8
"""What libzmq has open in the launcher."""
DESCRIPTORS_EACH: Final = 3
"""What the launcher has open for each process: two ends of pipes, and its journal."""
SECONDS_MAX: Final = 10.0


def check_room(processes: int) -> None:
    """Raises ``OSError`` or ``EmulatorError`` if a launcher of so many has no room for them."""
    _check_descriptors(DESCRIPTORS + DESCRIPTORS_EACH * processes)
    _check_threads(THREADS)


def _check_descriptors(count: int) -> None:
    taken: list[int] = []
    try:
        for _ in range(count):
            number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            taken.append(number)  # at once: the next one may fail
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None  # it is not about that file
    finally:
        for number in taken:
            os.close(number)


def _check_threads(count: int) -> None:
    over = Event()
    started: list[Thread] = []
    try:
        for _ in range(count):
            thread = Thread(target=over.wait, args=(SECONDS_MAX,), daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        limits = "ulimit -v or -u, or the container's limits"
        raise EmulatorError(f"no room for {count} more threads: {error} ({limits})") from None
    finally:
        over.set()
        for thread in started:
            thread.join(SECONDS_MAX)
