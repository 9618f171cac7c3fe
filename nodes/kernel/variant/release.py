"""Releases of Linux by name: which there are here, and which came first.

What they do is in ``mm_by_release``, ``arch_by_release`` and each driver's ``variant``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from mmurace.protocol.errors import UserError

_NAME: Final = re.compile(r"v(\d{1,3})\.(\d{1,3})(?:\.(\d{1,4}))?")


class Release(NamedTuple):
    """``v6.6`` is (6, 6, 0), ``v6.6.5`` is (6, 6, 5); tuples compare as mainline does."""

    major: int
    minor: int
    point: int = 0

    @property
    def series(self) -> tuple[int, int]:
        """What a stable tree is named for."""
        return self.major, self.minor

    def __str__(self) -> str:
        point = f".{self.point}" if self.point else ""
        return f"v{self.major}.{self.minor}{point}"


OLDEST: Final = Release(4, 9)
NEWEST: Final = Release(7, 2)
"""The newest whose differences are in the data."""
_LAST_MINOR: Final = {4: 20, 5: 19, 6: 19, 7: NEWEST.minor}
"""The last release of each major number."""
MAINLINE: Final = tuple(
    Release(major, minor)
    for major, last in _LAST_MINOR.items()
    for minor in range(OLDEST.minor if major == OLDEST.major else 0, last + 1)
)
LONG_TERM: Final = tuple(
    str(Release(*series))
    for series in (
        *((4, 9), (4, 14), (4, 19), (5, 4), (5, 10), (5, 15)),
        *((6, 1), (6, 6), (6, 12), (6, 18)),
    )
)


def parse(name: str) -> Release:
    """The release of that name, whether or not it is known.  Raises ``ValueError``."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(name)
    major, minor, point = found.groups()
    return Release(int(major), int(minor), int(point or 0))


def known(name: str, where: str) -> Release:
    """The release of that name.  Raises ``UserError`` if nothing is known of it."""
    span = f"a release from {OLDEST} to {NEWEST}, or a point release of one (v6.1.55)"
    try:
        release = parse(name)
    except ValueError:
        raise UserError(where, f"unknown kernel {name!r}", span) from None
    if release.series > NEWEST.series:
        raise UserError(where, f"unknown kernel {name!r}: newer than {NEWEST}", span)
    if Release(*release.series) not in MAINLINE:
        raise UserError(where, f"unknown kernel {name!r}", span)
    return release
