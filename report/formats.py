"""Small words: numbers, names and commands as people read them."""

from __future__ import annotations

import errno
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mmurace.nodes import plugins

COMMAND: Final = "mmurace"
LAUNCH: Final = Path(__file__).resolve().parents[1] / "launch.py"
"""In a checkout."""


def plain(text: str) -> str:
    """The text on one line, without anything that a terminal would act on."""
    return "".join(char if char.isprintable() else " " for char in text)


def number(value: int) -> str:
    """12,345."""
    return f"{value:,}"


def many(count: int, one: str, more: str = "") -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def seconds(value: float) -> str:
    """``0.42 s`` or ``3 min 12 s``."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def place(mm: str, address: int) -> str:
    """``mm0:0x3000``; empty if there is none."""
    return f"{mm}:{address:#x}" if address >= 0 else mm


def errno_name(error: int) -> str:
    """``EFAULT`` for 14."""
    return errno.errorcode.get(error, f"errno {error}")


def listed(items: Iterable[str], nothing: str = "none") -> str:
    """``a, b, c``."""
    return ", ".join(items) or nothing


def command(*words: str | Path) -> str:
    """A command of this program that can be pasted into a shell, here and as it was started."""
    named = (f"--plugin={_near(Path(plugin.path))}" for plugin in plugins.loaded())
    return shlex.join([*program(), *named, *map(str, words)])


def program() -> tuple[str, ...]:
    """How this program is started: ``mmurace``, ``python launch.py``, ``.venv/bin/python ...``."""
    started = Path(sys.argv[0])
    if started.name == COMMAND:
        return (COMMAND,) if _is(shutil.which(COMMAND), started) else (_near(started),)
    python = "python" if _is(shutil.which("python"), sys.executable) else _near(sys.executable)
    if LAUNCH.exists():
        return python, _near(LAUNCH)
    return python, "-m", COMMAND


def _is(found: str | None, wanted: str | Path) -> bool:
    """The very same path: a virtual environment's python is a link to another one."""
    return found is not None and Path(found).absolute() == Path(wanted).absolute()


def _near(path: str | Path) -> str:
    """Relative to where we are if it lies below, else the whole path."""
    whole = Path(path).absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
