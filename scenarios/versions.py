"""Which code a run was made by, so that a replay by another can say so."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from mmurace import __version__

ROOT: Final = Path(__file__).resolve().parents[1]
DECIDES: Final = ("protocol", "nodes", "broker")
"""Packages that decide what a run does; all others look at it."""
CODE: Final = "code"


@cache
def current() -> Mapping[str, str]:
    """What goes into ``run.toml``: a hash of the text of all that decides a run."""
    digest = hashlib.sha256()
    for package in DECIDES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return {CODE: digest.hexdigest()[:12]}


def told() -> str:
    """What ``--version`` says: the version, and the code that decides what a run does."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"mmurace {__version__} (code {current()[CODE]}, Python {python})"


def difference(recorded: Mapping[str, str]) -> str:
    """``; it was recorded by other code (...)``; empty if this code has recorded it."""
    then, now = recorded.get(CODE, ""), current()[CODE]
    if then == now:
        return ""
    if not then:
        return "; it does not say by which code it was recorded, so that may have been another"
    return f"; it was recorded by other code ({then}, this is {now}), which may be why"
