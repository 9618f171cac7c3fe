"""The explanation that a search ends with: of its schedule, cut down in few tries.

No clock has a say in it, so that two searches with the same seed end with the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmurace.explorer.explain.why import Explanation, explain
from mmurace.explorer.run.schedule_file import SUFFIX, Loaded, load, schedule_text, write
from mmurace.explorer.shrink.minimize import Minimized, minimize_quickly

PASSING_TRIES: Final = 25
"""Runs that look for one that passes, if reversing races has not found one."""
FILE: Final = f"minimal{SUFFIX}"
"""Its name in the run's directory."""


@dataclass(frozen=True, slots=True)
class Story:
    """What was found, shorter, and why it fails."""

    file: Path
    """The short schedule."""
    minimized: Minimized
    explanation: Explanation


def story_of(run_dir: Path) -> Story:
    """Cut the run in a directory down, write that beside it, and explain it.

    Raises ``UserError`` if the run violates nothing, ``ReplayDivergence`` if it does not replay,
    and ``KeyboardInterrupt``.
    """
    found = minimize_quickly(load(run_dir))
    file = run_dir / FILE
    write(file, schedule_text(found.case, found.target))
    loaded = Loaded(found.case, found.target, found.played)
    return Story(file, found, explain(loaded, passing_tries=PASSING_TRIES))
