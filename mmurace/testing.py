"""Races in tests of one's own: what the ``notifier_race`` fixture gives, and what it takes.

``docs/in-your-repository.md`` shows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmurace.protocol.errors import UserError
from mmurace.report.racing import SCHEDULES, SEED, Raced, expecting, failure_text, planted, race
from mmurace.scenarios.catalogue import Race, find, race_from
from mmurace.scenarios.spec import RunSpec

__all__ = ["Race", "Raced", "Racer", "RunSpec", "UserError"]


class RaceFailed(AssertionError):
    """A race did not come out as expected; the text says why, and how to repeat it."""


class Racer:
    """Runs races and fails where one does not come out as it should."""

    def __init__(self, root: Path, schedules: int = SCHEDULES, seed: int = SEED) -> None:
        """What is found is recorded in ``root/runs``."""
        self.root, self.schedules, self.seed = root, schedules, seed
        self.raced: list[Raced] = []
        """All that was run, in order."""

    def __call__(
        self,
        what: str | Path | Mapping[str, Any] | Race | RunSpec,
        kernel: str = "",
        *,
        expect: str = "",
        patch: str = "",
        schedules: int | None = None,
        seed: int | None = None,
    ) -> Raced:
        """Run one race on one of its kernels (else its first).

        ``what`` is a race's file, an id of the catalogue, a table like that of a file, or a run.
        ``expect`` is ``held`` or ``violated``; else it is what the race says of that kernel, and
        ``held`` of a patched one.  Raises ``RaceFailed`` if it comes out otherwise, also where its
        window was never entered, and ``UserError`` for what is no race.
        """
        if problem := planted():
            raise RaceFailed(problem)
        spec = self._spec(what, kernel, self.seed if seed is None else seed).patched(patch)
        spec = expecting(spec, expect) if expect else spec
        made = race(spec, self.schedules if schedules is None else schedules)
        self.raced.append(made)
        if not made.as_expected:
            raise RaceFailed(failure_text(made, self.root))
        return made

    def _spec(
        self, what: str | Path | Mapping[str, Any] | Race | RunSpec, kernel: str, seed: int
    ) -> RunSpec:
        if isinstance(what, RunSpec):
            if kernel:
                raise UserError("kernel", f"is {kernel!r}, and a run has its own", "none")
            return replace(what, seed=seed)
        if isinstance(what, Mapping):
            what = race_from(dict(what), "race")
        known = what if isinstance(what, Race) else find(str(what))
        return known.run(kernel, seed)
