"""What a plug-in must not do to the process that it runs in, and what becomes of it if it tries.

A node is a function of its deliveries: it has no threads, no clock and no say in when its process
ends.  ``os._exit`` would end a run in the middle with a status that means a verdict; only a parent
could catch it then, and that would not know the line.  So the few functions by which this happens
by mistake are put in the shade of one that looks who calls.  It is no prison: whoever wants out
(``ctypes``) gets out.
"""

from __future__ import annotations

import _thread
import functools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

from mmurace.nodes.plugin_watchdog import watched
from mmurace.protocol.errors import EmulatorError

REFUSED: Final[tuple[tuple[Any, str], ...]] = (
    (os, "_exit"), (os, "abort"), (os, "fork"), (_thread, "start_new_thread"),
    (threading.Thread, "start"), (signal, "signal"), (signal, "pthread_sigmask"),
)  # fmt: skip
_DONE: Final[list[str]] = []


def guard() -> None:
    """Refuse them to plug-ins from now on."""
    if _DONE:
        return
    for owner, name in REFUSED:
        setattr(owner, name, _refusing(getattr(owner, name), f"{owner.__name__}.{name}"))
        _DONE.append(name)


def _refusing(function: Any, name: str) -> Any:
    @functools.wraps(function)
    def refusing(*given: Any, **named: Any) -> Any:
        if _called_by_plugin(sys._getframe(1)):
            raise EmulatorError(f"calls {name}, which is not for a plug-in")
        return function(*given, **named)

    return refusing


def _called_by_plugin(frame: FrameType | None) -> bool:
    """Whether the first caller outside the standard library is one.

    Not whether any is: signals are handled, and our own code is called, on top of a plug-in's.
    """
    while frame is not None:
        if frame.f_code.co_filename in watched():
            return True
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top == "__main__" or top not in sys.stdlib_module_names:
            return False
        frame = frame.f_back
    return False
