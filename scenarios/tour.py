"""The race that a newcomer sees first, that of the README: where it happens, and where not."""

from __future__ import annotations

from typing import Final

RACE: Final = "E01"
BROKEN: Final = "v5.7"
CURED: Final = "v5.8"
