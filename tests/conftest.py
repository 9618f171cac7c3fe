"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell that runs the tests in the background makes every child ignore Ctrl-C, also those that
# tests start to send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
